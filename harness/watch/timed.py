"""Measure what Watch costs: `python -m harness.watch.timed --device cuda --shape 135m --shape 7b`.

Two pairs of sides are timed in turn (`harness.throughput.pairs`), the Trainer alone and the Trainer with Watch:

1. `unsampled`: a Watch that samples no step after the first three. This is what every step pays.
2. `sampled`: Watch(every=1), which samples each step.

The default samples each 100th step, so it costs the first plus a hundredth of the difference, but `run.SHARE` of the time
at most.
"""

from __future__ import annotations

import argparse
from typing import Any

from harness import ending
from harness.environment import check_device
from harness.subjects.hf_trainer import HFTrainer
from harness.throughput.pairs import METRICS, Entrant, Pairs, compare
from harness.throughput.shapes import chosen
from harness.watch.run import SHARE

#: Each how many steps the default samples one.
DEFAULT = 100


class Watched(HFTrainer):
    """The Trainer with Watch. every: as in `harness.Watch`."""

    def __init__(self, name: str, every: int):
        super().__init__(name=name)
        self._every = every

    def build(self, *args: Any, **options: Any) -> Any:
        """Return the Trainer, with Watch added."""
        from harness.watch.callback import Watch

        trainer = super().build(*args, **options)
        trainer.add_callback(Watch(every=self._every, quiet=True))
        return trainer


def unsampled() -> Watched:
    """Return a Trainer whose Watch samples the first three steps only."""
    return Watched("watch-unsampled", 10**9)


def sampled() -> Watched:
    """Return a Trainer whose Watch samples each step."""
    return Watched("watch-sampled", 1)


def share(timed: Pairs, metric: str) -> float:
    """Return by which share side B's step is longer."""
    return timed.step("b", metric) / timed.step("a", metric) - 1


def main(given: list[str] | None = None) -> int:
    """Time all shapes, print a line for each, and return the exit code: 0, or 2 if it could not be timed."""
    parser = argparse.ArgumentParser(prog="python -m harness.watch.timed", description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", action="append", default=[], help="repeatable; default: those of the device")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, for each of the two comparisons")
    options = parser.parse_args(given)
    try:
        check_device(options.device)
        for shape in chosen(options.shape, options.device):
            spec, metric = shape.spec(options.device), METRICS[options.device][0]
            costs = {}
            for name in ("unsampled", "sampled"):
                a, b = Entrant("a", "hf-trainer", spec), Entrant("b", f"{__spec__.name}:{name}", spec)
                _, timed = compare(a, b, 0.01, options.seconds, processes=2, decide=False)
                costs[name] = share(timed, metric)
                step = timed.step("a", metric)
            default = costs["unsampled"] + min(SHARE, (costs["sampled"] - costs["unsampled"]) / DEFAULT)
            print(
                f"{shape.name}: a step takes {1000 * step:.1f} ms; with Watch {costs['unsampled']:+.2%}, a sampled one "
                f"{costs['sampled']:+.1%}, and so by default {default:+.2%}",
                flush=True,
            )
    except BaseException as error:
        return ending.ended_by(error)
    return ending.ended(0)


if __name__ == "__main__":
    raise SystemExit(main())
