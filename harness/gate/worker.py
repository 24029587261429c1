"""The process that trains a gate's cells in an environment, and describes the upstream that is installed there.

    python -m harness.gate.worker DIRECTORY [PRELOAD]...

It reads tasks from stdin, one JSON object a line, and writes one line of JSON for each to stdout. Before the first task it
writes whether upstream could be imported, and if not, why. A task that takes too long ends the process, with its stack on
stderr; the gate then starts another process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import defaults, subjects
from harness.environment import describe
from harness.errors import UsageError
from harness.processes import launch
from harness.processes.imports import import_upstream
from harness.spec import RunSpec
from harness.trace import Trace

#: Seconds that a task may take. The slowest takes 3 s on two busy cores.
LIMIT = 120


def main(directory: Path, preloads: list[str]) -> None:
    """Serve tasks until stdin is closed."""
    # If native code crashes, its place is printed on stderr, not only its status.
    faulthandler.enable()
    # What upstream prints on stdout goes to stderr, so that it does not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(body: dict[str, Any]) -> None:
        answers.write(json.dumps(body) + "\n")
        answers.flush()

    try:
        import_upstream(preloads)
    except UsageError as error:
        answer({"refused": str(error)})
        return
    except Exception as error:
        answer({"refused": f"cannot be imported ({type(error).__name__}: {error})"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        faulthandler.dump_traceback_later(task.pop("limit", LIMIT), exit=True)
        try:
            answer({"error": None, "data": VERBS[task.pop("do")](directory, **task)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
        finally:
            faulthandler.cancel_dump_traceback_later()


# ---- the tasks ----


def train(directory: Path, spec: dict[str, Any], into: str, subject: str, checkpoints: str | None = None) -> Any:
    """Train a spec. The trace goes to DIRECTORY/into/trace, the run's files to DIRECTORY/into/run.

    - checkpoints: directory of a run that has the checkpoint from which the spec resumes; it is copied.

    Returns {"unsupported": reason} if the subject does not train such a spec, else {}.
    """
    judged, run_spec = subjects.load(subject), RunSpec.from_json(spec)
    if subject == "reference":
        run_spec = defaults.plain(run_spec)
    if reason := subjects.unsupported(judged, run_spec):
        return {"unsupported": reason}
    target = directory / into
    shutil.rmtree(target, ignore_errors=True)
    (target / "run").mkdir(parents=True)
    if run_spec.resume is not None and checkpoints is not None:
        name = f"checkpoint-{run_spec.resume.checkpoint}"
        shutil.copytree(Path(checkpoints) / name, target / "run" / name)
    launch.train(judged, run_spec, target / "run").save(target / "trace")
    return {}


def infer(directory: Path, trace: str, into: str) -> Any:
    """Load the adapter of a trace's last checkpoint for inference, and write the logits to DIRECTORY/into."""
    from safetensors.torch import save_file

    from harness.laws.rebuilt import loaded, logits
    from harness.spec import GET

    run = Trace.load(Path(trace))
    if not run.checkpoints:
        return {"unsupported": "the run saved no adapter"}
    through = "from_pretrained" if run.spec.adapter.route == GET else "load_adapter"
    computed = logits(loaded(run, through), run.spec)
    target = directory / into
    target.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in computed.items()}, target / "logits.safetensors")
    return {}


def inventory(directory: Path) -> Any:
    """Return the environment's versions, and the signatures and defaults that users' code depends on."""
    from harness.gate.interface import interface

    return {"environment": describe(), "interface": interface()}


def count(directory: Path, spec: dict[str, Any], subject: str) -> Any:
    """Return what a step of a spec costs (`harness.throughput.counters`)."""
    import tempfile

    from harness.throughput import counters

    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        return counters.count(subjects.load(subject), RunSpec.from_json(spec), Path(temporary)).to_json()


def record(
    directory: Path, spec: dict[str, Any], into: str, subject: str, seed: int | None = None, steps: int = 0
) -> Any:
    """Train a spec and record its modules (`harness.where`), into DIRECTORY/into.

    Returns {"unsupported": reason} if the subject does not train such a spec, or upstream ends it before its first step.
    """
    from harness.where import command

    shutil.rmtree(directory / into, ignore_errors=True)
    (directory / into).mkdir(parents=True)
    try:
        command.train(RunSpec.from_json(spec), subject, directory / into, seed, steps, (), subject)
    except UsageError as error:
        return {"unsupported": str(error)}
    return {}


VERBS: dict[str, Callable[..., Any]] = {
    "train": train,
    "infer": infer,
    "inventory": inventory,
    "count": count,
    "record": record,
}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
