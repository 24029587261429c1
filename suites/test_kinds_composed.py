"""Adapters that are made of other adapters, or of what the model sees: X-LoRA, EVA. A spec alone cannot say them.

Each is trained for two steps, and judged like the kinds of `harness/runs/kinds.py`. Arrow and LoftQ are not trained;
NO_OPTION and NO_INIT there say why.
"""

import functools

import pytest
import torch

from harness.fixtures import data, models
from harness.laws import frozen, rebuilt, universal
from harness.laws.equal import differences
from harness.runs.kinds import INITS
from harness.session.state import skip_if
from harness.subjects.hf_trainer import inject, recorded_warnings
from harness.verdict import verdict

RUN = INITS["random"]
EVA = INITS["eva"]
COMPOSED = ("x-lora", "x-lora-trained-adapters", "x-lora-named-adapters", "eva")


def rows(spec):
    """Return the first eight rows of a spec, in two batches."""
    made = data.rows(spec.data)[0][:8]
    return [
        {name: torch.tensor([row[name] for row in made[first : first + 4]]) for name in data.columns(spec.data)}
        for first in (0, 4)
    ]


def base():
    # X-LoRA computes each batch twice, and refuses a cache.
    model = models.build(RUN.model)
    model.config.use_cache = False
    return model


def composed(kind, path):
    """Return a model with an adapter of this kind. path: where adapters that it is made of are saved."""
    from peft import XLoraConfig, get_peft_model, initialize_lora_eva_weights

    if kind == "eva":
        model = inject(base(), EVA.adapter)
        initialize_lora_eva_weights(model, rows(EVA), show_progress_bar=False)
        return model
    parts = {}
    for seed, name in enumerate(("first", "second") if kind.endswith("named-adapters") else ("0", "1")):
        parts[name] = str(path / name)
        inject(base(), RUN.but(adapter={"seed": seed}).adapter).save_pretrained(parts[name])
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=RUN.model.config["hidden_size"],
        xlora_depth=2,
        xlora_size=8,
        adapters=parts,
        use_trainable_adapters=kind == "x-lora-trained-adapters",
    )
    torch.manual_seed(0)
    return get_peft_model(base(), config)


@pytest.fixture
def trained(runs, upstream):
    """trained(kind): train it once. Return (trace, the trained model)."""

    def once(kind):
        skip_if(upstream.unsupported(EVA if kind == "eva" else RUN))
        if ("composed", kind) not in runs.measured:
            directory = runs.directory(f"composed-{kind}")
            with recorded_warnings([]):
                model = composed(kind, directory)
                runs.measured["composed", kind] = (upstream.train(RUN, directory / "run", model=model), model)
        return runs.measured["composed", kind]

    return once


each = functools.partial(pytest.mark.parametrize, "kind")
KINDS = [pytest.param(kind, id=f"composed/{kind}") for kind in COMPOSED]


@pytest.mark.clause("FRZ-01")
@each(KINDS)
def test_the_base_is_bit_identical(kind, trained, judge):
    judge(universal.LAWS_OF_ONE_RUN["FRZ-01"](trained(kind)[0]))


@pytest.mark.clause("FRZ-02")
@each(KINDS)
def test_the_optimizer_holds_what_requires_gradients(kind, trained, judge):
    judge(universal.LAWS_OF_ONE_RUN["FRZ-02"](trained(kind)[0]))


@pytest.mark.clause("FRZ-13")
@each(KINDS)
def test_two_steps_move_every_tensor(kind, trained, judge):
    judge(frozen.adapter_moved(trained(kind)[0]))


@pytest.mark.clause("CKPT-21")
@each(KINDS)
def test_an_adapter_that_is_loaded_is_the_trained_one(kind, trained, judge):
    from peft import PeftModel

    trace, model = trained(kind)
    findings = [trace.error] if trace.error else []
    if not findings:
        with recorded_warnings([]):
            loaded = PeftModel.from_pretrained(base(), trace.checkpoints[-1].path)
        live = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
        held = {name: one.detach() for name, one in loaded.named_parameters() if name in live}
        findings = differences(held, live, 0.0, "loaded:")[:2]
        findings += differences(rebuilt.logits(loaded, RUN), rebuilt.logits(model, RUN), 0.0, "loaded:")
    judge(verdict("a loaded adapter is the trained one", findings))


@pytest.mark.clause("API-16")
def test_eva_starts_at_the_directions_of_greatest_variance_of_each_layers_inputs(upstream, judge):
    skip_if(upstream.unsupported(EVA))
    model, seen = inject(base(), EVA.adapter), {}
    batches = rows(EVA)
    layers = dict(zip("ab", rebuilt.tuner_layers(model)[:2], strict=True))
    plain = rebuilt.logits(base(), RUN)
    with recorded_warnings([]):
        from peft import initialize_lora_eva_weights

        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    for name, layer in layers.items():
        keep = seen.setdefault(name, [])
        layer.register_forward_pre_hook(lambda module, given, keep=keep: keep.append(given[0].detach().double()))
    with torch.no_grad():
        for batch in batches:
            model.eval()(**batch)
    findings = differences(rebuilt.logits(model, RUN), plain, 0.0, "at the start:")
    masks = torch.cat([batch["attention_mask"].bool().flatten() for batch in batches])
    for name, layer in layers.items():
        inputs = torch.cat([one.flatten(0, 1) for one in seen[name][: len(batches)]])[masks]
        rank = next(iter(layer.r.values()))
        inputs = inputs - inputs.mean(0)
        best = torch.linalg.svd(inputs, full_matrices=False).S[:rank].pow(2).sum()
        held = torch.linalg.qr(next(iter(layer.lora_A.values())).weight.detach().double().T).Q
        # peft looks at batches until the directions change by less than 1 %. A random start holds a quarter.
        share = float((inputs @ held).pow(2).sum() / best)
        if share < 0.9:
            findings.append(f"layer {name}: A holds {share:.3f} of the variance that {rank} directions of its inputs can hold")
    judge(verdict("EVA starts as an identity, at the directions of greatest variance", findings))
