"""A run computes in its own precision, whatever an earlier run has switched on in the process."""

import torch

from harness import compat
from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.subjects.hf_trainer import HFTrainer


class SwitchesOn(HFTrainer):
    """Leaves TF32 switched on. So does tf32=True, and so does accelerate if a model is compiled."""

    def train(self, spec, directory, model=None):
        torch.backends.cuda.matmul.allow_tf32 = True
        return super().train(spec, directory, model)


def test_tf32_ends_with_the_run_that_switched_it_on(tmp_path):
    Runs(SwitchesOn(), tmp_path).train(RunSpec().but(max_steps=1))
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32


def test_precision_is_forgotten_however_it_was_set():
    backends = torch.backends
    if hasattr(backends, "fp32_precision"):
        backends.fp32_precision = "tf32"  # transformers, since torch 2.9
        compat.forget_precision()
        assert torch.get_float32_matmul_precision() == "highest"
    backends.cuda.matmul.allow_tf32 = True
    compat.forget_precision()
    assert not backends.cuda.matmul.allow_tf32
