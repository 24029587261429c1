"""Does `peft-harness where` name what a mutant has changed? One row for each mutant that changes a number.

1. `RUNS` are trained without a mutant, plainly and changed in the last bit (`harness.where`).
2. Each mutant of `PLACES` is put into a forked process, which trains its run. The two runs are compared.
3. It is located if the place at which they part is of a stage or a module that PLACES names for it.
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
from harness.where import both_sides
from harness.where.parting import compare
from harness.where.timeline import Run

#: What the mutants are tried on: windows, ragged rows, clipping, a schedule, decay, evaluations, saves, best model; then
#: bfloat16; NF4; the other route; a run that resumes; two ranks.
ALL = PLAIN.but(
    data={"rows": 22, "min_length": 6, "ignored": 0.2, "eval_rows": 6},
    gradient_accumulation_steps=2, max_steps=6, max_grad_norm=0.1, warmup_steps=2, weight_decay=0.1,
    lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 2},
    data_seed=7, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
)  # fmt: skip
RUNS: dict[str, RunSpec] = {
    "all": ALL,
    "bf16": PLAIN.but(model={"dtype": "bfloat16"}, bf16=True, max_steps=3),
    "add": PLAIN.but(adapter={"route": ADD}, lora={"modules_to_save": ["lm_head"]}, max_steps=3),
    "recomputed": PLAIN.but(
        max_steps=2, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}
    ),
    "smoothed": PLAIN.but(max_steps=2, label_smoothing_factor=0.1, gradient_accumulation_steps=2),
    "nf4": PLAIN.but(model={"quantization": "nf4", "prepare_for_kbit": True}, max_steps=3),
    "resumed": PLAIN.but(data={"rows": 10}, max_steps=6, save_strategy="steps", save_steps=4).resumed(4),
    "ddp": PLAIN.but(
        lora={"lora_dropout": 0.0},
        max_steps=3,
        per_device_train_batch_size=2,
        data={"min_length": 6},
        launch={"ranks": 2, "strategy": "ddp"},
    ),
}

#: The layers that LoRA adapts in these runs, and parts of them, as `harness.where` names them.
_LORA = r"model\.layers\.\d+\.self_attn\.[qv]_proj"
_DROPOUT, _PACKED = rf"{_LORA}\.lora_dropout", r"model\.layers\.\d+\..*_proj(\.base_layer)?"

#: Mutant -> the run that it is tried on, the stages that it changes, and the modules, as a pattern. It is from the function
#: of upstream that the mutant replaces and what it says, and was written before the runs were compared. These are the
#: numeric mutants: those that say that they change what a run of these trains, rounds, draws, evaluates or logs, and that
#: need no argument which RUNS lack. The others are about files, events, errors, names, merging and other launches.
PLACES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "alpha-for-alpha-over-r": ("all", (), _LORA),
    "scaling-left-out": ("all", (), _LORA),
    "dropout-on-the-base-path": ("all", (), _LORA),
    "dropout-off": ("all", (), rf"{_LORA}|{_DROPOUT}"),
    "fresh-adapter-not-zero": ("all", ("start",), ""),
    "adapter-drawn-from-another-range": ("all", ("start",), ""),
    "routes-draw-differently": ("add", ("start",), ""),
    "base-drifts-by-an-ulp": ("all", ("end",), r".*norm"),
    "norm-trained-too": ("all", ("start", "optimizer"), ""),
    "packed-scale-drifts": ("nf4", ("end",), _PACKED),
    "one-lora-matrix-frozen": ("all", ("start",), ""),
    "parameter-left-out-of-the-optimizer": ("all", ("optimizer",), ""),
    "adapter-on-the-wrong-module": ("all", ("start",), ""),
    "adapter-on-a-module-too-many": ("all", ("start",), ""),
    "nothing-decayed": ("all", ("optimizer",), ""),
    "original-trained-beside-its-copy": ("add", ("start",), ""),
    "gradient-divided-by-three": ("all", ("loss",), ""),
    "first-label-counted": ("all", ("loss",), ""),
    "padding-counted": ("all", ("loss",), ""),
    "first-token-not-trained": ("all", ("loss",), ""),
    "smoothing-unshifted": ("smoothed", ("loss",), ""),
    "smoothing-by-twice-the-factor": ("smoothed", ("loss",), ""),
    "smoothing-ignores-the-window": ("smoothed", ("loss",), ""),
    "accumulation-divided-twice": ("all", ("loss",), ""),
    "mean-of-means": ("all", ("loss",), ""),
    "last-micro-batch-lost": ("all", ("data",), ""),
    "window-a-micro-batch-short": ("all", ("data",), ""),
    "accelerate-accumulates-too": ("all", ("loss",), ""),
    "window-counted-by-its-first-micro-batch": ("all", ("loss",), ""),
    "clip-per-micro-batch": ("all", ("clipping", "accumulation"), ""),
    "another-beta": ("all", ("optimizer",), ""),
    "no-bias-correction": ("all", ("optimizer",), ""),
    "a-step-less": ("all", ("schedule", "end"), ""),
    "schedule-a-step-ahead": ("all", ("schedule",), ""),
    "warmup-left-out": ("all", ("schedule",), ""),
    "schedule-options-dropped": ("all", ("schedule",), ""),
    "norm-logged-after-clipping": ("all", ("log",), ""),
    "not-clipped": ("all", ("clipping",), ""),
    "short-batch-dropped": ("all", ("data",), ""),
    "recomputed-with-other-masks": ("recomputed", (), _DROPOUT),
    "rate-logged-a-step-late": ("all", ("log",), ""),
    "training-loss-halved": ("all", ("log",), ""),
    "copy-not-used": ("add", (), "lm_head"),
    "generators-not-restored": ("resumed", ("resume",), _DROPOUT),
    "generators-restored-late": ("resumed", ("resume",), _DROPOUT),
    "optimizer-not-restored": ("resumed", ("optimizer", "schedule"), ""),
    "moments-not-restored": ("resumed", ("optimizer",), ""),
    "schedule-not-restored": ("resumed", ("schedule",), ""),
    "adapter-not-restored": ("resumed", ("resume",), ""),
    "first-epochs-order-again": ("all", ("data",), ""),
    "resumed-epoch-reshuffled": ("resumed", ("data",), ""),
    "a-batch-skipped": ("resumed", ("data",), ""),
    "a-batch-trained-twice": ("resumed", ("data",), ""),
    "nothing-skipped": ("resumed", ("data",), ""),
    "training-loss-over-all-steps": ("resumed", ("log",), ""),
    "dropout-of-the-process": ("all", (), _DROPOUT),
    "evaluated-without-the-adapter": ("all", ("evaluation",), ""),
    "evaluated-with-dropout": ("all", ("evaluation",), ""),
    "evaluated-backwards": ("all", ("evaluation", "data"), ""),
    "eval-loss-by-labels": ("all", ("evaluation",), ""),
    "eval-loss-by-batches": ("all", ("evaluation",), ""),
    "evaluation-draws-a-number": ("all", ("evaluation",), _DROPOUT),
    "evaluation-moves-the-adapter": ("all", ("evaluation", "between steps"), ""),
    "autocast-off": ("bf16", ("forward",), ""),
    "adapter-in-half-precision": ("bf16", ("start",), ""),
    "outputs-left-in-half-precision": ("bf16", ("loss",), "^$"),
    "gradients-not-synchronised": ("ddp", ("reduction",), ""),
    "one-rank-steps-otherwise": ("ddp", ("clipping", "reduction"), ""),
    "labels-of-each-rank-alone": ("ddp", ("loss",), ""),
    "same-rows-on-all-ranks": ("ddp", ("data",), ""),
    "order-of-each-rank": ("ddp", ("data",), ""),
    "adapters-of-their-own": ("ddp", ("start",), ""),
    "logged-loss-doubled": ("ddp", ("log",), ""),
    "packed-layers-without-scaling": ("nf4", (), _LORA),
    "packed-layers-compute-in-bfloat16": ("nf4", (), _PACKED),
    "packed-of-a-larger-weight": ("nf4", ("start",), ""),
    "gradient-through-packed-layers-doubled": ("nf4", (), _PACKED),
    "eight-bits-for-four": ("nf4", ("start",), ""),
    "preparing-scales-the-output-layer": ("nf4", ("start",), ""),
    "seed-not-set": ("all", ("data",), _DROPOUT),
    "seed-set-at-train": ("all", ("data",), _DROPOUT),
    "log-draws-a-number": ("all", ("log",), _DROPOUT),
    "rows-not-shuffled": ("all", ("data",), ""),
    "data-seed-passed-over": ("all", ("data",), ""),
}


def _recorded(name: str, directory: Path, seed: int | None) -> Run:
    return both_sides.record(HFTrainer(), RUNS[name], directory, seed)


def baseline(directory: Path, names: list[str]) -> None:
    """Train runs without a mutant, and keep their traces and recordings in a directory."""
    for name in names:
        for seed in (None, *both_sides.SEEDS):
            into = directory / name / str(seed)
            run = _recorded(name, into, seed)
            run.trace.save(into / "trace")


def stored(directory: Path, name: str, seed: int | None) -> Run:
    """Return a run that `baseline` trained."""
    trace = Trace.load(directory / name / str(seed) / "trace")
    return Run(trace, both_sides.load(directory / name / str(seed) / "recordings", 1 + len(trace.ranks)))


def locate(mutant: Mutant, known: dict[str, list[Run]], directory: Path) -> dict[str, Any]:
    """Return the row of a mutant. It is in this process for good."""
    mutant.apply()
    ranks.prepare(pristine=True)  # they are forked from here on, and have the mutant, too
    row: dict[str, Any] = {"mutant": mutant.name, "function": function(mutant), "says": mutant.says, "run": None}
    name, stages, modules = PLACES[mutant.name]
    run = _recorded(name, directory / name, None)
    row |= {"run": name, "stages": list(stages), "modules": modules, "error": run.trace.error}
    plain, *changed = known[name]
    found = compare(plain, run, [(plain, one) for one in changed])
    bit, first = found.bit, found.first
    seen = first or bit
    row["located"] = seen is not None and (
        seen.stage in stages or bool(modules and re.fullmatch(modules, seen.module) is not None)
    )
    row |= {
        "bit": bit and bit.sentence(),
        "first": first and first.sentence(),
        "seen": seen and seen.seen(),
        "path": [place.sentence() for place in found.path[1:4]],
    }
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
    chosen = [
        mutant
        for mutant in mutants().values()
        if mutant.name in PLACES
        and mutant.name not in done
        and (not globs or any(fnmatchcase(mutant.name, glob) for glob in globs))
    ]
    runs = sorted({PLACES[mutant.name][0] for mutant in chosen})
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)

        def first(write: Writer) -> None:
            ranks.prepare(pristine=True)
            baseline(home / "known", runs)

        os.waitpid(start(home / "baseline", first), 0)
        # Read before the forks, which share it.
        known = {name: [stored(home / "known", name, seed) for seed in (None, *both_sides.SEEDS)] for name in runs}
        for mutant in chosen:
            began, place = time.monotonic(), home / mutant.name

            def work(write: Writer, mutant: Mutant = mutant, place: Path = place) -> None:
                row = locate(mutant, known, place / "runs")
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
