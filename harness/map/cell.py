"""A cell: one stack, judged in a process of its own.

`judge` is the task that an engine runs, anywhere:

1. It starts `python -m harness.map.cell TASK RESULT`, and watches the lease of the command that wants the result.
2. That process makes the environment, runs the suites in it, and writes what they said (`main`).
3. `judge` publishes the result in the campaign's directory. The first result of a task stays; no other replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import environment
from harness.environment import STACK
from harness.errors import OutOfSpace, UsageError
from harness.files import write_whole
from harness.paths import SAFE_PATH
from harness.processes import lease

#: States of a cell.
JUDGED, UNRESOLVABLE, TOO_OLD, COULD_NOT_RUN = "judged", "unresolvable", "too old", "could not run"

_TICK = 0.2


class Killed(Exception):
    """The process of a cell was killed. The engine runs the task again."""


def judge(task: dict[str, Any]) -> str:
    """Judge a cell and publish the result. Returns the file's name.

    - task: `id`, `directory` (the campaign's), `lease` and `owner`, `module` (what is started; this one), and what `main`
      reads.

    Raises lease.Lost if the command that wants the result has ended, and Killed if the cell's process was killed.
    """
    directory = Path(task["directory"])
    target = directory / "results" / f"{task['id']}.json"
    if target.is_file():  # another worker, which was taken for lost, had published it after all
        return target.name
    watch = lease.Watch(Path(task["lease"]), task["owner"])
    watch.check()
    with tempfile.TemporaryDirectory(prefix="peft-harness-cell-") as folder:
        asked, result = Path(folder, "task.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(task), encoding="utf-8")
        words = [sys.executable, *SAFE_PATH, "-m", task["module"], str(asked), str(result)]
        with Path(folder, "output.txt").open("w+b") as output:
            process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
            try:
                while process.poll() is None:
                    watch.check()
                    time.sleep(_TICK)
            finally:
                # Whatever the cell has started and left behind, too.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if not result.is_file():
                output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
                said = output.read().decode(errors="replace").strip().splitlines()
                if process.returncode < 0:
                    raise Killed(f"the cell's process was killed by {signal.Signals(-process.returncode).name}")
                raise Killed(
                    f"the cell's process ended with {process.returncode}: {said[-1] if said else 'without a word'}"
                )
        watch.check()
        publish(result.read_bytes(), target)
    return target.name


def publish(content: bytes, target: Path) -> bool:
    """Put a result in its place, whole. Returns False, and changes nothing, if one is there."""
    partial = target.with_name(f".{target.name}.{os.uname().nodename}.{os.getpid()}")
    write_whole(partial, content)
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


# ---- in the cell's own process ----


def machine(device: str = "cpu") -> str:
    """Return the kind of this machine: what of it can change a verdict."""
    kind = f"{sys.platform} {os.uname().machine}"
    if device == "cuda":
        return f"{kind}, {environment.describe('cuda')['device']}"
    return f"{kind}, CPU{' with AVX512-BF16' if environment.repacks('cpu') else ''}"


def main(asked: Path, result: Path) -> None:
    """Judge the stack of a task and write the result: a line with its checksum."""
    from harness.gate import stored

    task = json.loads(asked.read_text(encoding="utf-8"))
    body = _result(task)
    write_whole(result, stored.line(body))


def _result(task: Mapping[str, Any]) -> dict[str, Any]:
    from harness.gate import environments, requires, variables

    started = time.monotonic()
    device = task["device"]
    body: dict[str, Any] = {
        "stack": task["stack"],
        "requirements": task["requirements"],
        "device": device,
        "run": task["run"],
        "state": JUDGED,
        "sentence": "",
        "python": environment.describe()["python"],
        "machine": machine(device),
        "cores": os.cpu_count() or 1,
        "date": environment.now(),
        "requires": [],
        "lock": "",
        "clauses": {},
        "causes": [],
        "keys": task["sources"],
    }
    before = set(_environments())
    try:
        if task.get("lock"):
            made = environments.install(task["requirements"], task["lock"])
        else:
            made = environments.make(task["requirements"], extras=task["extras"], added=variables.named(()))
        body["lock"], body["lock_key"] = made.lock, made.key
        body["stack"] = {
            name: made.pins[name] for name in {**dict.fromkeys(STACK), **task["stack"]} if name in made.pins
        }
        body["requires"] = [str(one) for one in requires.contradictions(made)]
        body |= _suites(task, made)
    except environments.TooOld as error:
        body |= {"state": TOO_OLD, "sentence": str(error)}
    except environments.Unresolvable as error:
        body |= {"state": UNRESOLVABLE, "sentence": str(error)}
    except OutOfSpace:
        raise
    except UsageError as error:
        body |= {"state": COULD_NOT_RUN, "sentence": str(error)}
    finally:
        if not task.get("keep", True):
            for directory in set(_environments()) - before:
                shutil.rmtree(directory, ignore_errors=True)
    body["seconds"] = round(time.monotonic() - started, 1)
    return body


def _environments() -> list[Path]:
    from harness.paths import cache_directory

    home = cache_directory() / "environments"
    return [one for one in home.iterdir() if not one.name.startswith(".")] if home.is_dir() else []


def _suites(task: Mapping[str, Any], made: Any) -> dict[str, Any]:
    """Run the suites on an environment. Returns `clauses` and `causes` of a result."""
    import shlex

    from harness.causes.group import group
    from harness.gate.scope import Scope
    from harness.gate.side import Side
    from harness.session.concerns import Concerns

    specs = tuple((name, text) for name, text in task["specs"])
    concerns = Concerns(*(tuple(one) for one in task["concerns"]))
    judged = Scope(device=task["device"], clauses=tuple(task["sources"]), specs=specs, concerns=concerns)
    # In the campaign's directory: if the cell is killed, it goes on where it was.
    place = Path(task["directory"]) / "unfinished" / task["id"]
    side = Side("cell", made, place, judged)
    try:
        cases = side.suites(1, lambda done, total: None, tests=task["tests"])
        # What is outside of the matrix is not judged, and is no reason for a verdict.
        cases = [case for case in cases if not case.outside]
    finally:
        side.end()
    check = f"peft-harness check --with {shlex.quote(task['requirements'])}"
    # A known defect is one of this stack: a table of stacks lists it like any other.
    causes = [one.to_json() for one in group(cases, _has_cause, check=check)]
    shutil.rmtree(place, ignore_errors=True)
    return {"clauses": by_clause(cases), "causes": [_short(one) for one in causes]}


def _has_cause(case: Any) -> bool:
    from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT

    return case.refused or case.verdict in (FAIL, KNOWN_DEFECT, AMBIGUOUS)


#: Characters of a sentence that is stored. Causes are in git.
_MOST = 300

#: An absolute path: its directories, and its last part.
_PATH = re.compile(r"(?<![\w./>-])(?:/[\w.@+~-]+)+/(?=[\w.@+~-])")


def _stored(sentence: str) -> str:
    """Return a sentence as it is stored: without the directories of absolute paths, which only this machine has."""
    return _PATH.sub("", sentence)[:_MOST]


def _short(cause: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cause without its cases, which are most of its size."""
    return {
        "sentence": _stored(cause["sentence"]),
        "cases": cause["cases"],
        "clauses": cause["clauses"],
        "reaches": _stored(cause["reaches"]),
        "packages": cause["packages"],
        "example": _stored(cause["example"]),
    }


def by_clause(cases: Sequence[Any]) -> dict[str, Any]:
    """Return clause -> verdict, first failure or reason, and how many cases of each kind of run have which verdict."""
    from harness.session.report import headline
    from harness.verdict import ORDER, PASS

    of: dict[str, list[Any]] = defaultdict(list)
    for case in cases:
        of[case.clause].append(case)
    found = {}
    for clause, members in of.items():
        worst = min(members, key=lambda case: ORDER.index(case.verdict))
        kinds = Counter((*kind_of(case.specs), case.verdict) for case in members)
        found[clause] = {
            "verdict": worst.verdict,
            "seen": "" if worst.verdict == PASS else _stored(headline(worst)),
            "cases": [[*kind, count] for kind, count in sorted(kinds.items())],
            "seconds": round(sum(case.seconds for case in members), 1),
        }
    return found


def kind_of(specs: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """Return route, adapter method and launch of a case's run; empty if it trained none."""
    from harness.session.concerns import method_of
    from harness.spec import RunSpec

    if not specs:
        return "", "", ""
    try:
        spec = RunSpec.from_json(specs[0])
    except Exception:  # a spec that was refused as it is
        return "", "", ""
    return spec.adapter.route, method_of(spec.adapter), spec.launch.strategy


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
