"""Find out whether a mutant that no clause kills changes any run at all."""

from __future__ import annotations

from harness.mutants.digest import digest
from harness.runs.cache import Runs
from harness.runs.scenarios import LAUNCHES, PLAIN, SAVING, SCENARIOS, by_route, continued
from harness.spec import RunSpec

#: Chapters whose mutants are compared on runs in several processes, too.
SEVERAL = ("DIST", "FSDP", "TP", "DS")


def table(chapter: str) -> dict[str, RunSpec]:
    """Return the scenario table by name: every named run through both routes, saving runs, resumed runs.

    For the mutants of some chapters (SEVERAL) every launch in several processes is added.
    """
    evaluated = SCENARIOS["eval-every-5"].but(save_strategy="steps", save_steps=5, load_best_model_at_end=True)
    resumed = {f"resumed-at-{step}": continued(PLAIN.but(max_steps=20), step) for step in (6, 12)}
    found = by_route({**SCENARIOS, **{f"saving-{name}": spec for name, spec in SAVING.items()}, "best": evaluated})
    return found | resumed | (LAUNCHES if chapter in SEVERAL else {})


def digests(runs: Runs, chapter: str) -> dict[str, str]:
    """Train the scenario table, and return the digest of each trace by name.

    Runs that the subject does not support are left out.
    """
    found = {}
    for name, spec in table(chapter).items():
        if runs.subject.unsupported(runs.on_device(spec)) is None:
            found[name] = digest(runs.train(spec))
    return found
