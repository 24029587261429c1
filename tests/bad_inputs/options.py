"""Command lines that ask for what there is not: options, names, numbers, and files that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.bad_inputs.row import Row


def words(line: str, answer: str, name: str = "", **options: Any) -> Row:
    """Return the row of a command line, written as in a shell without quotes."""
    parts = tuple(line.split(" "))
    return Row(parts[0], name or line, parts, answer, **options)


def _link(name: str, target: str) -> Any:
    def make(directory: Path) -> None:
        (directory / name).symlink_to(target)

    return make


def _pipe(name: str) -> Any:
    def make(directory: Path) -> None:
        os.mkfifo(directory / name)

    return make


_UNKNOWN = [
    words("nonsense", "nonsense"),
    words("--bogus", "bogus"),
    words("check --bogus", "bogus"),
    words("check --device tpu", "tpu"),
    words("check --device cuda", "cuda"),
    words("check --clause ABC-*", "ABC-*"),
    words("check --clause ", "clause", "an empty --clause"),
    words("check --clause RES-05\n", "RES-05", "--clause with a line feed"),
    words("check --clause [", "["),
    words("check --clause RES-999", "RES-999"),
    words("check --subject nobody", "nobody"),
    words("check --subject ", "subject", "an empty --subject"),
    words("check --subject no_module:x", "no_module"),
    words("check --subject :x", ":x"),
    words("check --subject platform:", "platform"),
    words("check --subject platform:nothing", "nothing"),
    words("check --subject platform:system", "platform:system"),
    words("check --subject platform:os.system", "os.system"),
    words("check --subject ../mine:factory", "../mine"),
    words("check --subject mine.py:factory", "mine.py", files={"mine.py": "factory = 1\n"}),
    words("check --preload no_module", "no_module"),
    words("check --preload ", "preload", "an empty --preload"),
    words("check --preload ../mine", "../mine"),
    words("check --preload mine.py", "mine", files={"other.py": ""}),
    words("check -- --no-such-option", "no-such-option", says="ERROR: "),
    words("check -- no_such_test.py", "no_such_test", says="ERROR: "),
    words("check -- -p no_such_plugin", "no_such_plugin", says="ERROR: "),
    words("soak --times 0", "times"),
    words("soak --times -1", "times"),
    words("soak --times many", "times"),
    words("soak --clause ABC-*", "ABC-*"),
    words("soak --device tpu", "tpu"),
    words("soak --subject nobody", "nobody"),
    words("repro", "CASE"),
    words("repro gone.json", "gone.json"),
    words("repro {}", "directory", "a directory"),
    words("repro spec.json", "spec.json", "a pipe that nobody writes to", before=_pipe("spec.json")),
    words("repro spec.json", "spec.json", "a link to nowhere", before=_link("spec.json", "nowhere")),
    words("repro spec.json", "spec.json", "a link to itself", before=_link("spec.json", "spec.json")),
    words("repro /dev/zero", "/dev/zero"),
    words("repro /dev/null", "/dev/null"),
    words("repro /proc/self/environ", "environ"),
    words("repro a\x00b", "a", "a name with NUL"),
    words("repro " + "x" * 5000, "name", "a name of 5,000 letters"),
    words("repro spec.json --device tpu", "tpu", files={"spec.json": {}}),
    words("repro spec.json --subject nobody", "nobody", files={"spec.json": {}}),
    words("gate", "baseline"),
    words("gate --baseline current", "candidate"),
    words("gate --baseline current --candidate current --clause ABC-*", "ABC-*"),
    words("gate --baseline current --candidate current --device tpu", "tpu"),
    words("gate --baseline current --candidate current --subject nobody", "nobody"),
    words("gate --baseline current --candidate current --quick maybe", "maybe"),
    words("bisect --good current --bad current", "clause"),
    words("bisect --clause ABC-01 --good current --bad current", "ABC-01"),
    words("bisect --clause ACC-* --good current --bad current", "exactly one"),
    words("bisect --clause ACC-01 --good current", "bad"),
    words("bisect --clause ACC-01 --good current --bad current --device tpu", "tpu"),
    words("bisect --clause ACC-01 --good current --bad current --subject nobody", "nobody"),
    words("bisect --spec gone.json --good current --bad current", "gone.json"),
    words("history H99", "H99"),
    words("history ", "history", "history of an empty name"),
    words("history h", "h", "history h"),
    words("speed --shape vast", "vast"),
    words("speed --device tpu", "tpu"),
    words("speed --subject nobody", "nobody"),
    words("speed --seconds nan", "seconds"),
    words("speed --seconds inf", "seconds"),
    words("speed --seconds -1", "seconds"),
    words("speed --seconds 0", "seconds"),
    words("speed --seconds long", "seconds"),
    words("speed --seconds 1e30", "seconds"),
    words("speed --ranks 0", "ranks"),
    words("speed --ranks -3", "ranks"),
    words("speed --ranks 1", "ranks"),
    words("speed --ranks 1000000", "ranks"),
    words("speed --ranks many", "ranks"),
    words("speed --ranks 2 --strategy fsdp3", "fsdp3"),
    words("speed --ranks 2 --strategy single", "single"),
    words("speed --strategy ddp", "ranks"),
    words("adapter", "DIR"),
    words("adapter gone", "no such directory"),
    words("adapter {}", "no adapter", "an empty directory"),
    words("adapter config.json", "no directory", files={"config.json": {}}),
    words("adapter /dev/null", "no directory"),
    words("adapter {} --model gone", "no such directory", "a base that is missing"),
    words("adapter a --tokens rows.jsonl", "--model", files={"a/adapter_config.json": {}}),
    words("adapter a", "peft_type", "a config of nothing", files={"a/adapter_config.json": {}}),
    words("adapter a", "model", "a model's directory", files={"a/config.json": {}, "a/model.safetensors": b""}),
    words("adapter a", "pickle", files={"a/adapter_config.json": {"peft_type": "LORA"}, "a/adapter_model.bin": b"x"}),
    words(
        "adapter a",
        "leads out",
        "a link out of the directory",
        files={"a/adapter_config.json": {"peft_type": "LORA"}},
        before=_link("a/adapter_model.safetensors", "/etc/hostname"),
    ),
    words("coverage --clause ABC-*", "ABC-*"),
    words("mutants --mutant no-such-mutant", "no-such-mutant"),
    words("mutants --mutant ", "mutant", "an empty --mutant"),
    words("mutants --module gone.py", "gone.py"),
    words("mutants --module {}", "directory", "a directory of mutants"),
    words("mutants --module mine.py", "mine.py", "mutants that do not parse", files={"mine.py": "def (\n"}),
    words("mutants --module mine.py", "mine.py", "mutants that raise", files={"mine.py": "1 / 0\n"}),
    words("mutants --module mine.py", "mine.py", "mutants that leave", files={"mine.py": "raise SystemExit(0)\n"}),
    words("mutants --module mine.py", "mine.py", "a module without mutants", files={"mine.py": "x = 1\n"}),
    words("mutants --module mine.py", "mine.py", "mutants in Latin-1", files={"mine.py": b"x = '\xe9'\n"}),
    words("clauses ABC-*", "ABC-*"),
    words("clauses RES-5", "RES-5"),
    words("clauses ", "clause", "clauses of an empty name"),
    words("clauses [", "["),
    words("cache nonsense", "nonsense"),
    words("cache clean nothing-of-that-kind", "nothing-of-that-kind"),
    words("cache clean --older-than -1", "older-than"),
    words("cache clean --older-than nan", "older-than"),
    words("cache clean --older-than week", "older-than"),
    words("cache list", "cache", "a cache that is a file", variables={"PEFT_HARNESS_CACHE": "cache-file"},
          files={"cache-file": "mine\n"}),
    words("cache clean", "cache", "cleaning a cache that is a file", variables={"PEFT_HARNESS_CACHE": "cache-file"},
          files={"cache-file": "mine\n"}),
    words("cache clean", "0 entries removed", "cleaning a folder that is no cache",
          variables={"PEFT_HARNESS_CACHE": "../precious"}, code=0),
]  # fmt: skip

_GATE = "gate --baseline current --candidate current --spec"

#: What a --spec cannot be. `check`, `gate` and `bisect` read it in the same way.
_SPECS = [
    words("check --spec gone.json", "gone.json"),
    words(f"{_GATE} gone.json", "gone.json"),
    words("check --spec {}", "directory", "--spec with a directory"),
    words(f"{_GATE} mine.json", "mine.json", "--spec that is no JSON", files={"mine.json": "max_steps: 4\n"}),
    words("check --spec mine.json", "did you mean 'data'", "--spec with an unknown field", files={"mine.json": {"dta": {}}}),
    words("checkpoint", "DIR"),
    words("checkpoint gone", "no such directory"),
    words("checkpoint {}", "no checkpoint", "an empty directory"),
    words("checkpoint config.json", "no directory", files={"config.json": {}}),
    words("checkpoint /dev/null", "no directory"),
    words("checkpoint {} --model gone", "no such directory", "a base that is missing"),
    words("checkpoint {} --repair", "no checkpoint", "nothing to repair"),
    words("check --spec mine.json", "learning_rate", "--spec with a bad value",
          files={"mine.json": {"arguments": {"learning_rate": "fast"}}}),
    words(f"{_GATE} mine.json", "--trust-code", "--spec with code",
          files={"mine.json": {"model": {"family": "mine:model"}}, "mine.py": "1 / 0\n"}),
    words("check --spec good.json --spec gone.json", "gone.json", files={"good.json": {}}),
    words("check -- --spec gone.json", "gone.json", "--spec for pytest"),
    words("check --spec mine.json --json mine.json", "mine.json", "--json on the --spec", files={"mine.json": {}}),
]  # fmt: skip

_WRITERS = {
    "check": ("check --clause RNG-01", ("--json",)),
    "soak": ("soak --times 2 --clause RNG-01", ("--json",)),
    "gate": ("gate --baseline current --candidate current --clause RNG-01", ("--json", "--markdown")),
    "bisect": ("bisect --clause RNG-01 --good current --bad current", ("--json",)),
    "speed": ("speed --seconds 1", ("--json", "--plot")),
    "adapter": ("adapter {}", ("--json",)),
    "checkpoint": ("checkpoint {}", ("--json",)),
    "coverage": ("coverage --clause RNG-01", ("--json", "--plot")),
    "mutants": ("mutants --mutant NOTHING-*", ("--json", "--html")),
}

_UNWRITABLE = {
    "a directory": "{}",
    "in a folder below a file": "{}/file.txt/report",
    "in /proc": "/proc/report",
    "a device": "/dev/full",
    "a link to a device": "{}/link",
    "a name of 300 letters": "{}/" + "n" * 300,
}


def _prepared(directory: Path) -> None:
    (directory / "file.txt").write_text("mine\n")
    (directory / "link").symlink_to("/dev/full")


_OUTPUTS = [
    Row(command, f"{option} {name}", (*line.split(), option, target), option, before=_prepared)
    for command, (line, options) in _WRITERS.items()
    for option in options
    for name, target in _UNWRITABLE.items()
]

_PLOTS = [
    words("speed --seconds 1 --plot {}/plot.xyz", "xyz", "a plot of an unknown kind"),
    words("speed --seconds 1 --plot {}/plot", "plot", "a plot without a kind"),
    words("coverage --plot {}/plot.xyz", "xyz", "a plot of coverage of an unknown kind"),
    words(
        "gate --baseline current --candidate current --json {}/a --markdown {}/a", "--markdown", "two reports in one"
    ),
]

ROWS = [*_UNKNOWN, *_SPECS, *_OUTPUTS, *_PLOTS]
