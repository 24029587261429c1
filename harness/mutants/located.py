"""Does `peft-harness where` name what a mutant has changed? One row for each mutant that changes a number.

1. `RUNS` are trained without a mutant, plainly and changed in the last bit (`harness.where`).
2. Each mutant of this folder that a CPU shows is put into a forked process, which trains RUNS in order, until one differs in
   any bit of what is recorded, and completes. Such a mutant counts as numeric, and that run is compared. The others change
   what is no number of these runs: they raise, or they are about files, events, names or launches that RUNS do not have.
3. Where the mutant is, is read from the function of upstream that it replaces (`PLACES`), and not from what was found.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from harness.mutants.catalogue import Mutant, mutants
from harness.mutants.child import Writer, start
from harness.processes import ranks
from harness.processes.imports import import_upstream
from harness.runs.scenarios import PLAIN
from harness.spec import ADD, RunSpec
from harness.subjects.hf_trainer import HFTrainer
from harness.trace import Trace
from harness.where import find
from harness.where.compare import compare
from harness.where.timeline import Run

#: What the mutants are tried on: windows, ragged rows, clipping, a schedule, decay, evaluations, saves, best model; then
#: bfloat16; NF4; the other route; a run that resumes; two ranks.
ALL = PLAIN.but(
    data={"rows": 22, "min_length": 6, "ignored": 0.2, "eval_rows": 6},
    gradient_accumulation_steps=2, max_steps=6, max_grad_norm=0.1, warmup_steps=2, weight_decay=0.1,
    lr_scheduler_type="cosine", eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
    load_best_model_at_end=True, label_names=["labels"],
)  # fmt: skip
RUNS: dict[str, RunSpec] = {
    "all": ALL,
    "bf16": PLAIN.but(model={"dtype": "bfloat16"}, bf16=True, max_steps=3, lora={"use_rslora": True}),
    "dora": PLAIN.but(
        adapter={"route": ADD}, lora={"use_dora": True, "modules_to_save": ["lm_head"]}, max_steps=3,
        activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}, optim="adamw_torch",
    ),  # fmt: skip
    "nf4": PLAIN.but(model={"quantization": "nf4"}, max_steps=3, save_strategy="steps", save_steps=3),
    "resumed": PLAIN.but(max_steps=6, save_strategy="steps", save_steps=3).resumed(3),
    "ddp": PLAIN.but(
        lora={"lora_dropout": 0.0}, max_steps=3, per_device_train_batch_size=2, data={"min_length": 6},
        launch={"ranks": 2, "strategy": "ddp"},
    ),  # fmt: skip
}


def _recorded(name: str, directory: Path, seed: int | None) -> Run:
    return find.record(HFTrainer(), RUNS[name], directory, seed)


def baseline(directory: Path) -> None:
    """Train RUNS without a mutant, and keep their traces and recordings in a directory."""
    for name in RUNS:
        for seed in (None, *find.SEEDS):
            into = directory / name / str(seed)
            run = _recorded(name, into, seed)
            run.trace.save(into / "trace")


def stored(directory: Path, name: str, seed: int | None) -> Run:
    """Return a run that `baseline` trained."""
    trace = Trace.load(directory / name / str(seed) / "trace")
    return Run(trace, find.load(directory / name / str(seed) / "recordings", 1 + len(trace.ranks)))


def locate(mutant: Mutant, known: Path, directory: Path) -> dict[str, Any]:
    """Return the row of a mutant. It is in this process for good."""
    mutant.apply()
    row: dict[str, Any] = {"mutant": mutant.name, "function": function(mutant), "says": mutant.says, "run": None}
    for name in RUNS:
        run = _recorded(name, directory / name, None)
        if run.trace.error:
            continue
        plain = stored(known, name, None)
        if compare(plain, run, None).bit is None:
            continue
        found = compare(plain, run, [(plain, stored(known, name, seed)) for seed in find.SEEDS])
        bit = found.bit
        first = found.first
        row |= {
            "run": name,
            "bit": bit and bit.sentence(),
            "first": first and first.sentence(),
            "stage": first and first.stage,
            "module": first and first.module,
            "kind": first and run.recordings[0].kinds.get(first.module, ""),
            "seen": first and first.seen(),
        }
        break
    return row


def function(mutant: Mutant) -> str:
    """Return the function of upstream that a mutant replaces, as "owner.name"."""
    words = [word for word in getattr(mutant.put, "args", ()) if isinstance(word, str)]
    return ".".join(words) or re.sub(r" at 0x\w+", "", repr(mutant.put))


def main(file: Path, globs: list[str]) -> None:
    """Write a row for each mutant into a file, one JSON object a line. Those that are there are not measured again."""
    import tempfile
    from fnmatch import fnmatchcase

    import_upstream([])
    done = {json.loads(line)["mutant"] for line in file.read_text().splitlines()} if file.exists() else set()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)

        def first(write: Writer) -> None:
            ranks.prepare(pristine=True)
            baseline(home / "known")

        os.waitpid(start(home / "baseline", first), 0)
        for mutant in mutants().values():
            chosen = not globs or any(fnmatchcase(mutant.name, glob) for glob in globs)
            if mutant.device != "cpu" or mutant.name in done or not chosen:
                continue
            began, place = time.monotonic(), home / mutant.name

            def work(write: Writer, mutant: Mutant = mutant, place: Path = place) -> None:
                ranks.prepare(pristine=True)
                row = locate(mutant, home / "known", place / "runs")
                (place / "row.json").write_text(json.dumps(row))

            os.waitpid(start(place, work), 0)
            whole = (place / "row.json").is_file()
            row = json.loads((place / "row.json").read_text()) if whole else {"mutant": mutant.name, "run": "crashed"}
            row.setdefault("function", function(mutant))
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(f"{time.monotonic() - began:5.1f} s  {mutant.name}: {row.get('first')}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
