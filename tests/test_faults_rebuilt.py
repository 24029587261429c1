"""Faults put into upstream, under which adapters that are merged, switched off, saved or set beside another must fail."""

from pathlib import Path

import torch
from harness.suites import test_acc as acc
from harness.suites import test_api_layers as layers
from harness.suites import test_ckpt_content as content
from harness.suites import test_frz_kinds as kinds

from harness.runs.scenarios import PLAIN, SAVING, saving
from tests.checkpoints import says
from tests.faults import each, mutant, replace, verdict_of

TRAINER = "transformers.trainer:Trainer"
LINEAR = "peft.tuners.lora.layer:Linear"
SHORT = saving(PLAIN.but(max_steps=2))


def merge_nothing(original, layer, *args, **options):
    layer.merged_adapters.append("default")


def a_long_history(original, trainer, directory):
    path = Path(directory) / "optimizer.pt"
    original(trainer, directory)
    torch.save({**torch.load(path, weights_only=True), "log": [[f"step {n}" for n in range(9999)]]}, path)


def nudged(original, trainer, *args, **options):
    for name, parameter in trainer.model.named_parameters():
        if ".bystander." in name:
            parameter.data.add_(1e-7)
    return original(trainer, *args, **options)


def both_active(original, trainer, *args, **options):
    trainer.model.base_model.set_adapter(list(trainer.model.peft_config))
    return original(trainer, *args, **options)


#: test of suites/, the spec of its run, the fault, words of the failure. These faults come when the run is over.
AFTERWARDS = {
    "merged-too-much": (
        layers.test_merged_it_computes_what_it_did_beside_its_layers,
        SHORT,
        mutant("merged-too-much"),
        "merged: logits differs by",
    ),
    "merged-not-at-all": (
        layers.test_merged_it_computes_what_it_did_beside_its_layers,
        SHORT,
        replace(LINEAR, "merge", merge_nothing),
        "merging left every weight of the base as it was",
    ),
    "unmerged-not-at-all": (
        layers.test_merged_it_computes_what_it_did_beside_its_layers,
        SHORT,
        mutant("unmerged-not-at-all"),
        "unmerged: layer 0 weight differs by",
    ),
    "never-disabled": (
        layers.test_switched_off_it_leaves_the_base,
        SHORT,
        mutant("never-disabled"),
        "disabled: logits differs by",
    ),
}
#: And these before it begins.
FAULTS = {
    "optimizer-state-as-views": (
        content.test_optimizer_file_is_its_tensors_and_their_names,
        SAVING["plain"],
        mutant("moments-twice-as-large"),
        "bytes stored, expected",
    ),
    "optimizer-file-with-a-log": (
        content.test_optimizer_file_is_its_tensors_and_their_names,
        SAVING["plain"],
        replace(TRAINER, "_save_optimizer_and_scheduler", a_long_history),
        "bytes besides the tensors",
    ),
    "bystander-moved": (
        kinds.test_a_bystander_stays_as_it_is_and_changes_nothing,
        SHORT,
        replace(TRAINER, "training_step", nudged),
        "lora_A.bystander.weight: digest",
    ),
    "bystander-active": (
        kinds.test_a_bystander_stays_as_it_is_and_changes_nothing,
        SHORT,
        replace(TRAINER, "training_step", both_active),
        "step 1: gradients of",
    ),
    "count-of-one-micro-batch": (
        acc.test_the_order_of_a_windows_rows_does_not_matter,
        acc.SPLIT.but(data=acc.RAGGED, gradient_accumulation_steps=4, max_steps=2),
        mutant("window-counted-by-its-first-micro-batch"),
        "step 1: gradient of",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    test, spec, fault, words = FAULTS[name]
    fault(monkeypatch)
    says(verdict_of(test, runs, tmp_path, spec=spec, trace=runs.train(spec)), words)


@each(AFTERWARDS)
def test_a_fault_in_what_follows_training_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    test, spec, fault, words = AFTERWARDS[name]
    trace = runs.train(spec)
    fault(monkeypatch)
    says(verdict_of(test, runs, tmp_path, trace=trace), words)
