"""RunSpec.trainer: names and options become what the Trainer is given, or one sentence."""

import sys

import pytest
import torch

from harness import environment, lacking
from harness.errors import UsageError
from harness.fixtures import collators, data
from harness.runs.scenarios import PLAIN
from harness.subjects import trainer_keywords
from harness.subjects.hf_trainer import HFTrainer
from harness.subjects.rows import Rows

PLUS = "harness.fixtures.optimizers:loraplus"
RAGGED = PLAIN.but(data={"rows": 6, "min_length": 4})


def test_lora_plus_gives_matrices_b_their_own_rate(tmp_path):
    spec = PLAIN.but(trainer={"optimizers": [PLUS, {"loraplus_lr_ratio": 4.0}]}, weight_decay=0.1)
    trainer = HFTrainer().build(spec, tmp_path)
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {name for name, rate in rates.items() if rate == pytest.approx(0.04)} == {n for n in rates if "lora_B" in n}
    assert {name for name, rate in rates.items() if rate == pytest.approx(0.01)} == {n for n in rates if "lora_A" in n}
    assert set(rates) == {name for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_groups_of_ones_own(tmp_path):
    options = {"rates": {"q_proj": 0.5}, "weight_decay": 0.2}
    spec = PLAIN.but(trainer={"optimizers": ["harness.fixtures.optimizers:parameter_groups", options]})
    groups = HFTrainer().build(spec, tmp_path).optimizer.param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [(0.005, 0.2, 4), (0.01, 0.0, 4)]


def test_with_model_init_the_trainer_makes_the_model(tmp_path):
    trace = HFTrainer().train(PLAIN.but(trainer={"model_init": True}, max_steps=1), tmp_path)
    assert trace.error is None and len(trace.steps) == 1 and trace.steps[0].gradients
    # Upstream refuses both: the optimizer would hold the parameters of a model that is not trained.
    both = PLAIN.but(trainer={"model_init": True, "optimizers": PLUS}, max_steps=1)
    assert HFTrainer().train(both, tmp_path).error is not None


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"optimizers": [PLUS, {"ratio": 4}]}, f"optimizers, '{PLUS}': it does not take these options"),
        ({"callbacks": [["early_stopping", {"patience": 2}]]}, "callbacks, 'early_stopping': it does not take"),
        ({"optimizers": "harness.fixtures.metrics:predictions"}, "expected an optimizer and a scheduler"),
        ({"optimiser": PLUS}, "spec.trainer: unknown field 'optimiser'"),
    ],
)
def test_what_the_spec_gets_wrong_is_one_sentence(trainer, words, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.fixtures.metrics.predictions", lambda model, args: None)
    with pytest.raises(UsageError) as caught:
        HFTrainer().build(PLAIN.but(trainer=trainer), tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- collators ----

rows = data.rows(RAGGED.data)[0]
tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
LENGTHS = [sum(row["attention_mask"]) for row in rows]


@pytest.mark.parametrize("name", ["packed", "padding_free", "for_language_modeling", "for_seq2seq"])
def test_a_collator_keeps_all_tokens_and_all_targets(name):
    batch = getattr(collators, name)(tensors)
    found = Rows(rows).of(batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids"))
    assert found == list(range(len(rows)))
    # A causal model predicts each token of a row but the first.
    assert int((batch["labels"][:, 1:] != data.IGNORED).sum()) == sum(length - 1 for length in LENGTHS)
    assert batch["input_ids"].shape == batch["labels"].shape


def test_padding_is_where_the_collator_says():
    assert collators.padding_free(tensors)["input_ids"].shape == (1, sum(LENGTHS))
    assert collators.packed(tensors, length=24)["input_ids"].shape[1] == 24
    assert collators.for_language_modeling(tensors, pad_to_multiple_of=7)["input_ids"].shape[1] % 7 == 0
    assert collators.for_seq2seq(tensors)["input_ids"].shape == (len(rows), max(LENGTHS))
    one = [{**row, "labels": torch.tensor(1)} for row in tensors]
    assert collators.with_padding(one)["labels"].tolist() == [1] * len(rows)


def test_packed_rows_need_masks_that_keep_them_apart(monkeypatch):
    spec = PLAIN.but(trainer={"data_collator": "harness.fixtures.collators:packed"})
    monkeypatch.setattr(lacking, "packed_masks", lambda: "they attend to each other")
    assert trainer_keywords.missing(spec) == "they attend to each other"
    assert trainer_keywords.missing(spec.but(model={"attn_implementation": "flash_attention_2"})) is None
    assert trainer_keywords.missing(PLAIN) is None


# ---- packages ----


def test_every_optimizer_of_upstream_is_there_or_its_package_is_named():
    """Upstream's own error for what is not installed: no row of the table is missing, and none is wrong."""
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    for kind in OptimizerNames:
        reason = lacking.package({"optim": kind.value})
        arguments = TrainingArguments("unused", use_cpu=True, report_to="none", optim_target_modules=["q_proj"])
        arguments.optim = kind
        try:
            Trainer.get_optimizer_cls_and_kwargs(arguments, None)
        except (ImportError, ValueError) as error:
            absent = isinstance(error, ImportError) or "install" in str(error) or "import" in str(error)
        else:
            absent = False
        assert not absent or reason is not None, kind
        assert reason is None or absent or "lomo" in kind.value, kind


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (PLAIN.but(optim="galore_adamw"), "optimizer 'galore_adamw' needs galore-torch, which is not installed"),
        (PLAIN.but(use_liger_kernel=True), "use_liger_kernel needs liger-kernel, which is not installed"),
        (PLAIN.but(report_to=["tensorboard"]), "report_to 'tensorboard' needs tensorboard, which is not installed"),
        (PLAIN.but(model={"attn_implementation": "flash_attention_2"}), "needs flash-attn, which is not installed"),
        (PLAIN.but(model={"attn_implementation": "flex_attention"}), "has no backward pass on a CPU"),
    ],
)
def test_a_package_that_is_not_installed_is_named(spec, words, monkeypatch):
    monkeypatch.setattr(lacking, "_has", lambda module: False)
    assert words in HFTrainer().unsupported(spec)


@pytest.mark.parametrize(
    ("module", "spec", "words"),
    [
        ("schedulefree", PLAIN.but(optim="schedule_free_adamw"), "needs schedulefree"),
        ("flash_attn", PLAIN.but(model={"attn_implementation": "flash_attention_2"}), "needs flash-attn"),
        ("sklearn", PLAIN.but(adapter={"peft_type": "ADAMSS"}), "ADAMSS clusters by scikit-learn"),
    ],
)
def test_a_package_whose_import_fails_is_named(module, spec, words, monkeypatch, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise OSError('libone.so is missing\\nand more')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    environment.import_error.cache_clear()
    reason = HFTrainer().unsupported(spec)
    environment.import_error.cache_clear()
    assert f"{words}, which is installed, but cannot be imported (libone.so is missing)" in str(reason)


def test_an_option_of_the_route_that_there_is_not():
    with pytest.raises(UsageError, match="did you mean 'autocast_adapter_dtype'"):
        HFTrainer().unsupported(PLAIN.but(adapter={"options": {"autocast_adapter_dtyp": True}}))


# ---- quantization ----


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_typ": "nf4"}, "did you mean 'bnb_4bit_quant_type'?"),
        ({"load_in_4bits": True}, "did you mean 'load_in_4bit'?"),
        ({"load_in_4bit": False}, "neither load_in_4bit nor load_in_8bit is true"),
        ({"quant_method": "gtpq"}, "did you mean 'gptq'?"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "expected nf4 or fp4; found 'nf5'"),
    ],
)
def test_a_quantization_config_that_cannot_be_is_one_sentence(config, words):
    if reason := lacking.quantization():
        pytest.skip(reason)
    with pytest.raises(UsageError) as caught:
        HFTrainer().unsupported(PLAIN.but(model={"quantization": config}))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_quantization_config_packs_as_it_says():
    if reason := lacking.quantization():
        pytest.skip(reason)
    from harness.fixtures import models

    spec = PLAIN.but(model={"quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}).model
    assert spec.four_bit and not spec.eight_bit
    layer = models.build(spec).model.layers[0].self_attn.q_proj
    assert layer.weight.quant_state.quant_type == "fp4" and not layer.weight.quant_state.nested
    skipping = {"load_in_8bit": True, "llm_int8_skip_modules": ["q_proj", "lm_head"]}
    spec = PLAIN.but(model={"quantization": skipping}).model
    attention = models.build(spec).model.layers[0].self_attn
    assert spec.eight_bit and attention.q_proj.weight.dtype.is_floating_point
    assert not attention.v_proj.weight.dtype.is_floating_point


def test_another_method_is_unsupported_here_or_trained():
    reason = HFTrainer().unsupported(PLAIN.but(model={"quantization": {"quant_method": "hqq", "nbits": 4}}))
    assert reason is None or "hqq" in reason.lower()
