"""What is usually checked of a training run, applied to the same runs: would it have caught the mutant?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from harness.mutants.child import Trained

#: TRL's tolerances for a recorded trajectory (tests/invariant). LOSS and NORM bound the difference at each step, the two
#: DRIFT constants bound the mean difference over all steps.
LOSS, NORM, LOSS_DRIFT, NORM_DRIFT = 1e-3, 1e-1, 1e-5, 1e-3

#: The share of the golden final loss by which the final loss may differ.
FINAL = 0.05


def bounded(seen: Trained, golden: Trained) -> bool:
    """Return whether the training loss exists and is below 10. The golden run is not read."""
    return seen.train_loss is not None and seen.train_loss < 10


def trajectory(seen: Trained, golden: Trained) -> bool:
    """Return whether the loss and gradient norm of each step, and their mean differences, are within TRL's tolerances."""
    return _near(seen.losses, golden.losses, LOSS, LOSS_DRIFT) and _near(seen.norms, golden.norms, NORM, NORM_DRIFT)


def final_loss(seen: Trained, golden: Trained) -> bool:
    """Return whether the last logged loss is within 5 % of the golden one."""
    if not seen.losses or not golden.losses:
        return seen.losses == golden.losses
    ours, theirs = seen.losses[max(seen.losses)], golden.losses[max(golden.losses)]
    return abs(ours - theirs) <= FINAL * abs(theirs)


CHECKS = {
    "train_loss is not None and < 10": bounded,
    "loss and grad_norm of each step beside goldens, TRL's tolerances": trajectory,
    "final loss within 5 % of a golden": final_loss,
}


def _near(seen: Mapping[int, float], golden: Mapping[int, float], largest: float, drift: float) -> bool:
    if list(seen) != list(golden):
        return False
    gaps = [seen[step] - golden[step] for step in seen]
    if not gaps:
        return True
    return all(abs(gap) <= largest for gap in gaps) and abs(math.fsum(gaps) / len(gaps)) <= drift


def caught(trained: Iterable[Trained], goldens: Mapping[str, Trained], died: bool = False) -> dict[str, bool]:
    """Return for each check by name whether any of the runs fails it.

    - trained: the runs with the mutant.
    - goldens: the same runs without the mutant, by `Trained.spec`. A check that a golden run fails against itself is
      not applied to that run.
    - died: whether the process died. Every check counts that, and an error that ends a run, as caught.
    """
    pairs = [(run, goldens[run.spec]) for run in trained if run.spec in goldens]
    comparable = [(run, golden) for run, golden in pairs if golden.error is None]
    return {
        name: died
        or any(run.error is not None or not check(run, golden) for run, golden in comparable if check(golden, golden))
        for name, check in CHECKS.items()
    }
