"""Mixed precision: which tensors have which dtype, and what torch.autocast alone computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.fixtures import data, models
from harness.laws.completion import incomplete
from harness.laws.equal import differences, equal_runs
from harness.spec import ADD, RunSpec
from harness.tensors import names
from harness.trace import MicroBatch, Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Verdict, verdict

if TYPE_CHECKING:
    from harness.subjects.hf_trainer import HFTrainer


def adapter_dtype(spec: RunSpec) -> str:
    """The dtype that a spec's adapter must have: through get_peft_model float32 unless told not to, else the base's."""
    half = spec.model.dtype in ("float16", "bfloat16")
    upcast = spec.adapter.route != ADD and spec.adapter.options.get("autocast_adapter_dtype", True)
    return "float32" if half and upcast else spec.model.dtype


def adapter_dtypes(trace: Trace, dtype: str) -> Verdict:
    """Adapter, gradients, optimizer state and adapter files are all of one dtype, from the start to the end."""
    findings = incomplete(trace)
    everything: dict[str, Tensors] = {"the adapter before training": trace.adapter_before, "the adapter": trace.adapter}
    for step in trace.steps:
        everything[f"step {step.number}: the gradient"] = step.gradients
        everything[f"step {step.number}: the clipped gradient"] = step.clipped
    for moment in ("exp_avg", "exp_avg_sq"):
        everything[f"the optimizer's {moment}"] = {
            name: state[moment] for name, state in trace.optimizer_state.items() if moment in state
        }
    for checkpoint in trace.checkpoints:
        everything[f"checkpoint-{checkpoint.step}"] = checkpoint.adapter
    for where, tensors in everything.items():
        if sorted(tensors) != sorted(trace.trainable):
            findings.append(f"{where} holds {len(tensors)} tensors, {len(trace.trainable)} are trained")
        other = {name: _dtype(tensor) for name, tensor in tensors.items() if _dtype(tensor) != dtype}
        if other:
            name, seen = next(iter(other.items()))
            findings.append(f"{where}: {len(other)} tensors are not {dtype}, {name} is {seen}")
    return verdict(f"adapter, gradients, optimizer state and files are {dtype}", findings, tensors=len(trace.trainable))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def plain_autocast(trace: Trace) -> Verdict:
    """Loss and gradient of each step are those of the same forward pass under torch.autocast alone, bit for bit.

    Steps are judged at which the adapter is known: the first, and those that follow a checkpoint.
    """
    expected = "each step computes what torch.autocast(bfloat16) does"
    spec, findings = trace.spec, incomplete(trace)
    if spec.adapter.config.get("lora_dropout"):
        return Verdict(NOT_COMPARABLE, expected, ("dropout draws random numbers that are not recorded",))
    known = {1: trace.adapter_before} | {c.step + 1: c.adapter for c in trace.checkpoints}
    judged = [step for step in trace.steps if step.number in known and len(step.batches) == 1]
    if not findings and not judged:
        return Verdict(NOT_COMPARABLE, expected, ("no step has one micro-batch",))
    anew = Autocast(spec)
    for step in judged:
        loss, gradients = anew.step(step.batches[0], known[step.number])
        if step.batches[0].loss != loss:
            findings.append(f"step {step.number}: the model returned {step.batches[0].loss!r}, expected {loss!r}")
        findings += differences(step.gradients, gradients, 0.0, f"step {step.number}: gradient of")
    return verdict(expected, findings, steps=len(judged))


class Autocast:
    """The model of a spec, under torch.autocast and nothing else."""

    def __init__(self, spec: RunSpec):
        from harness.subjects.hf_trainer import inject

        self.device = spec.launch.device
        self.model = inject(models.build(spec.model), spec.adapter).to(self.device).train()
        self.model.config.use_cache = False
        self.rows = data.rows(spec.data)[0]
        self.parameters = {
            names.canonical(name, spec.adapter.name): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def step(self, batch: MicroBatch, adapter: Tensors) -> tuple[float, Tensors]:
        """The loss of a micro-batch that is a window of its own, and its gradients."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(adapter[name])
        self.model.zero_grad()
        inputs = {name: self._column(name, batch.rows) for name in ("input_ids", "attention_mask", "labels")}
        # The model's own loss, given what it was given then: other clauses judge the loss, this one its precision.
        # A tensor, as the Trainer gives it: CUDA divides by a number of Python's as it multiplies by the reciprocal, which
        # is the last bit of a loss (4.8e-7, measured on an H100) away.
        count = None if batch.num_items is None else torch.tensor(batch.num_items, device=self.device)
        items = {} if count is None else {"num_items_in_batch": count}
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss = self.model(**inputs, **items)["loss"]
        loss.backward()
        gradients = {name: p.grad.cpu().clone() for name, p in self.parameters.items() if p.grad is not None}
        return float(loss.detach()), gradients

    def _column(self, name: str, rows: list[int]) -> torch.Tensor:
        return torch.tensor([self.rows[row][name] for row in rows], device=self.device)


def not_silently_float32(trace: Trace, plain: Trace, words: str) -> Verdict:
    """A run in half precision is refused, warned of with `words`, or another run than the one in float32."""
    findings = []
    told = any(words in one.lower() for one in trace.warnings)
    if trace.error is None and not told and equal_runs(trace, plain).holds:
        findings.append(f"neither an error nor a warning: {len(trace.steps)} steps, bit for bit those of float32")
    if trace.error is not None and trace.steps:
        findings.append(f"the error came after step {trace.steps[-1].number}: {trace.error}")
    return verdict("half precision is refused, warned of, or in effect", findings)


def trained_again(
    subject: HFTrainer, first: RunSpec, second: RunSpec, directory: Path, unwrapped: bool = False
) -> Verdict:
    """A model that a Trainer has trained is trained by another as a fresh one with the same weights would be.

    first, second: the two runs, of one model and one adapter. unwrapped: unwrap_model(keep_fp32_wrapper=False) between.
    """
    from harness.subjects.hf_trainer import inject

    used, fresh = (inject(models.build(second.model), second.adapter) for _ in range(2))
    trainer = subject.build(first, directory / "first", model=used)
    trainer.train()
    if unwrapped:
        trainer.accelerator.unwrap_model(used, keep_fp32_wrapper=False)
    fresh.load_state_dict(used.state_dict())
    again = subject.train(second, directory / "again", model=used)
    return equal_runs(again, subject.train(second, directory / "fresh", model=fresh))
