"""Put faults into upstream: adapters that are merged, disabled, saved, or beside another adapter."""

from pathlib import Path

import torch

from harness.runs.scenarios import PLAIN, SAVING, saving
from harness.suites import test_acc as acc
from harness.suites import test_api_layers as layers
from harness.suites import test_ckpt_content as content
from harness.suites import test_frz_kinds as kinds
from tests.faults import assert_fails, assert_seen, each, mutant, replace

TRAINER = "transformers.trainer:Trainer"
LINEAR = "peft.tuners.lora.layer:Linear"
SHORT = saving(PLAIN.but(max_steps=2))


def merge_nothing(original, layer, *args, **options):
    """Merging an adapter leaves every weight as it is."""
    layer.merged_adapters.append("default")


def a_long_history(original, trainer, directory):
    """The optimizer's file holds a log beside its tensors."""
    path = Path(directory) / "optimizer.pt"
    original(trainer, directory)
    torch.save({**torch.load(path, weights_only=True), "log": [[f"step {n}" for n in range(9999)]]}, path)


def nudged(original, trainer, *args, **options):
    """Each step changes the tensors of an adapter that is not active."""
    for name, parameter in trainer.model.named_parameters():
        if ".bystander." in name:
            parameter.data.add_(1e-7)
    return original(trainer, *args, **options)


def both_active(original, trainer, *args, **options):
    """Training activates every adapter of the model."""
    trainer.model.base_model.set_adapter(list(trainer.model.peft_config))
    return original(trainer, *args, **options)


#: Faults that are put in after the run; `tests.faults` describes a row.
AFTERWARDS = {
    "merged-too-much": (
        layers.test_merged_it_computes_what_it_did_beside_its_layers,
        {"trace": SHORT},
        mutant("merged-too-much"),
        "merged: logits differs by",
    ),
    "merged-not-at-all": (
        layers.test_merged_it_computes_what_it_did_beside_its_layers,
        {"trace": SHORT},
        replace(LINEAR, "merge", merge_nothing),
        "merging left every weight of the base as it was",
    ),
    "unmerged-not-at-all": (
        layers.test_merged_it_computes_what_it_did_beside_its_layers,
        {"trace": SHORT},
        mutant("unmerged-not-at-all"),
        "unmerged: layer 0 weight differs by",
    ),
    "never-disabled": (
        layers.test_switched_off_it_leaves_the_base,
        {"trace": SHORT},
        mutant("never-disabled"),
        "disabled: logits differs by",
    ),
}
#: Faults that are put in before the run.
FAULTS = {
    "optimizer-state-as-views": (
        content.test_optimizer_file_is_its_tensors_and_their_names,
        {"trace": SAVING["plain"]},
        mutant("moments-twice-as-large"),
        "bytes stored, expected",
    ),
    "optimizer-file-with-a-log": (
        content.test_optimizer_file_is_its_tensors_and_their_names,
        {"trace": SAVING["plain"]},
        replace(TRAINER, "_save_optimizer_and_scheduler", a_long_history),
        "bytes besides the tensors",
    ),
    "bystander-moved": (
        kinds.test_a_bystander_stays_as_it_is_and_changes_nothing,
        {"spec": SHORT},
        replace(TRAINER, "training_step", nudged),
        "lora_A.bystander.weight: digest",
    ),
    "bystander-active": (
        kinds.test_a_bystander_stays_as_it_is_and_changes_nothing,
        {"spec": SHORT},
        replace(TRAINER, "training_step", both_active),
        "step 1: gradients of",
    ),
    "count-of-one-micro-batch": (
        acc.test_the_order_of_a_windows_rows_does_not_matter,
        {"spec": acc.SPLIT.but(data=acc.RAGGED, gradient_accumulation_steps=4, max_steps=2)},
        mutant("window-counted-by-its-first-micro-batch"),
        "step 1: gradient of",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


@each(AFTERWARDS)
def test_a_fault_in_what_follows_training_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    test, parameters, fault, words = AFTERWARDS[name]
    trace = runs.train(parameters["trace"])
    fault(monkeypatch)
    assert_fails(test, words, runs, tmp_path / "test", trace=trace)
