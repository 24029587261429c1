"""The slowdown that is put in on purpose, on a fake device."""

import pytest
import torch
from transformers.trainer_callback import DefaultFlowCallback

#: Cycles a second of the fake device.
RATE = 1.98e9


class Event:
    """A CUDA event of the fake device. The device reaches it `behind` seconds after the host has recorded it."""

    now = 0.0
    behind = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now

    def query(self):
        return self.at <= Event.now - Event.behind

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


@pytest.fixture
def device(monkeypatch):
    def sleep(cycles):
        Event.now += cycles / RATE

    # Importing the module slows down every Trainer of this process, so the original is put back afterwards.
    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", DefaultFlowCallback.on_step_end)
    from harness.throughput import slowed

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    monkeypatch.setattr(Event, "now", 0.0)
    return slowed._Device()


@pytest.mark.parametrize("behind", [0.0, 0.25], ids=["the host waits", "the host is ahead"])
def test_each_step_is_slower_by_the_share_of_the_shortest_step(device, behind, monkeypatch):
    monkeypatch.setattr(Event, "behind", behind)
    slept = []
    for number in range(30):
        Event.now += 2.0 if number % 3 == 0 else 0.1
        before = Event.now
        said = device.step_ends(0.05)
        slept.append((Event.now - before, said))
    for took, said in slept[6:]:
        assert took == pytest.approx(0.05 * 0.1, rel=1e-3) and said == pytest.approx(0.05 * 0.1)


def test_without_a_share_it_does_not_sleep(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: pytest.fail("slept"))
    for _ in range(5):
        Event.now += 0.1
        assert device.step_ends(0.0) == 0.0
