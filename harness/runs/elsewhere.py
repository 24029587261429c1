"""A saved adapter, loaded elsewhere: in a new process, from a directory that was moved, into another base object.

1. `load` moves the adapter's directory, writes down what is to be loaded (`Job`), and starts one process for all the ways.
2. In that process `_serve` loads the base by from_pretrained, the adapter by each way that the documentation has, and
   computes the logits of the same rows. It uses peft and transformers only, and no network.
3. `load` moves the directory back and returns an `Answer` for each adapter. `harness.laws.served` judges it.

The process is a fork of one that has imported upstream and built no model but a tiny one (`harness.processes.ranks`), so
nothing of the run that trained is in it: no object, no configuration, no random state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.compat import dtype_argument
from harness.environment import version
from harness.fixtures import models
from harness.laws.checkpoint import ADAPTER_FILE, adapter_files
from harness.laws.served import (
    AUTO,
    BEFORE_SAVING,
    FROM_PRETRAINED,
    LOAD_ADAPTER,
    MERGED,
    STATE_DICT,
    Answer,
    inputs,
    logits,
)
from harness.processes import ranks
from harness.processes.group import Group
from harness.runs.cache import Runs
from harness.spec import ModelSpec
from harness.trace import Trace

#: Seconds that one process may take. On a busy machine an adapter takes three.
LIMIT = 120.0

#: AutoPeftModel's class for each task.
_AUTO = {
    models.CAUSAL: "AutoPeftModelForCausalLM",
    models.CLASSIFICATION: "AutoPeftModelForSequenceClassification",
    models.SEQ2SEQ: "AutoPeftModelForSeq2SeqLM",
}

#: Environment variables by which libraries recognise a rank. The process is none.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Job:
    """What the new process is to load.

    - adapter, base: the directories that save_pretrained wrote.
    - model: the class of transformers that loads the base.
    - auto: the class of peft for the way "auto".
    - dtype, quantization: of the base, as in ModelSpec.
    - rows: names of the model's inputs -> token ids.
    - options: keyword arguments of PeftModel.from_pretrained that the run's own adapter was made with.
    - ways: the ways to load it.
    - answer: an empty directory.
    """

    adapter: Path
    base: Path
    model: str
    auto: str
    dtype: str
    quantization: Any
    rows: dict[str, list[list[int]]]
    options: dict[str, Any]
    ways: tuple[str, ...]
    answer: Path


@dataclass(frozen=True)
class Wanted:
    """A run whose adapter is to be loaded elsewhere, and the ways to load it."""

    trace: Trace
    ways: tuple[str, ...]


def load(wanted: Sequence[Wanted], runs: Runs, begin: Callable[[], Any] | None = None) -> list[Answer]:
    """Load the adapter of each run's last checkpoint elsewhere. One process loads all that no earlier call has loaded.

    - begin: called in the new process before anything is loaded.

    Raises RanksFailed if that process fails.
    """
    keys = [("elsewhere", one.trace.spec.hash, one.ways) for one in wanted]
    new = [one for one, key in zip(wanted, keys, strict=True) if key not in runs.measured]
    if new:
        answers = _load(new, runs, begin)
        runs.measured.update(
            {("elsewhere", one.trace.spec.hash, one.ways): a for one, a in zip(new, answers, strict=True)}
        )
    return [runs.measured[key] for key in keys]


def _load(wanted: Sequence[Wanted], runs: Runs, begin: Callable[[], Any] | None) -> list[Answer]:
    directory = runs.directory("elsewhere")
    jobs = [_job(one, runs, directory / str(number)) for number, one in enumerate(wanted)]
    homes = [Path(one.trace.checkpoints[-1].path) for one in wanted]
    with contextlib.ExitStack() as moves:
        for home, job in zip(homes, jobs, strict=True):
            moved = job.answer / "moved"
            home.rename(moved)
            moves.callback(moved.rename, home)
        before = [_files(job) for job in jobs]
        # If it is installed, save_pretrained imports it, which takes a second. None: no process group is made.
        imports = ("deepspeed",) if version("deepspeed") is not None else ()
        call = functools.partial(_serve, jobs, begin)
        ranks.run(Group(call, 1, directory / "process", LIMIT, backend=None, imports=imports))
        after = [_files(job) for job in jobs]
    answers = [_read(job.answer) for job in jobs]
    for answer, old, new in zip(answers, before, after, strict=True):
        answer.written = sorted(name for name, content in new.items() if old.get(name) != content)
    return answers


def _job(one: Wanted, runs: Runs, answer: Path) -> Job:
    spec, last = one.trace.spec, one.trace.checkpoints[-1]
    answer.mkdir(parents=True)
    return Job(
        adapter=answer / "moved" / Path(next(iter(adapter_files(last)), ADAPTER_FILE)).parent,
        base=_base(spec.model, runs),
        model=models.named_family(spec.model).model_class,
        auto=_AUTO[spec.data.task],
        dtype=spec.model.dtype,
        quantization=spec.model.quantization,
        rows=inputs(spec),
        options=dict(spec.adapter.options),
        ways=one.ways,
        answer=answer,
    )


def _base(model: ModelSpec, runs: Runs) -> Path:
    """Return a directory with the base of a spec, as save_pretrained writes it, not quantized."""
    plain = dataclasses.replace(model, quantization=None)
    key = ("elsewhere's base", plain)
    found = runs.measured.get(repr(key))
    if found is None:
        made = models.build(plain)
        found = Path(made.name_or_path) if made.name_or_path else runs.directory("base")
        if not made.name_or_path:
            made.save_pretrained(found)
        runs.measured[repr(key)] = found
    path: Path = found
    return path


def _files(job: Job) -> dict[str, str]:
    """Return the digest of each file of a job's adapter and base, by name."""
    return {
        f"{kind}/{path.relative_to(directory)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for kind, directory in (("adapter", job.adapter), ("base", job.base))
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _read(directory: Path) -> Answer:
    from safetensors.torch import load_file

    found = json.loads((directory / "answer.json").read_text())
    return Answer(logits=load_file(directory / "logits.safetensors"), **found)


# ---- in the new process ----


def _serve(jobs: list[Job], begin: Callable[[], Any] | None) -> None:
    for name in _OF_RANKS:
        os.environ.pop(name, None)
    warnings.simplefilter("ignore")
    import torch

    # As many as the runs have. transformers' loading threads would each replace the pool of threads that a fork has lost.
    torch.set_num_threads(1)
    if begin is not None:
        begin()
    for job in jobs:
        _serve_one(job)


def _serve_one(job: Job) -> None:
    from safetensors.torch import save_file

    answer = Answer(config=json.loads((job.adapter / "adapter_config.json").read_text()))
    for way in job.ways:
        try:
            _WAYS[way](job, answer)
        except Exception as error:
            answer.errors[way] = f"{type(error).__name__}: {error}"
    save_file({way: tensor.contiguous() for way, tensor in answer.logits.items()}, job.answer / "logits.safetensors")
    found = {name: value for name, value in dataclasses.asdict(answer).items() if name not in ("logits", "written")}
    (job.answer / "answer.json").write_text(json.dumps(found))


def _options(job: Job) -> dict[str, Any]:
    """Return the keyword arguments of from_pretrained that load the base."""
    import torch

    dtype = getattr(torch, job.dtype)
    packed = {}
    if job.quantization is not None:
        from harness.fixtures.quantized import configuration

        packed["quantization_config"] = configuration(job.quantization, dtype)
    return {**dtype_argument(dtype), **packed}


def _fresh(job: Job) -> Any:
    import transformers

    return getattr(transformers, job.model).from_pretrained(job.base, **_options(job))


def _from_pretrained(job: Job, answer: Answer) -> None:
    from peft import PeftModel

    base = _fresh(job)
    with _unchanged(base, FROM_PRETRAINED, answer):
        model = PeftModel.from_pretrained(base, job.adapter, **job.options)
        answer.logits[FROM_PRETRAINED] = logits(model, job.rows)


def _auto(job: Job, answer: Answer) -> None:
    import peft

    model = getattr(peft, job.auto).from_pretrained(job.adapter, **_options(job), **job.options)
    answer.logits[AUTO] = logits(model, job.rows)


def _load_adapter(job: Job, answer: Answer) -> None:
    base = _fresh(job)
    with _unchanged(base, LOAD_ADAPTER, answer):
        base.load_adapter(str(job.adapter))
        answer.logits[LOAD_ADAPTER] = logits(base, job.rows)


def _state_dict(job: Job, answer: Answer) -> None:
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
    from peft.utils.save_and_load import get_peft_model_state_dict

    base = _fresh(job)
    with _unchanged(base, STATE_DICT, answer):
        model = get_peft_model(base, PeftConfig.from_pretrained(str(job.adapter)), **job.options)
        # Frozen, as from_pretrained makes it: names are those of the config, whatever is loaded afterwards.
        named = get_peft_model_state_dict(model)
        saved = load_peft_weights(str(job.adapter), device="cpu")
        answer.named = {name: list(tensor.shape) for name, tensor in named.items()}
        answer.saved = {name: list(tensor.shape) for name, tensor in saved.items()}
        set_peft_model_state_dict(model, saved)
        answer.logits[STATE_DICT] = logits(model, job.rows)


def _merged(job: Job, answer: Answer) -> None:
    import transformers
    from peft import PeftModel

    merged = PeftModel.from_pretrained(_fresh(job), job.adapter, **job.options).merge_and_unload()
    answer.logits[BEFORE_SAVING] = logits(merged, job.rows)
    merged.save_pretrained(job.answer / "merged")
    packed = {name: value for name, value in _options(job).items() if name != "quantization_config"}
    loaded = getattr(transformers, job.model).from_pretrained(job.answer / "merged", **packed)
    answer.logits[MERGED] = logits(loaded, job.rows)


_WAYS: dict[str, Callable[[Job, Answer], None]] = {
    FROM_PRETRAINED: _from_pretrained,
    AUTO: _auto,
    LOAD_ADAPTER: _load_adapter,
    STATE_DICT: _state_dict,
    MERGED: _merged,
}


@contextlib.contextmanager
def _unchanged(base: Any, way: str, answer: Answer) -> Any:
    """Note the names of the base's weights that are other tensors, or hold other values, after the block."""
    weights = {name: (parameter, parameter.detach().clone()) for name, parameter in base.named_parameters()}
    yield
    import torch

    answer.changed[way] = [
        name for name, (parameter, before) in weights.items() if not torch.equal(parameter.detach(), before)
    ]
