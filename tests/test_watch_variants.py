"""Watch on the kinds of runs that differ most: ranks, shards, a gradient scaler, checkpointed activations, a compiled model.

Each is trained with and without Watch(every=1): the traces are equal bit for bit, and Watch has found nothing.

    pytest tests/test_watch_variants.py -m slow          # what needs GPUs is skipped without them
"""

import json

import pytest
import torch

import harness
from harness.laws.equal import equal_runs
from harness.processes import launch
from harness.spec import RunSpec
from harness.subjects.hf_trainer import HFTrainer

SPEC = RunSpec().but(
    data={"rows": 16, "min_length": 6},
    max_steps=4,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    max_grad_norm=0.1,
    logging_steps=1,
    save_strategy="steps",
    save_steps=2,
    lora={"lora_dropout": 0.1},
)
DDP = SPEC.but(launch={"ranks": 2, "strategy": "ddp"})
ON_GPUS = {"ranks": 2, "device": "cuda"}

#: Variant -> the run, and how many GPUs it needs.
VARIANTS = {
    "checkpointing": (SPEC.but(activation_checkpointing=True), 0),
    "reentrant": (
        SPEC.but(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}),
        0,
    ),
    "autocast": (SPEC.but(bf16=True), 0),
    "compiled": (SPEC.but(torch_compile=True, torch_compile_backend="eager"), 0),
    "ddp": (DDP, 0),
    "ddp-checkpointing": (DDP.but(activation_checkpointing=True), 0),
    "scaler": (SPEC.but(fp16=True).on_device("cuda"), 1),
    "ddp-scaler": (DDP.but(fp16=True, launch=ON_GPUS), 2),
    "fsdp1": (SPEC.but(launch={**ON_GPUS, "strategy": "fsdp1"}), 2),
    "fsdp2": (SPEC.but(launch={**ON_GPUS, "strategy": "fsdp2"}), 2),
    "fsdp2-checkpointing": (
        SPEC.but(launch={**ON_GPUS, "strategy": "fsdp2", "activation_checkpointing": True}),
        2,
    ),
}


class Watched(HFTrainer):
    """The Trainer with Watch in each rank. Rank 0 writes the certificate into the run's directory."""

    def build(self, spec, directory, *args, **options):
        trainer = super().build(spec, directory, *args, **options)
        trainer.add_callback(harness.Watch(every=1, quiet=True, json=directory / "watch.json"))
        return trainer


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_watch_changes_no_bit_and_accuses_nobody(name, tmp_path):
    spec, gpus = VARIANTS[name]
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs")
    traces = {
        subject.name: launch.train(subject, spec, tmp_path / subject.name)
        for subject in (HFTrainer(), Watched(name="watched"))
    }
    assert traces["watched"].error is None, traces["watched"].error
    judged = equal_runs(traces["watched"], traces["hf-trainer"])
    assert judged.holds, judged.seen
    made = json.loads((tmp_path / "watched" / "watch.json").read_text())
    assert not made["failure"] and made["steps"]["made"] == 4
    found = [one["sentence"] for check in made["checks"] for one in check["findings"]]
    failed = [
        one["reason"]
        for check in made["checks"]
        for one in check["not_judged"]
        if one["reason"].startswith("Watch failed")
    ]
    assert not found and not failed
