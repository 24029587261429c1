"""Tests of harness/runs/drawn.py: what a drawn failure reports, and which failures known defects excuse."""

import json
from dataclasses import replace as replace_fields
from types import SimpleNamespace

import pytest
from hypothesis import given, settings

from harness import subjects
from harness.contract import expectations
from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.paths import SUITES
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.drawn import Draw, laws_that_apply
from harness.runs.scenarios import LAUNCHES, PLAIN
from harness.runs.strategies import any_specs, lives, run_specs, spread_specs
from harness.spec import ADD, RunSpec, changes
from harness.subjects.hf_trainer import HFTrainer
from harness.trace import Trace
from harness.verdict import FAIL, Case, verdict
from tests.faults import replace

TRAINER = "transformers.trainer:Trainer"
KNOWN = Expectation("RES-01", "drawn-*", (), "steps 9", "known", spec={"adapter.route": "add*", "arguments.seed": "42"})


@pytest.mark.parametrize(
    ("clause", "spec", "seen", "excused"),
    [
        ("RES-01", PLAIN.but(adapter={"route": ADD}), "steps 9 to 12", True),
        ("RES-01", PLAIN.but(adapter={"route": ADD}), "another fault", False),
        ("RES-01", PLAIN.but(adapter={"route": ADD}, seed=1), "steps 9 to 12", False),
        ("RES-01", PLAIN, "steps 9 to 12", False),
        ("ACC-01", PLAIN.but(adapter={"route": ADD}), "steps 9 to 12", False),
    ],
)
def test_a_known_defect_excuses_the_drawn_runs_that_it_describes(clause, spec, seen, excused):
    assert KNOWN.excuses(clause, "hf-trainer", spec.to_json(), seen) is excused
    assert not KNOWN.excuses(clause, "reference", spec.to_json(), seen)


def test_an_expectation_without_a_spec_excuses_no_drawn_run():
    plain = Expectation("RES-01", "drawn-*", (), "steps 9", "known")
    assert not plain.excuses("RES-01", "hf-trainer", PLAIN.to_json(), "steps 9 to 12")


def test_a_fault_of_some_processors_excuses_no_run_on_others(monkeypatch):
    packed = replace_fields(KNOWN, processor="avx512_bf16")
    for flags, excused in (({"avx2", "avx512_bf16"}, True), ({"avx2"}, False)):
        monkeypatch.setattr(expectations, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert packed.excuses("RES-01", "hf-trainer", PLAIN.but(adapter={"route": ADD}).to_json(), "steps 9") is excused
        assert packed.applies("RES-01", "drawn-0", "hf-trainer") is excused


@pytest.mark.parametrize(
    ("arguments", "evaluates"),
    [
        ({"eval_strategy": "epoch"}, True),
        ({"eval_strategy": "steps", "eval_steps": 2}, True),
        ({"eval_on_start": True}, True),
        ({"eval_steps": 2, "eval_delay": 1, "eval_accumulation_steps": 1, "eval_do_concat_batches": False}, False),
    ],
)
def test_known_defects_of_evaluated_4_bit_bases_are_about_runs_that_evaluate(arguments, evaluates, monkeypatch):
    monkeypatch.setattr(expectations, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    known = [
        one for one in expectations.load(SUITES / "expectations") if one.processor and one.match == ".absmax: digest"
    ]
    assert {one.clause for one in known} == {"FRZ-01", "FRZ-15"}
    for quantization in ("nf4", "int8"):
        spec = PLAIN.but(model={"quantization": quantization}, **arguments).to_json()
        excused = [one.excuses(one.clause, "hf-trainer", spec, "q_proj.weight.absmax: digest 1") for one in known]
        assert set(excused) == {evaluates and quantization == "nf4"}


def test_what_is_excused_is_counted_and_fails_nothing(tmp_path):
    def fail(verdict, clause):
        raise AssertionError(clause)

    case = Case("RES-01", "drawn-0", "", "hf-trainer")
    draw = Draw([case], Runs(subjects.load("hf-trainer"), tmp_path), fail, 0, [KNOWN])
    spec = PLAIN.but(adapter={"route": ADD})
    assert not draw.record("RES-01", spec, lambda: verdict("it holds", ["steps 9 to 12"]))
    assert draw.record("RES-01", spec, lambda: verdict("it holds", []))
    assert (case.drawn, case.evidence["known defects met"]) == (2, {"known": 1})
    with pytest.raises(AssertionError, match="RES-01"):
        draw.record("RES-01", PLAIN, lambda: verdict("it holds", ["steps 9 to 12"]))


@pytest.mark.parametrize("specs", [run_specs(), any_specs(), spread_specs(), lives("get_peft_model"), lives(ADD)])
def test_what_is_drawn_is_a_spec_that_survives_json(specs):
    @settings(max_examples=50, deadline=None, database=None)
    @given(specs)
    def survives(spec):
        again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec and again.hash == spec.hash

    survives()


def test_changes_are_what_a_spec_has_otherwise():
    spec = PLAIN.but(model={"config": {"num_hidden_layers": 1}}, adapter={"route": ADD}, bf16=True, seed=None)
    assert changes(spec.to_json()) == [
        "model.config.num_hidden_layers=1",
        "adapter.route='add_adapter'",
        "arguments.seed=None",
        "arguments.bf16=True",
    ]
    assert changes(PLAIN.to_json()) == []


def test_a_law_that_ends_in_an_error_fails_its_clause_alone():
    """The other clauses are judged all the same, and a known defect that names the error excuses it."""

    def ends(words):
        raise UnboundLocalError(words)

    failed = []
    cases = {clause: Case(clause, "drawn-0", "", "hf-trainer") for clause in ("API-02", "RES-01", "FRZ-01")}
    known = [
        Expectation("API-02", "drawn-*", (), "no variable", "upstream hides its error", spec={"adapter.route": "get*"})
    ]
    draw = Draw(
        list(cases.values()), SimpleNamespace(subject=HFTrainer()), lambda *failure: failed.append(failure), None, known
    )
    assert draw.record("API-02", PLAIN, lambda: ends("no variable")) is False
    assert cases["API-02"].evidence["known defects met"] == {"upstream hides its error": 1}
    assert draw.record("FRZ-01", PLAIN, lambda: verdict("it holds", [])) is True
    assert not failed
    assert draw.record("RES-01", PLAIN, lambda: ends("another")) is False
    ((found, clause),) = failed
    assert clause == "RES-01"
    assert "UnboundLocalError: another, raised at test_drawn.py:" in found.seen[0] and "(ends)" in found.seen[0]
    with pytest.raises(UsageError):
        draw.record("RES-01", PLAIN, lambda: usage())


def usage():
    raise UsageError("the spec is wrong")


SUITE = """
import pytest
from hypothesis import strategies as st
from harness.runs.scenarios import LAUNCHES, PLAIN
from harness.verdict import verdict

@pytest.mark.clause("FRZ-01", "GEN-01")
@pytest.mark.parametrize("part", [0], ids="drawn-{}".format)
def test_any_run(draw, part):
    draw.judge_all(st.builds(lambda steps: PLAIN.but(max_steps=steps), st.integers(1, 4)), part)

@pytest.mark.clause("FRZ-11", "GEN-01")
@pytest.mark.parametrize("part", [0], ids="drawn-life-{}".format)
def test_any_life(draw, part):
    draw.begin(PLAIN, [{"do": "add", "r": 1}, {"do": "disable"}])
    draw.record("FRZ-11", PLAIN, lambda: verdict("it holds", ["it does not"]))
"""

pytest_plugins = ["pytester"]


def drifts(original, trainer, *args, **options):
    next(trainer.model.parameters()).data.mul_(1.0001)
    return original(trainer, *args, **options)


def test_a_drawn_failure_is_shrunk_and_reported(pytester, monkeypatch, tmp_path):
    import_upstream()
    monkeypatch.setenv("COLUMNS", "200")
    # A context of its own, since the test's monkeypatch is undone only when the test ends.
    with monkeypatch.context() as patch:
        replace(TRAINER, "training_step", drifts)(patch)
        _judge_a_drawn_failure(pytester)
    # The session ran in this process, and its fork server remembered what was patched. Ranks forked now must not have it.
    trained = Runs(HFTrainer(), tmp_path).train(LAUNCHES["ddp-2"].but(max_steps=1, save_strategy="no"))
    assert [one.base == one.base_before for one in (trained, *trained.ranks)] == [True, True]


def _judge_a_drawn_failure(pytester):
    pytester.makeconftest('pytest_plugins = ["harness.session.plugin"]')
    pytester.makepyfile(SUITE)
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    output = done.stdout.str()
    assert int(done.ret) == 1
    assert "run       arguments.max_steps=1" in output
    assert "life      add(r=1)" in output and "            disable()" in output
    assert "repeat    peft-harness repro .peft-harness/cases/FRZ-01-drawn-0.json" in output
    case = json.loads((pytester.path / ".peft-harness/cases/FRZ-11-drawn-life-0.json").read_text())
    assert [act["do"] for act in case["life"]] == ["add", "disable"]


@pytest.mark.parametrize(
    ("events", "clauses"),
    [(["train_begin"], []), (["train_begin", "step_begin"], ["LOOP-04"])],
    ids=["before", "within"],
)
def test_a_run_that_fails_in_its_first_step_is_judged_by_one_clause(events, clauses):
    made = Trace(PLAIN, "hf-trainer", {}, error="RuntimeError: mixed", events=events)
    laws = laws_that_apply(lambda spec: made, PLAIN)
    assert list(laws) == clauses
    assert all(law().outcome == FAIL for law in laws.values())
