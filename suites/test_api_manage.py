"""API: adapters loaded, swapped and deleted by the model's own methods (transformers' PeftAdapterMixin)."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness.fixtures import models
from harness.laws import equal, injection
from harness.runs.scenarios import PLAIN, RANDOM_B
from harness.spec import ADD, GET, LORA
from harness.subjects.hf_trainer import adapter_config, inject, recorded_warnings
from harness.verdict import both, raises, same, verdict

#: Adapters that change the output, so that a lost or exchanged adapter shows.
ADDED = PLAIN.but(adapter={"route": ADD}, lora=RANDOM_B)
OTHER = ADDED.but(adapter={"route": ADD, "seed": 5})
TOKENS = torch.arange(16)[None]


def make(spec=ADDED):
    """Return the spec's model with its adapter."""
    return inject(models.build(spec.model), spec.adapter)


def base():
    return models.build(PLAIN.model)


def lora(**fields):
    return adapter_config("LORA", {**LORA, **RANDOM_B, **fields})


def saved(directory, spec=ADDED):
    """Return a directory with the spec's adapter, and the model that it was saved from."""
    model = make(spec)
    model.save_pretrained(directory)
    return str(directory), model


@torch.no_grad()
def logits(model):
    return model.eval()(TOKENS).logits


# ---- what is refused ----

WITHOUT = {
    "disable_adapters": lambda model: model.disable_adapters(),
    "enable_adapters": lambda model: model.enable_adapters(),
    "active_adapters": lambda model: model.active_adapters(),
    "get_adapter_state_dict": lambda model: model.get_adapter_state_dict(),
    "delete_adapter": lambda model: model.delete_adapter("default"),
}


@pytest.mark.clause("API-12")
@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in WITHOUT.items()])
def test_a_model_without_adapters_refuses(call, upstream, judge):
    judge(raises("on a base model, it", ValueError, "No adapter loaded", lambda: call(base())))


IA3 = PLAIN.but(
    adapter={
        "route": ADD,
        "peft_type": "IA3",
        "config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    }
)
#: The model, the call, and words of the ValueError that it must raise.
REFUSED = {
    "delete/unknown": (make, lambda model, path: model.delete_adapter(["default", "second"]), "deleted: second"),
    "load/taken": (make, lambda model, path: model.load_adapter(path), "already exists"),
    "load/nothing": (base, lambda model, path: model.load_adapter(), "You should either pass"),
    "load/no-adapter": (base, lambda model, path: model.load_adapter(f"{path}/.."), "adapter model file not found"),
    "swap/no-adapter": (base, lambda model, path: model.load_adapter(path, hotswap=True), "there must already be"),
    "swap/unknown": (make, lambda model, path: model.load_adapter(path, "b", hotswap=True), "there must already be"),
    "swap/unnamed": (make, lambda model, path: model.load_adapter(path, None, hotswap=True), "there must already be"),
    "swap/no-lora": (
        lambda: make(IA3),
        lambda model, path: model.load_adapter(path, "default", hotswap=True),
        "only supported for LoRA",
    ),
}


@pytest.mark.clause("API-12")
@pytest.mark.parametrize(("model", "call", "words"), [pytest.param(*row, id=id) for id, row in REFUSED.items()])
def test_what_cannot_be_done_is_refused(model, call, words, upstream, tmp_path, judge):
    path, _ = saved(tmp_path / "adapter")
    judge(raises("it", ValueError, words, lambda: call(model(), path)))


SWAPS = {"error": (RuntimeError, "before loading the first adapter"), "other": (ValueError, "should be one of 'error'")}


@pytest.mark.clause("API-12")
@pytest.mark.parametrize("check", [pytest.param(check, id=f"enable_peft_hotswap/{check}") for check in SWAPS])
def test_swapping_is_to_be_announced_before_the_first_adapter(check, upstream, judge):
    kind, words = SWAPS[check]
    judge(raises("it", kind, words, lambda: make().enable_peft_hotswap(check_compiled=check)))


@pytest.mark.clause("API-12")
def test_a_late_announcement_of_swapping_can_be_a_warning(upstream, judge):
    def warnings(check):
        said = []
        with recorded_warnings(said):
            make().enable_peft_hotswap(check_compiled=check)
        return sum("before loading the first adapter" in one for one in said)

    judge(same("warnings with ignore, then with warn", [warnings("ignore"), warnings("warn")], [0, 1]))


# ---- deleting ----


@pytest.mark.clause("API-13")
@pytest.mark.parametrize("names", [pytest.param("second", id="name"), pytest.param(["second"], id="list")])
def test_deleting_takes_out_one_adapter_and_leaves_the_other(names, upstream, judge):
    model = make()
    before = injection.adapter_tensors(model, "default")
    wanted = logits(model)
    model.add_adapter(lora(), "second")
    model.delete_adapter(names)
    left = [name for name, _ in model.named_parameters() if ".second." in name]
    found = equal.differences(injection.adapter_tensors(model, "default"), before, 0.0, "the other:")
    model.set_adapter("default")
    judge(
        both(
            verdict("nothing of the adapter is left", [f"{name} is left" for name in left]),
            verdict("the other adapter is as it was", found),
            same("adapters", list(model.peft_config), ["default"]),
            injection.same_tensor("logits", logits(model), wanted),
        )
    )


@pytest.mark.clause("API-13")
def test_without_its_last_adapter_a_model_is_the_base_and_takes_a_new_one(upstream, judge):
    model = make()
    model.delete_adapter("default")
    bare = injection.same_tensor("logits of the base", logits(model), logits(base()))
    refuses = raises("active_adapters()", ValueError, "No adapter loaded", model.active_adapters)
    torch.manual_seed(OTHER.adapter.seed)
    model.add_adapter(lora())
    judge(both(bare, refuses, injection.same_tensor("logits with a new one", logits(model), logits(make(OTHER)))))


# ---- loading ----


def from_directory(path, model):
    model.load_adapter(path)
    return model


def from_tensors(path, model):
    tensors = peft.utils.load_peft_weights(path, device="cpu")
    model.load_adapter(adapter_state_dict=tensors, peft_config=peft.PeftConfig.from_pretrained(path))
    return model


def swapped(path, model):
    torch.manual_seed(OTHER.adapter.seed)
    model.add_adapter(lora())
    model.load_adapter(path, "default", hotswap=True)
    return model


def swapped_when_announced(path, model):
    model.enable_peft_hotswap(target_rank=8)
    model.load_adapter(saved(f"{path}-other", OTHER)[0], "default")
    model.load_adapter(path, "default")
    return model


def from_pretrained(path, model, maker=AutoModelForCausalLM):
    model.save_pretrained(f"{path}-base")
    config = peft.PeftConfig.from_pretrained(path)
    config.base_model_name_or_path = f"{path}-base"
    config.save_pretrained(path)
    return maker.from_pretrained(path)


def from_pretrained_of_its_class(path, model):
    return from_pretrained(path, model, type(model))


def from_a_pickle(path, model):
    file = Path(path) / "adapter_model.safetensors"
    torch.save(peft.utils.load_peft_weights(path, device="cpu"), file.with_suffix(".bin"))
    file.unlink()
    return from_directory(path, model)


def from_pretrained_beside_the_base(path, model):
    model.save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


LOADED = (
    from_directory,
    from_tensors,
    swapped,
    swapped_when_announced,
    from_pretrained,
    from_pretrained_of_its_class,
    from_pretrained_beside_the_base,
    from_a_pickle,
)


@pytest.mark.clause("API-14")
@pytest.mark.parametrize("load", [pytest.param(load, id=load.__name__.replace("_", "-")) for load in LOADED])
def test_a_loaded_adapter_is_the_one_that_was_saved(load, upstream, tmp_path, judge):
    path, model = saved(tmp_path / "adapter")
    judge(injection.same_tensor("logits", logits(load(path, base())), logits(model)))


@pytest.mark.clause("API-14")
@pytest.mark.parametrize("name", [pytest.param(None, id="state-dict/active"), pytest.param("default", id="state-dict")])
def test_the_state_dict_of_an_adapter_is_its_file(name, upstream, tmp_path, judge):
    path, model = saved(tmp_path / "adapter")
    held = {f"base_model.model.{key}": tensor for key, tensor in model.get_adapter_state_dict(name).items()}
    file = peft.utils.load_peft_weights(path, device="cpu")
    judge(verdict("tensors of the file", equal.differences(held, file, 0.0, "state dict:"), tensors=len(file)))


@pytest.mark.clause("API-14")
def test_an_adapter_loaded_by_the_model_is_the_one_loaded_by_peft(upstream, tmp_path, judge):
    path, model = saved(tmp_path / "adapter", ADDED.but(adapter={"route": GET}))
    wrapped = peft.PeftModel.from_pretrained(base(), path)
    loaded = from_directory(path, base())
    judge(
        both(
            injection.same_tensor("logits of the PeftModel", logits(wrapped), logits(model)),
            injection.same_tensor("logits of the model", logits(loaded), logits(model)),
        )
    )


@pytest.mark.clause("API-14")
def test_a_file_in_the_names_of_the_model_holds_the_same_tensors(upstream, tmp_path, judge):
    path, model = saved(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "own-names", save_peft_format=False)
    own = load_file(tmp_path / "own-names" / "adapter_model.safetensors")
    file = peft.utils.load_peft_weights(path, device="cpu")
    held = {f"base_model.model.{key}": tensor for key, tensor in own.items()}
    judge(verdict("tensors of the file", equal.differences(held, file, 0.0, "own names:"), tensors=len(file)))
