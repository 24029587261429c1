"""CKPT: the content of a checkpoint, and loading it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import torch

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import COPY, PEFT, TRAINER, nothing, replace


def then(act):
    """Return a fault that lets upstream do its work and then calls `act` with the same object."""

    def fault(original, self, *args, **options):
        result = original(self, *args, **options)
        act(self, *args)
        return result

    fault.__name__ = f"then_{act.__name__}"
    return fault


def before(act):
    """Return a fault that calls `act` with the object before upstream does its work."""

    def fault(original, self, *args, **options):
        act(self, *args)
        return original(self, *args, **options)

    fault.__name__ = f"after_{act.__name__}"
    return fault


def no_tensors(original, *args, **options):
    return {}


def with_a_norm_of_the_base(original, model, *args, **options):
    return {**original(model, *args, **options), "base_model.model.model.norm.weight": model.model.model.norm.weight}


def in_float16(original, *args, **options):
    return {key: tensor.half() for key, tensor in original(*args, **options).items()}


def with_another_alpha(original, config):
    return {**original(config), "lora_alpha": 9}


SAVED = itertools.count(1)


def with_a_date(original, tensors, path, metadata):
    return original(tensors, path, metadata={**metadata, "saved": str(next(SAVED))})


def matched_by_any_part(original, state_dict, unwanted):
    return {key: value for key, value in state_dict.items() if not any(name in key for name in unwanted)}


def draw_a_number(trainer, *args):
    torch.rand(1)


def change_the_config(config, *args, **options):
    config.inference_mode, config.lora_dropout = not config.inference_mode, 0.5


def advance_the_schedule(trainer, directory):
    trainer.lr_scheduler.step()


def no_save_at_the_end(original, callback, args, state, control, **options):
    control = original(callback, args, state, control, **options)
    control.should_save = control.should_save and not control.should_training_stop
    return control


def best_not_spared(original, *args, **options):
    return original(*args, **{**options, "best_model_checkpoint": None})


def save_everything(trainer, *args):
    trainer.args.save_only_model = False


def active_adapter_only(original, model, directory, **options):
    return original(model, directory, **{**options, "selected_adapters": [model.active_adapter]})


def without_the_first_tensor(original, *args, **options):
    tensors = original(*args, **options)
    tensors.pop(min(tensors))
    return tensors


def moments_as_views(original, trainer, directory):
    """Save each moment as a view of a storage twice as large. torch.save writes the whole storage."""
    path = Path(directory) / "optimizer.pt"
    original(trainer, directory)
    state = torch.load(path, weights_only=True)
    for moments in state["state"].values():
        moments["exp_avg"] = torch.cat([moments["exp_avg"], moments["exp_avg"]])[: len(moments["exp_avg"])]
    torch.save(state, path)


def without_first_moments(original, optimizer):
    state = original(optimizer)
    for index in state["state"]:
        state["state"][index] = {k: v for k, v in state["state"][index].items() if k != "exp_avg"}
    return state


def adapter_of_the_save_before(original, trainer, directory, *args, **options):
    """Write the adapter of the previous checkpoint, if there is one."""
    original(trainer, directory, *args, **options)
    file = Path(directory) / "adapter_model.safetensors"
    previous = Path(trainer.args.output_dir) / "before.safetensors"
    if file.is_file():
        fresh = file.read_bytes()
        if previous.is_file():
            shutil.copy(previous, file)
        previous.write_bytes(fresh)


STATE_DICT = ("peft.peft_model", "get_peft_model_state_dict")


def without_the_inner_experts(original, *args, **options):
    return {name: tensor for name, tensor in original(*args, **options).items() if "experts.base_layer." not in name}


def without_the_shared_vector(original, *args, **options):
    return {name: tensor for name, tensor in original(*args, **options).items() if "unilora_theta" not in name}


def saved_and_drawn(original, trainer, *args, **options):
    import torch

    original(trainer, *args, **options)
    torch.rand(1)


def as_it_was_first(original, model, *args, **options):
    first = vars(model).setdefault("_first_saved", {})
    found = original(model, *args, **options)
    for name, tensor in found.items():
        first.setdefault(name, tensor.detach().clone())
    return {name: first[name] for name in found}


def first_of_the_active(original, model):
    return original(model)[:1]


def save_not_due(original, control):
    state = original(control)
    return {**state, "args": {**state["args"], "should_save": False}}


def into_the_first_layers_alone(original, model, tensors, *args, **options):
    return original(model, {name: one for name, one in tensors.items() if ".1." not in name}, *args, **options)


MUTANTS = (
    Mutant(
        "adapter-file-empty",
        "The adapter file is written without any tensor.",
        replace(*STATE_DICT, no_tensors),
        cells=("CKPT-25/plain", "CKPT-21/plain-from_pretrained", "RES-21/two-projections"),
        thread="https://github.com/huggingface/trl/issues/4416",
    ),
    Mutant(
        "base-weights-inside",
        "The adapter file holds a tensor of the base.",
        replace(*STATE_DICT, with_a_norm_of_the_base),
        cells=("CKPT-25/plain", "CKPT-04/plain"),
    ),
    Mutant(
        "adapter-saved-in-half-precision",
        "The adapter file holds float16, whatever dtype was trained.",
        replace(*STATE_DICT, in_float16),
        cells=("CKPT-18/bfloat16", "CKPT-04/plain", "CKPT-21/plain-*", "AMP-01/*base", "QLORA-07/float32"),
    ),
    Mutant(
        "adapter-of-the-checkpoint-before",
        "A checkpoint holds the adapter of the previous checkpoint.",
        replace(TRAINER, "_save", adapter_of_the_save_before),
        cells=("CKPT-25/plain", "RES-01/step-6", "CKPT-21/plain-from_pretrained"),
    ),
    Mutant(
        "wrong-alpha-in-the-config",
        "adapter_config.json holds another lora_alpha than the run trained with.",
        replace("peft:LoraConfig", "to_dict", with_another_alpha),
        cells=("CKPT-05/get_peft_model-plain", "CKPT-21/plain-from_pretrained"),
    ),
    Mutant(
        "a-date-in-the-file",
        "The adapter file holds the time of the save, so two files of one run differ.",
        replace("peft.peft_model", "safe_save_file", with_a_date),
        cells=("CKPT-04/plain",),
    ),
    Mutant(
        "tensors-of-a-foreign-adapter",
        "An adapter's file also holds the tensors of an adapter whose name contains its own.",
        replace("peft.utils.save_and_load", "_filter_state_dict_for_adapter_name", matched_by_any_part),
        cells=("CKPT-23/foobar-and-foo", "CKPT-23/foo-and-foobar", "CKPT-15/default-and-foo"),
    ),
    Mutant(
        "active-adapter-saved-alone",
        "If a model has several adapters, only the active one is saved.",
        replace(PEFT, "save_pretrained", active_adapter_only),
        cells=("CKPT-15/default-and-foo", "RES-17/default-and-second"),
    ),
    Mutant(
        "saving-draws-a-number",
        "Each save draws from torch's generator.",
        replace(TRAINER, "_save_checkpoint", then(draw_a_number)),
        cells=("CKPT-06/plain", "RES-01/step-6"),
    ),
    Mutant(
        "saving-changes-the-config",
        "A save changes inference_mode and lora_dropout of the config in memory.",
        replace("peft:LoraConfig", "save_pretrained", then(change_the_config)),
        cells=("CKPT-06/False", "CKPT-06/True"),
    ),
    Mutant(
        "generator-saved-a-draw-early",
        "After its state is saved, the generator draws another number.",
        replace(TRAINER, "_save_rng_state", then(draw_a_number)),
        cells=("CKPT-09/plain", "RES-15"),
    ),
    Mutant(
        "schedule-saved-a-step-ahead",
        "scheduler.pt is one step ahead of the run.",
        replace(TRAINER, "_save_optimizer_and_scheduler", before(advance_the_schedule)),
        cells=("CKPT-08/plain", "CKPT-08/linear*", "RES-01/step-6"),
    ),
    Mutant(
        "last-checkpoint-missing",
        "No checkpoint is written at the last step.",
        replace("transformers:DefaultFlowCallback", "on_step_end", no_save_at_the_end),
        cells=("CKPT-12/steps", "CKPT-12/share*"),
    ),
    Mutant(
        "rotation-deletes-the-best",
        "save_total_limit deletes the best checkpoint, too.",
        replace("transformers.trainer", "rotate_checkpoints", best_not_spared),
        cells=("CKPT-13/limit-2/best-first", "BEST-01/rotated"),
    ),
    Mutant(
        "rotation-deletes-nothing",
        "save_total_limit is ignored.",
        replace("transformers.trainer", "rotate_checkpoints", nothing),
        cells=("CKPT-13/limit-1", "CKPT-13/limit-2"),
    ),
    Mutant(
        "state-saved-with-a-model-only",
        "save_only_model also saves the optimizer, the schedule and the generators.",
        replace(TRAINER, "_save_checkpoint", before(save_everything)),
        cells=("CKPT-14/get_peft_model", "CKPT-14/resumed-at-6"),
    ),
    Mutant(
        "moments-twice-as-large",
        "The optimizer's file is larger than it must be: each moment is a view of a storage twice as large.",
        replace(TRAINER, "_save_optimizer_and_scheduler", moments_as_views),
        cells=("CKPT-27/plain", "CKPT-07/plain"),
    ),
    Mutant(
        "first-moment-not-saved",
        "The optimizer's file lacks the first moment, the running mean of the gradients.",
        replace("torch.optim:AdamW", "state_dict", without_first_moments),
        cells=("CKPT-07/plain", "CKPT-27/plain"),
    ),
    Mutant(
        "one-tensor-not-loaded",
        "Loading an adapter skips one of its tensors.",
        replace("peft.peft_model", "load_peft_weights", without_the_first_tensor),
        cells=("CKPT-21/plain-from_pretrained", "RES-21/two-projections", "API-14/from-pretrained"),
    ),
    Mutant(
        "modules-to-save-not-reloaded",
        "The copy of a module in modules_to_save is saved, but not loaded.",
        replace(COPY, "adapter_state_dict_load_map", lambda *args: {}),
        cells=("CKPT-24/stem-h", "FRZ-06/lm_head/resumed", "CKPT-21/modules-to-save-*"),
    ),
    Mutant(
        "not-swapped",
        "hotswap_adapter leaves the adapter's tensors as they were.",
        replace("peft.utils.hotswap", "hotswap_adapter_from_state_dict", nothing),
        cells=("CKPT-29/linear/lora/load/hotswap*",),
    ),
    Mutant(
        "inner-experts-not-saved",
        "Of two adapted parameters of a layer's experts, the adapter file has one.",
        replace("peft.peft_model", "get_peft_model_state_dict", without_the_inner_experts),
        cells=("CKPT-25/base/mixtral-experts", "CKPT-21/base/gpt-oss-experts"),
    ),
    Mutant(
        "shared-vector-not-saved",
        "The adapter file of UniLoRA lacks the vector that its layers share.",
        replace("peft.peft_model", "get_peft_model_state_dict", without_the_shared_vector),
        cells=("CKPT-25/method/unilora", "CKPT-21/method/unilora"),
    ),
    Mutant(
        "cartridge-not-loaded",
        "Loading a cartridge leaves the prefix as it was drawn.",
        replace("peft.tuners.cartridge.model:CartridgeEncoder", "load_prompt_embeddings", nothing),
        cells=("CKPT-21/method/cartridge", "RES-01/method/cartridge"),
    ),
    Mutant(
        "save-model-draws",
        "save_model() draws a random number.",
        replace(TRAINER, "save_model", saved_and_drawn),
        cells=("CKPT-30/plain", "CKPT-30/plain/add_adapter"),
    ),
    Mutant(
        "first-values-saved-again",
        "Whatever is saved later, a file holds the values of the first save.",
        replace("peft.peft_model", "get_peft_model_state_dict", as_it_was_first),
        cells=("CKPT-30/plain", "CKPT-25/plain"),
    ),
    Mutant(
        "evaluated-as-trained",
        "Evaluation leaves a schedule-free optimizer's weights as they are for training.",
        replace("accelerate.optimizer:AcceleratedOptimizer", "eval", nothing),
        cells=("CKPT-31/checkpoints-after-evaluations",),
    ),
    Mutant(
        "several-active-saved-as-one",
        "Of several active adapters a model names only the first, and that one is saved.",
        replace("transformers:LlamaForCausalLM", "active_adapters", first_of_the_active),
        cells=("CKPT-16/*",),
    ),
    Mutant(
        "control-says-no-save",
        "trainer_state.json says that no save was due.",
        replace("transformers:TrainerControl", "state", save_not_due),
        cells=("CKPT-10/*",),
    ),
    Mutant(
        "half-of-the-layers-loaded",
        "Loading an adapter leaves its second layer as it was made.",
        replace("peft.peft_model", "set_peft_model_state_dict", into_the_first_layers_alone),
        cells=("CKPT-29/linear/lora/load/*", "SERVE-01/llama/lora-*", "CKPT-21/option/rank-pattern"),
    ),
)
