"""What must have no effect: logs, saves and evaluations on random numbers, evaluations on the adapter, steps on memory."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import torch

from harness.watch.check import Check
from harness.watch.seen import stack

#: Sampled steps in a row, each with more memory than the one before, after which memory is said to grow.
GROWING = 8

#: The steps before which a CPU's tensors are counted. Counting half a million objects takes a second.
LOOKS = (4, 7, 10)


class RandomNumbers(Check):
    id = "random-numbers"

    def why_not(self) -> str | None:
        if self.seen.trainer is None:
            return "a loop has no events between which numbers could be drawn"
        if self.seen.foreign:
            return f"callback {self.seen.foreign[0]} may draw numbers"
        return None

    def begin(self) -> None:
        self._seed: int | None = None
        self._state = self._now()
        self._counts_evaluations = (
            type(self.seen.trainer).__module__ == "transformers.trainer"
            and getattr(self.seen.trainer, "compute_metrics", None) is None
            and not isinstance(getattr(self.seen.trainer, "eval_dataset", None), dict)
            and self.seen.world == 1
        )
        deterministic = bool(self.seen.argument("full_determinism"))
        if deterministic and not torch.are_deterministic_algorithms_enabled():
            self.judge(["full_determinism is asked for, and torch's deterministic algorithms are off"])

    def _now(self) -> Any:
        return torch.get_rng_state()

    def step_begin(self) -> None:
        # A resumed run restores its generators right before its first step.
        self._seeded("before the step")

    def _seeded(self, when: str) -> None:
        seed = torch.initial_seed()
        if self._seed is not None and seed != self._seed:
            self.judge([f"torch's generator was seeded anew, with {seed} in place of {self._seed}"])
        elif self._seed is not None:
            self.judge([])
        self._seed = seed

    def before_update(self) -> None:
        self._seeded("in the step")

    def step_end(self) -> None:
        self._state = self._now()

    def epoch_end(self) -> None:
        self._state = self._now()

    def logged(self, logs: dict[str, Any]) -> None:
        if "loss" in logs:
            self._unchanged("logging")
        self._state = self._state if "loss" not in logs else self._now()

    def evaluated(self, metrics: dict[str, Any]) -> None:
        now = self._now()
        if self._counts_evaluations:
            generator = torch.Generator()
            generator.set_state(self._state)
            torch.empty((), dtype=torch.int64).random_(generator=generator)
            # Creating a loader's iterator draws one number; an iterator that is kept draws none.
            allowed = (self._state, generator.get_state())
            right = any(torch.equal(now, state) for state in allowed)
            self.judge([] if right else ["the evaluation drew random numbers of the run, besides the loader's one"])
        else:
            self.skip("what an evaluation of your own may draw is not known")
        self._state = now

    def saved(self, path: Any) -> None:
        self._unchanged("the save")
        self._state = self._now()

    def _unchanged(self, what: str) -> None:
        same = torch.equal(self._now(), self._state)
        self.judge([] if same else [f"{what} drew random numbers of the run"])


class Evaluations(Check):
    id = "evaluation"

    def begin(self) -> None:
        self._layer = next(
            (m for m in self.seen.model.modules() if hasattr(m, "disable_adapters") and hasattr(m, "base_layer")), None
        )
        self._wrong: set[str] = set()

    def before_forward(self, args: Any, inputs: Any) -> None:
        training = self.seen.model.training
        if torch.is_grad_enabled() and training:
            return
        if not any(frame.f_code.co_name == "prediction_step" for frame in stack()):
            return
        found = []
        if training:
            found.append("the model is evaluated in training mode")
        if self._layer is not None and getattr(self._layer, "disable_adapters", False):
            found.append("the model is evaluated with its adapter switched off")
        self.judge(found)


class Memory(Check):
    id = "memory"

    def why_not(self) -> str | None:
        self._cuda = any(p.is_cuda for p in self.seen.trained.values())
        if not self._cuda and self.seen.every > 1:
            return "on a CPU tensors are counted, which needs every=1"
        return None

    def begin(self) -> None:
        self._held: list[int] = []

    def step_begin(self) -> None:
        """Look before the step has gradients and activations. On a GPU the allocator knows; a CPU's tensors are counted."""
        if self._cuda and self.seen.sampled:
            self._held.append(torch.cuda.memory_allocated())
            self._judge(self._held[-GROWING - 1 :] if len(self._held) > GROWING + 2 else [], 1, "bytes are allocated")
        elif not self._cuda and self.seen.begun in LOOKS:
            self._held.append(_tensors())
            self._judge(self._held if len(self._held) == len(LOOKS) else [], LOOKS[1] - LOOKS[0], "tensors are alive")

    def _judge(self, held: list[int], least: int, what: str) -> None:
        if held:
            grows = all(b - a >= least for a, b in itertools.pairwise(held))
            words = f"memory grows: {held[-1]:,} {what} as the step begins, {held[0]:,} {len(held) - 1} looks before"
            self.judge([words] if grows else [])


def _tensors() -> int:
    """Return how many tensors Python knows of. Only their types are looked at."""
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
