"""Faults put into upstream, under which adapters that are merged, switched off, saved or set beside another must fail."""

from pathlib import Path

import torch

from harness.scenarios import PLAIN, SAVING, saving
from suites import test_acc as acc
from suites import test_api_layers as layers
from suites import test_ckpt_content as content
from suites import test_frz_kinds as kinds
from tests.checkpoints import says
from tests.faults import each, replace, verdict_of

TRAINER = "transformers.trainer:Trainer"
LINEAR = "peft.tuners.lora.layer:Linear"
SHORT = saving(PLAIN.but(max_steps=2))


def too_much(original, layer, adapter):
    return 1.01 * original(layer, adapter)


def merge_nothing(original, layer, *args, **options):
    layer.merged_adapters.append("default")


def leave_merged(original, layer):
    layer.merged_adapters.clear()


def never_disabled(original, layer, *args, **options):
    layer._disable_adapters = False
    return original(layer, *args, **options)


def a_view_of_something_larger(original, trainer, directory):
    """Each moment is saved as a part of a storage twice as large, all of which torch.save writes."""
    path = Path(directory) / "optimizer.pt"
    original(trainer, directory)
    state = torch.load(path, weights_only=True)
    for held in state["state"].values():
        held["exp_avg"] = torch.cat([held["exp_avg"], held["exp_avg"]])[: len(held["exp_avg"])]
    torch.save(state, path)


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


def first_micro_batch_alone(original, trainer, batches, device):
    """Counts the labels of the first micro-batch, and takes the others to have as many."""
    return original(trainer, batches[:1], device) * len(batches)


#: test of suites/, the spec of its run, the fault, words of the failure. These faults come when the run is over.
AFTERWARDS = {
    "merged-too-much": (
        layers.test_merged_it_computes_what_it_did_beside_its_layers,
        SHORT,
        replace(LINEAR, "get_delta_weight", too_much),
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
        replace(LINEAR, "unmerge", leave_merged),
        "unmerged: layer 0 weight differs by",
    ),
    "never-disabled": (
        layers.test_switched_off_it_leaves_the_base,
        SHORT,
        replace(LINEAR, "forward", never_disabled),
        "disabled: logits differs by",
    ),
}
#: And these before it begins.
FAULTS = {
    "optimizer-state-as-views": (
        content.test_optimizer_file_is_its_tensors_and_their_names,
        SAVING["plain"],
        replace(TRAINER, "_save_optimizer_and_scheduler", a_view_of_something_larger),
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
        replace(TRAINER, "_get_num_items_in_batch", first_micro_batch_alone),
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
