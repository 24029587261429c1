"""Tests of harness/laws/memory.py and harness/throughput/memory_probe.py on made-up measurements."""

import functools
import weakref

import pytest

from harness.laws import memory
from harness.runs.scenarios import PLAIN
from harness.throughput import memory_probe as measured
from harness.throughput.memory_probe import Memory

SPEC = PLAIN.but(per_device_train_batch_size=1, data={"rows": 2, "length": 8}, lora={"r": 1})


@pytest.fixture
def seen():
    return Memory(held=[4016] * 6, peaks=[83892] + [87516] * 5)


def test_what_was_measured_holds(seen):
    assert memory.within_bound(seen, SPEC).holds
    assert memory.held_between_steps(seen, SPEC).holds
    assert memory.does_not_grow(seen, SPEC).holds


def test_the_adapter_is_counted_from_the_spec():
    # Rank 1 on q_proj (64 to 64) and v_proj (64 to 32) of two layers.
    assert memory.adapter(SPEC) == 4 * 2 * (64 + 64 + 64 + 32)


def test_the_base_models_gradients_do_not_fit_below_the_bound(seen):
    seen.peaks[3] += 427264
    (sentence,) = memory.within_bound(seen, SPEC).seen
    assert sentence.startswith("step 4: 514780 bytes at the peak, expected")


def test_gradients_that_are_not_freed_are_found(seen):
    seen.held = [held + memory.adapter(SPEC) for held in seen.held]
    assert "after step 1: 5808 bytes, expected 3584" in memory.held_between_steps(seen, SPEC).seen[0]


def test_states_that_are_missing_are_seen(seen):
    seen.held[5] = 432
    assert memory.held_between_steps(seen, SPEC).seen[0].startswith("after step 6: 432 bytes")


@pytest.mark.parametrize("field", ["held", "peaks"])
def test_growth_is_seen(seen, field):
    getattr(seen, field)[4] += 4
    (sentence,) = memory.does_not_grow(seen, SPEC).seen
    assert sentence.startswith("step 5: ") and "until step 3" in sentence


def test_nothing_measured_is_no_pass():
    empty = Memory([], [])
    assert not memory.within_bound(empty, SPEC).holds
    assert not memory.held_between_steps(empty, SPEC).holds
    assert not memory.does_not_grow(empty, SPEC).holds


def test_a_gpu_rounds_what_it_allocates():
    on_a_gpu = SPEC.on_device("cuda")
    assert memory.small(on_a_gpu) == 131072 and memory.small(SPEC) == 1024
    states = memory.adapter(SPEC) * 2
    assert memory.held_between_steps(Memory([states + 16384], [0]), on_a_gpu).holds
    assert not memory.held_between_steps(Memory([states + 262144], [0]), on_a_gpu).holds


def test_on_a_gpu_the_allocator_counts_after_a_first_run(tmp_path, monkeypatch):
    import torch

    from harness.subjects.hf_trainer import HFTrainer

    counters = {"memory_allocated": iter([1000, 1100, 1110, 1120]), "max_memory_allocated": iter([1500, 1600, 1700])}
    resets = []
    for name, values in counters.items():
        monkeypatch.setattr(torch.cuda, name, functools.partial(next, values))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: resets.append(len(list(tmp_path.iterdir()))))
    # Without a GPU the Trainer uses the CPU.
    seen = measured.measure(HFTrainer().on("cuda"), SPEC.but(max_steps=3), tmp_path)
    assert seen == Memory([100, 110, 120], [500, 600, 700])
    assert resets == [2] * 4  # the first run's directory was there before


# ---- reading a profile ----


def event(ts, size, address=1, device=0):
    return {"name": "[memory]", "ts": ts, "args": {"Bytes": size, "Addr": address, "Device Type": device}}


def mark(ts, name):
    return {"name": name, "ts": ts, "cat": "user_annotation"}


def test_a_profile_is_read_in_order_of_time():
    events = [
        mark(2, measured.BEGIN),
        event(1, 100, address=1),
        event(5, -40, address=2),
        event(4, 40, address=2),
        mark(6, measured.STEP),
        event(7, 8, address=3),
        mark(8, measured.STEP),
        event(9, 1000, address=4, device=1),
    ]
    assert measured.read(events) == ([100, 108], [140, 108])


def test_what_was_there_before_is_not_counted_when_it_is_freed():
    events = [event(1, -5000, address=9), event(2, 16, address=1), mark(3, measured.STEP)]
    assert measured.read(events) == ([16], [16])


# ---- objects that are not freed ----


class Thing:
    itself: object = None


def test_what_was_dropped_holds():
    thing = Thing()
    thing.itself = thing  # a cycle: only the collector gets it
    references = {"thing": weakref.ref(thing)}
    del thing
    assert memory.collected(references).holds


def test_what_is_held_is_named_with_its_holder():
    class Registry:
        def __init__(self):
            self.entries = [Thing()]

    registry = Registry()
    (sentence,) = memory.collected({"thing": weakref.ref(registry.entries[0])}).seen
    assert sentence.startswith("the thing is still there, held by ")


def test_no_reference_is_no_pass():
    assert not memory.collected({}).holds
