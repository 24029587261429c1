"""Reports, scopes and known defects of the user's own: what `report`, `trend`, `defects`, `--scope` and `--script` read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests import made_up_reports
from tests.bad_inputs.options import words
from tests.bad_inputs.row import Row

GOOD = made_up_reports.suites(("LOG-01", [made_up_reports.case("plain")]))

#: What a report cannot be: name -> content, and words of the answer.
_BROKEN: dict[str, tuple[Any, str]] = {
    "an empty file": ("", "r.json"),
    "half a report": ('{"schema_version": 1, "clauses": [', "line 1"),
    "a list": ([GOOD], "no report"),
    "a word": ('"report"', "no report"),
    "a number": ("3", "no report"),
    "null": ("null", "no report"),
    "a package.json": ({"name": "x", "dependencies": {}}, "no report"),
    "a spec": ({"model": {"family": "llama"}}, "no report"),
    "YAML": ("schema_version: 1\nclauses: []\n", "line 1"),
    "random bytes": (bytes(range(256)) * 8, "utf-8"),
    "UTF-16": ('{"clauses": []}'.encode("utf-16"), "utf-8"),
    "a gzip file": (b"\x1f\x8b\x08\x00" + bytes(range(256)), "r.json"),
    "an HTML page": ("<!DOCTYPE html><html><body>404</body></html>", "line 1"),
    "deep lists": ('{"clauses": ' + "[" * 5000 + "]" * 5000 + "}", "deep"),
    "a lone surrogate": (r'{"clauses": [], "environment": {"device": "\udc00"}}', "surrogate"),
    "an int of 5,000 digits": ('{"clauses": [], "schema_version": ' + "9" * 5000 + "}", "digits"),
}

#: Damage that `report` finds. `defects` and `trend` do not read these fields.
_DAMAGED: dict[str, tuple[Any, str]] = {
    "no schema": ({name: value for name, value in GOOD.items() if name != "schema_version"}, "schema_version"),
    "a schema that is a word": (GOOD | {"schema_version": "one"}, "schema_version"),
    "a schema that is true": (GOOD | {"schema_version": True}, "schema_version"),
    "a newer schema": (GOOD | {"schema_version": 99}, "schema_version 99"),
    "no environment": ({"schema_version": 1, "clauses": []}, "environment"),
    "clauses that are words": (GOOD | {"clauses": ["LOG-01"]}, "clauses, entry 1"),
    "a gate without a candidate": ({"schema_version": 1, "findings": [], "baseline": {}, "verdict": "safe"}, "report"),
    "a sweep of words": (made_up_reports.sweep() | {"pairs": "all"}, "report"),
    "mutants that are numbers": (made_up_reports.mutants() | {"mutants": [1]}, "mutants, entry 1"),
    "findings that are null": (made_up_reports.gate() | {"findings": [None]}, "findings, entry 1"),
}


def _made(kind: str) -> Any:
    def make(directory: Path) -> None:
        file = directory / "r.json"
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "link":
            file.symlink_to("r.json")
        else:
            with file.open("wb") as stream:
                stream.truncate(2**27 + 1)

    return make


_REPORT = "report r.json --html h.html --markdown m.md --badge b.json --junit j.xml --sarif s.json"

_REPORTS = [
    *(words(_REPORT, answer, name, files={"r.json": text}) for name, (text, answer) in (_BROKEN | _DAMAGED).items()),
    words("report r.json --annotate", "no report", "annotations of a list", files={"r.json": []}),
    words("report", "REPORT"),
    words("report gone.json --html h.html", "gone.json"),
    words("report r.json", "nothing to write", files={"r.json": GOOD}),
    words("report {} --html h.html", "directory", "a directory"),
    words("report /dev/zero --html h.html", "/dev/zero"),
    words(_REPORT, "r.json", "a pipe that nobody writes to", before=_made("pipe")),
    words(_REPORT, "r.json", "a link to itself", before=_made("link")),
    words(_REPORT, "large", "128 MB", before=_made("large")),
    words("report r.json --html h.html --pins gone.txt", "gone.txt", files={"r.json": GOOD}),
    words("report r.json --html h.html --pins {}", "--pins", "pins that are a directory", files={"r.json": GOOD}),
    words("report r.json --html h.html --pins r.json --badge r.json", "--badge", "a badge on the report",
          files={"r.json": GOOD}),
    words("report r.json --html r.json", "--html", "a page on the report", files={"r.json": GOOD}),
    words("report r.json --html h.html --markdown h.html", "same file", "two outputs in one", files={"r.json": GOOD}),
    *(
        words(f"report r.json --{option} {place}", f"--{option}", files={"r.json": GOOD})
        for option in ("html", "markdown", "junit", "sarif", "code-quality", "badge")
        for place in ("/proc/report", "/dev/full", "r.json/report")
    ),
]  # fmt: skip

_TRENDS = [
    words("trend", "DIRECTORY"),
    words("trend gone", "gone"),
    words("trend r.json", "r.json", "a file", files={"r.json": GOOD}),
    words("trend {}", "no report", "an empty directory"),
    words("trend {}", "no report", "a directory of other files", files={"a.txt": "mine\n", "b.JSON": GOOD}),
    *(
        words("trend {} --json ../t.json --html ../t.html", "no report", f"a night that is {name}", files={"r.json": text})
        for name, (text, _) in _BROKEN.items()
    ),
    words("trend {}", "no report", "lines that are no reports", files={"nights.jsonl": "[]\n[]\n"}),
    words("trend {}", "no report", "a night that is a pipe", before=_made("pipe")),
    words("trend {}", "no report", "a night that is a link", before=_made("link")),
    words("trend {}", "no report", "a night of 128 MB", before=_made("large")),
    words("trend {}", "no report", "nights of a sweep", files={"r.json": made_up_reports.sweep()}),
    words("trend {} --png t.xyz", "xyz", "a plot of an unknown kind"),
    *(
        words(f"trend {{}} --{option} {place}", f"--{option}", f"--{option} {place}", files={"r.json": GOOD})
        for option, end in (("html", "html"), ("json", "json"), ("png", "png"))
        for place in (f"/proc/t.{end}", f"{{}}/r.json/t.{end}")
    ),
]  # fmt: skip

_DEFECTS = [
    words("defects --clause ABC-*", "ABC-*"),
    words("defects --clause ", "clause", "an empty --clause"),
    words("defects --script nothing-of-that-name", "nothing-of-that-name"),
    words("defects --script ../x", "../x"),
    words("defects --report gone.json", "gone.json"),
    words("defects --report r.json --json r.json", "--json", "--json on the report", files={"r.json": GOOD}),
    words("defects --report r.json", "no report", "the report of a gate", files={"r.json": made_up_reports.gate()}),
    words("defects --report r.json", "no report", "cases that are words",
          files={"r.json": GOOD | {"clauses": [{"id": "LOG-01", "cases": ["plain"]}]}}),
    *(
        words("defects --report r.json --markdown m.md", answer, f"--report {name}", files={"r.json": text})
        for name, (text, answer) in _BROKEN.items()
    ),
    words("defects --html /dev/full", "--html"),
    words("defects --markdown /proc/x", "--markdown"),
]  # fmt: skip

_SCRIPT = "repro c.json --script s.py --clause LOOP-04"


def _sent(name: str, body: Any, answer: str) -> Row:
    """Return the row of a spec that somebody sent, of which a script is asked for. It must not be written."""
    return words(_SCRIPT, answer, f"--script of {name}", files={"c.json": body, "mine.py": "1 / 0\n"})


_LORA = {"r": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}

_SCRIPTS = [
    words("repro c.json --clause LOG-01", "--script", "--clause without a script", files={"c.json": {}}),
    words("repro c.json --bisect b.json", "--issue", "--bisect without a report", files={"c.json": {}}),
    words("repro c.json --script s.py", "names no clause", files={"c.json": {}}),
    words("repro c.json --script s.py --clause LOG-999", "LOG-999", files={"c.json": {}}),
    words("repro c.json --script s.py --clause PERF-01", "PERF-01", files={"c.json": {}}),
    words("repro gone.json --script s.py --clause LOG-01", "gone.json"),
    words("repro c.json --script c.json --clause LOG-01", "--script", "--script on the case", files={"c.json": {}}),
    words("repro c.json --script s.py --issue s.py", "same file", "script and report in one", files={"c.json": {}}),
    words("repro c.json --script /dev/full --clause LOOP-04", "--script", files={"c.json": {}}),
    words("repro c.json --issue /proc/i.md --clause LOOP-04", "--issue", files={"c.json": {}}),
    words("repro c.json --script s.py --clause LOOP-04 --bisect b.json", "--issue", files={"c.json": {}, "b.json": {}}),
    words("repro c.json --issue i.md --clause LOOP-04 --bisect gone.json", "gone.json", files={"c.json": {}}),
    words("repro c.json --issue i.md --clause LOOP-04 --bisect b.json", "bisect", files={"c.json": {}, "b.json": {}}),
    words("repro c.json --issue i.md --clause LOOP-04 --bisect b.json", "LOSS-01", "a bisection of another clause",
          files={"c.json": {}, "b.json": {"clause": "LOSS-01", "answer": "x"}}),
    _sent("a list", [1], "neither"),
    _sent("an unknown field", {"modle": {}}, "modle"),
    _sent("a life", {"clause": "LOOP-04", "spec": {}, "life": [{"do": "train"}]}, "life"),
    _sent("rows in a file", {"data": {"path": "c.json"}}, "rows"),
    _sent("a model of code", {"model": {"family": "mine:model"}}, "--trust-code"),
    _sent("a callback of code", {"trainer": {"callbacks": ["mine:factory"]}}, "--trust-code"),
    _sent("an output elsewhere", {"arguments": {"output_dir": "../precious"}}, "output_dir"),
    _sent("a checkpoint of pickles", {"arguments": {"resume_from_checkpoint": "../precious"}}, "--trust-code"),
    _sent("a reporter", {"arguments": {"report_to": "wandb"}}, "report_to"),
    _sent("a module that peft imports", {"adapter": {"config": {**_LORA, "auto_mapping": {
        "base_model_class": "factory", "parent_library": "mine"}}}}, "--trust-code"),
    _sent("a quantization that is a name", {"model": {"quantization": "nf3"}}, "nf3"),
]  # fmt: skip

_DEFECT = """[[defect]]
clause = "RNG-01"
scenario = "plain"
match = "words"
reason = "why"
versions = ["torch>=1"]
"""

#: What a scope cannot say: name -> text, and words of the answer.
_SCOPES: dict[str, tuple[str | bytes, str]] = {
    "no TOML": ("subject: hf-trainer\n", "not TOML"),
    "random bytes": (bytes(range(256)), "utf-8"),
    "deep lists": ("a = " + "[" * 5000 + "]" * 5000 + "\n", "TOML"),
    "no table": ("[tool.other]\nx = 1\n", "[tool.peft-harness]"),
    "an unknown key": ("mehtods = ['lora']\n", "'methods'"),
    "an unknown method": ("methods = ['loraa']\n", "'lora'"),
    "an unknown route": ("routes = ['by_hand']\n", "by_hand"),
    "an unknown launch": ("launches = ['fsdp9']\n", "fsdp9"),
    "an unknown subject": ("subject = 'nobody'\n", "nobody"),
    "an unknown device": ("device = 'tpu'\n", "tpu"),
    "a subject that is a list": ("subject = ['hf-trainer']\n", "subject"),
    "methods that are a word": ("methods = 'lora'\n", "methods"),
    "no methods": ("methods = []\n", "methods is empty"),
    "an empty method": ("methods = ['']\n", "methods"),
    "a clause that there is not": ("clauses = ['ABC-*']\n", "ABC-*"),
    "a spec that is missing": ("specs = ['gone.json']\n", "gone.json"),
    "a spec with a NUL": ('specs = ["a\\u0000b"]\n', "specs"),
    "a spec that is a directory": ("specs = ['.']\n", "specs"),
    "a spec that is no JSON": ("specs = ['scope.toml']\n", "scope.toml"),
    "known defects that are missing": ("known-defects = ['gone.toml']\n", "gone.toml"),
    "a margin that is NaN": ("margins = { throughput = nan }\n", "throughput"),
    "a margin below the noise": ("margins = { throughput = 1e-9 }\n", "throughput"),
    "a margin that is a word": ("margins = { memory = 'much' }\n", "memory"),
    "a margin that is infinite": ("margins = { memory = inf }\n", "memory"),
    "an unknown margin": ("margins = { speed = 0.1 }\n", "speed"),
    "margins that are a number": ("margins = 0.1\n", "margins"),
}

#: What a file of known defects cannot say.
_OWN: dict[str, tuple[str | bytes, str]] = {
    "no TOML": ("defect: RNG-01\n", "mine.toml"),
    "random bytes": (bytes(range(256)), "utf-8"),
    "another table": ("[defects]\nclause = 'RNG-01'\n", "[[defect]]"),
    "a defect that is a number": ("defect = 3\n", "defect is 3"),
    "no reason": (_DEFECT.replace('reason = "why"\n', ""), "missing reason"),
    "an unknown field": (_DEFECT + "nonsense = 1\n", "nonsense"),
    "a clause that is a number": (_DEFECT.replace('"RNG-01"', "1"), "clause"),
    "a clause that there is not": (_DEFECT.replace("RNG-01", "RNG-999"), "RNG-999"),
    "a version that is none": (_DEFECT.replace("torch>=1", "torch=1"), "torch=1"),
    "a device that there is not": (_DEFECT + 'devices = ["tpu"]\n', "tpu"),
    "blanks to match": (_DEFECT.replace('"words"', '" "'), "match"),
    "a race without its fault": (_DEFECT + 'sometimes = "RES-01"\n', "RES-01"),
}

_SCOPED = [
    words("check --scope gone.toml", "gone.toml"),
    words("check --scope {}", "directory", "--scope with a directory"),
    words("check --scope pyproject.toml", "[tool.peft-harness]", "--scope without a table", files={"pyproject.toml": ""}),
    *(
        words("check --scope scope.toml", answer, f"--scope with {name}", files={"scope.toml": text})
        for name, (text, answer) in _SCOPES.items()
    ),
    *(
        words("check --scope scope.toml", answer, f"known defects with {name}",
              files={"scope.toml": "known-defects = ['mine.toml']\nclauses = ['RNG-01']\n", "mine.toml": text})
        for name, (text, answer) in _OWN.items()
    ),
    *(
        words(f"{command} --scope scope.toml", "'lora'", "--scope with an unknown method",
              files={"scope.toml": "methods = ['loraa']\n"})
        for command in ("gate --baseline current --candidate current",
                        "bisect --clause RNG-01 --good current --bad current")
    ),
    words("gate --baseline current --candidate current --scope scope.toml", "RNG-999", "a known defect of no clause",
          files={"scope.toml": "known-defects = ['mine.toml']\n", "mine.toml": _DEFECT.replace("RNG-01", "RNG-999")}),
    words("check --clause RNG-01 -- --known-defects gone.toml", "gone.toml"),
    words("check --clause RNG-01 -- --known-defects mine.toml", "not TOML", files={"mine.toml": "x: 1\n"}),
]  # fmt: skip

ROWS = [*_REPORTS, *_TRENDS, *_DEFECTS, *_SCRIPTS, *_SCOPED]
