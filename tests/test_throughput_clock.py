"""Whether a GPU's clock is steady, as a fake nvidia-smi reports it."""

import os
import stat
import time
from types import SimpleNamespace

import pytest
import torch

from harness.throughput import clock

NVIDIA_SMI = """#!/usr/bin/env python3
import sys, time
assert sys.argv[1:] == ["-i", "GPU-12ab", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--loop-ms=250"]
for word in {words!r}:
    print(word, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("clocks", "steady"),
    [
        ([1980.0] * 8, True),
        ([1980.0] * 7, False),
        ([1650.0] + [1980.0] * 30, True),
        ([1650.0, 1700.0] + [1980.0] * 30, False),
        ([1965.0] * 10 + [1980.0] * 10, True),
    ],
    ids=["steady", "too few samples", "low once at the start", "varies", "by less than a percent"],
)
def test_a_steady_clock_stays_near_its_highest(clocks, steady):
    assert clock.steady(clocks) == steady


def nvidia_smi(directory, monkeypatch, words):
    file = directory / "nvidia-smi"
    file.write_text(NVIDIA_SMI.format(words=words))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="12ab"))


@pytest.mark.parametrize(
    ("words", "stays"),
    [(["1980"] * 9, True), (["1980", "1500"] * 9, False), (["[N/A]"] * 9 + ["1980"], False)],
    ids=str,
)
def test_the_clock_of_the_visible_card_is_sampled(words, stays, tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, words)
    seen, steady = [], clock.steady
    monkeypatch.setattr(clock, "steady", lambda clocks: seen.append(clocks) or steady(clocks))
    looks = [float(word) for word in words if word.isdigit()]
    with clock.watched("cuda") as stayed:
        # The sampler has just been started, and has not written all its samples yet.
        for _ in range(100):
            if stayed() == stays and seen[-1] == looks:
                break
            time.sleep(0.1)
        assert stayed() == stays and seen[-1] == looks


def test_without_nvidia_smi_and_on_a_cpu_the_clock_is_not_steady(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, [])
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for device in ("cuda", "cpu"):
        with clock.watched(device) as stayed:
            assert not stayed()
