"""The base stays as it is: digests of its tensors at the start, at sampled steps, and at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.subjects.observer import digest
from harness.watch.check import Check

#: Tensors of the base that a sampled step looks at, unless every step is sampled. All of them are looked at in turn, and
#: at the start and the end.
AT_A_TIME = 8

#: Parts of a quantized weight's state that are tensors (bitsandbytes: QuantState).
_PACKED = ("absmax", "offset", "code")


class FrozenBase(Check):
    id = "frozen-base"

    def begin(self) -> None:
        self._next = 0
        self._frozen = [p for p in self.seen.model.parameters() if not p.requires_grad]
        self._digests = {} if self._hidden() else {name: digest(tensor) for name, tensor in self._tensors()}
        if not self._digests and not self._hidden():
            self.skip("every parameter is trained, so there is no frozen base")

    def _hidden(self) -> str | None:
        # FSDP2's tensors have a local shard each, which can be read. FSDP1's are views of flat parameters.
        sharded = self.seen.sharded
        return None if sharded is None or all(hasattr(p, "to_local") for p in self._frozen) else sharded

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        for parameter in self._frozen:
            name = self.seen.names.get(id(parameter), "?")
            yield name, _local(parameter)
            state: Any = getattr(parameter, "quant_state", None)
            for part in _PACKED:
                if hasattr(getattr(state, part, None), "dtype"):
                    yield f"{name}.{part}", getattr(state, part)
            if hasattr(getattr(getattr(state, "state2", None), "absmax", None), "dtype"):
                yield f"{name}.nested_absmax", state.state2.absmax

    def before_update(self) -> None:
        if not self.seen.sampled:
            return
        if reason := self._hidden():
            self.skip(reason)
            return
        found = [
            f"{self.seen.names.get(id(p), '?')} is frozen and holds a gradient"
            for p in self._frozen
            if p.grad is not None and not p.requires_grad
        ]
        self.judge(found)

    def step_end(self) -> None:
        if self.seen.sampled and self._digests:
            self._compare(whole=self.seen.every == 1)

    def end(self) -> None:
        if self._digests:
            self._compare(whole=True)

    def _compare(self, whole: bool) -> None:
        tensors = list(self._tensors())
        if not whole:
            chosen = [tensors[(self._next + index) % len(tensors)] for index in range(min(AT_A_TIME, len(tensors)))]
            self._next = (self._next + AT_A_TIME) % len(tensors)
            tensors = chosen
        changed = [name for name, tensor in tensors if digest(tensor) != self._digests.get(name)]
        self.judge([f"{name} of the frozen base has changed since training began" for name in changed])
        for name, tensor in tensors:
            if name in changed:
                self._digests[name] = digest(tensor)


def _local(parameter: Any) -> Any:
    tensor = parameter.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
