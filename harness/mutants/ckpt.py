"""CKPT: what a checkpoint holds, and what loads from it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import COPY, PEFT, TRAINER, nothing, replace


def then(act):
    """A fault that lets upstream do its work, and then does something to the same object."""

    def fault(original, self, *args, **options):
        result = original(self, *args, **options)
        act(self, *args)
        return result

    fault.__name__ = f"then_{act.__name__}"
    return fault


def before(act):
    """A fault that does something to the object first."""

    def fault(original, self, *args, **options):
        act(self, *args)
        return original(self, *args, **options)

    fault.__name__ = f"after_{act.__name__}"
    return fault


def empty(original, *args, **options):
    return {}


def with_a_norm(original, model, *args, **options):
    return {**original(model, *args, **options), "base_model.model.model.norm.weight": model.model.model.norm.weight}


def in_half(original, *args, **options):
    return {key: tensor.half() for key, tensor in original(*args, **options).items()}


def of_another_alpha(original, config):
    return {**original(config), "lora_alpha": 9}


SAVED = itertools.count(1)


def with_a_date(original, tensors, path, metadata):
    return original(tensors, path, metadata={**metadata, "saved": str(next(SAVED))})


def any_part(original, state_dict, unwanted):
    return {key: value for key, value in state_dict.items() if not any(name in key for name in unwanted)}


def drawing(trainer, *args):
    torch.rand(1)


def leave_trained(config, *args, **options):
    config.inference_mode, config.lora_dropout = not config.inference_mode, 0.5


def one_rate_ahead(trainer, directory):
    trainer.lr_scheduler.step()


def not_at_the_end(original, callback, args, state, control, **options):
    control = original(callback, args, state, control, **options)
    control.should_save = control.should_save and not control.should_training_stop
    return control


def deleting_the_best(original, *args, **options):
    return original(*args, **{**options, "best_model_checkpoint": None})


def saving_all(trainer, *args):
    trainer.args.save_only_model = False


def the_active_one(original, model, directory, **options):
    return original(model, directory, **{**options, "selected_adapters": [model.active_adapter]})


def one_less(original, *args, **options):
    tensors = original(*args, **options)
    tensors.pop(min(tensors))
    return tensors


def a_view_of_something_larger(original, trainer, directory):
    """Each moment is saved as a part of a storage twice as large, all of which torch.save writes."""
    path = Path(directory) / "optimizer.pt"
    original(trainer, directory)
    state = torch.load(path, weights_only=True)
    for held in state["state"].values():
        held["exp_avg"] = torch.cat([held["exp_avg"], held["exp_avg"]])[: len(held["exp_avg"])]
    torch.save(state, path)


def a_moment_missing(original, optimizer):
    state = original(optimizer)
    for index in state["state"]:
        state["state"][index] = {k: v for k, v in state["state"][index].items() if k != "exp_avg"}
    return state


def one_step_old(original, trainer, directory, *args, **options):
    """Writes the adapter of the checkpoint before, where there is one."""
    original(trainer, directory, *args, **options)
    file, kept = Path(directory) / "adapter_model.safetensors", Path(trainer.args.output_dir) / "before.safetensors"
    if file.is_file():
        fresh = file.read_bytes()
        if kept.is_file():
            shutil.copy(kept, file)
        kept.write_bytes(fresh)


STATE_DICT = ("peft.peft_model", "get_peft_model_state_dict")

MUTANTS = (
    Mutant(
        "adapter-file-empty",
        "The adapter file is written without a tensor.",
        replace(*STATE_DICT, empty),
        cells=("CKPT-25/plain", "CKPT-21/plain-from_pretrained", "RES-21/two-projections"),
        thread="https://github.com/huggingface/trl/issues/4416",
    ),
    Mutant(
        "base-weights-inside",
        "The adapter file holds a tensor of the base.",
        replace(*STATE_DICT, with_a_norm),
        cells=("CKPT-25/plain", "CKPT-04/plain"),
    ),
    Mutant(
        "adapter-saved-in-half-precision",
        "The adapter file holds float16, whatever was trained.",
        replace(*STATE_DICT, in_half),
        cells=("CKPT-18/bfloat16", "CKPT-04/plain", "CKPT-21/plain-*", "AMP-01/*base", "QLORA-07/float32"),
    ),
    Mutant(
        "adapter-of-the-checkpoint-before",
        "A checkpoint holds the adapter of the one before it.",
        replace(TRAINER, "_save", one_step_old),
        cells=("CKPT-25/plain", "RES-01/step-6", "CKPT-21/plain-from_pretrained"),
    ),
    Mutant(
        "wrong-alpha-in-the-config",
        "adapter_config.json says another lora_alpha than was trained with.",
        replace("peft:LoraConfig", "to_dict", of_another_alpha),
        cells=("CKPT-05/get_peft_model-plain", "CKPT-21/plain-from_pretrained"),
    ),
    Mutant(
        "a-date-in-the-file",
        "The adapter file says when it was saved, so that no two are alike.",
        replace("peft.peft_model", "safe_save_file", with_a_date),
        cells=("CKPT-04/plain",),
    ),
    Mutant(
        "tensors-of-a-foreign-adapter",
        "An adapter's file holds those of one whose name has its own in it.",
        replace("peft.utils.save_and_load", "_filter_state_dict_for_adapter_name", any_part),
        cells=("CKPT-23/foobar-and-foo", "CKPT-23/foo-and-foobar", "CKPT-15/default-and-foo"),
    ),
    Mutant(
        "active-adapter-saved-alone",
        "Of several adapters only the active one is saved.",
        replace(PEFT, "save_pretrained", the_active_one),
        cells=("CKPT-15/default-and-foo", "RES-17/default-and-second"),
    ),
    Mutant(
        "saving-draws-a-number",
        "Each save draws from torch's generator.",
        replace(TRAINER, "_save_checkpoint", then(drawing)),
        cells=("CKPT-06/plain", "RES-01/step-6"),
    ),
    Mutant(
        "saving-changes-the-config",
        "A save leaves another inference_mode and lora_dropout in the config in memory.",
        replace("peft:LoraConfig", "save_pretrained", then(leave_trained)),
        cells=("CKPT-06/False", "CKPT-06/True"),
    ),
    Mutant(
        "generator-saved-a-draw-early",
        "The generator draws once more after its state was saved.",
        replace(TRAINER, "_save_rng_state", then(drawing)),
        cells=("CKPT-09/plain", "RES-15"),
    ),
    Mutant(
        "schedule-saved-a-step-ahead",
        "scheduler.pt is one step ahead of the run.",
        replace(TRAINER, "_save_optimizer_and_scheduler", before(one_rate_ahead)),
        cells=("CKPT-08/plain", "CKPT-08/linear*", "RES-01/step-6"),
    ),
    Mutant(
        "last-checkpoint-missing",
        "No checkpoint is written at the last step.",
        replace("transformers:DefaultFlowCallback", "on_step_end", not_at_the_end),
        cells=("CKPT-12/steps", "CKPT-12/share*"),
    ),
    Mutant(
        "rotation-deletes-the-best",
        "save_total_limit does not spare the best checkpoint.",
        replace("transformers.trainer", "rotate_checkpoints", deleting_the_best),
        cells=("CKPT-13/limit-2/best-first", "BEST-01/rotated"),
    ),
    Mutant(
        "rotation-deletes-nothing",
        "save_total_limit is passed over.",
        replace("transformers.trainer", "rotate_checkpoints", nothing),
        cells=("CKPT-13/limit-1", "CKPT-13/limit-2"),
    ),
    Mutant(
        "state-saved-with-a-model-only",
        "save_only_model saves optimizer, schedule and generators.",
        replace(TRAINER, "_save_checkpoint", before(saving_all)),
        cells=("CKPT-14/get_peft_model", "CKPT-14/resumed-at-6"),
    ),
    Mutant(
        "moments-twice-as-large",
        "The optimizer's file stores twice the moments that it shows.",
        replace(TRAINER, "_save_optimizer_and_scheduler", a_view_of_something_larger),
        cells=("CKPT-27/plain", "CKPT-07/plain"),
    ),
    Mutant(
        "first-moment-not-saved",
        "The optimizer's file lacks the mean of the gradients.",
        replace("torch.optim:AdamW", "state_dict", a_moment_missing),
        cells=("CKPT-07/plain", "CKPT-27/plain"),
    ),
    Mutant(
        "one-tensor-not-loaded",
        "Loading an adapter passes over one of its tensors.",
        replace("peft.peft_model", "load_peft_weights", one_less),
        cells=("CKPT-21/plain-from_pretrained", "RES-21/two-projections", "API-14/from-pretrained"),
    ),
    Mutant(
        "modules-to-save-not-reloaded",
        "The copy of a module is saved, and not loaded.",
        replace(COPY, "adapter_state_dict_load_map", lambda *args: {}),
        cells=("CKPT-24/stem-h", "FRZ-06/lm_head/resumed", "CKPT-21/modules-to-save-*"),
    ),
)
