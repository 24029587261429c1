"""API: initialisations that do not start from zero: how they change the base, and how they convert to a plain LoRA."""

from functools import partial

import peft
import pytest
import torch

from harness import compat
from harness.fixtures import models
from harness.laws import rebuilt
from harness.laws.equal import differences
from harness.runs.scenarios import PLAIN, by_route, cases, spec_for
from harness.session.state import skip_if
from harness.subjects.hf_trainer import adapter_config, inject, recorded_warnings
from harness.suites.test_api_layers import injected
from harness.tolerance import MERGED
from harness.verdict import both, raises, verdict

TOKENS = torch.arange(16)[None]
GPT2 = PLAIN.but(model={"family": "gpt2"}, lora={"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True})


def started(spec, *inits):
    return {init: spec.but(lora={"init_lora_weights": init}) for init in inits}


def unchanged(spec, model, bound):
    """Check that a model with its fresh adapter computes what the base computes, within a bound on logits."""
    seen, base = rebuilt.logits(model, spec), rebuilt.logits(models.build(spec.model), spec)
    return verdict("fresh, it computes what the base does", differences(seen, base, bound, "fresh:"))


@pytest.mark.clause("API-16")
@cases(by_route(started(PLAIN, "gaussian", "eva", "mica")))
def test_an_adapter_that_starts_at_zero_is_an_identity(spec, upstream, judge):
    judge(unchanged(spec, injected(upstream, spec), 0.0))


MOVED = by_route(started(PLAIN, "pissa", "pissa_niter_4", "olora", "orthogonal")) | {
    f"gpt2/{name}": spec for name, spec in started(GPT2, "pissa", "olora", "orthogonal").items()
}
#: Square, so that a product of the transposed parts has the same shape.
MOVED["gpt2/olora/square"] = GPT2.but(lora={"target_modules": ["attn.c_proj"], "init_lora_weights": "olora"})


@pytest.mark.clause("API-16")
@cases(MOVED)
def test_what_is_moved_into_the_adapter_is_taken_from_the_base(spec, upstream, judge):
    model = injected(upstream, spec)
    try:
        judged = unchanged(spec, model, MERGED.loss)
    except RuntimeError as error:
        judged = verdict("fresh, it computes what the base does", [f"the forward raised: {error}"])
    judge(judged)


def skip_without(field):
    """Skip the case if this release's LoraConfig does not have a field."""
    skip_if(compat.missing_adapter_field("LORA", [field]))


def corda(model, method):
    skip_without("corda_config")
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    config = adapter_config("LORA", {**PLAIN.adapter.config, "init_lora_weights": "corda"})
    config.corda_config = CordaConfig(corda_method=method)
    preprocess_corda(model, config, run_model=lambda: model(TOKENS))
    return config


def lora_ga(model):
    skip_without("lora_ga_config")
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    fields = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}
    config = adapter_config("LORA", {**PLAIN.adapter.config, **fields})
    preprocess_loraga(model, config, lambda: model(TOKENS, labels=TOKENS).loss.backward())
    return config


#: Initialisations from data, each with the function that makes its config.
FROM_DATA = {
    "corda/ipm": lambda model: corda(model, "ipm"),
    "corda/kpm": lambda model: corda(model, "kpm"),
    "lora_ga": lora_ga,
}


@pytest.mark.clause("API-16")
@pytest.mark.parametrize("prepare", [pytest.param(prepare, id=name) for name, prepare in FROM_DATA.items()])
def test_what_is_moved_after_a_look_at_the_data_is_taken_from_the_base(prepare, upstream, judge):
    base = models.build(PLAIN.model)
    judge(unchanged(PLAIN, peft.get_peft_model(base, prepare(base)), MERGED.loss))


@pytest.mark.clause("API-16")
@cases(by_route(started(PLAIN, "unheard-of")))
def test_an_unknown_initialisation_is_refused(spec, upstream, judge):
    model = models.build(spec.model)
    judge(raises("injection", ValueError, "Unknown initialization", lambda: inject(model, spec.adapter)))


# ---- back to a LoRA ----

CONVERTED = {
    "pissa": started(PLAIN, "pissa")["pissa"],
    "olora": started(PLAIN, "olora")["olora"],
    "rslora": PLAIN.but(lora={"init_lora_weights": "pissa", "use_rslora": True}),
    "patterns": PLAIN.but(
        lora={"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 4}}
    ),
}


def moved_away(spec, directory):
    """Return the spec's PeftModel: its fresh adapter is saved in `directory`, then its tensors are moved by a tenth."""
    model = inject(models.build(spec.model), spec.adapter)
    config = model.peft_config["default"]
    kept, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(directory)
    config.init_lora_weights = kept
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return model


def convert(spec, directory, safe):
    """Return the logits of the model with the moved adapter, and those of its converted file on a fresh base."""
    model = moved_away(spec, directory / "start")
    beside = rebuilt.logits(model, spec)
    with recorded_warnings([]):
        model.save_pretrained(
            directory / "lora",
            path_initial_model_for_weight_conversion=str(directory / "start"),
            safe_serialization=safe,
        )
        again = peft.PeftModel.from_pretrained(models.build(spec.model), str(directory / "lora"))
    return rebuilt.logits(again, spec), beside


@pytest.mark.clause("API-17")
@pytest.mark.parametrize(
    ("spec", "safe"),
    [pytest.param(spec, True, id=name) for name, spec in CONVERTED.items()]
    + [pytest.param(CONVERTED["pissa"], False, id="pickle")],
)
def test_a_converted_adapter_computes_the_same_on_the_base_as_it_came(spec, safe, upstream, tmp_path, judge):
    seen, beside = convert(spec, tmp_path, safe)
    judge(verdict("converted, it computes the same", differences(seen, beside, MERGED.loss, "converted:")))


@pytest.mark.clause("API-17")
def test_another_method_is_not_converted(upstream, tmp_path, judge):
    spec = spec_for("llama", "ia3")
    model = inject(models.build(spec.model), spec.adapter)
    model.save_pretrained(tmp_path / "start")
    start = str(tmp_path / "start")
    calls = {
        safe: raises(
            f"save_pretrained, safe_serialization={safe}",
            ValueError,
            "not supported for IA3",
            partial(
                model.save_pretrained,
                tmp_path / "lora",
                path_initial_model_for_weight_conversion=start,
                safe_serialization=safe,
            ),
        )
        for safe in (True, False)
    }
    judge(both(*calls.values()))
