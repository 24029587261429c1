"""harness/reference is bit-equal to transformers.Trainer with peft on the CPU, and so are its checkpoints."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from harness import subjects
from harness.errors import UsageError
from harness.fixtures import models
from harness.laws.equal import differences, distance, equal_runs
from harness.paths import ROOT
from harness.processes.imports import import_upstream
from harness.real import reference_alone
from harness.reference import sampling, schedules
from harness.reference.settings import Arguments
from harness.runs.cache import Runs
from harness.runs.configured import OPTIMIZER_ARGUMENTS, SCHEDULE_ARGUMENTS
from harness.spec import ADD, RunSpec
from harness.subjects import reference
from harness.trace import Trace

FILES = sorted((ROOT / "harness" / "reference").glob("*.py"))

#: What the core of the reference is. The other files have what is rare.
CORE = {"__init__", "__main__", "batches", "checkpoint", "lora", "loss", "optimizer", "settings", "trainer"}

PLAIN = RunSpec()
RAGGED = {"min_length": 5}
NO_DROPOUT = {"lora_dropout": 0.0}
EVALUATED = PLAIN.but(data={"eval_rows": 10}, eval_strategy="steps", eval_steps=5)
NF4 = {"quantization": "nf4"}

#: Qwen2 has biases in its attention.
BIASES = PLAIN.but(
    model={"family": "qwen2"}, lora={"bias": "all"}, weight_decay=0.1, max_steps=4, save_strategy="steps", save_steps=2
)
#: The loss of other rows is lowest after step 2, and highest after step 4 (of 6).
BEST = PLAIN.but(
    data={"rows": 4, "eval_rows": 8, "seed": 7},
    lora=NO_DROPOUT,
    learning_rate=2e-2,
    lr_scheduler_type="constant",
    max_steps=6,
    eval_strategy="steps",
    eval_steps=2,
    save_strategy="steps",
    save_steps=2,
    load_best_model_at_end=True,
)

EQUAL = {
    "plain": PLAIN,
    "accumulation": PLAIN.but(data=RAGGED, gradient_accumulation_steps=3, max_steps=8),
    "n37": PLAIN.but(data={"rows": 37}, max_steps=20),
    "n37-drop-last": PLAIN.but(data={"rows": 37}, max_steps=20, dataloader_drop_last=True),
    "warmup-decay-clip": PLAIN.but(warmup_steps=3, weight_decay=0.1, max_grad_norm=0.1),
    "warmup-share": PLAIN.but(warmup_steps=0.3),
    "no-clipping": PLAIN.but(max_grad_norm=0.0),
    "bf16": PLAIN.but(bf16=True),
    "bf16-base": PLAIN.but(model={"dtype": "bfloat16"}),
    "bf16-base-add": PLAIN.but(model={"dtype": "bfloat16"}, adapter={"route": ADD}),
    "add": PLAIN.but(adapter={"route": ADD}),
    "eval-every-5": EVALUATED,
    "eval-and-save-epoch": EVALUATED.but(max_steps=15, eval_strategy="epoch", eval_steps=None, save_strategy="epoch"),
    "epochs-1.5": PLAIN.but(max_steps=None, num_train_epochs=1.5),
    "data-seed": PLAIN.but(data_seed=7, max_steps=20),
    "checkpointing": PLAIN.but(activation_checkpointing=True),
    "checkpointing-reentrant": PLAIN.but(
        activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}
    ),
    "unfused-adamw": PLAIN.but(optim="adamw_torch"),
    "sgd": PLAIN.but(optim="sgd"),
    "attention-dropout": PLAIN.but(model={"config": {"attention_dropout": 0.1}}),
    "no-dropout": PLAIN.but(lora=NO_DROPOUT),
    "label-smoothing": PLAIN.but(label_smoothing_factor=0.1, data=RAGGED),
    "label-smoothing-accumulation": PLAIN.but(
        label_smoothing_factor=0.1, data=RAGGED, gradient_accumulation_steps=3, max_steps=8
    ),
    "label-smoothing-bf16": PLAIN.but(label_smoothing_factor=0.1, bf16=True),
    "cosine": PLAIN.but(lr_scheduler_type="cosine", warmup_steps=2),
    "constant": PLAIN.but(lr_scheduler_type="constant"),
    "constant-with-warmup": PLAIN.but(lr_scheduler_type="constant_with_warmup", warmup_steps=4),
    "tied": PLAIN.but(model={"family": "llama-tied"}),
    "all-linear": PLAIN.but(lora={"target_modules": "all-linear"}),
    "rslora": PLAIN.but(lora={"use_rslora": True, "r": 4, "lora_alpha": 7, "target_modules": ["down_proj", "q_proj"]}),
    "logging-every-3": PLAIN.but(logging_steps=3, logging_first_step=True),
    "logging-epoch": PLAIN.but(logging_strategy="epoch", max_steps=15),
    "logging-no": PLAIN.but(logging_strategy="no"),
    "augmented": PLAIN.but(data={"augment": True}),
    "diverging": PLAIN.but(learning_rate=1e30, max_grad_norm=0.0),
    "saving": PLAIN.but(save_strategy="steps", save_steps=3),
    "nf4": PLAIN.but(model=NF4, lora={"target_modules": "all-linear"}),
    "nf4-add-bf16": PLAIN.but(model={**NF4, "dtype": "bfloat16"}, adapter={"route": ADD}, bf16=True),
    "nf4-bf16-base": PLAIN.but(model={**NF4, "dtype": "bfloat16"}),
    "nf4-prepared": PLAIN.but(
        model={**NF4, "dtype": "bfloat16", "prepare_for_kbit": True}, bf16=True, save_strategy="steps", save_steps=5
    ),
    "nf4-in-floats": PLAIN.but(
        model={**NF4, "dtype": "bfloat16", "quant_storage": "bfloat16"}, adapter={"route": ADD}, max_steps=4
    ),
    "on-its-device": PLAIN.but(model={"family": "harness.fixtures.on_device:llama", "dtype": "bfloat16"}, bf16=True),
    "saving-only-the-model": PLAIN.but(save_strategy="steps", save_steps=5, save_only_model=True),
    "neftune": PLAIN.but(neftune_noise_alpha=5.0),
    "neftune-bf16-checkpointing": PLAIN.but(
        neftune_noise_alpha=5.0, bf16=True, model={"dtype": "bfloat16"}, activation_checkpointing=True, max_steps=4
    ),
    "sequential": PLAIN.but(train_sampling_strategy="sequential", max_steps=12),
    "by-length": EVALUATED.but(train_sampling_strategy="group_by_length", max_steps=12),
    "eval-delay": EVALUATED.but(eval_steps=2, eval_delay=5),
    "eval-delay-epochs": EVALUATED.but(max_steps=25, eval_strategy="epoch", eval_steps=None, eval_delay=2),
    "eval-on-start": EVALUATED.but(eval_on_start=True, max_steps=4),
    "tokens-seen": EVALUATED.but(include_num_input_tokens_seen=True, data=RAGGED),
    "tokens-seen-without-padding": PLAIN.but(include_num_input_tokens_seen="non_padding", data=RAGGED),
    "no-effect": EVALUATED.but(
        dataloader_num_workers=1,
        torch_empty_cache_steps=2,
        batch_eval_metrics=True,
        run_name="x",
        ddp_timeout=60,
        max_steps=4,
    ),
    "saving-two": EVALUATED.but(save_strategy="steps", save_steps=0.2, save_total_limit=2),
    "bias-all": BIASES,
    "bias-of-the-targets-add-bf16": BIASES.but(
        adapter={"route": ADD}, lora={"bias": "lora_only"}, model={"dtype": "bfloat16"}, bf16=True
    ),
    "bias-nf4": BIASES.but(model=NF4, lora={"bias": "lora_only"}),
    "best": BEST,
    "best-rotated": BEST.but(save_total_limit=1, save_only_model=True),
    "best-rotated-two": BEST.but(save_total_limit=2, greater_is_better=True, metric_for_best_model="eval_loss"),
    "best-saved": BEST.but(save_strategy="best", save_total_limit=1, greater_is_better=True),
    "best-saved-and-not-loaded": BEST.but(
        save_strategy="best", load_best_model_at_end=None, metric_for_best_model="loss", eval_steps=0.5
    ),
}

EACH = EVALUATED.but(eval_steps=1, max_steps=8, save_strategy="steps", save_steps=3)

#: Schedules that follow the loss of evaluations. It falls at each one, by less than the thresholds.
FOLLOWING = {
    "plateau": ("reduce_lr_on_plateau", {"patience": 0, "factor": 0.5, "threshold": 0.5, "cooldown": 1}),
    "greedy-up": (
        "greedy",
        {"patience": 1, "factor": 0.5, "smooth": True, "window_size": 2, "warmup": 1, "max_lr": 0.1},
    ),
    "greedy-down": (
        "greedy",
        {"patience": 0, "factor": 0.5, "min_lr": 5e-3, "threshold": 0.9, "threshold_mode": "rel", "reset_start": 2},
    ),
}

#: Optimizers of which some states have other shapes than the tensors: `OPTIMIZER_ARGUMENTS` has more.
STATES = ("adafactor", "adamw-8bit", "ademamix-8bit")

#: Twenty steps in two epochs of ten, with dropout. All checkpoints but one are taken in the middle of an epoch.
LONG = PLAIN.but(max_steps=20, save_strategy="steps", save_steps=3)
AT_EPOCH = LONG.but(save_strategy="epoch")
RESUMED_BIASES = BIASES.but(max_steps=10, save_steps=5)
RESUMED_BEST = BEST.but(load_best_model_at_end=None, metric_for_best_model="loss", max_steps=4)
WINDOWS = PLAIN.but(data=RAGGED, gradient_accumulation_steps=3, max_steps=8, save_strategy="steps", save_steps=2)


#: Files of the Trainer's checkpoints that the reference does not write. After add_adapter, transformers adds the base's
#: settings for generation.
UNWRITTEN = {"README.md", "training_args.bin", "generation_config.json"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    import_upstream()
    return Runs(subjects.load("hf-trainer"), tmp_path_factory.mktemp("runs"))


def train(runs: Runs, spec: RunSpec, subject: str = "reference", again: bool = False) -> Trace:
    trace = runs.train(spec, subjects.load(subject), again)
    assert trace.error is None
    return trace


def both(runs: Runs, spec: RunSpec) -> tuple[Trace, Trace]:
    return train(runs, spec), train(runs, spec, "hf-trainer")


def without_times(value):
    """Return the same JSON value without measured times and rates."""
    if isinstance(value, dict):
        timed = ("_runtime", "_per_second")
        return {key: without_times(item) for key, item in value.items() if not key.endswith(timed)}
    return [without_times(item) for item in value] if isinstance(value, list) else repr(value)


def facts(trace: Trace) -> dict[str, object]:
    """Return everything that must be equal, but for the tensors. Paths are relative to the run's directory."""
    metrics = trace.output["metrics"]
    directory = str(Path(trace.checkpoints[0].path).parent) if trace.checkpoints else "nowhere"
    return {
        "events": trace.events,
        # As text, where NaN equals itself.
        "batches": [repr(step.batches) for step in trace.steps],
        "evaluations": [(each.step, each.rows, without_times(each.metrics)) for each in trace.evaluations],
        "log": without_times(trace.log_history),
        # The Trainer's PrinterCallback takes total_flos out of the metrics while it prints them.
        "output": without_times({**trace.output, "metrics": {k: v for k, v in metrics.items() if k != "total_flos"}}),
        "metrics": sorted({*metrics, "total_flos"}),
        "best": repr(trace.best).replace(directory, ""),
        "trainable": trace.trainable,
        "parameters": trace.parameters,
        "groups": trace.groups,
        "base": (trace.base_before, trace.base, trace.base_gradients),
        "saved": [
            (each.step, each.siblings, each.tensors, repr(without_times(each.state)).replace(directory, ""))
            for each in trace.checkpoints
        ],
        "files": [set(each.files) - UNWRITTEN for each in trace.checkpoints],
    }


def assert_equal(ours: Trace, theirs: Trace) -> None:
    verdict = equal_runs(ours, theirs)
    assert verdict.holds, verdict
    assert not differences(ours.adapter_before, theirs.adapter_before, 0.0, "adapter before")
    expected = facts(theirs)
    for name, fact in facts(ours).items():
        assert fact == expected[name], name
    for saved, other in zip(ours.checkpoints, theirs.checkpoints, strict=True):
        assert not differences(saved.adapter, other.adapter, 0.0, f"checkpoint {saved.step}:")


@pytest.mark.parametrize("spec", EQUAL.values(), ids=EQUAL)
def test_reference_is_the_trainer_bit_for_bit(runs, spec):
    if spec.model.quantization and (reason := runs.subject.unsupported(spec)):
        pytest.skip(reason)
    assert_equal(*both(runs, spec))


@pytest.mark.parametrize("name", SCHEDULE_ARGUMENTS)
def test_each_schedule_is_transformers(name):
    from transformers import get_scheduler

    given, rates = SCHEDULE_ARGUMENTS[name], []
    kind, options, warmup = given["lr_scheduler_type"], given["lr_scheduler_kwargs"] or {}, given["warmup_steps"]
    args = Arguments(learning_rate=0.01, lr_scheduler_type=kind, lr_scheduler_kwargs=options, warmup_steps=warmup)
    for make in (
        lambda optimizer: get_scheduler(kind, optimizer, warmup, 12, options),
        lambda optimizer: schedules.make_schedule(optimizer, args, 12),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
        schedule = make(optimizer)
        rates.append([])
        for metric in (5.0, 4.0, 4.0, 4.0, 3.0, 2.0, 3.0, 3.0, 2.5, 2.0, 1.0, 1.0, 1.0):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step(*([metric] if kind in schedules.BY_METRIC else []))
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_schedule_that_follows_the_loss_is_the_trainers(runs, name):
    kind, options = FOLLOWING[name]
    spec = EACH.but(lr_scheduler_type=kind, lr_scheduler_kwargs=options)
    ours, theirs = both(runs, spec)
    assert len({rate for step in theirs.steps for rate in step.learning_rates}) > 1
    assert_equal(ours, theirs)
    for reader in ("reference", "hf-trainer"):
        resumed = train(runs, spec.resumed(3, writer="hf-trainer"), reader)
        assert equal_runs(resumed, theirs, after=3).holds


@pytest.mark.parametrize("optim", STATES)
def test_the_state_of_each_optimizer_is_read(runs, optim):
    """The rank is 128: bitsandbytes packs no moments of tensors with fewer than 4096 numbers."""
    spec = LONG.but(lora={"r": 128, "target_modules": ["q_proj"]}, max_steps=4, **OPTIMIZER_ARGUMENTS[optim])
    if reason := reference.refusal(spec):
        pytest.skip(reason)
    whole = train(runs, spec, "hf-trainer")
    assert equal_runs(train(runs, spec.resumed(3, writer="hf-trainer")), whole, after=3).holds


def test_rows_are_grouped_by_length_as_upstream_does():
    from transformers.trainer_pt_utils import get_length_grouped_indices

    for rows, size in ((37, 4), (5, 3), (500, 2)):
        lengths = torch.randint(1, 50, (rows,), generator=torch.Generator().manual_seed(rows)).tolist()
        seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
        expected = get_length_grouped_indices(lengths, size, generator=seeded[0])
        assert sampling.grouped(lengths, size, seeded[1]) == expected


def test_choices_are_what_the_reference_has():
    names = (*schedules.SHAPES, *schedules.CONSTANT, *schedules.BY_METRIC)
    assert sorted(names) == sorted(reference.CHOICES["lr_scheduler_type"])


@pytest.mark.parametrize(
    "spec", [LONG, AT_EPOCH, WINDOWS, RESUMED_BIASES, RESUMED_BEST], ids=["steps", "epoch", "windows", "biases", "best"]
)
@pytest.mark.parametrize(("writer", "reader"), [("hf-trainer", "reference"), ("reference", "hf-trainer")])
def test_checkpoints_resume_in_each_other(runs, spec, writer, reader):
    whole = train(runs, spec, writer)
    assert len(whole.checkpoints) >= 2
    for checkpoint in whole.checkpoints:
        resumed = train(runs, spec.resumed(checkpoint.step, writer=writer), reader)
        verdict = equal_runs(resumed, whole, after=checkpoint.step)
        assert verdict.holds, (checkpoint.step, verdict)
        assert without_times(resumed.log_history[:-1]) == without_times(whole.log_history[:-1])


@pytest.mark.parametrize(
    ("changed", "before"),
    [
        ({"learning_rate": 1.0, "save_steps": 4}, {"learning_rate": 1e-2, "save_steps": 3}),
        ({"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 1}),
        ({"max_steps": 6}, {"max_steps": 20}),
    ],
    ids=["rate-and-intervals", "accumulation", "finished"],
)
def test_a_run_resumed_with_other_arguments_equals_the_trainers(runs, changed, before):
    spec = LONG.but(**changed).resumed(6, writer="hf-trainer", first_leg=before)
    assert_equal(*both(runs, spec))


def test_checkpoint_files_have_the_same_content(runs):
    ours, theirs = (Path(trace.checkpoint(10).path) for trace in both(runs, EQUAL["eval-and-save-epoch"]))
    name = "adapter_model.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(path / name, weights_only=True) for path in (ours, theirs)]
        assert repr(states[0]) == repr(states[1]), name
    config, upstream = (json.loads((path / "adapter_config.json").read_text()) for path in (ours, theirs))
    assert {key: upstream[key] for key in config} | {"target_modules": config["target_modules"]} == config
    assert set(upstream["target_modules"]) == set(config["target_modules"])


def test_peft_loads_the_adapter(runs):
    from peft import PeftModel

    from harness.fixtures import models

    trace = train(runs, LONG)
    checkpoint = trace.checkpoint(20)
    loaded = PeftModel.from_pretrained(models.build(LONG.model), checkpoint.path)
    values = {name.replace(".default", ""): tensor for name, tensor in loaded.state_dict().items() if "lora_" in name}
    written = load_file(f"{checkpoint.path}/adapter_model.safetensors")
    assert not differences(values, written, 0.0, "")
    assert not differences(checkpoint.adapter, trace.adapter, 0.0, "")


def test_float64_bounds_the_rounding_of_float32(runs):
    """Measured over ten SGD steps: losses of 5.6 differ by 8e-7, gradients by 3e-8, weights by 2e-8."""
    spec = PLAIN.but(optim="sgd", data=RAGGED)
    rounded, exact = train(runs, spec), train(runs, spec.but(model={"dtype": "float64"}))
    assert {tensor.dtype for step in exact.steps for tensor in step.gradients.values()} == {torch.float64}
    gaps = distance(rounded, exact)
    assert gaps["largest_loss_difference"] < 3e-6
    assert gaps["largest_gradient_difference"] < 1e-7
    assert gaps["largest_adapter_difference"] < 1e-7


class Float32Operations(TorchDispatchMode):
    """Collects the operations that return float32 tensors of more than one element."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.numel() > 1:
            self.operations.add(str(func))
        return result


def test_float64_is_float64_throughout(runs, monkeypatch, tmp_path):
    spec = PLAIN.but(model={"dtype": "float64"}, max_steps=2)

    def float32_operations():
        trainer = reference.build(spec, tmp_path, lambda event, trainer: None)
        with Float32Operations() as seen:
            reference.train(trainer, spec, None)
        return seen.operations

    assert not float32_operations()
    monkeypatch.setattr(reference, "all_double", contextlib.nullcontext)
    assert "aten._to_copy.default" in float32_operations()


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("lora.math.sqrt", lambda number: number**0.5 * (1 + 1e-6)),
        (
            "trainer.count_tokens",
            lambda batches: torch.stack([batch["labels"].ne(-100).sum() for batch in batches]).sum() / 1,
        ),
        ("schedules.factor", lambda step, total, **options: max(0, total - step - 1) / total),
        ("batches.shuffled", lambda rows, seed: torch.randperm(rows).tolist()),
    ],
    ids=["scaling", "token-count", "schedule", "order"],
)
def test_a_mistake_in_the_reference_is_found(runs, monkeypatch, target, wrong):
    spec = PLAIN.but(lora={"use_rslora": True}, max_steps=3)
    assert equal_runs(*both(runs, spec)).holds
    monkeypatch.setattr(f"harness.reference.{target}", wrong)
    assert not equal_runs(train(runs, spec, again=True), train(runs, spec, "hf-trainer")).holds


def test_an_incomplete_checkpoint_is_refused(runs):
    train(runs, LONG)
    for damage, words in (
        ("delete optimizer.pt", "it has no optimizer.pt"),
        ("delete rng_state.pth", "it has no rng_state.pth"),
        ("truncate adapter_model.safetensors 100", "cannot be read"),
        ("truncate trainer_state.json 100", "cannot be read"),
    ):
        spec = LONG.resumed(6, damage=(damage,))
        error = runs.train(spec, subjects.load("reference")).error or "none"
        assert error.startswith("CheckpointError")
        assert words in error
        assert "checkpoint-6" in error


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (PLAIN.but(save_strategy="steps", load_best_model_at_end=True), "an evaluation for each checkpoint"),
        (BEST.but(save_steps=3), "an evaluation for each checkpoint"),
        (BEST.but(save_steps=0.5, eval_steps=2), "an evaluation for each checkpoint"),
        (PLAIN.but(optim="lomo"), "adamw_torch_fused"),
        (PLAIN.but(optim="sgd", optim_args="momentum"), "optim_args 'momentum'"),
        (PLAIN.but(optim="rmsprop_bnb", optim_args="alpha=0.9"), "optim_args of 'rmsprop_bnb'"),
        (PLAIN.but(lr_scheduler_type="nonsense"), "the reference implements linear, cosine"),
        (PLAIN.but(lr_scheduler_kwargs={"power": 2}), r"lr_scheduler_kwargs['power']"),
        (PLAIN.but(lr_scheduler_type="warmup_stable_decay"), "num_decay_steps"),
        (PLAIN.but(lr_scheduler_type="cosine_with_min_lr"), "one of min_lr and min_lr_rate"),
        (PLAIN.but(lr_scheduler_type="polynomial", learning_rate=1e-8), "lr_end must be below"),
        (PLAIN.but(lr_scheduler_type="greedy"), "needs evaluations"),
        (EVALUATED.but(metric_for_best_model="accuracy"), "metric_for_best_model"),
        (PLAIN.but(data={"augment": True}, train_sampling_strategy="group_by_length"), "augmented row"),
        (PLAIN.but(data={"augment": True}, dataloader_num_workers=2), "augmented row"),
        (PLAIN.but(dataloader_persistent_workers=True), "dataloader_persistent_workers"),
        (PLAIN.but(eval_on_start=True), "evaluation rows"),
        (PLAIN.but(fp16=True), "fp16"),
        (PLAIN.but(save_strategy="best"), "save_strategy 'best' needs a metric_for_best_model"),
        (PLAIN.but(max_steps="ten"), "expected int"),
        (PLAIN.but(gradient_accumulation_steps=0), "more than 0"),
        (PLAIN.but(eval_strategy="epoch"), "evaluation rows"),
        (PLAIN.but(lora={"use_dora": True}), "LoraConfig.use_dora"),
        (PLAIN.but(lora={"bias": "boft_only"}), "LoraConfig.bias"),
        (PLAIN.but(lora={"lora_bias": True}), "LoraConfig.lora_bias"),
        (PLAIN.but(lora={"target_modules": ["lm_head"]}), "lm_head"),
        (PLAIN.but(adapter={"peft_type": "IA3"}), "IA3"),
        (PLAIN.but(adapter={"options": {"mixed": True}}), "options"),
        (PLAIN.but(model={"family": "gpt2"}), "gpt2"),
        (PLAIN.but(model={"quantization": "int8"}), "quantized as int8"),
        (PLAIN.but(model={"quantization": "nf4", "dtype": "float64"}), "computing in float64"),
        (PLAIN.but(model={"prepare_for_kbit": True}), "quantized base models only"),
        (PLAIN.but(data={"iterable": True}), "IterableDataset"),
        (PLAIN.but(launch={"ranks": 2, "strategy": "ddp"}), "one process"),
        (PLAIN.but(trainer={"callbacks": ["early_stopping"]}), "callbacks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unimplemented_specs_are_refused(spec, words, tmp_path):
    subject = subjects.load("reference")
    assert words in (subject.unsupported(spec) or "")
    with pytest.raises(UsageError, match=re.escape(words)):
        subject.train(spec, tmp_path)


ODD = (None, [], [None], {}, {"a": 1}, "", "x", -1, 0, 1.5, True, 10**400, float("nan"))


def test_no_value_of_a_field_is_an_error():
    from peft import LoraConfig
    from transformers import TrainingArguments

    for value in ODD:
        for field in dataclasses.fields(TrainingArguments):
            spec = dataclasses.replace(PLAIN, arguments={**PLAIN.arguments, field.name: value})
            assert isinstance(reference.refusal(spec), (str, type(None)))
        for field in dataclasses.fields(LoraConfig):
            config = {**PLAIN.adapter.config, field.name: value}
            spec = dataclasses.replace(PLAIN, adapter=dataclasses.replace(PLAIN.adapter, config=config))
            assert isinstance(reference.refusal(spec), (str, type(None)))


def test_command_line(runs, tmp_path, capsys):
    spec = PLAIN.but(max_steps=4, save_strategy="steps", save_steps=2)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    output = tmp_path / "out"
    assert reference_alone.main(["--spec", str(tmp_path / "spec.json"), "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "checkpoint-2", "checkpoint-4")
    }
    assert "4 steps, mean loss 5.5" in capsys.readouterr().out
    before = sorted(path.stat().st_mtime_ns for path in output.rglob("*"))
    for given, words in (
        (["--output", str(output)], "nothing is overwritten"),
        (["--resume", str(tmp_path)], "no complete checkpoint"),
        (["--spec", str(tmp_path / "none.json")], "no such file"),
        (["--dtype", "float8"], "invalid choice"),
        (["--nonsense"], "unrecognized arguments"),
    ):
        assert reference_alone.main(given) == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
    assert before == sorted(path.stat().st_mtime_ns for path in output.rglob("*"))
    assert reference_alone.main(["--resume", str(output / "checkpoint-2"), "--spec", str(tmp_path / "spec.json")]) == 0


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports, as "package.module"."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # "from harness import compat" imports a module of a package; "from harness.errors import UsageError" does not.
            packages = node.module in ("harness", "harness.reference")
            modules |= {f"{node.module}.{alias.name}" for alias in node.names} if packages else {str(node.module)}
    return modules


def test_the_reference_shares_no_code_with_what_it_is_compared_with():
    ours = {"harness.errors", "harness.compat", *(f"harness.reference.{path.stem}" for path in FILES)}
    libraries = {"numpy", "torch", "safetensors", *sys.stdlib_module_names}
    for path in FILES:
        if path.name != "__main__.py":
            others = imported_modules(path) - ours
            assert not {name for name in others if name.partition(".")[0] not in libraries}, path


def test_the_reference_declares_its_state_in_init():
    """Each attribute of ReferenceTrainer is assigned in `__init__` first, where a reader looks for it."""
    (trainer,) = (
        node
        for node in ast.parse((ROOT / "harness" / "reference" / "trainer.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "ReferenceTrainer"
    )
    assigned = {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }
        for method in trainer.body
        if isinstance(method, ast.FunctionDef)
    }
    declared = assigned.pop("__init__")
    assert len(declared) > 15
    assert set().union(*assigned.values()) <= declared


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], "all-linear"])
def test_fused_experts_are_refused(targets):
    """peft adapts their parameter in place of all layers of that name, also of the dense layers."""
    spec = PLAIN.but(model={"family": "qwen3-moe"}, lora={"target_modules": targets})
    assert "fused experts" in str(subjects.load("reference").unsupported(spec))
    assert subjects.load("reference").unsupported(spec.but(lora={"target_modules": ["q_proj"]})) is None
    base = models.build(spec.model)
    assert "mlp.experts" in reference._fused_experts(base, targets)
    assert reference._fused_experts(base, ["down_proj"]) == "model.layers.0.mlp.experts.down_proj"
    assert reference._fused_experts(base, ["q_proj"]) == ""


def test_the_reference_stays_short():
    lines = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert sum(lines.pop(name) for name in CORE) <= 750
    assert sum(lines.values()) <= 500
