"""API: several adapters in one model: which of them is active, and what is left after one is deleted."""

import peft
import pytest
import torch

from harness.fixtures import models
from harness.laws.equal import equal_runs
from harness.laws.frozen import trainable_names, trains_exactly
from harness.laws.injection import same_tensor
from harness.runs.scenarios import PLAIN, RANDOM_B, by_route, cases, spec_for
from harness.spec import ADD, GET
from harness.subjects.hf_trainer import adapter_config, inject
from harness.suites.test_api_layers import logits
from harness.verdict import both, raises, same, verdict

HEAD = {"modules_to_save": ["lm_head"]}
FIRST = PLAIN.but(lora=RANDOM_B)
#: The first adapter's spec, and the second's.
PAIRS = {
    "plain": (FIRST, FIRST),
    "other-modules": (FIRST, FIRST.but(lora={"target_modules": ["k_proj"]})),
    "embeddings": (FIRST.but(lora={"target_modules": ["q_proj", "embed_tokens"]}), FIRST),
    "both-heads": (FIRST.but(lora=HEAD), FIRST.but(lora=HEAD)),
    "first-head": (FIRST.but(lora=HEAD), FIRST),
    "second-head": (FIRST, FIRST.but(lora=HEAD)),
    "prompt-tuning": (spec_for("llama", "prompt-tuning"), spec_for("llama", "prompt-tuning")),
}
NAMED = by_route({name: first for name, (first, _) in PAIRS.items()})
del NAMED["prompt-tuning/add_adapter"]
CASES = [pytest.param(spec, PAIRS[id.partition("/")[0]][1], id=id) for id, spec in NAMED.items()]


def add(model, name, spec):
    """Return a second adapter, drawn from another seed, with a head that differs from the base's."""
    config = adapter_config(spec.adapter.peft_type, dict(spec.adapter.config))
    torch.manual_seed(7)
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
    else:
        model.add_adapter(config, adapter_name=name)
    move_heads(model, name, 0.5)


@torch.no_grad()
def move_heads(model, name, by):
    for key, parameter in model.named_parameters():
        if f"modules_to_save.{name}." in key:
            parameter.mul_(by)


def pair(first, second):
    """Return the model with both adapters, and its logits with the first adapter alone."""
    model = inject(models.build(first.model), first.adapter)
    move_heads(model, "default", 2.0)
    alone = logits(model.eval())
    add(model, "second", second)
    return model.eval(), alone


def alone(spec):
    """Return the logits of a model with the second adapter of a pair and no other."""
    model = models.build(spec.model)
    config = adapter_config(spec.adapter.peft_type, dict(spec.adapter.config))
    torch.manual_seed(7)
    model = peft.get_peft_model(model, config, adapter_name="second")
    move_heads(model, "second", 0.5)
    return logits(model.eval())


def switched(first, second):
    try:
        model, before = pair(first, second)
        found = {}
        for name in ("second", "default"):
            model.set_adapter(name)
            found[name] = logits(model)
    except ValueError as error:
        return verdict("set_adapter activates either adapter", [f"raised ValueError: {error}"])
    return both(
        same_tensor("logits with the second", found["second"], alone(second)),
        same_tensor("logits with the first again", found["default"], before),
    )


@pytest.mark.clause("API-20")
@pytest.mark.parametrize(("first", "second"), CASES)
def test_the_active_adapter_computes_alone(first, second, upstream, judge):
    judge(switched(first, second))


@pytest.mark.clause("API-20")
def test_two_copies_of_a_head_are_not_activated_at_once(upstream, judge):
    first, second = (spec.but(adapter={"route": ADD}) for spec in PAIRS["both-heads"])
    model, _ = pair(first, second)
    judge(raises("set_adapter of both", ValueError, "multiple", lambda: model.set_adapter(["default", "second"])))


# ---- one of them is deleted ----


@pytest.mark.clause("API-13")
@pytest.mark.parametrize("gone", ["default", "second"])
@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*PAIRS[name], id=name) for name in ("both-heads", "first-head", "second-head")]
)
def test_of_two_adapters_the_other_one_is_left_whole(first, second, gone, upstream, judge):
    model, before = pair(first, second)
    model.delete_adapter(gone)
    left = "second" if gone == "default" else "default"
    model.set_adapter(left)
    tensors = [name for name, _ in model.named_parameters() if f".{gone}." in name]
    judge(
        both(
            verdict("nothing of the adapter is left", [f"{name} is left" for name in tensors]),
            same_tensor("logits with the other", logits(model), before if gone == "second" else alone(second)),
        )
    )


@pytest.mark.clause("API-13")
def test_of_three_active_adapters_the_one_with_a_head_can_go(upstream, judge):
    model, _ = pair(*PAIRS["first-head"])
    add(model, "third", FIRST)
    model.base_model.set_adapter(["default", "second", "third"])
    try:
        model.delete_adapter("default")
        found = [f"{name} is left" for name, _ in model.named_parameters() if ".default." in name]
    except ValueError as error:
        found = [f"raised ValueError: {error}"]
    judge(verdict("nothing of the adapter is left", found))


@pytest.mark.clause("API-13")
@cases(by_route({"last-head": PAIRS["both-heads"][0]}))
def test_without_its_last_head_it_is_the_base(spec, upstream, judge):
    model, _ = pair(spec, spec)
    model.delete_adapter("second")
    model.delete_adapter("default")
    # A PeftModel looks up the config of its active adapter. The model inside it does not.
    base = model.base_model.model if spec.adapter.route == GET else model
    judge(same_tensor("logits", logits(base), logits(models.build(spec.model))))


# ---- files of one of them ----


@pytest.mark.clause("API-20")
@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*PAIRS[name], id=f"saved/{name}") for name in ("first-head", "second-head")]
)
def test_a_chosen_adapter_is_saved_alone(first, second, upstream, tmp_path, judge):
    model, _ = pair(first, second)
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    config = peft.PeftConfig.from_pretrained(tmp_path / "second")
    again = peft.PeftModel.from_pretrained(models.build(first.model), tmp_path / "second", "second", config=config)
    files = sorted(path.name for path in tmp_path.iterdir())
    model.load_adapter(tmp_path / "second", "third")
    model.set_adapter("third")
    judge(
        both(
            same_tensor("logits of what was loaded beside the two", logits(model), alone(second)),
            same("what is written", files, ["README.md", "second"]),
            same_tensor("logits of what was saved", logits(again.eval()), alone(second)),
            trains_exactly(trainable_names(again, "second"), ()),
        )
    )


@pytest.mark.clause("API-20")
def test_several_can_be_frozen_and_trained_by_name(upstream, judge):
    model, _ = pair(*PAIRS["both-heads"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.set_requires_grad(["default", "second"], requires_grad=False)
    frozen = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.set_requires_grad(["default"])
    again = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    judge(both(trains_exactly(frozen, (), when="frozen"), same("trained again", set(again), set(trained))))


# ---- checkpointing undone ----


@pytest.mark.clause("API-21")
@cases(by_route({"plain": PLAIN}))
def test_checkpointing_that_was_undone_leaves_the_run(spec, upstream, train, tmp_path, judge):
    model = inject(models.build(spec.model), spec.adapter)
    base = model.get_base_model() if spec.adapter.route == GET else model
    hooks = len(base.get_input_embeddings()._forward_hooks)
    base.gradient_checkpointing_enable()
    base.gradient_checkpointing_disable()
    left = len(base.get_input_embeddings()._forward_hooks) - hooks
    on = [name for name, module in base.named_modules() if getattr(module, "gradient_checkpointing", False)]
    run = upstream.train(spec, tmp_path, model=model)
    judge(
        both(
            verdict("no hook is left", [f"the embeddings keep {left} more hook"] if left else []),
            same("modules that checkpoint", on, []),
            equal_runs(run, train(spec)),
        )
    )
