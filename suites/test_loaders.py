"""Data loaders: which rows each process trains, in which order, and after a resume (clauses of DIST, RNG, RES, ACC, LOOP).

`TABLE` is a covering array: every two values of `AXES` that go together are together in a case. tests/test_loader_table.py
checks that.
"""

import math
from typing import Any

import pytest

from harness.laws import accumulation, comparisons, data_order, schedule, several
from harness.laws.loading import loading, shares
from harness.runs.scenarios import PLAIN, cases, continued, over
from harness.spec import RunSpec
from harness.verdict import both

#: How ranks share rows -> accelerator_config, and whether the dataset has no length.
LOADERS: dict[str, tuple[dict[str, bool], bool]] = {
    "dealt": ({}, False),
    "split": ({"split_batches": True}, False),
    "dispatch": ({"dispatch_batches": True}, False),
    "split-dispatch": ({"split_batches": True, "dispatch_batches": True}, False),
    "stream": ({}, True),
    "stream-sharded": ({"dispatch_batches": False}, True),
    "stream-split": ({"dispatch_batches": False, "split_batches": True}, True),
}

#: What gives the order of the rows -> arguments.
ORDERS: dict[str, dict[str, Any]] = {
    "random": {},
    "data-seed": {"data_seed": 7},
    "sequential": {"train_sampling_strategy": "sequential"},
    "by-length": {"train_sampling_strategy": "group_by_length"},
    "unseedable": {},
}

#: The axes of the array. `resume` is where the checkpoint lies: nowhere, inside the first epoch, or inside the second. In
#: "skip" it lies inside the second, and ignore_data_skip starts that epoch again. `last` is what happens to rows that do
#: not fill the last batches: they are filled up, dropped, or left to some ranks (even_batches=False).
AXES: dict[str, tuple[Any, ...]] = {
    "loader": tuple(LOADERS),
    "resume": ("", "first", "later", "skip"),
    "order": tuple(ORDERS),
    "ranks": (1, 2, 3),
    "rows": (24, 25),
    "last": ("filled", "drop", "uneven"),
    "window": (1, 2),
    "workers": (0, 2),
}

#: (loader, resume, order, ranks, rows, last, window, workers)
TABLE = (
    ("dealt", "", "random", 1, 24, "filled", 1, 2),
    ("dealt", "skip", "data-seed", 1, 24, "filled", 1, 0),
    ("dealt", "", "unseedable", 2, 25, "filled", 1, 2),
    ("dealt", "", "random", 2, 25, "filled", 1, 0),
    ("dealt", "later", "random", 2, 25, "drop", 2, 0),
    ("dealt", "", "by-length", 2, 25, "uneven", 1, 0),
    ("dealt", "first", "by-length", 2, 24, "filled", 1, 0),
    ("dealt", "", "data-seed", 2, 25, "uneven", 1, 0),
    ("dealt", "first", "sequential", 3, 25, "uneven", 2, 0),
    ("split", "", "data-seed", 2, 25, "drop", 2, 2),
    ("split", "first", "data-seed", 2, 24, "filled", 1, 0),
    ("split", "", "random", 2, 25, "uneven", 1, 2),
    ("split", "skip", "sequential", 2, 24, "filled", 1, 0),
    ("split", "later", "by-length", 3, 24, "filled", 2, 0),
    ("split", "later", "unseedable", 3, 24, "filled", 1, 0),
    ("dispatch", "later", "by-length", 1, 25, "drop", 1, 0),
    ("dispatch", "first", "unseedable", 1, 25, "drop", 2, 0),
    ("dispatch", "later", "random", 1, 24, "filled", 1, 0),
    ("dispatch", "skip", "by-length", 1, 24, "filled", 1, 0),
    ("dispatch", "first", "random", 2, 24, "filled", 1, 0),
    ("dispatch", "", "random", 2, 25, "filled", 1, 0),
    ("dispatch", "", "sequential", 3, 24, "filled", 1, 2),
    ("dispatch", "later", "data-seed", 3, 24, "filled", 1, 0),
    ("split-dispatch", "skip", "unseedable", 2, 24, "filled", 2, 0),
    ("split-dispatch", "", "by-length", 2, 24, "filled", 1, 2),
    ("split-dispatch", "later", "sequential", 2, 25, "drop", 1, 0),
    ("split-dispatch", "first", "data-seed", 2, 24, "filled", 1, 0),
    ("split-dispatch", "skip", "random", 3, 25, "drop", 1, 0),
    ("stream", "skip", "sequential", 1, 24, "filled", 2, 0),
    ("stream", "", "sequential", 2, 25, "filled", 1, 0),
    ("stream", "first", "sequential", 3, 24, "filled", 1, 0),
    ("stream-sharded", "", "sequential", 2, 25, "filled", 1, 0),
    ("stream-sharded", "skip", "sequential", 2, 24, "filled", 1, 0),
    ("stream-sharded", "first", "sequential", 3, 24, "filled", 2, 0),
    ("stream-split", "", "sequential", 2, 24, "filled", 1, 0),
    ("stream-split", "skip", "sequential", 2, 25, "filled", 1, 0),
    ("stream-split", "first", "sequential", 3, 24, "filled", 2, 0),
)


def together(loader, resume, order, ranks, rows, last, window, workers):
    """Return whether a case of these values says something of its own, and ends."""
    stream, slices = loader.startswith("stream"), "dispatch" in loader
    return not (
        # Rows of a stream come in its order, none is dropped, and each worker reads all of them.
        (stream and (order != "sequential" or last != "filled" or workers or resume == "later"))
        or (stream and rows == 25 and window == 2)  # LEFTOVER
        or (last != "filled" and rows == 24)
        # Ranks with different numbers of batches are soon in different epochs (DIST-14). With "unseedable" they then wait
        # for each other for ever.
        or (last == "uneven" and (ranks == 1 or slices or resume in ("later", "skip") or order == "unseedable"))
        or (last == "uneven" and resume and order == "by-length")
        or (ranks == 1 and "s" in (loader[0], loader[7:8]) and loader != "stream")
        or (resume and workers)  # RNG-04
    )


def spec_of(loader, resume, order, ranks, rows, last, window, workers):
    """Return the run of a case: two rows a rank and micro-batch, and three steps of the second epoch."""
    config, stream = dict(LOADERS[loader][0]), LOADERS[loader][1]
    if last == "uneven":
        config["even_batches"] = False
    if order == "unseedable":
        config["use_seedable_sampler"] = False
    arguments: dict[str, Any] = {**ORDERS[order]} if not stream else {}
    spec = PLAIN.but(
        data={"rows": rows, "length": 6, "iterable": stream},
        lora={"r": 2},
        per_device_train_batch_size=2 * ranks if config.get("split_batches") else 2,
        gradient_accumulation_steps=window,
        dataloader_num_workers=workers or None,
        dataloader_drop_last=True if last == "drop" else None,
        accelerator_config=config or None,
        launch={"strategy": "ddp", "ranks": ranks} if ranks > 1 else {},
        **arguments,
    )
    steps = math.ceil(len(shares(loading(spec))[0]) / window)
    spec = spec.but(max_steps=steps + 3)
    if not resume:
        return spec
    step = steps + 1 if resume in ("later", "skip") else max(1, steps - 1)
    return continued(spec.but(ignore_data_skip=True) if resume == "skip" else spec, step, every=step)


def name_of(loader, resume, order, ranks, rows, last, window, workers):
    """Return the name of a case: "split-3/random/25-rows/resumed-later"."""
    others = {
        "25-rows": rows == 25,
        last: last != "filled",
        "accumulated": window > 1,
        "workers": workers,
        f"resumed-{resume}": resume,
    }
    return "/".join([f"{loader}-{ranks}", order, *(name for name, there in others.items() if there)])


def named(*resumes: str) -> dict[str, RunSpec]:
    """Return the cases of the table that are resumed in one of these ways, by name."""
    return {name_of(*row): spec_of(*row) for row in TABLE if row[1] in resumes}


PLANNED = {name: spec for name, spec in named("").items() if "uneven" not in name}


@pytest.mark.clause("DIST-13")
@over(named(""))
def test_each_process_trains_its_rows(trace, judge):
    judge(several.trains_its_share(trace))


@pytest.mark.clause("RES-22")
@cases(named("first", "later"))
def test_each_process_goes_on_with_its_rows(spec, train, judge):
    resumed, whole = train(spec), train(spec.first_leg())
    judge(both(several.trains_its_share(resumed), several.same_rows(resumed, whole, spec.resume.checkpoint)))


@pytest.mark.clause("RES-14")
@over(named("skip"))
def test_each_process_starts_its_epoch_again(trace, judge):
    judge(several.trains_its_share(trace))


@pytest.mark.parametrize(
    "law",
    [
        pytest.param(law, id=clause, marks=pytest.mark.clause(clause))
        for clause, law in {
            "ACC-02": accumulation.windows,
            "LOOP-04": schedule.all_steps,
            "LOOP-06": schedule.epochs,
        }.items()
    ],
)
@over(PLANNED)
def test_steps_and_epochs_are_counted_over_all_ranks(trace, law, judge):
    judge(law(several.whole_run(trace)))


#: A pass over five batches leaves half a window.
LEFTOVER = PLAIN.but(
    data={"rows": 10, "length": 6, "iterable": True},
    lora={"r": 2, "lora_dropout": 0.0},
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    max_steps=5,
)


@pytest.mark.clause("ACC-02")
@over({"stream-1/leftover": LEFTOVER, "stream-2/leftover": LEFTOVER.but(launch={"strategy": "ddp", "ranks": 2})})
def test_a_short_window_at_the_end_of_a_stream_makes_a_step(trace, judge):
    judge(accumulation.windows(several.whole_run(trace)))


@pytest.mark.clause("LOOP-11")
@over({"stream-1/drop": LEFTOVER.but(data={"rows": 9}, gradient_accumulation_steps=None, dataloader_drop_last=True)})
def test_drop_last_leaves_out_the_short_batch_of_a_stream(trace, judge):
    judge(accumulation.whole_batches(trace))


@pytest.mark.clause("DIST-14")
@over(
    {name: spec for name, spec in named("").items() if "uneven" in name and "workers" not in name}
    | {name: spec for name, spec in PLANNED.items() if name in ("dealt-2/random/25-rows", "dispatch-2/random/25-rows")}
)
def test_all_ranks_are_in_the_same_epoch(trace, judge):
    judge(several.same_epochs(trace))


def compared(name: str) -> RunSpec:
    """Return a run of two ranks of the table to compare with others: five steps of 18 rows, with dropout."""
    row = next(row for row in TABLE if row[0] == name and row[1] == "" and row[3] == 2)
    return spec_of(*row[:4], 18, "filled", 1, 0).but(lora={"r": 4})


COMPARED = {f"{name}-2": compared(name) for name in ("split", "dispatch", "stream")}


@pytest.mark.parametrize(
    ("spec", "law"),
    [
        pytest.param(spec, law, id=f"{name}/{clause}", marks=pytest.mark.clause(clause))
        for name, spec in COMPARED.items()
        for clause, law in {
            "GEN-01": comparisons.as_reference,
            "GEN-02": comparisons.repeats,
            "DIST-02": comparisons.as_one_process,
            "RES-01": comparisons.resumes,
        }.items()
    ],
)
def test_the_run_is_the_same_by_other_hands(spec, law, train, judge):
    judge(law(train, spec))


@pytest.mark.clause("GEN-01")
@cases({"stream-1": LEFTOVER.but(gradient_accumulation_steps=None, lora={"lora_dropout": 0.1})})
def test_a_stream_trains_as_a_list_does(spec, runs, judge):
    judge(comparisons.as_reference(runs.train, spec))


@pytest.mark.clause("RNG-02")
@over(
    {"dispatch-1/random": PLAIN.but(max_steps=12, accelerator_config={"dispatch_batches": True, "non_blocking": True})}
)
def test_one_process_that_dispatches_to_itself_keeps_the_order(trace, judge):
    judge(data_order.follows_seed(trace))
