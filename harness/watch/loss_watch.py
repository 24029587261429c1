"""The loss of each micro-batch, recomputed from the logits and labels that the model had, and the gradient that it got."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from harness.watch.check import Check
from harness.watch.seen import MicroPass, local_of

#: Positions whose logits are cast to float32 at a time: 512 of a vocabulary of 150,000 take 300 MB.
CHUNK = 512

#: Relative error allowed for a loss in float32: it is a sum of some thousand numbers, in another order. Measured over the
#: drawn runs: 2e-6. A loss that comes back in half precision has that precision's rounding besides.
LOSS = 1e-4

#: The same for a gradient at the loss, which is a quotient of whole numbers, and at the logits.
FACTOR, LOGITS = 1e-5, 1e-3

#: Types whose forward pass adds to the loss, or puts virtual tokens before the rows.
_OWN = {
    "ADALORA": "AdaLoRA adds a regularizer to the loss",
    "CPT": "CPT weights the labels by a decay of its own",
    "PROMPT_TUNING": "prompt learning puts virtual tokens before the rows",
    "P_TUNING": "prompt learning puts virtual tokens before the rows",
    "MULTITASK_PROMPT_TUNING": "prompt learning puts virtual tokens before the rows",
    "PREFIX_TUNING": "prompt learning puts virtual tokens before the rows",
}


def negative_log_likelihoods(logits: Any, labels: Any, shifted: bool) -> tuple[Any, Any]:
    """Return the sum over all labels of -log p(label), and how many labels there are, both on the device.

    - logits: (rows, length, vocabulary). They are never copied whole.
    - labels: (rows, length); -100 predicts nothing.
    - shifted: whether position i predicts label i; otherwise it predicts label i + 1, as in a causal model.
    """
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    total = torch.zeros((), dtype=wide, device=logits.device)
    count = torch.zeros((), dtype=torch.int64, device=logits.device)
    for row, expected in zip(logits, labels.to(logits.device), strict=True):
        scores, targets = (row, expected) if shifted else (row[:-1], expected[1:])
        for start in range(0, len(targets), CHUNK):
            part, target = scores[start : start + CHUNK].float(), targets[start : start + CHUNK]
            counted = target != -100
            chosen = part.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            each = torch.where(counted, part.logsumexp(-1) - chosen, 0.0)
            total, count = total + each.sum().to(wide), count + counted.sum()
    return total, count


class Loss(Check):
    """Judges the loss, the gradient at it, and the number of labels that it is divided by."""

    id = "loss"

    def why_not(self) -> str | None:
        seen = self.seen
        reason = _OWN.get(seen.peft_type)
        config = getattr(seen.base, "config", None)
        if seen.argument("use_liger_kernel"):
            reason = "use_liger_kernel: its kernels compute the loss without logits"
        elif getattr(seen.trainer, "compute_loss_func", None) is not None:
            reason = "compute_loss_func is the user's own"
        elif getattr(config, "output_router_logits", False):
            reason = "output_router_logits adds a loss of the routers"
        elif int(getattr(seen.args, "n_gpu", 0) or 0) > 1:
            reason = "DataParallel computes the loss in parts"
        else:
            reason = reason or self._kind()[1]
        if reason:
            self.skip(reason, "token-count")
        return reason

    def begin(self) -> None:
        self._shifts = self._kind()[0] == "causal"
        own = self.seen.overridden("compute_loss", "training_step", "get_batch_samples", "_get_num_items_in_batch")
        self._own = (
            f"{own} is the user's own" if own else "" if self.seen.trainer is not None else "it is a loop of your own"
        )
        self._smoothing = float(self.seen.argument("label_smoothing_factor") or 0)
        self._smoothed: list[tuple[MicroPass, Any, Any, Any, Any]] = []
        smoother = getattr(self.seen.trainer, "label_smoother", None)
        if smoother is not None and not type(smoother).__module__.startswith("transformers."):
            self._own = "label_smoother is the user's own"

    def _kind(self) -> tuple[str, str | None]:
        """Return "causal" or "seq2seq", and None; or "" and why the loss of this model is not modelled."""
        base = self.seen.base
        name = type(base).__name__
        from transformers.models.auto import modeling_auto

        causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        seq2seq = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
        kind = getattr(base, "loss_type", None)
        if kind not in (None, "ForCausalLM", "ForConditionalGeneration"):
            return "", f"the loss of {name} ({kind}) is not modelled"
        function = getattr(base, "_loss_function", None)
        if function is not None and not getattr(function, "__module__", "").startswith("transformers."):
            return "", "the model's loss_function is the user's own"
        if name in seq2seq:
            return "seq2seq", None
        if name in causal:
            return "causal", None
        return "", f"the loss of {name} is not modelled"

    def step_begin(self) -> None:
        self._smoothed = []

    def forward(self, batch: MicroPass, inputs: dict[str, Any], output: Any) -> None:
        if not self.seen.sampled or not isinstance(output, Mapping):
            return
        logits, labels = output.get("logits"), inputs.get("labels")
        shifted = not self._shifts
        if isinstance(inputs.get("shift_labels"), torch.Tensor):
            labels, shifted = inputs["shift_labels"], True
        if labels is None and self._smoothing and not self._own:
            self._smoothed_forward(batch, logits)
            return
        if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor):
            self.skip("the model was given no labels, or returned no logits")
            return
        if logits.dim() != 3 or logits.shape[:2] != labels.shape:
            self.skip(f"logits of shape {tuple(logits.shape)} are not one for each of the labels {tuple(labels.shape)}")
            return
        batch.recomputed, batch.tokens = negative_log_likelihoods(logits.detach(), labels, shifted)

    def _smoothed_forward(self, batch: MicroPass, logits: Any) -> None:
        labels = local_of("compute_loss", "labels")
        if batch.items is None:
            batch.items = local_of("compute_loss", "num_items_in_batch")
        if not isinstance(labels, torch.Tensor) or not isinstance(logits, torch.Tensor) or not logits.requires_grad:
            self.skip("labels for label_smoothing_factor were not seen")
            return
        scores, targets = logits.detach(), labels.to(logits.device)
        if logits.dim() != 3 or logits.shape[:2] != labels.shape:
            self.skip(f"logits of shape {tuple(logits.shape)} are not one for each of the labels {tuple(labels.shape)}")
            return
        if self._shifts:
            scores, targets = scores[:, :-1], targets[:, 1:]
        batch.tokens = (targets != -100).sum()
        # A few positions of each row say how the labels are shifted, smoothed and counted.
        stride = max(1, targets.shape[1] // 16)
        part, chosen = scores[:, ::stride].float().softmax(-1), targets[:, ::stride]
        counted = (chosen != -100).unsqueeze(-1)
        vocabulary = part.shape[-1]
        hard = torch.zeros_like(part).scatter_(-1, chosen.clamp(min=0).unsqueeze(-1), 1.0)
        e = self._smoothing
        expected = ((1 - e) * (part - hard) + e * (part - 1 / vocabulary)) * counted

        def arrived(gradient: Any) -> None:
            with torch.no_grad():
                seen = (gradient[:, :-1] if self._shifts else gradient)[:, ::stride].detach().float().clone()
            self._smoothed.append((batch, expected, seen, torch.finfo(gradient.dtype).eps, batch.items))

        logits.register_hook(arrived)

    def before_update(self) -> None:
        if self.seen.sampled:
            self._judge_losses()
            self._judge_tokens()
            self._judge_factor()
            self._judge_smoothed()

    def _judge_losses(self) -> None:
        for index, batch in enumerate(self.seen.window):
            if batch.recomputed is None or batch.loss is None:
                continue
            count = float(batch.items) if batch.items is not None else float(batch.tokens)
            seen, expected = float(batch.loss), float(batch.recomputed) / count if count else math.nan
            rounding = torch.finfo(batch.loss.dtype).eps if batch.loss.is_floating_point() else 0.0
            where = f"micro-batch {index + 1}"
            if not math.isfinite(expected):
                if count:
                    self.judge([f"{where}: the loss is {seen}, and recomputed from the logits {expected}"])
                else:
                    self.skip("a micro-batch has no label")
                continue
            wrong = not abs(seen - expected) <= max(LOSS, 2 * rounding) * max(1.0, abs(expected))
            words = f"{where}: the loss is {seen:.6g}, recomputed from logits and labels {expected:.6g}"
            own = float(batch.recomputed) / max(1, int(batch.tokens))
            if wrong and batch.items is not None and math.isclose(seen, own, rel_tol=LOSS):
                words += "; the model was given num_items_in_batch, and returned the mean of its own micro-batch"
            self.judge([words] if wrong else [])

    def _judge_tokens(self) -> None:
        window = self.seen.window
        given = [float(batch.items) for batch in window if batch.items is not None]
        counts = [int(batch.tokens) for batch in window if batch.tokens is not None]
        if len(counts) != len(window):
            return
        if not given:
            taken = getattr(self.seen.trainer, "model_accepts_loss_kwargs", False) and len(window) > 1
            if taken and not self._own and counts:
                self.judge(
                    ["the model takes num_items_in_batch and was given none, so a window is a mean of means"],
                    "token-count",
                )
            return
        if self.seen.world > 1 or self._own:
            self.skip(self._own or "the labels of all ranks together are not counted", "token-count")
            return
        wrong = [items for items in given if items != sum(counts)]
        self.judge(
            [f"num_items_in_batch is {items:g}, but the window predicts {sum(counts)} labels" for items in wrong[:1]],
            "token-count",
        )

    def _factor(self) -> float | None:
        """Return the gradient that must arrive at each loss of the window; None if that is not known."""
        seen, window = self.seen, self.seen.window
        if self._own or seen.sharded or getattr(seen.trainer, "loss_is_scaled_for_ga", None) is not None:
            self.skip(self._own or seen.sharded or "loss_is_scaled_for_ga is set")
            return None
        scaler = getattr(seen.trainer.accelerator, "scaler", None)
        factor = float(scaler.get_scale()) if scaler is not None else 1.0
        if any(batch.items is not None for batch in window):
            across = bool(seen.argument("average_tokens_across_devices"))
            return factor * seen.world if across else factor
        if not hasattr(seen.trainer, "current_gradient_accumulation_steps"):
            return factor / int(seen.args.gradient_accumulation_steps)
        return factor / len(window)

    def _judge_factor(self) -> None:
        arrived = [batch for batch in self.seen.window if batch.loss_gradient is not None]
        if not arrived or (factor := self._factor()) is None:
            return
        for batch in arrived:
            seen = float(batch.loss_gradient)
            wrong = not math.isclose(seen, factor, rel_tol=FACTOR)
            words = f"the gradient at the loss is {seen:.6g}, expected {factor:.6g}"
            self.judge([f"{words}: the step's gradient is {seen / factor:.4g} times what it must be"] if wrong else [])

    def _judge_smoothed(self) -> None:
        if not self._smoothed or (factor := self._factor()) is None:
            return
        total = sum(int(batch.tokens) for batch, *_ in self._smoothed)
        for batch, expected, seen, eps, items in self._smoothed:
            if items is not None:
                wanted = expected * (factor / max(1, total))
                wrong_count = float(items) != total and self.seen.world == 1
                self.judge(
                    [f"num_items_in_batch is {float(items):g}, but the window predicts {total} labels"]
                    if wrong_count
                    else [],
                    "token-count",
                )
                if self.seen.world > 1:
                    continue
            else:
                wanted = expected * (factor / max(1, int(batch.tokens)))
            largest = float(wanted.abs().max())
            gap = float((seen - wanted).abs().max())
            wrong = not gap <= max(LOGITS, 4 * eps) * max(largest, 1e-12)
            self.judge(
                [f"the gradient at the logits is off by {gap:.3g} of {largest:.3g}, with label_smoothing_factor"]
                if wrong
                else []
            )
