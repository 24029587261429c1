"""Tests of harness/laws/sharding.py on made-up traces of two ranks: each law holds, and each fault is found and named."""

import pytest

from harness.laws import sharding
from tests.traces import BASE, A, two_ranks

LAWS = {
    "sharded": lambda trace: sharding.sharded(trace, "fsdp2"),
    "units": lambda trace: sharding.units(trace, ["", "model.layers.0"]),
    "dtypes_kept": sharding.dtypes_kept,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_law_holds(law):
    verdict = LAWS[law](two_ranks())
    assert verdict.holds, verdict.seen


@pytest.mark.parametrize("law", LAWS)
def test_a_law_requires_every_rank(law):
    trace = two_ranks(error="rank 1 of 2: ValueError: no")
    trace.ranks = []
    seen = "\n".join(LAWS[law](trace).seen)
    assert "1 ranks left a trace, expected 2" in seen and "the run ended with rank 1 of 2" in seen


@pytest.mark.parametrize(
    ("law", "damage", "words"),
    [
        ("sharded", lambda t: t.distributed.update(units={}), "no module is an FSDPModule"),
        ("sharded", lambda t: t.distributed["kinds"].update({A: "Parameter"}), "1 of 3 parameters are no DTensor"),
        ("sharded", lambda t: t.distributed["local"].update({A: 8}), f"{A} has 8 elements, but [8, 4] of them lie"),
        ("units", lambda t: t.distributed["units"].pop(""), "the model is no unit"),
        ("units", lambda t: t.distributed["units"].update(lm_head="FSDPModule"), "lm_head is a unit, unexpected"),
        (
            "dtypes_kept",
            lambda t: t.distributed["dtypes"].update({BASE: "float64"}),
            f"{BASE} was float32, after sharding it is",
        ),
    ],
)
def test_a_law_fails_for_what_it_is_there_to_see(law, damage, words):
    trace = two_ranks()
    damage(trace)
    verdict = LAWS[law](trace)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_a_flat_parameter_is_asked_for():
    trace = two_ranks()
    assert "no module is an FullyShardedDataParallel" in "\n".join(sharding.sharded(trace, "fsdp1").seen)
    trace.distributed["units"][""] = "FullyShardedDataParallel"
    assert "no module has a FlatParameter" in "\n".join(sharding.sharded(trace, "fsdp1").seen)
