"""The cells: training runs that a gate makes on both sides, to compare their numbers and exchange their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable

from harness.fixtures.methods import METHODS
from harness.runs.kinds import KINDS
from harness.runs.scenarios import PLAIN, SAVING, SCENARIOS, by_route, saving, spec_for
from harness.spec import RunSpec

#: The share of a run's steps after which no checkpoint is resumed.
FIRST_PART = 0.7


def cells() -> dict[str, RunSpec]:
    """Return name -> spec. Each run saves a checkpoint every third step."""
    return {
        **{name: saving(spec) for name, spec in by_route(SCENARIOS).items()},
        "accumulation-of-4": saving(PLAIN.but(gradient_accumulation_steps=4)),
        **{name: spec for name, spec in SAVING.items() if name not in SCENARIOS},
        **{family: saving(spec_for(family)) for family in ("gpt2", "bert-classifier", "t5")},
        **{method: saving(spec_for("llama", method)) for method in METHODS if method not in ("lora", *SAVING)},
        **{name: saving(spec.but(max_steps=3)) for name, spec in KINDS.items() if _is_crossed(name)},
    }


#: Options of a LoRA that put other tensors into its file.
_OTHER_TENSORS = ("option/token-indices", "option/lora-bias", "option/kasa")


def _is_crossed(kind: str) -> bool:
    """Return whether a row of `harness.runs.kinds` is a cell: a file of its method, or of its base, may have another layout.

    How a LoRA starts shows in no name of its file. ADAMSS needs a package that a stack need not have.
    """
    table, _, name = kind.partition("/")
    return (table in ("method", "base", "task") and name != "adamss") or kind in _OTHER_TENSORS


def brought(specs: Iterable[tuple[str, str]]) -> dict[str, RunSpec]:
    """Return name -> spec of the runs of --spec, each as one that leaves a checkpoint to be crossed (`crossed`).

    - specs: name and JSON text of each.
    """
    return {name: crossed(RunSpec.from_json(json.loads(text), name)) for name, text in specs}


def crossed(spec: RunSpec) -> RunSpec:
    """Return a run as one from which a checkpoint can be resumed: it saves one at half of its steps, if it saves none there.

    A run that resumes is replaced by its first leg. Saving changes no number of a run.
    """
    spec = spec.first_leg() if spec.resume is not None else spec
    every, steps = spec.arguments.get("save_steps", 500), spec.arguments.get("max_steps", -1)
    early = every <= FIRST_PART * (1 if every < 1 else steps)
    strategy = str(spec.arguments.get("save_strategy", "steps"))
    if strategy == "steps" and early and not spec.arguments.get("save_only_model"):
        return spec
    # The best model's checkpoints have to be those of its evaluations. Without it, the last adapter is the trained one.
    return spec.but(
        save_strategy="steps", save_steps=0.5, save_total_limit=None, save_only_model=None, load_best_model_at_end=None
    )


def resumed_step(steps: list[int]) -> int | None:
    """Return the step of the checkpoint from which a run is resumed: the last one in the first 70 % of the run."""
    return max((step for step in steps[:-1] if step <= FIRST_PART * steps[-1]), default=None)
