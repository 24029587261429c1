"""Whether a mutant changes any run at all: the proof for one that no clause kills."""

from __future__ import annotations

from harness.mutants.digest import digest
from harness.runs.cache import Runs
from harness.runs.scenarios import LAUNCHES, PLAIN, SAVING, SCENARIOS, by_route, continued
from harness.spec import RunSpec

#: Chapters whose mutants are put to the test on several processes too.
SEVERAL = ("DIST", "FSDP", "DS")


def table(chapter: str) -> dict[str, RunSpec]:
    """The scenario table: every named run by both routes, resumed ones, and for some chapters every launch."""
    evaluated = SCENARIOS["eval-every-5"].but(save_strategy="steps", save_steps=5, load_best_model_at_end=True)
    resumed = {f"resumed-at-{step}": continued(PLAIN.but(max_steps=20), step) for step in (6, 12)}
    found = by_route({**SCENARIOS, **{f"saving-{name}": spec for name, spec in SAVING.items()}, "best": evaluated})
    return found | resumed | (LAUNCHES if chapter in SEVERAL else {})


def digests(runs: Runs, chapter: str) -> dict[str, str]:
    """Train the table: name -> digest of the trace. Runs that the subject does not train are left out."""
    found = {}
    for name, spec in table(chapter).items():
        if runs.subject.unsupported(runs.on_device(spec)) is None:
            found[name] = digest(runs.train(spec))
    return found
