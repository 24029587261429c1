"""The cells: training runs that a gate makes on both sides, to compare their numbers and exchange their checkpoints."""

from __future__ import annotations

from harness.fixtures.methods import METHODS
from harness.runs.scenarios import PLAIN, SAVING, SCENARIOS, by_route, saving, spec_for
from harness.spec import RunSpec


def cells() -> dict[str, RunSpec]:
    """Return name -> spec. Each run saves a checkpoint every third step."""
    return {
        **{name: saving(spec) for name, spec in by_route(SCENARIOS).items()},
        "accumulation-of-4": saving(PLAIN.but(gradient_accumulation_steps=4)),
        **{name: spec for name, spec in SAVING.items() if name not in SCENARIOS},
        **{family: saving(spec_for(family)) for family in ("gpt2", "bert-classifier", "t5")},
        **{method: saving(spec_for("llama", method)) for method in METHODS if method not in ("lora", *SAVING)},
    }


def resumed_step(steps: list[int]) -> int | None:
    """Return the step of the checkpoint from which a run is resumed: the last one in the first 70 % of the run."""
    return max((step for step in steps[:-1] if step <= 0.7 * steps[-1]), default=None)
