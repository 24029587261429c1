"""Bad inputs of crash, where, map, bounds, propose, ask, adapter, checkpoint, and speed of one's own run."""

from __future__ import annotations

import json
from typing import Any

from tests import made_up_tables
from tests.bad_inputs.options import _link, _pipe, words
from tests.bad_inputs.row import Row

_MINE = {
    "raises": "raise RuntimeError('not today')\n",
    "leaves": "import sys; sys.exit(0)\n",
    "does not parse": "def (\n",
    "lacks the name": "x = 1\n",
    "names a number": "Mine = 3\n",
}

_CRASH = [
    words("crash --scenario nonsense", "nonsense"),
    words("crash --scenario ", "scenario", "an empty --scenario"),
    words("crash --scenario [", "["),
    words("crash --states 0", "states"),
    words("crash --states nan", "states"),
    words("crash --states 1e30", "states"),
    words("crash --kind planet", "planet"),
    words("crash --seed -1", "seed"),
    words("crash --workers 0", "workers"),
    words("crash --workers 1000000", "workers"),
    words("crash --callback mine", "mine"),
    words("crash --callback :", "':'"),
    words("crash --callback a:b:c", "a:b:c"),
    words("crash --callback ", "callback", "an empty --callback"),
    words("crash --callback no_such_module:Mine --states 1", "no_such_module"),
    words("crash --resume-with mine", "mine"),
    words("crash --resume-with no_such_module:mine --states 1", "no_such_module"),
    *(
        words(f"crash --scenario plain --states 1 {option} mine:Mine", "mine", f"{option} of a module that {name}",
              files={"mine.py": code})
        for option in ("--callback", "--resume-with")
        for name, code in _MINE.items()
    ),
    words("crash --plot p.xyz", "xyz", "a plot of an unknown kind"),
    *(words(f"crash --states 1 --{option} {place}", f"--{option}")
      for option in ("json", "html") for place in ("/dev/full", "/proc/x", "{}")),
]  # fmt: skip

_WHERE = [
    words("where", "A"),
    words("where cpu", "B"),
    words("where nonsense cpu", "nonsense"),
    words("where gone.json cpu", "gone.json"),
    words("where {} cpu", "names nothing", "a directory"),
    words("where d.json cpu", "directory", "a directory named as a spec", before=lambda d: (d / "d.json").mkdir()),
    words("where p.json cpu", "pipe", "a pipe", before=_pipe("p.json")),
    words("where l.json cpu", "l.json", "a link to itself", before=_link("l.json", "l.json")),
    words("where a.json cpu", "deep", "deep lists", files={"a.json": "[" * 5000}),
    words("where a.json cpu", "--trust-code", "code", files={"a.json": {"model": {"family": "mine:factory"}}}),
    words("where learning_rate=nan cpu", "learning_rate"),
    words("where learning_rate=1e999 cpu", "learning_rate"),
    words("where learning_rate=-1 cpu", "learning_rate"),
    words("where lora.r=-4 cpu", "r"),
    words("where lora.r=1e30 cpu", "r"),
    words("where lora.r=" + "9" * 5000 + " cpu", "r", "a rank of 5,000 digits"),
    words("where lora.r=" + "[" * 5000 + " cpu", "r", "a rank of deep lists"),
    words("where lora.nonsense=3 cpu", "nonsense"),
    words("where model=3 cpu", "model"),
    words("where model.family=mine:factory cpu", "mine:factory", files={"mine.py": "1 / 0\n"}),
    words("where model.dtype=float7 cpu", "float7"),
    words("where data.rows=0 cpu", "rows"),
    words("where max_steps=1000000000000 cpu", "max_steps"),
    words("where ddp:0 cpu", "ddp"),
    words("where ddp:99999999999 cpu", "ddp"),
    words("where no_such_module:mine cpu", "no_such_module"),
    words("where mine:Mine cpu", "mine", "a subject that leaves", files={"mine.py": _MINE["leaves"]}),
    words("where cuda cpu", "cuda"),
    words("where cpu cpu --steps -1", "steps"),
    words("where cpu cpu --steps nan", "steps"),
    words("where cpu cpu --spec gone.json", "gone.json"),
    words("where cpu cpu --spec a.json --json a.json", "--json", "--json on the spec", files={"a.json": {}}),
    words("where a.json cpu --json a.json", "--json", "--json on a side", files={"a.json": {}}),
    words("where cpu learning_rate=1 --preload no_such_module", "no_such_module"),
    words("where peft=0.18.1 cpu", "peft=0.18.1"),
    words("where cpu learning_rate=0.01 --json /dev/full", "--json"),
]  # fmt: skip

_TABLE = made_up_tables.line()
_CELL = next(cell for cell in _TABLE["cells"] if cell["stack"]["transformers"] == "5.2.0")


def _damaged(**changes: Any) -> dict[str, Any]:
    """Return the table with a change of the cell that the commands ask for."""
    return {**_TABLE, "cells": [{**cell, **changes} if cell is _CELL else cell for cell in _TABLE["cells"]]}


#: What a table of stacks cannot be: name -> content, and words of the answer.
_TABLES: dict[str, tuple[Any, str]] = {
    "an empty file": ("", "t.json"),
    "half a table": (json.dumps(_TABLE)[:300], "line"),
    "a list": ([_TABLE], "no table"),
    "null": ("null", "no table"),
    "random bytes": (bytes(range(256)), "utf-8"),
    "deep lists": ("[" * 5000 + "]" * 5000, "deep"),
    "a newer schema": ({**_TABLE, "schema_version": 99}, "newer"),
    "a schema that is NaN": (json.dumps({**_TABLE, "schema_version": float("nan")}), "NaN"),
    "cells that are words": ({**_TABLE, "cells": ["a"]}, "damaged"),
    "a cell without a stack": ({**_TABLE, "cells": [{"state": "judged"}]}, "damaged"),
    "a release that is a word": (_damaged(stack={**_CELL["stack"], "peft": "newest"}), "newest"),
    "a release that is empty": (_damaged(stack={**_CELL["stack"], "peft": ""}), "cells["),
    "requirements that are no pins": (_damaged(requirements="peft>=0.18"), "peft>=0.18"),
    "requirements that are empty": (_damaged(requirements=""), "cells["),
    "a date that is a word": (_damaged(date="yesterday"), "yesterday"),
    "a Python that is a word": (_damaged(python="snake"), "snake"),
    "an unknown verdict": (
        _damaged(clauses={"ACC-01": {**_CELL["clauses"]["ACC-01"], "verdict": "perhaps"}}), "perhaps"),
    "negative cores": (_damaged(cores=-1), "cores"),
}  # fmt: skip

_READERS = {
    "ask": "ask transformers==5.2.0 --table t.json",
    "bounds": "bounds --table t.json",
    "propose": "propose --baseline peft==0.18.1 --want transformers>=5.2 --table-only --table t.json",
    "map": "map --size 0 --merge t.json --json ../out.json --html ../out.html --csv ../out.csv --markdown ../out.md",
}

_ASKED = [
    *(
        words(line, answer, f"a table that is {name}", files={"t.json": content})
        for line in _READERS.values()
        for name, (content, answer) in _TABLES.items()
    ),
    *(words(line, "t.json", "a table that is a pipe", before=_pipe("t.json")) for line in _READERS.values()),
    *(words(line, "t.json", "no table") for line in _READERS.values()),
    words("ask", "STACK"),
    words("ask ", "name a stack", "an empty stack"),
    words("ask nonsense", "nonsense"),
    words("ask transformers>>5", "transformers>>5"),
    words("ask transformers==nan", "nan"),
    words("ask transformers==5.*", "5.*"),
    words("ask transformers==5.2.0,transformers==5.3.0", "twice"),
    words("ask transformers==" + "9" * 5000, "transformers", "a release of 5,000 digits"),
    words("ask peft@https://example.com/x.whl", "peft"),
    words("ask \ud800", "is no release", "a lone surrogate"),
    words("ask transformers==5.2.0 --clause ABC-*", "ABC-*"),
    words("ask transformers==5.2.0 --device tpu", "tpu"),
    words("ask transformers==5.2.0 --json /dev/full", "--json"),
    words("bounds --package nonsense", "nonsense"),
    words("bounds --package ", "package", "an empty --package"),
    words("bounds --clause ABC-*", "ABC-*"),
    words("bounds --device tpu", "tpu"),
    words("bounds --spec gone.json", "gone.json"),
    words("bounds --spec a.json", "no stack", "a run that no table has", files={"a.json": {}}),
    words("propose --want peft>=0.18", "baseline"),
    words("propose --baseline peft==0.18.1", "want"),
    words("propose --baseline gone.txt --want peft>=0.18 --table-only", "gone.txt"),
    words("propose --baseline  --want peft>=0.18 --table-only", "requirement", "an empty baseline"),
    words("propose --baseline peft==0.18.1 --want  --table-only", "--want", "an empty --want"),
    words("propose --baseline peft==0.18.1 --want peft --table-only", "peft"),
    words("propose --baseline peft==0.18.1 --want nonsense==1 --table-only", "no judged stack", code=3),
    words("propose --baseline peft==0.18.1 --want peft@https://example.com/x.whl --table-only", "peft"),
    words("propose --baseline peft==0.18.1 --want peft>=0.20 --tries 0", "tries"),
    words("propose --baseline peft==0.18.1 --want peft>=0.20 --directory file.txt", "file.txt", files={"file.txt": "x"}),
]  # fmt: skip

#: What a matrix cannot say.
_MATRICES: dict[str, tuple[str | bytes, str]] = {
    "no TOML": ("packages: all\n", "TOML"),
    "random bytes": (bytes(range(256)), "utf-8"),
    "deep lists": ("a = " + "[" * 5000 + "]" * 5000 + "\n", "m.toml"),
    "empty": ("", "packages"),
    "an unknown key": ("clause = ['ACC-01']\n[packages]\npeft = 'installed'\n", "'clauses'"),
    "packages that are a list": ("packages = ['peft']\n", "packages"),
    "a range that is none": ("[packages]\npeft = 'newest'\n", "newest"),
    "a release that is a number": ("[packages]\npeft = 0.18\n", "0.18"),
    "a release that is NaN": ("[packages]\npeft = nan\n", "peft"),
    "an empty list of releases": ("[packages]\npeft = []\n", "peft"),
    "a package that is not installed": ("[packages]\nnonsense-of-mine = 'installed'\n", "nonsense-of-mine"),
    "negative stacks": ("stacks = -3\n[packages]\npeft = 'installed'\n", "stacks"),
    "stacks that are true": ("stacks = true\n[packages]\npeft = 'installed'\n", "stacks"),
    "a device that there is not": ("devices = ['tpu']\n[packages]\npeft = 'installed'\n", "tpu"),
    "a clause that there is not": ("clauses = ['ABC-*']\n[packages]\npeft = 'installed'\n", "ABC-*"),
    "a test elsewhere": ("tests = ['suites/../x.py']\n[packages]\npeft = 'installed'\n", "suites/../x.py"),
    "a spec that is missing": ("specs = ['gone.json']\n[packages]\npeft = 'installed'\n", "gone.json"),
    "a first stack that is none": ("first = ['peft']\n[packages]\npeft = 'installed'\n", "first"),
}

_MAP = [
    words("map gone.toml", "gone.toml"),
    words("map {}", "directory", "a directory"),
    words("map /dev/zero", "/dev/zero"),
    words("map m.toml", "pipe", "a matrix that is a pipe", before=_pipe("m.toml")),
    *(
        words("map m.toml --size 1", answer, f"a matrix: {name}", files={"m.toml": content})
        for name, (content, answer) in _MATRICES.items()
    ),
    words("map --size -1", "size"),
    words("map --size nan", "size"),
    words("map --workers 0", "workers"),
    words("map --on nowhere", "nowhere"),
    words("map --on gone.py", "gone.py"),
    words("map --on mine.py", "mine.py", "an engine that raises", files={"mine.py": "1 / 0\n"}),
    words("map --on mine.py", "mine.py", "an engine that leaves", files={"mine.py": "raise SystemExit(0)\n"}),
    words("map --on mine.py", "mine.py", "an engine without a config", files={"mine.py": "x = 1\n"}),
    words("map --on mine.py", "mine.py", "an engine that is a number", files={"mine.py": "config = 3\n"}),
    words("map --directory file.txt", "file.txt", files={"file.txt": "x"}),
    words("map --directory /proc/x", "--directory"),
    *(words(f"map --size 0 --{option} /dev/full", f"--{option}") for option in ("json", "html", "markdown", "csv")),
]  # fmt: skip

#: A tag that would run code, and a word where a number must be.
_TAG, _WORD = "!!python/object/apply:os.system ['x']\n", {"learning_rate": "fast"}

_SPEED = [
    words("speed --spec gone.json", "gone.json"),
    words("speed --spec {}", "directory", "--spec with a directory"),
    words("speed --spec a.json", "deep", "--spec with deep lists", files={"a.json": "[" * 5000}),
    words("speed --spec a.json", "--trust-code", "--spec with code", files={"a.json": {"model": {"family": "mine:x"}}}),
    words("speed --spec a.json --shape tiny", "--shape", files={"a.json": {}}),
    words("speed --spec a.json --rates", "--rates", files={"a.json": {}}),
    words("speed --adapter gone", "gone"),
    words("speed --adapter a.json", "a.json", "--adapter with random bytes", files={"a.json": bytes(range(256))}),
    words("speed --adapter a.json", "a.json", "--adapter with a list", files={"a.json": []}),
    words("speed --arguments gone.yaml", "gone.yaml"),
    words("speed --arguments a.yaml", "a.yaml", "--arguments with a tag", files={"a.yaml": _TAG}),
    words("speed --arguments a.json", "learning_rate", "--arguments with a word", files={"a.json": _WORD}),
    words("speed --model nonsense", "nonsense"),
    words("speed --model m", "m", "--model without a config", files={"m/x": ""}),
    words("speed --advise --plot p.png", "--plot"),
    words("speed --kernels --ranks 2", "--kernels"),
]  # fmt: skip

_LORA = {"a.json": {"peft_type": "LORA", "target_modules": ["q_proj"]}}
_LAUNCH = [
    words("judge --adapter a.json --launch gone.yaml", "gone.yaml", files=_LORA),
    words("judge --adapter a.json --launch ./d.yaml", "directory", "--launch with a directory", files=_LORA,
          before=lambda d: (d / "d.yaml").mkdir()),
    words("judge --adapter a.json --launch p.yaml", "pipe", "--launch with a pipe", files=_LORA, before=_pipe("p.yaml")),
    words("judge --config l.yaml", "--launch", "a file of accelerate launch as --config",
          files={"l.yaml": "distributed_type: FSDP\n"}),
    *(words("judge --adapter a.json --launch l.yaml", answer, f"--launch with {name}", files={**_LORA, "l.yaml": text})
      for name, text, answer in (
          ("another file", "stage: sft\n", "distributed_type"),
          ("a tag", _TAG, "tag"),
          ("random words", "a: b: c\n", "YAML"),
          ("a kind that is not started here", "distributed_type: XLA\n", "XLA"),
          ("a list as fsdp_config", "distributed_type: FSDP\nfsdp_config: [1]\n", "fsdp_config"),
          ("a text as deepspeed_config", "distributed_type: DEEPSPEED\ndeepspeed_config: x\n", "deepspeed_config"),
          ("a file that is gone", "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: gone.json}\n",
           "gone.json"),
          ("a stage that there is not", "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 9}\n", "stage"),
      )),
    words("sweep --minutes 0", "minutes"),
    words("sweep --minutes nan", "minutes"),
    words("sweep --minutes 1e30", "minutes"),
    words("sweep --seed -1", "seed"),
    words("sweep --seed 1.5", "seed"),
    words("sweep --workers 0", "workers"),
    words("sweep --workers 1000", "workers"),
    words("sweep --minutes 1 --subject gone:Mine", "gone"),
    words("sweep --directory file.txt", "file.txt", files={"file.txt": "x"}),
    *(words(f"sweep --{option} /dev/full", f"--{option}") for option in ("json", "html")),
]  # fmt: skip

ROWS: list[Row] = [*_LAUNCH, *_CRASH, *_WHERE, *_ASKED, *_MAP, *_SPEED]
