"""What a gate trains on both sides: runs whose numbers are compared, and whose checkpoints are handed across."""

from __future__ import annotations

from harness.fixtures.methods import METHODS
from harness.runs.scenarios import PLAIN, SAVING, SCENARIOS, by_route, saving, spec_for
from harness.spec import RunSpec


def cells() -> dict[str, RunSpec]:
    """Name -> spec; each saves every third step."""
    return {
        **{name: saving(spec) for name, spec in by_route(SCENARIOS).items()},
        "accumulation-of-4": saving(PLAIN.but(gradient_accumulation_steps=4)),
        **{name: spec for name, spec in SAVING.items() if name not in SCENARIOS},
        **{family: saving(spec_for(family)) for family in ("gpt2", "bert-classifier", "t5")},
        **{method: saving(spec_for("llama", method)) for method in METHODS if method not in ("lora", *SAVING)},
    }


def resumed_step(steps: list[int]) -> int | None:
    """From which of its checkpoints a run is resumed elsewhere: the last of the first two thirds."""
    return max((step for step in steps[:-1] if step <= 0.7 * steps[-1]), default=None)
