"""The process in an environment that trains a gate's cells there, and says what its upstream looks like.

    python -m harness.gate.worker DIRECTORY [PRELOAD]...

It answers with a line of JSON to each task that comes as a line of JSON: first one that says that upstream is imported,
or why not. A task that takes too long ends the process, with its stack on stderr; whoever started it starts another one.
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

from harness import subjects
from harness.environment import describe
from harness.errors import UsageError
from harness.processes.imports import import_upstream
from harness.spec import RunSpec
from harness.trace import Trace

#: Seconds that a task may take; the slowest takes 3 s on two busy cores.
LIMIT = 120


def main(directory: Path, preloads: list[str]) -> None:
    """Serve tasks until there are no more."""
    # A crash of native code says where it was, on stderr, and not only with its status.
    faulthandler.enable()
    # What upstream prints must not get between the answers.
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


# ---- what can be asked ----


def train(directory: Path, spec: dict[str, Any], into: str, subject: str, checkpoints: str | None = None) -> Any:
    """Train a spec; keep the trace in DIRECTORY/into/trace and what the run wrote in DIRECTORY/into/run.

    checkpoints: a run's directory, of which the checkpoint that the spec resumes from is handed over. Returns the reason
    where the subject does not train such a spec.
    """
    judged, wanted = subjects.load(subject), RunSpec.from_json(spec)
    if reason := judged.unsupported(wanted):
        return {"unsupported": reason}
    place = directory / into
    shutil.rmtree(place, ignore_errors=True)
    (place / "run").mkdir(parents=True)
    if wanted.resume is not None and checkpoints is not None:
        name = f"checkpoint-{wanted.resume.checkpoint}"
        shutil.copytree(Path(checkpoints) / name, place / "run" / name)
    judged.train(wanted, place / "run").save(place / "trace")
    return {}


def infer(directory: Path, trace: str, into: str) -> Any:
    """Load the adapter of a trace's last checkpoint for inference, and keep what the model computes (its logits)."""
    from safetensors.torch import save_file

    from harness.laws.rebuilt import loaded, logits
    from harness.spec import GET

    run = Trace.load(Path(trace))
    if not run.checkpoints:
        return {"unsupported": "the run saved no adapter"}
    through = "from_pretrained" if run.spec.adapter.route == GET else "load_adapter"
    computed = logits(loaded(run, through), run.spec)
    place = directory / into
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in computed.items()}, place / "logits.safetensors")
    return {}


def inventory(directory: Path) -> Any:
    """The environment's versions, and the signatures and defaults that a user's code depends on."""
    from harness.gate.interface import interface

    return {"environment": describe(), "interface": interface()}


def count(directory: Path, spec: dict[str, Any], subject: str) -> Any:
    """What a step of a spec costs (`harness.throughput.counters`)."""
    import tempfile

    from harness.throughput import counters

    with tempfile.TemporaryDirectory(dir=directory) as place:
        return counters.count(subjects.load(subject), RunSpec.from_json(spec), Path(place)).to_json()


VERBS: dict[str, Callable[..., Any]] = {"train": train, "infer": infer, "inventory": inventory, "count": count}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
