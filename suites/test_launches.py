"""The universal laws of one process (harness/laws/universal.py), under every way to spread a run over several."""

import pytest

from harness.laws.several import whole_run
from harness.laws.universal import COMPARISONS, LAWS_OF_ONE_RUN, LAWS_OF_SEVERAL_RUNS, why_not_judged
from harness.runs import strategies
from harness.runs.drawn import laws_of_ranks
from harness.runs.scenarios import LAUNCHES

#: Laws that train further runs, and the launches for which they do: those whose runs other clauses share, or cheap ones.
FURTHER = {
    "GEN-02": ("ddp-2", "ddp-4", "fsdp2-2", "fsdp1-2", "loaded-2", "zero2-2", "zero3-2"),
    "RES-01": ("ddp-2", "fsdp2-2", "fsdp2-2-sharded", "fsdp1-2", "zero2-2"),
    "API-05": ("ddp-2", "fsdp2-2", "zero2-2"),
    "ACC-01": ("ddp-2", "ddp-4", "fsdp2-2", "fsdp1-2", "loaded-2", "zero2-2"),
    "ACC-10": ("ddp-2", "fsdp2-2", "zero2-2"),
    "FRZ-15": ("ddp-2", "fsdp2-2", "loaded-2"),
}


@pytest.mark.parametrize(
    ("spec", "law"),
    [
        pytest.param(spec, law, id=f"{launch}/{clause}", marks=pytest.mark.clause(clause))
        for launch, spec in LAUNCHES.items()
        for clause, law in LAWS_OF_ONE_RUN.items()
    ],
)
def test_ranks_together_obey_the_laws_of_one_process(spec, law, train, judge, request):
    (clause,) = request.node.get_closest_marker("clause").args
    if reason := why_not_judged(clause, spec):
        pytest.skip(reason)
    judge(law(whole_run(train(spec))))


@pytest.mark.parametrize(
    ("spec", "compare"),
    [
        pytest.param(
            LAUNCHES[launch], LAWS_OF_SEVERAL_RUNS[clause], id=f"{launch}/{clause}", marks=pytest.mark.clause(clause)
        )
        for clause, launches in FURTHER.items()
        for launch in launches
    ],
)
def test_ranks_together_obey_the_laws_that_compare_runs(spec, compare, train, judge, request):
    (clause,) = request.node.get_closest_marker("clause").args
    # These look at each rank. The others are given what all ranks did together.
    made = train if clause in COMPARISONS else lambda *args, **options: whole_run(train(*args, **options))
    judge(compare(made, spec))


@pytest.mark.clause("DIST-02", "FSDP-17", "DS-08")
@pytest.mark.parametrize("part", range(2), ids="drawn-in-two-processes-{}".format)
def test_any_run_in_two_processes(draw, part):
    draw.judge_all(strategies.spread_specs(), part, laws_of_ranks)
