"""Watch runs that are healthy: `python -m harness.watch.healthy --runs 1000`. Whatever Watch finds there is a false alarm.

1. `drawn` draws runs by `harness.runs.strategies`: what the reference can train, and any method on any model.
2. Each is trained with Watch(every=1) in a worker, and resumed from its first checkpoint if it has two.
3. What Watch found is printed with the fields of the run, and so is what it could not judge by an error of its own.

The exit code is 0 if there is neither, 1 if there is one, and 2 if the runs could not be made.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import defaults, ending
from harness.environment import check_device
from harness.errors import UsageError
from harness.files import check_writable, write_whole
from harness.processes import workers
from harness.runs import strategies
from harness.spec import RunSpec
from harness.subjects import unsupported
from harness.subjects.hf_trainer import HFTrainer, recorded_warnings
from harness.words import counted

#: Seconds after which a run is given up.
LIMIT = 120.0


@dataclass
class Seen:
    """What Watch said of a run, and of its resumed one.

    - runs: how many were watched to their end.
    - alarms: (which run, check, step, sentence) of each finding.
    - failures: what failed in Watch itself.
    - judged: check -> how often it was judged.
    - aside: why the run says nothing: upstream does not train it; "" otherwise.
    """

    runs: int = 0
    alarms: list[tuple[str, str, int, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    judged: Counter[str] = field(default_factory=Counter)
    aside: str = ""


class WatchedTrainer(HFTrainer):
    """The Trainer with a Watch in its callbacks, as a user passes it. The last one is in `watch`."""

    def __init__(self) -> None:
        from transformers import Trainer

        from harness.watch.callback import Watch

        subject = self

        class Watched(Trainer):  # type: ignore[misc, unused-ignore]
            def __init__(self, *args: Any, callbacks: Any = None, **options: Any) -> None:
                subject.watch = Watch(every=1, quiet=True)
                options["callbacks"] = [*(callbacks or ()), subject.watch]
                super().__init__(*args, **options)

        super().__init__(Watched, name="watched")
        self.watch: Watch = Watch(quiet=True)


def drawn(count: int, seed: int, device: str = "cpu") -> list[RunSpec]:
    """Return so many runs that differ: one half of what the reference has, the other of any method and model."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from harness.laws.plan import never_ends

    found: dict[str, RunSpec] = {}
    for strategy, enough in ((strategies.run_specs(), count // 2), (strategies.any_specs(), count)):
        drawing = settings(
            max_examples=10 * count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        def draw(spec: RunSpec) -> None:
            if len(found) < enough and never_ends(spec) is None:  # noqa: B023 - it is called in this round only
                one = _on(defaults.plain(spec), len(found), device)
                found.setdefault(one.hash, one)

        seeded(seed)(drawing(given(strategy)(draw)))()
    return list(found.values())


def _on(spec: RunSpec, number: int, device: str) -> RunSpec:
    """Return a run on a device. On a GPU every other run in bf16 is one in fp16, which has a gradient scaler."""
    scaled = device == "cuda" and spec.arguments.get("bf16") and number % 2
    return (spec.but(bf16=None, fp16=True) if scaled else spec).on_device(device)


def watched(spec: RunSpec) -> Seen:
    """Train a run with Watch, and resume it if it has two checkpoints. Return what Watch said."""
    seen, subject = Seen(), WatchedTrainer()
    if (reason := unsupported(subject, spec)) is not None:
        seen.aside = reason
        return seen
    warned: list[str] = []
    with tempfile.TemporaryDirectory() as directory, recorded_warnings(warned):
        try:
            subject.build(spec, Path(directory)).train()
            _note(subject, seen, "the run")
            saved = sorted(Path(directory).glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
            if len(saved) > 1:
                subject.build(spec, Path(directory)).train(resume_from_checkpoint=str(saved[0]))
                _note(subject, seen, f"resumed from {saved[0].name}")
        except UsageError:
            raise
        except Exception as error:
            # Some drawn runs are none that upstream trains. What Watch had found by then counts all the same.
            seen.aside = f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"
            seen.alarms += [("the run that raised", f.check, f.step, f.sentence) for f in subject.watch.findings]
    return seen


def _note(subject: WatchedTrainer, seen: Seen, which: str) -> None:
    seen.runs += 1
    certificate = subject.watch.certificates[-1] if subject.watch.certificates else None
    if certificate is None:
        seen.failures.append(f"{which}: it has no certificate")
        return
    if certificate["failure"]:
        seen.failures.append(f"{which}: {certificate['failure']}")
    for check in certificate["checks"]:
        seen.judged[check["check"]] += check["judged"]
        seen.alarms += [(which, check["check"], one["step"], one["sentence"]) for one in check["findings"]]
        seen.failures += [
            f"{which}: {check['check']}: {one['reason']}"
            for one in check["not_judged"]
            if one["reason"].startswith("Watch failed with")
        ]


def watch_all(specs: list[RunSpec], count: int, directory: Path) -> list[tuple[RunSpec, Seen]]:
    """Watch all runs in `count` workers. A worker that dies or hangs is a failure of its run."""
    workers.prepare()
    found: list[tuple[RunSpec, Seen]] = []
    left = list(reversed(specs))
    with workers.Workers(watched, count, directory) as team:
        while left or team.busy:
            while left and team.free:
                team.give(left.pop(), LIMIT)
            for spec, answer in team.ended(1.0):
                died = isinstance(answer, workers.Died)
                found.append((spec, Seen(failures=[f"{answer.how}: {answer.output[-500:]}"]) if died else answer))
    return found


def lines(found: list[tuple[RunSpec, Seen]], seconds: float) -> list[str]:
    """Return what is printed."""
    alarms = [(spec, one) for spec, seen in found for one in seen.alarms]
    failures = [(spec, one) for spec, seen in found for one in seen.failures]
    judged: Counter[str] = sum((seen.judged for _, seen in found), Counter())
    aside = Counter(seen.aside for _, seen in found if seen.aside)
    told = []
    for title, what in (("false alarm", alarms), ("failed", failures)):
        for spec, one in what:
            words = one if isinstance(one, str) else f"{one[0]}, step {one[2]}: {one[1]}: {one[3]}"
            told += [f"{title}: {words}", f"  {spec.to_json()}"]
    told.append(
        f"{counted(sum(seen.runs for _, seen in found), 'run')} of {len(found)} drawn were watched in {seconds:.0f} s: "
        f"{counted(len(alarms), 'false alarm')}, {counted(len(failures), 'failure')} of Watch's own"
    )
    told.append("judged: " + ", ".join(f"{name} {number}" for name, number in judged.most_common() if number))
    told += [f"not trained: {number} x {reason}" for reason, number in aside.most_common(8)]
    return told


def main(given: list[str] | None = None) -> int:
    """Draw, watch, and print. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.watch.healthy", description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=30, help="how many are drawn; default 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one for each core")
    parser.add_argument("--output", type=Path, help="also write what is printed to this file")
    options = parser.parse_args(given)
    try:
        if options.runs < 1 or options.workers < 1:
            raise UsageError("--runs and --workers are whole numbers from 1 on")
        if options.output is not None:
            check_writable("--output", options.output)
        check_device(options.device)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            found = watch_all(drawn(options.runs, options.seed, options.device), options.workers, Path(directory))
        told = lines(found, time.monotonic() - started)
        if options.output is not None:
            write_whole(options.output, "\n".join(told) + "\n")
        print("\n".join(told), flush=True)
        if not any(seen.runs for _, seen in found):
            raise UsageError("none of the drawn runs was trained here")
    except BaseException as error:
        return ending.ended_by(error)
    return ending.ended(int(any(seen.alarms or seen.failures for _, seen in found)))


if __name__ == "__main__":
    raise SystemExit(main())
