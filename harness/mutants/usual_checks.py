"""What is usually checked instead, on the same runs: would it have caught the mutant?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from harness.mutants.child import Trained

#: TRL's tolerances for a recorded trajectory (tests/invariant): each step's largest difference, and the mean of all.
LOSS, NORM, LOSS_DRIFT, NORM_DRIFT = 1e-3, 1e-1, 1e-5, 1e-3

#: Share of the golden final loss by which the final loss may differ.
FINAL = 0.05


def bounded(seen: Trained, golden: Trained) -> bool:
    """The training loss is there, and below 10. Needs no golden run."""
    return seen.train_loss is not None and seen.train_loss < 10


def trajectory(seen: Trained, golden: Trained) -> bool:
    """Each step's loss and gradient norm, and the mean of their differences, are within TRL's tolerances."""
    return _near(seen.losses, golden.losses, LOSS, LOSS_DRIFT) and _near(seen.norms, golden.norms, NORM, NORM_DRIFT)


def final_loss(seen: Trained, golden: Trained) -> bool:
    """The last logged loss is within 5 % of the golden one."""
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
    """Check -> whether any of these runs fails it. An error that ends a run, or the process, is caught by all of them.

    goldens: the same runs without the mutant, by `Trained.spec`. A run that fails a check against itself is left out.
    """
    pairs = [(one, goldens[one.spec]) for one in trained if one.spec in goldens]
    fit = [(one, golden) for one, golden in pairs if golden.error is None]
    return {
        name: died
        or any(one.error is not None or not check(one, golden) for one, golden in fit if check(golden, golden))
        for name, check in CHECKS.items()
    }
