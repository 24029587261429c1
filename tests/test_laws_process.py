"""Tests of harness/laws/process.py: any setting that a call changes is found and named."""

import os

import pytest
import torch

from harness.laws import process


@pytest.mark.parametrize(
    ("change", "back", "words"),
    [
        (
            lambda: torch.set_grad_enabled(False),
            lambda: torch.set_grad_enabled(True),
            "gradients enabled: False, was True",
        ),
        (
            lambda: torch.set_default_dtype(torch.bfloat16),
            lambda: torch.set_default_dtype(torch.float32),
            "default dtype: torch.bfloat16, was torch.float32",
        ),
        (lambda: os.environ.update(CXX="gcc"), lambda: None, "environment variable CXX: gcc, was not set"),
        (lambda: os.environ.pop("HOME"), lambda: None, "environment variable HOME: not set, was /somewhere"),
    ],
    ids=["gradients", "dtype", "set", "unset"],
)
def test_what_is_left_changed_is_named(change, back, words, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    with process.without_compilers():
        before = process.settings()
        assert process.left_alone(before, process.settings()).holds
        change()
        after = process.settings()
        back()
    assert process.left_alone(before, after).seen == (words,)


def test_compilers_that_were_left_before_are_not_seen_and_come_back(monkeypatch):
    monkeypatch.setenv("CXX", "left before")
    monkeypatch.delenv("CC", raising=False)
    with process.without_compilers():
        assert "environment variable CXX" not in process.settings()
        os.environ["CC"] = "gcc"
    assert os.environ["CXX"] == "left before" and "CC" not in os.environ
