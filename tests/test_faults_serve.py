"""Put faults into upstream: adapters that another process loads."""

import functools

import pytest

from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.subjects.hf_trainer import HFTrainer
from harness.suites import test_serve as serve
from harness.suites.test_serve import FROM_PRETRAINED
from tests.faults import assert_seen, each, in_this_process, mutant

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "SERVE-01": (
        serve.test_an_adapter_computes_elsewhere_what_was_trained,
        {"name": "llama/lora", "way": FROM_PRETRAINED},
        mutant("adapter-read-in-half-precision"),
        "from_pretrained: logits differs by",
    ),
    "SERVE-02": (
        serve.test_a_merged_model_is_the_live_one_within_rounding,
        {"name": "llama/lora"},
        mutant("unloaded-without-merging"),
        "merged: logits differ by",
    ),
    "SERVE-02/packed": (
        serve.test_a_merged_model_is_the_live_one_within_rounding,
        {"name": "llama-nf4/lora"},
        mutant("unloaded-without-merging"),
        "merged: logits differ by",
    ),
    "SERVE-03": (
        serve.test_the_config_names_what_was_trained,
        {"name": "llama/lora"},
        mutant("alpha-not-in-the-config"),
        "lora_alpha is None, expected 16",
    ),
    "SERVE-04": (
        serve.test_loading_changes_nothing_else,
        {"name": "llama/lora"},
        mutant("loading-ties-the-output-layer"),
        "from_pretrained: 1 weights of the base are changed, lm_head.weight first",
    ),
}


@pytest.fixture
def alone(monkeypatch):
    """Load one adapter in each process."""
    monkeypatch.setattr(serve, "TOGETHER", 1)


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, alone, tmp_path, monkeypatch):
    import_upstream()
    fault = FAULTS[name][2]
    upstream = HFTrainer(in_each_rank=functools.partial(in_this_process, fault.put))
    runs = Runs(upstream, tmp_path / "runs")
    elsewhere = functools.partial(serve.answered, train=runs.train, runs=runs, upstream=upstream)
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch, elsewhere=elsewhere)
