"""Mixed precision: the dtypes of adapter, gradients and files, and a comparison with torch.autocast alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.fixtures import data, models
from harness.laws import effect_share
from harness.laws.completion import incomplete
from harness.laws.equal import differences, equal_runs, unless_rounding
from harness.spec import ADD, RunSpec
from harness.tensors import names
from harness.trace import MicroBatch, Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Unjudged, Verdict, not_finite, verdict

if TYPE_CHECKING:
    from harness.subjects.hf_trainer import HFTrainer


def adapter_dtype(spec: RunSpec) -> str:
    """Return the dtype that a spec's adapter must have.

    get_peft_model makes adapters of a half-precision base float32, unless autocast_adapter_dtype=False. In all other cases
    the dtype is the base's.
    """
    half = spec.model.dtype in ("float16", "bfloat16")
    upcast = spec.adapter.route != ADD and spec.adapter.options.get("autocast_adapter_dtype", True)
    return "float32" if half and upcast else spec.model.dtype


def adapter_dtypes(trace: Trace, dtype: str) -> Verdict:
    """Check that adapter, gradients, optimizer state and adapter files have this dtype, from start to end."""
    findings = incomplete(trace) + ([] if trace.trainable else ["nothing is trainable"])
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
    """Check that each step's loss and gradient are those of the same forward pass under torch.autocast alone, bit for bit.

    A step is judged only if it has one micro-batch, and if the adapter's values before it are in the trace: at the first
    step, and after each checkpoint. With LoRA dropout, or without such a step, the verdict is NOT_COMPARABLE.
    """
    expected = "each step computes what torch.autocast(bfloat16) does"
    spec, findings = trace.spec, incomplete(trace)
    if spec.adapter.config.get("lora_dropout"):
        return Verdict(NOT_COMPARABLE, expected, ("dropout draws random numbers that are not recorded",))
    adapters = {1: trace.adapter_before} | {c.step + 1: c.adapter for c in trace.checkpoints}
    judged = [step for step in trace.steps if step.number in adapters and len(step.batches) == 1]
    if not findings and not judged:
        return Verdict(NOT_COMPARABLE, expected, ("no step has one micro-batch",))
    autocast, first = Autocast(spec), Tensors()
    for step in judged:
        loss, gradients = autocast.step(step.batches[0], adapters[step.number])
        if unjudged := not_finite(f"step {step.number}: the loss", step.batches[0].loss, loss):
            findings += unjudged
        elif step.batches[0].loss != loss:
            findings.append(f"step {step.number}: the model returned {step.batches[0].loss!r}, expected {loss!r}")
        findings += differences(step.gradients, gradients, 0.0, f"step {step.number}: gradient of")
        first = first or gradients
    return unless_rounding(verdict(expected, findings, steps=len(judged)), trace, first, half=True)


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
        """Return the loss of a window of one micro-batch, and its gradients.

        - batch: the micro-batch.
        - adapter: the adapter's values, by canonical name.
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(adapter[name])
        self.model.zero_grad()
        inputs = {name: self._column(name, batch.rows) for name in ("input_ids", "attention_mask", "labels")}
        # The model's own loss function, given the same num_items_in_batch: other clauses judge the loss, this one judges
        # its precision. The count is a tensor, as the Trainer gives it. If it were a Python number, CUDA would multiply by
        # the reciprocal, and the loss would differ in its last bit (by 4.8e-7 on an H100).
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
    """Check that half precision is not ignored without a word.

    The run must end with an error about it before its first step, or warn, or differ from the run in float32.

    - trace: the run in half precision.
    - plain: the same run in float32.
    - words: lower-case words of the error or the warning.
    """
    findings: list[str] = []
    warned = any(words in warning.lower() for warning in trace.warnings)
    if trace.error is None and not warned:
        compared = equal_runs(trace, plain)
        if compared.holds:
            findings.append(f"neither an error nor a warning: {len(trace.steps)} steps, bit for bit those of float32")
        elif compared.outcome == NOT_COMPARABLE:
            findings += map(Unjudged, compared.seen)
    if trace.error is not None and trace.steps:
        findings.append(f"the error came after step {trace.steps[-1].number}, expected before the first: {trace.error}")
    elif trace.error is not None and words not in trace.error.lower():
        findings.append(f"the run ended with {trace.error}")
    return verdict("half precision is refused, warned of, or in effect", findings)


def trained_again(
    subject: HFTrainer, first: RunSpec, second: RunSpec, directory: Path, unwrapped: bool = False
) -> Verdict:
    """Check that a second Trainer trains an already trained model as it trains a new model with the same weights.

    - first, second: the specs of the two runs; they have the same model and adapter.
    - directory: where the runs write.
    - unwrapped: whether accelerate's unwrap_model(keep_fp32_wrapper=False) is called between the two runs.
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


# ---- the adapter's contribution ----

#: Times the uncertainty of a share by which it must be too small. An uncertainty is two standard errors, so a share that is
#: whole is taken for a smaller one once in 30,000.
_SURE = 2.0


def contribution(model: torch.nn.Module, spec: RunSpec, dtype: torch.dtype | None) -> Verdict:
    """Check that what an adapter adds is not rounded away: its effect on the logits is the one that it has in float32.

    The latter is computed without peft: by the base in float32, with and without B A added to its weights.

    - model: one with a LoRA adapter, trained. spec: the run that trained it.
    - dtype: that of the autocast in which the model computes; None: it computes in the dtype of its parameters.

    If rounding is so large that a loss of half the effect could not be seen, the verdict is NOT_COMPARABLE.
    """
    effect = _exact_effect(model, spec)
    formats = {p.dtype for p in model.parameters() if p.is_floating_point()} | ({dtype} if dtype else set())
    coarsest = max(formats, key=lambda one: torch.finfo(one).eps)
    wanted = effect_share.least(coarsest)
    expected = f"at least {wanted:.1%} of the adapter's effect on the logits in float32 is there"
    if not bool(effect.square().sum()):
        return verdict(expected, ["in float32 the adapter changes no logit"])
    left = effect_share.share(_effect(model, spec, dtype), effect)
    found = f"{left.share:.1%} of the adapter's effect on the logits is there, give or take {left.uncertainty:.1%}"
    if left.uncertainty > 0.5:
        return Verdict(NOT_COMPARABLE, expected, (f"{found}: too uncertain to see that half of it is lost",))
    return verdict(expected, [found] if left.share + _SURE * left.uncertainty < wanted else [])


def _exact_effect(model: torch.nn.Module, spec: RunSpec) -> torch.Tensor:
    """Return what the adapter changes in the logits in float32, (tokens, vocabulary), in float64."""
    base = models.build(spec.model).float().eval()
    without = _all_logits(base, spec, None)
    matrices = {names.canonical(raw, spec.adapter.name): p.detach().float() for raw, p in model.named_parameters()}
    scaling = spec.adapter.config["lora_alpha"] / spec.adapter.config["r"]
    with torch.no_grad():
        for name, a in matrices.items():
            if name.endswith(".lora_A.weight"):
                layer = name.removesuffix(".lora_A.weight")
                weight = base.get_submodule(layer).get_parameter("weight")
                weight += scaling * matrices[f"{layer}.lora_B.weight"].to(weight.device) @ a.to(weight.device)
    return _all_logits(base, spec, None) - without


def _effect(model: torch.nn.Module, spec: RunSpec, dtype: torch.dtype | None) -> torch.Tensor:
    """Return what an adapter changes in the logits, (tokens, vocabulary), in float64."""
    was = model.training
    with_adapter = _all_logits(model.eval(), spec, dtype)
    taken = [(p, p.detach().clone()) for name, p in model.named_parameters() if "lora_B" in name]
    try:
        with torch.no_grad():
            for parameter, _ in taken:
                parameter.zero_()
        return with_adapter - _all_logits(model, spec, dtype)
    finally:
        with torch.no_grad():
            for parameter, value in taken:
                parameter.copy_(value)
        model.train(was)


def _all_logits(model: torch.nn.Module, spec: RunSpec, dtype: torch.dtype | None) -> torch.Tensor:
    rows = data.rows(spec.data)[0]
    device = next(model.parameters()).device
    inputs = {
        name: torch.tensor([row[name] for row in rows], device=device) for name in ("input_ids", "attention_mask")
    }
    with torch.no_grad(), torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        logits: torch.Tensor = model(**inputs)["logits"]
        return logits.flatten(0, -2).double().cpu()
