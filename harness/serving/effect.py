"""The section `effect`: how much of an adapter's effect on the logits is left when it is served in a lower precision.

`harness.laws.effect_share` says what the share, its uncertainty and the rounding are.

Unmerged, a layer computes `result + lora(x)`: if lora(x) is below half of the last place of `result`, the sum rounds back.
Merged, the weight is `W + BA`, which rounds back to W likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.checkpoints.adapter_directory import Adapter
from harness.errors import UsageError
from harness.laws import effect_share
from harness.reading import read_json_lines, shown_path

if TYPE_CHECKING:
    import torch

#: Rows and tokens that are drawn if none are given, and the most that are computed.
ROWS, LENGTH, MOST = 4, 64, 64

#: The ways to serve: name -> (dtype, whether the adapter is merged, whether its tensors are in that dtype, too).
WAYS: dict[str, tuple[str, bool, bool]] = {
    "bfloat16, unmerged": ("bfloat16", False, False),
    "bfloat16, unmerged, adapter in bfloat16": ("bfloat16", False, True),
    "bfloat16, merged": ("bfloat16", True, False),
    "float16, unmerged": ("float16", False, False),
    "float16, merged": ("float16", True, False),
}


@dataclass(frozen=True)
class Left:
    """What is left of an adapter's effect. share, uncertainty, rounding: see the module; None if logits are not finite."""

    way: str
    share: float | None
    uncertainty: float | None
    rounding: float | None


@dataclass(frozen=True)
class Effect:
    """The section. size: the root mean square of E. tokens: how many were computed, and whether they were drawn."""

    size: float
    tokens: str
    ways: tuple[Left, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "ways": [vars(way) for way in self.ways]}


def measure(adapter: Adapter, model: Path, tokens: Path | None, done: Callable[[str], Any]) -> Effect:
    """Measure an adapter's effect on the logits of its base, by each way to serve it. The base is loaded in each dtype.

    - model: the base's directory: a causal model.
    - tokens: JSONL with "input_ids" in each line; None draws them.
    - done: called after each way, with its name.

    Raises UsageError for a base or tokens that cannot be used.
    """
    import torch

    rows, words = _rows(tokens, model)
    plain, adapted = _logits(adapter, model, rows, "float32", False, False)
    effect = adapted.double() - plain.double()
    size = float(effect.square().mean().sqrt())
    done("float32")
    if not size or not bool(torch.isfinite(effect).all()):
        note = "in float32 the adapter changes no logit" if not size else "in float32 some logits are NaN or infinite"
        return Effect(0.0, words, (), f"{note}, so there is nothing to compare")
    found = []
    for way, (dtype, merge, cast) in WAYS.items():
        plain, adapted = _logits(adapter, model, rows, dtype, merge, cast)
        found.append(_left(way, adapted.double() - plain.double(), effect))
        done(way)
    return Effect(size, words, tuple(found))


def _left(way: str, seen: torch.Tensor, effect: torch.Tensor) -> Left:
    import torch

    if not bool(torch.isfinite(seen).all()):
        return Left(way, None, None, None)
    left = effect_share.share(seen, effect)
    return Left(way, left.share, left.uncertainty, left.rounding)


def _logits(
    adapter: Adapter, model: Path, rows: list[list[int]], dtype: str, merge: bool, cast: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits without and with the adapter, of a base loaded in a dtype."""
    import torch
    from peft import PeftModel

    from harness.fixtures.pretrained import first_line, load
    from harness.subjects.hf_trainer import recorded_warnings

    base = load(model, getattr(torch, dtype)).eval()
    try:
        plain = _compute(base, rows)
        with recorded_warnings([]):
            adapted = PeftModel.from_pretrained(base, str(adapter.path), autocast_adapter_dtype=not cast)
            if cast:
                adapted = adapted.to(getattr(torch, dtype))
            if merge:
                adapted = adapted.merge_and_unload()
        return plain, _compute(adapted.eval(), rows)
    except Exception as error:  # of many types
        raise UsageError(
            f"{shown_path(adapter.path)}: on {shown_path(model)} in {dtype} it does not compute ({first_line(error)})"
        ) from None


def _compute(model: Any, rows: list[list[int]]) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([row]))["logits"][0].float() for row in rows])


def _rows(tokens: Path | None, model: Path) -> tuple[list[list[int]], str]:
    import transformers

    from harness.fixtures.pretrained import NO_CODE

    config = transformers.AutoConfig.from_pretrained(model, **NO_CODE).get_text_config()
    if tokens is None:
        import torch

        draw = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=draw).tolist()
        return drawn, f"{ROWS} rows of {LENGTH} token ids, drawn"
    rows = list(_given(tokens, config.vocab_size))
    if not rows:
        raise UsageError(f'{shown_path(tokens)}: holds no row; write one JSON object a line, with "input_ids"')
    return rows, f"{len(rows)} rows of {shown_path(tokens)}"


def _given(tokens: Path, vocabulary: int) -> Iterator[list[int]]:
    for number, row in read_json_lines(tokens):
        ids = row.get("input_ids") if isinstance(row, dict) else None
        if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
            raise UsageError(
                f'{shown_path(tokens)}, line {number}: expected an object with "input_ids", a list of numbers'
            )
        wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise UsageError(f"{shown_path(tokens)}, line {number}: token {wrong}; the base has {vocabulary:,} tokens")
        yield ids[:LENGTH]
        if number >= MOST:
            return
