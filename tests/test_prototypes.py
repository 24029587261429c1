"""Models copied from one that was built are as good as built ones."""

import pytest
import torch

from harness.fixtures import models
from harness.fixtures.prototypes import LARGEST, Prototypes
from harness.mutants.patch import replace
from harness.spec import ModelSpec

SPECS = {
    **{name: ModelSpec(family=name) for name in models.FAMILIES if ":" not in name},
    "bfloat16": ModelSpec(dtype="bfloat16"),
    "nf4": ModelSpec(quantization="nf4", dtype="bfloat16"),
    "nf4/stored-as-bfloat16": ModelSpec(quantization="nf4", quant_storage="bfloat16"),
    "int8": ModelSpec(quantization="int8"),
    "prepared": ModelSpec(quantization="nf4", prepare_for_kbit=True),
}


def tensors(model):
    """Every tensor by name, with what is set on it."""
    found = {}
    for kind in ("_parameters", "_buffers"):
        for path, module in model.named_modules():
            for name, one in getattr(module, kind).items():
                if one is not None:
                    found[f"{path}.{name}"] = one
    return found


def told(value, model):
    """A value as text: of a tensor its bits, and what is set on it; of a module of the model its path."""
    if isinstance(value, torch.nn.Module):
        return [path for path, module in model.named_modules() if module is value] or "of another model"
    if isinstance(value, torch.Tensor):
        shown = type(value).__name__, str(value.dtype), tuple(value.shape), value.stride(), value.requires_grad
        return *shown, bits(value), {name: told(each, model) for name, each in vars(value).items()}
    if hasattr(value, "__dict__"):
        return type(value).__name__, {name: told(each, model) for name, each in vars(value).items()}
    return repr(value)


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8).flatten().tolist() if tensor.dim() else tensor.item()


def tied(model):
    """Names that are the same tensor."""
    groups = {}
    for name, one in tensors(model).items():
        groups.setdefault(id(one), []).append(name)
    return sorted(groups.values())


def memory(model):
    """Where tensors lie, and the names of those that lie there: also what modules and parameters have beside them."""
    found = {}
    for path, module in model.named_modules():
        for name, one in [*vars(module).items(), *module._parameters.items(), *module._buffers.items()]:
            parts = {name: one, **{f"{name}.{inner}": each for inner, each in getattr(one, "__dict__", {}).items()}}
            for part, each in parts.items():
                if isinstance(each, torch.Tensor) and each.numel():
                    found.setdefault(each.data_ptr(), set()).add(f"{path}.{part}")
                elif type(each).__name__ == "QuantState":
                    found.setdefault(id(each), set()).add(f"{path}.{part}")
    return found


def together(model):
    """Names that lie at the same place."""
    return sorted(map(sorted, memory(model).values()))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_copy_is_what_would_have_been_built(spec, monkeypatch):
    built = models.build(spec)
    state = torch.get_rng_state()
    torch.rand(3)
    monkeypatch.setattr(models, "_drawn", lambda *_: pytest.fail("built anew"))
    copied = models.build(spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(copied) is type(built) and str(copied) == str(built) and copied.training == built.training
    assert copied.config.to_dict() == built.config.to_dict() and copied.config is not built.config
    ours, theirs = tensors(copied), tensors(built)
    assert list(ours) == list(theirs) and tied(copied) == tied(built)
    for name, one in ours.items():
        assert told(one, copied) == told(theirs[name], built), name
    assert together(copied) == together(built) and not set(memory(copied)) & set(memory(built))


def test_what_is_done_to_one_befalls_no_other():
    first = models.build(ModelSpec())
    wanted = bits(first.lm_head.weight)
    for _ in range(2):
        model = models.build(ModelSpec())
        assert bits(model.lm_head.weight) == wanted and model.config.use_cache
        model.config.use_cache = False
        model.lm_head.weight.data.zero_()
        first.lm_head.weight.data.zero_()


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"dtype": "bfloat16"}, {"config": {"num_hidden_layers": 1}}, {"family": "llama-tied"}],
    ids=str,
)
def test_another_spec_is_another_model(change):
    models.build(ModelSpec())
    assert bits(models.build(ModelSpec(**change)).lm_head.weight) != bits(models.build(ModelSpec()).lm_head.weight)


def test_weights_are_drawn_in_the_default_dtype_of_the_process():
    models.build(ModelSpec(dtype="float64"))
    torch.set_default_dtype(torch.float64)
    try:
        drawn = models.build(ModelSpec(dtype="float64")).lm_head.weight
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.equal(drawn, models.build(ModelSpec(dtype="float64")).lm_head.weight)


ODD = {
    "large": lambda model: setattr(model, "large", torch.nn.Parameter(torch.empty(LARGEST // 4 + 1))),
    "with a closure": lambda model: setattr(model, "say", lambda: model),
    "overlapping": lambda model: model.register_buffer("first", model.weight.detach()[:1]),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_large_or_cannot_be_copied_is_built_each_time(odd):
    made = []

    def build():
        made.append(torch.nn.Linear(8, 8))
        odd(made[-1])
        return made[-1]

    prototypes = Prototypes()
    assert prototypes.make("key", build) is not prototypes.make("key", build)
    assert len(made) == 2


def halved(original, self, *args, **options):
    original(self, *args, **options)
    self.lm_head.weight.data *= 0.5


def test_a_fault_in_what_builds_models_is_in_each_that_is_built_under_it_and_in_no_other():
    whole = bits(models.build(ModelSpec()).lm_head.weight)
    with pytest.MonkeyPatch.context() as patch:
        replace("transformers:LlamaForCausalLM", "__init__", halved)(patch)
        faulty = [bits(models.build(ModelSpec()).lm_head.weight) for _ in range(2)]
    assert faulty[0] == faulty[1] != whole == bits(models.build(ModelSpec()).lm_head.weight)
