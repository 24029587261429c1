"""The reference's step compiled, and on CUDA captured as one graph. They show how far a trainer is from what is possible.

They are subjects: "harness.throughput.compiled:compiled" and "harness.throughput.compiled:captured". The arithmetic is that
of `harness.reference`. The loop here only feeds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import compat, lacking
from harness.errors import UsageError
from harness.spec import RunSpec
from harness.subjects.reference import build, refusal
from harness.throughput.stepping import OnStep
from harness.trace import Trace

if TYPE_CHECKING:
    import torch

    from harness.reference.lora import AdapterModel
    from harness.reference.trainer import ReferenceTrainer

#: The attribute that transformers sets on a module whose activations are checkpointed.
MARK = "gradient_checkpointing"


class Compiled:
    """A subject that can only be timed. It makes no trace, evaluates nothing and saves nothing.

    - capture: whether the step is captured as a CUDA graph.
    - name: what tables call it; None for the usual name.
    - arrange: changes the reference's model, in place, before its layers are compiled.
    - lacks: why a spec cannot be trained after that, None if it can.
    - options: of torch.compile.
    """

    def __init__(
        self,
        capture: bool,
        name: str | None = None,
        arrange: Callable[[AdapterModel], None] | None = None,
        lacks: Callable[[RunSpec], str | None] = lambda spec: None,
        options: dict[str, Any] | None = None,
    ):
        self.capture, self.arrange, self.lacks, self.options = capture, arrange, lacks, options
        self.name = name or ("reference-captured" if capture else "reference-compiled")

    def unsupported(self, spec: RunSpec) -> str | None:
        if self.capture and spec.launch.device != "cuda":
            return "only CUDA has graphs to capture a step in"
        if reason := lacking.attention_interface():
            return reason
        if spec.arguments.get("label_smoothing_factor") or spec.arguments.get("eval_strategy", "no") != "no":
            return "the compiled step has neither label smoothing nor evaluation"
        checkpointing = spec.arguments.get("activation_checkpointing") or spec.model.prepare_for_kbit
        if self.capture and checkpointing and spec.adapter.config.get("lora_dropout"):
            return "a captured step cannot repeat its dropout, which activation checkpointing needs"
        return self.lacks(spec) or refusal(spec)

    def train(self, spec: RunSpec, directory: Path) -> Trace:
        raise UsageError(f"subject {self.name} is timed only (`peft-harness speed`); it makes no trace to judge")

    def train_steps(self, spec: RunSpec, directory: Path, on_step: OnStep) -> Any:
        trainer = build(spec, directory, lambda event, trainer: None)
        if self.arrange is not None:
            self.arrange(trainer.model)
        steps = Steps(trainer, self.capture, self.options)
        for number in itertools.count(1):
            if on_step(number, steps.log) or number > steps.total:
                return trainer
            steps.run()
        raise AssertionError("unreachable")


def compiled() -> Compiled:
    """Return the subject that compiles the layers, and the head with the loss."""
    return Compiled(capture=False)


def captured() -> Compiled:
    """Return the subject that also captures the whole step as one CUDA graph."""
    return Compiled(capture=True)


def attend_without_mask(base: Any) -> None:
    """Have a transformers model use the attention kernel for rows in which nothing is masked.

    transformers would find out by reading from the device at each step (masking_utils.py:find_packed_sequence_indices). A
    captured graph cannot do that.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # transformers makes no mask for an attention function of a name that it does not know.
    AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
    base.set_attn_implementation("sdpa_without_mask")


class Steps:
    """The optimizer steps of a reference trainer, one at each call of `run`.

    - trainer: gives the model, the rows and the arguments.
    - capture: whether the step is captured as a CUDA graph.
    - options: of torch.compile for the layers.
    - log: the mean loss of each `logging_steps` steps, as in the Trainer's log_history.
    """

    def __init__(self, trainer: ReferenceTrainer, capture: bool, options: dict[str, Any] | None = None):
        import torch

        from harness.reference.schedules import factor

        self.trainer, self.args, self.log = trainer, trainer.args, list[dict[str, Any]]()
        self.total, self.number = self.args.max_steps, 0
        self.parameters = [each for each in trainer.model.parameters() if each.requires_grad]
        # A captured step reads the learning rate from one address, so it must be a tensor on the device.
        lr: Any = torch.tensor(self.args.learning_rate, device=trainer.device) if capture else self.args.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=(self.args.adam_beta1, self.args.adam_beta2), eps=self.args.adam_epsilon,
            weight_decay=self.args.weight_decay, fused=True, capturable=capture,
        )  # fmt: skip
        self.factor: Callable[[int], float] = lambda step: factor(
            step,
            self.args.lr_scheduler_type,
            int(self.args.warmup_steps),
            self.total,
            self.args.learning_rate,
            self.args.lr_scheduler_kwargs or {},
        )
        self.windows = self._windows()
        # Attention over rows without padding needs no mask, and then has a faster kernel.
        self.padded = not all(bool(row["attention_mask"].all()) for row in trainer.rows)
        self.loss_sum = torch.zeros((), device=trainer.device)
        self.graph: Any = None
        self.inputs: list[tuple[torch.Tensor, ...]] = []
        self.capture = capture
        base = trainer.model.base
        if not self.padded:
            attend_without_mask(base)
        elif capture:
            raise UsageError("a captured step needs rows without padding: a mask would change what is computed")
        if self.args.activation_checkpointing or any(getattr(each, MARK, False) for each in base.modules()):
            # The state of random generators cannot be read while a graph is captured.
            compat.enable_activation_checkpointing(
                base, {"use_reentrant": False, "preserve_rng_state": trainer.model.config.lora_dropout > 0}
            )
        # One layer is compiled, and all use it. The 32 layers of a 7B model together take minutes to compile, and gain only
        # what is fused across layers.
        for layer in base.model.layers:
            layer.forward = torch.compile(layer.forward, options=options)
        self.head = torch.compile(self._head)
        trainer.model.train()

    def run(self) -> None:
        """Do one optimizer step."""
        self._set_rate(self.args.learning_rate * self.factor(self.number))
        window = next(self.windows)
        if not self.capture:
            self._step(window)
        else:
            self._feed(window)
            # Before the graph is captured, three steps compile the layers and make Adam's states.
            if self.number < 3:
                self._on_another_stream(lambda: self._step(self.inputs))
            else:
                if self.graph is None:
                    self._capture()
                self.graph.replay()
        self.number += 1
        if self.number % int(self.args.logging_steps) == 0:
            self.log.append({"loss": self.loss_sum.item() / int(self.args.logging_steps), "step": self.number})
            self.loss_sum.zero_()

    def _step(self, window: list[tuple[torch.Tensor, ...]]) -> None:
        import torch

        for batch in window:
            loss = self._loss_of(*batch)
            loss.backward()
            self.loss_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.args.max_grad_norm or float("inf"), foreach=True)
        self.optimizer.step()
        if self.graph is None:
            self.optimizer.zero_grad(set_to_none=True)

    def _loss_of(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor) -> Any:
        import torch

        model = self.trainer.model
        inputs = {"input_ids": ids, **({"attention_mask": mask} if self.padded else {})}
        with torch.autocast(ids.device.type, model.autocast, enabled=model.autocast is not None):
            return self.head(model.base.model(**inputs).last_hidden_state, labels, tokens)

    def _head(self, hidden: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the loss only. Nobody reads the logits, so a compiled head need not store them."""
        from harness.reference.loss import causal_loss

        return causal_loss(self.trainer.model.base.lm_head(hidden), labels, tokens)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if self.capture:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _feed(self, window: list[tuple[torch.Tensor, ...]]) -> None:
        """Copy a window to the tensors that the captured step reads."""
        if not self.inputs:
            self.inputs = [tuple(each.clone() for each in batch) for batch in window]
        for targets, batch in zip(self.inputs, window, strict=True):
            for target, each in zip(targets, batch, strict=True):
                target.copy_(each, non_blocking=True)

    def _capture(self) -> None:
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            # If gradients are None when the graph is captured, each replay writes them and does not add to them.
            self.graph = graph
            self._step(self.inputs)

    def _on_another_stream(self, call: Callable[[], None]) -> None:
        """Call a function on another stream. Steps before a capture must run on a stream that is not the default one."""
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)

    def _windows(self) -> Iterator[list[tuple[torch.Tensor, ...]]]:
        """Yield whole windows of whole batches, in the reference's order, epoch after epoch.

        Each batch is (ids, mask, labels, number of tokens in its window).
        """
        from harness.reference import batches
        from harness.reference.loss import count_tokens

        trainer, args = self.trainer, self.args
        for epoch in itertools.count():
            order = batches.shuffled(
                len(trainer.rows), epoch + (args.seed if args.data_seed is None else args.data_seed)
            )
            indices = batches.batches(order, args.per_device_train_batch_size, drop_last=True)
            loader = batches.load(trainer.rows, indices, trainer.device)
            while len(window := list(itertools.islice(loader, args.gradient_accumulation_steps))):
                if len(window) < args.gradient_accumulation_steps:
                    break
                tokens = count_tokens(window)
                yield [(batch["input_ids"], batch["attention_mask"], batch["labels"], tokens) for batch in window]
