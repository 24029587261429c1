"""Put faults into upstream under which the checks of suites/test_cuda_*.py must fail.

The faults of the gradient scaler run on a CPU. torch has a scaler and float16 autocast for it; only accelerate does not
use them there.
"""

import pytest
import torch

from harness import subjects
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.suites import test_cuda_memory as on_memory
from harness.suites import test_cuda_precision as precision
from tests.faults import Fault, assert_seen, each, mutant, nothing, replace, verdict_of

ACCELERATOR = "accelerate:Accelerator"
TRAINER = "transformers.trainer:Trainer"


# ---- fp16=True, on a CPU ----


def with_scaler(original, accelerator, *args, **options):
    """Set up float16 on a CPU as accelerate does on a GPU."""
    original(accelerator, *args, **options)
    if accelerator.state.mixed_precision == "fp16":
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")


@pytest.fixture
def fp16(monkeypatch):
    replace(ACCELERATOR, "__init__", with_scaler)(monkeypatch)


def put_no_step_is_skipped(monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda accelerator: False))


def scaled_by_one(original, scaler, *args, **options):
    """The scaler is saved with scale 1, whatever its scale is."""
    state = original(scaler, *args, **options)
    return {**state, "scale": 1.0}


def clipped_as_they_are(original, accelerator, *args, **options):
    """Gradients are clipped before they are unscaled."""
    return None


def whatever_was_found(original, scaler, optimizer, state, *args, **options):
    """The optimizer steps although the gradients overflowed."""
    return optimizer.step(*args, **options)


UNFUSED = precision.OVERFLOW.but(optim="adamw_torch")
#: By clause; `tests.faults` describes a row.
FAULTS = {
    "AMP-05": (
        precision.test_fp16_trains_an_adapter,
        {"trace": precision.BASES["float16-base"]},
        mutant("adapter-in-half-precision"),
        "Attempting to unscale FP16 gradients",
    ),
    "AMP-06/missing": (
        precision.test_each_checkpoint_has_the_scaler,
        {"trace": precision.FP16},
        replace(TRAINER, "_save_scaler", nothing, "The gradient scaler is not saved."),
        "checkpoint-1/scaler.pt is missing",
    ),
    "AMP-06/state": (
        precision.test_each_checkpoint_has_the_scaler,
        {"trace": precision.FP16},
        replace("torch.amp.grad_scaler:GradScaler", "state_dict", scaled_by_one),
        "checkpoint-1/scaler.pt: scale is 1.0, expected 65536.0",
    ),
    "AMP-06/resume": (
        precision.test_a_resumed_run_goes_on_with_the_scaler,
        {"spec": precision.from_step(precision.OVERFLOW, 2)},
        replace(TRAINER, "_load_scaler", nothing, "Resuming does not restore the gradient scaler."),
        "step 3: gradients of",
    ),
    "AMP-07/schedule": (
        precision.test_a_step_that_overflows_is_skipped,
        {"trace": UNFUSED},
        Fault("The schedule advances although the scaler skipped the step.", put_no_step_is_skipped),
        "step 3: learning rates",
    ),
    "AMP-07/step": (
        precision.test_a_step_that_overflows_is_skipped,
        {"trace": UNFUSED},
        replace("torch.amp.grad_scaler:GradScaler", "_maybe_opt_step", whatever_was_found),
        "over step 2:",
    ),
    "AMP-08": (
        precision.test_norm_and_clipping_are_of_unscaled_gradients,
        {"spec": precision.CLIPPED["clipped"]},
        replace(ACCELERATOR, "unscale_gradients", clipped_as_they_are),
        "that of the unscaled gradient is",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, fp16, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


HOLDS = [
    (precision.test_fp16_trains_an_adapter, {"trace": precision.BASES["float16-base"]}),
    (precision.test_fp16_trains_an_adapter, {"trace": precision.FP16}),
    (precision.test_each_checkpoint_has_the_scaler, {"trace": precision.OVERFLOW}),
    (precision.test_a_resumed_run_goes_on_with_the_scaler, {"spec": precision.from_step(precision.OVERFLOW, 2)}),
    (precision.test_a_step_that_overflows_is_skipped, {"trace": UNFUSED}),
    *((precision.test_norm_and_clipping_are_of_unscaled_gradients, {"spec": s}) for s in precision.CLIPPED.values()),
]


@pytest.mark.parametrize(("test", "arguments"), HOLDS, ids=lambda value: getattr(value, "__name__", ""))
def test_without_a_fault_it_holds(test, arguments, fp16, runs, tmp_path):
    verdict = verdict_of(test, runs, tmp_path, **arguments)
    assert verdict.holds, verdict.seen


def test_a_fused_optimizer_hides_an_overflow_from_the_schedule(fp16, runs, tmp_path):
    trace = runs.train(precision.OVERFLOW)
    verdict = verdict_of(precision.test_a_step_that_overflows_is_skipped, runs, tmp_path, trace=trace)
    assert [sentence.split(" [")[0] for sentence in verdict.seen] == [
        "step 3: learning rates",
        "step 4: learning rates",
    ]


# ---- on a GPU ----


@pytest.fixture
def gpu_runs(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: a CPU does not show it")
    import_upstream()
    return Runs(subjects.load("hf-trainer"), tmp_path, "cuda")


def in_its_own_memory(original, optimizer, p, dtype=torch.float32):
    """A paged optimizer keeps its moments in ordinary device memory."""
    return torch.zeros_like(p, dtype=dtype, device=p.device)


def another_head(original, model, *args, **options):
    """torch.compile returns a model whose output layer is one percent larger."""
    model.get_output_embeddings().weight.data.mul_(1.01)
    return model


ON_A_GPU = {
    "AMP-11": (
        precision.test_tf32_rounds,
        {"spec": precision.STAYS.but(tf32=True)},
        replace("transformers.training_args", "enable_tf32", nothing, "tf32=True changes nothing."),
        "so lower precision had no effect",
    ),
    "QLORA-13": (
        on_memory.test_moments_of_large_tensors_are_paged,
        {"spec": on_memory.WIDE},
        replace("bitsandbytes.optim.optimizer:Optimizer8bit", "get_state_buffer", in_its_own_memory),
        "131072 numbers: paged [False, False]",
    ),
}


@each(list(ON_A_GPU.values()))
def test_a_fault_on_a_gpu_is_seen_and_named(row, gpu_runs, tmp_path, monkeypatch):
    assert_seen(row, gpu_runs, tmp_path, monkeypatch, upstream=gpu_runs.subject.on("cuda"))


COMPILED = (
    precision.test_a_compiled_run_is_the_eager_one,
    {"spec": precision.EAGER.but(torch_compile=True)},
    replace("torch", "compile", another_head),
    "step 1: logged loss",
)


@each([COMPILED])
def test_another_model_in_place_of_the_compiled_one_is_seen(row, runs, tmp_path, monkeypatch):
    assert_seen(row, runs, tmp_path, monkeypatch)
