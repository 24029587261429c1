"""Interrupt commands at random moments, and look at what they leave behind.

    python -m tests.interrupted --times 10 --command check --signal SIGKILL --table FILE

Each command runs in a directory of its own, with a TMPDIR of its own. A signal is sent at a random moment of its life. Then:

- No process of the command is left after 3 s, and no more than 1 MB in TMPDIR.
- The directory has no file but those of `.peft-harness` and of the outputs that were named, each whole.
- At a signal that can be answered, the command says one sentence, and ends with 128 + the signal's number.
- The same command, given again, ends as it does undisturbed. A gate does not ask again what was done before.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from harness.paths import SAFE_PATH, SUITES
from harness.processes.guard import RUN

#: The longest that a process may live, and the most that may stay in TMPDIR, after a signal.
SECONDS, BYTES = 3.0, 2**20

#: Every process of a command inherits this variable.
MARK = "TESTS_INTERRUPTED"

#: Until then Python itself starts, and answers Ctrl-C with a traceback.
BEGUN = 0.2

#: The longest that an undisturbed command may take, on a machine that others use, too.
LIMIT = 600.0

CLAUSE = ["--clause", "DIST-04"]


def harness(*words):
    return [sys.executable, *SAFE_PATH, "-m", "harness", *words]


def pytest_words(*words):
    return [sys.executable, *SAFE_PATH, "-m", "pytest", *words]


def model_words():
    return ["--model", "model", "--data", "rows.jsonl", "--steps", "8", "--batch-size", "2", "--threads", "1"]


#: Name -> words. Files that they name lie in the command's directory.
COMMANDS = {
    "suites": pytest_words(str(SUITES / "test_dist.py"), "-n", "2", "-p", "no:cacheprovider", *CLAUSE, "--json", "r.json"),
    "check": harness("check", *CLAUSE, "--json", "r.json"),
    "gate": harness("gate", "--baseline", "current", "--candidate", "current", "--quick", *CLAUSE, "--json", "r.json"),
    "bisect": harness(
        "bisect", "--clause", "ACC-01", "--good", "transformers==5.1.0 accelerate==1.13.0 peft==0.18.1",
        "--bad", "transformers==5.2.0 accelerate==1.13.0 peft==0.18.1", "--json", "r.json",
    ),
    "mutants": harness(
        "mutants", "--mutant", "workers-draw-a-number", "--mutant", "dropout-of-the-process", "--json", "r.json"
    ),
    "train": harness("train", *model_words(), "--output", "out"),
    "soak": harness("soak", "--times", "2", *CLAUSE, "--json", "r.json"),
    "judge": harness("judge", "spec.json", "--json", "r.json"),
    "sweep": harness("sweep", "--minutes", "0.3", "--workers", "2", "--json", "r.json"),
    "speed": harness("speed", "--shape", "tiny", "--seconds", "2", "--json", "r.json"),
}  # fmt: skip

#: What a command may leave in its directory: documented folders, inputs, and outputs.
EXPECTED = {
    ".peft-harness",
    "r.json",
    "r.baseline.lock",
    "r.candidate.lock",
    "out",
    "out-2",
    "model",
    "rows.jsonl",
    "spec.json",
}

#: How the signal is sent: to the command's process, to its group as a terminal does, or twice.
WAYS = ("process", "group", "twice")


@dataclass
class Row:
    """What was seen of one command and one signal."""

    runs: int = 0
    late: int = 0
    most_processes: int = 0
    most_bytes: int = 0
    right: int = 0
    asked: int = 0
    wrong: list[str] = field(default_factory=list)


class Place:
    """The directory and the TMPDIR in which a command is run again and again."""

    def __init__(self, name, root):
        self.name, self.words = name, list(COMMANDS[name])
        self.directory, self.temporary = root / "work", root / "tmp"
        self.output = root / "output.txt"
        self.mark = f"{root.name}-{os.getpid()}"
        for each in (self.directory, self.temporary):
            each.mkdir()
        if name == "train":
            from tests.tiny import jsonl, save_model

            save_model(self.directory / "model")
            jsonl(
                self.directory / "rows.jsonl",
                *({"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(16)),
            )
        if name == "judge":
            (self.directory / "spec.json").write_text('{"launch": {"ranks": 2, "strategy": "ddp"}}')
        self.life, self.usual = 0.0, None

    def start(self, words=None):
        environment = {name: value for name, value in os.environ.items() if name != RUN}
        environment |= {"TMPDIR": str(self.temporary), MARK: self.mark}
        with self.output.open("wb") as output:
            return subprocess.Popen(
                words or self.words,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def processes(self):
        """Return "pid command" of each process of the command: its environment has the mark, or names TMPDIR."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                variables = (entry / "environ").read_bytes()
                if self.mark.encode() in variables or str(self.temporary).encode() in variables:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"{entry.name} {words[:120]}")
            except OSError:
                continue
        return found

    def bytes_left(self):
        return sum(path.lstat().st_size for path in self.temporary.rglob("*") if path.is_file())

    def result(self, code):
        """Return what must be equal between undisturbed calls: the exit code and the verdicts."""
        file = self.directory / "r.json"
        body = json.loads(file.read_text()) if file.is_file() else {}
        file.unlink(missing_ok=True)
        verdicts = {
            clause["id"]: clause.get("verdict") for clause in body.get("clauses", []) if isinstance(clause, dict)
        }
        return code, verdicts, body.get("verdict"), body.get("answer")

    def undisturbed(self):
        """Run the command to its end. Returns its result, the seconds that it took, and what it printed."""
        words, began = self.words, time.monotonic()
        if self.name == "train" and (self.directory / "out").exists():
            # A directory that is not empty is refused, whatever is in it.
            refused = self.start()
            assert refused.wait(LIMIT) == 2, self.output.read_text()
            shutil.rmtree(self.directory / "out-2", ignore_errors=True)
            words = [*self.words[:-1], "out-2"]
        process = self.start(words)
        seen = self.watch(process)
        assert self.name != "gate" or not (twice := seen), f"done twice: {twice[:3]}"
        return self.result(process.returncode), time.monotonic() - began, self.output.read_text(errors="replace")

    def watch(self, process):
        """Wait for a process. Returns what a gate's records have twice, or had before and have no longer."""
        before, last = self.records(), {}
        until = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < until:
            last = self.records() or last
            time.sleep(0.02)
        process.wait(1)
        wrong = []
        for file, lines in last.items():
            wrong += [line[:100] for line in set(lines) if lines.count(line) > 1]
            wrong += [f"lost: {line[:100]}" for line in before.get(file, []) if line not in lines]
        return wrong

    def records(self):
        """Return file -> names of the tasks or cases that a gate has recorded as done."""
        found = defaultdict(list)
        for pattern in ("done.jsonl", "journal.jsonl"):
            for file in self.directory.glob(f".peft-harness/gate/*/*/{pattern}"):
                try:
                    lines = file.read_text().splitlines()
                except OSError:
                    continue
                for line in lines:
                    try:
                        body = json.loads(line)
                    except ValueError:
                        continue
                    if "run" not in body:
                        found[str(file)].append(
                            f"{body['nodeid']} {body['clause']}" if "nodeid" in body else next(iter(body))
                        )
        return dict(found)

    def interrupt(self, number, moment, way="process"):
        """Send a signal at a moment, in seconds after the start. Returns sentences on what is wrong, None if it was over."""
        shutil.rmtree(self.directory / "out", ignore_errors=True)
        process = self.start()
        try:
            process.wait(moment)
            return None, 0, 0
        except subprocess.TimeoutExpired:
            pass
        sent = time.monotonic()
        for _ in range(2 if way == "twice" else 1):
            (os.killpg if way != "process" else os.kill)(process.pid, number)
            time.sleep(0.05)
        wrong = []
        left = self.processes()
        while (left or process.poll() is None) and time.monotonic() < sent + SECONDS:
            time.sleep(0.05)
            left = self.processes()
        took = time.monotonic() - sent
        size = self.bytes_left()
        if left:
            wrong.append(f"{len(left)} processes left after {took:.1f} s: {left[:3]}")
        if size > BYTES:
            wrong.append(f"{size} bytes left in TMPDIR: {sorted(path.name for path in self.temporary.iterdir())[:5]}")
        printed = self.output.read_text(errors="replace")
        wrong += self.ending(process, number, printed)
        litter = {path.name for path in self.directory.iterdir()} - EXPECTED
        if litter:
            wrong.append(f"litter: {sorted(litter)}")
        file = self.directory / "r.json"
        if file.is_file():
            json.loads(file.read_text())
        for pid in (int(each.split()[0]) for each in self.processes()):
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
        return wrong, len(left), size

    def ending(self, process, number, printed):
        if number == signal.SIGKILL:
            return []
        wrong = []
        expected = {128 + number}
        if self.name == "suites":
            # pytest answers Ctrl-C itself: a summary, and 2, which is "could not run" here. Until it has read
            # suites/conftest.py, it answers as it does everywhere: Python ends in a traceback.
            expected |= {2, -number} if number == signal.SIGINT else {-number}
            if "harness" not in printed.rpartition("Traceback")[2]:
                printed = ""
        if process.poll() not in expected:
            wrong.append(f"exit status {process.poll()}, expected {expected}: {printed[-300:]!r}")
        if "Traceback" in printed:
            wrong.append(f"a traceback: {printed[-1500:]!r}")
        if self.name != "suites" and printed.count("peft-harness: ") != 1:
            wrong.append(f"not one sentence: {printed[-300:]!r}")
        return wrong


def undisturbed(name, root, say=print):
    """Run a command once, in a new place. Returns the place, which knows how the command ends and how long it lives."""
    place = Place(name, root)
    place.usual, place.life, printed = place.undisturbed()
    say(f"{name}: undisturbed {place.life:.1f} s, {place.usual}")
    assert place.usual[0] in (0, 1, 3), f"{place.usual}: {printed[-2000:]}"
    return place


def interrupted(place, number, times, seed, way="process", say=print):
    """Interrupt a command some times, and give it again afterwards. Returns the Row."""
    row, draw = Row(), random.Random(seed)
    for index in range(times):
        # Spread over the shortest life that was seen. Other work on the machine may have made it longer.
        moment = max(BEGUN, place.life * 0.9 * (index + draw.random()) / times)
        wrong, processes, size = place.interrupt(number, moment, way)
        event = f"{place.name} {number.name} {way} at {moment:.1f} s"
        if wrong is None:
            row.late += 1
            place.life = min(place.life, moment)
            place.result(0)
            say(f"{event}: had ended")
        else:
            row.runs += 1
            row.most_processes, row.most_bytes = max(row.most_processes, processes), max(row.most_bytes, size)
            row.wrong += [f"at {moment:.1f} s: {each}" for each in wrong]
            say(f"{event}: {wrong or 'clean'}")
        # A gate goes on where it stopped, so each interruption has its next call. Others begin anew.
        if place.name == "gate" or index == times - 1:
            row.asked += 1
            usual, seconds, printed = place.undisturbed()
            if place.name != "gate":  # which has less left to do
                place.life = min(place.life, seconds)
            row.right += usual == place.usual
            if usual != place.usual:
                row.wrong.append(f"the next call: {usual}, expected {place.usual}: {printed[-1500:]!r}")
            say(f"{place.name}: next call {seconds:.1f} s, {usual}")
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", action="append", choices=COMMANDS)
    parser.add_argument("--signal", action="append", default=[])
    parser.add_argument("--way", choices=WAYS, default="process")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    clean = True
    for name in options.command or COMMANDS:
        with tempfile.TemporaryDirectory(prefix="interrupted-") as root:
            place = undisturbed(name, Path(root))
            for word in options.signal or ["SIGKILL", "SIGTERM", "SIGINT"]:
                row = interrupted(place, signal.Signals[word], options.times, options.seed, options.way)
                clean &= not row.wrong
                line = (
                    f"| {name} | {word} | {options.way} | {row.runs} | {row.most_processes} | {row.most_bytes:,} | "
                    f"{row.right} of {row.asked} | {'; '.join(row.wrong)[:300].replace('|', '/') or 'none'} |"
                )
                print(line, *row.wrong, sep="\n", flush=True)
                if options.table:
                    with options.table.open("a") as table:
                        table.write(line + "\n")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
