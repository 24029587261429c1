"""Make a standalone script for a fault: a Python file that imports upstream and nothing of ours.

1. `check_for` says which check judges a clause. A check is a template in checks/, with a row in `CHECKS`.
2. `script` puts the parts together (`harness.upstream.pieces`): rows, base model, adapter, Trainer, check.
3. Imports follow from the names that the parts use.

The script prints what is expected and what is seen. It exits with 1 if the fault is there, else with 0.
"""

from __future__ import annotations

import ast
import builtins
import functools
import itertools
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.fixtures import models
from harness.fixtures.methods import rows_of
from harness.paths import PACKAGE
from harness.spec import ADD, GET, RunSpec
from harness.upstream import pieces

#: Lines that a script may have. A maintainer reads it before he runs it.
LINES = 60

CHECKS_DIRECTORY = PACKAGE / "upstream" / "checks"


@dataclass(frozen=True)
class Check:
    """How a clause is judged in a script.

    - clauses: those that it judges in any run.
    - arguments: TrainingArguments that it needs, in place of the spec's.
    - one_step: one step of SGD at rate 1 over all rows, without dropout: the adapter moves by its gradient.
    - still: without dropout.
    - plain: only for adapters that can be merged, on a base that is not packed.
    - says: what must hold, for the first lines of the script; "" for the clause's own statement.
    """

    clauses: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    one_step: bool = False
    still: bool = False
    plain: bool = False
    says: str = ""


_SILENT = {"logging_strategy": "no", "save_strategy": "no"}
_LOGGED = {"logging_steps": 1, "save_strategy": "no"}

#: Name of each general check, which is that of its template -> how it is used. Other templates judge one clause each.
CHECKS: dict[str, Check] = {
    "loss": Check(("LOSS-01", "LOSS-05", "LOSS-06", "LOSS-03"), _SILENT, one_step=True),
    "split": Check(("ACC-01", "ACC-09", "ACC-10"), _SILENT, one_step=True),
    "completes": Check(("LOOP-04", "QLORA-15", "BEST-02"), {"logging_strategy": "no"}),
    "resumes": Check(("RES-01", "RES-02", "RES-22", "RES-23", "RES-24", "RES-16"), {"logging_steps": 1}),
    "reloads": Check(("CKPT-21",), _SILENT),
    "adapter_file": Check(("CKPT-25", "EMB-03", "EMB-04", "EMB-05"), {"logging_strategy": "no"}),
    "switched_off": Check(("API-02",), _SILENT),
    "merged": Check(("API-15",), _SILENT, still=True),
    "served": Check(("SERVE-01",), _SILENT),
    "merged_elsewhere": Check(("SERVE-02",), _SILENT, still=True, plain=True),
    "both_routes": Check(("API-05",), {"logging_steps": 1}),
    "base_frozen": Check(("FRZ-01", "FRZ-03"), {"logging_strategy": "no"}),
    "bystander": Check(("FRZ-15",), _LOGGED),
    "optimizer_file": Check(("CKPT-07",), {"logging_strategy": "no"}),
    "training_loss": Check(("LOOP-09",), _LOGGED),
    "rates": Check((), _LOGGED),
    "windows": Check(("ACC-02",), _SILENT),
    "repeats": Check(("GEN-02",), _LOGGED),
    "ranks": Check(("DIST-02", "FSDP-17", "DS-08"), _SILENT, one_step=True),
    "ranks_complete": Check((), {"logging_strategy": "no"}),
    "sharded_completes": Check(still=True),
    "split_completes": Check(still=True),
    "sharded_saves": Check(still=True),
    "sharded_buffers": Check(still=True),
    "ranks_labels": Check((), _SILENT, one_step=True),
}

#: Modules that a script may use by their name.
_MODULES = (
    *(
        "contextlib",
        "copy",
        "subprocess",
        "glob",
        "json",
        "logging",
        "math",
        "os",
        "signal",
        "threading",
        "pathlib",
        "random",
        "re",
        "shutil",
        "sys",
    ),
    *(
        "tempfile",
        "warnings",
        "weakref",
        "gc",
        "torch",
        "accelerate",
        "bitsandbytes",
        "peft",
        "transformers",
        "numpy",
        "time",
    ),
    *("optuna", "huggingface_hub"),
)

#: What peft has, beside the config classes of its methods.
_PEFT = (
    *("PeftConfig", "PeftModel", "get_peft_model", "get_peft_model_state_dict", "load_peft_weights"),
    *("prepare_model_for_kbit_training", "set_peft_model_state_dict"),
)

#: Other names -> the module that has them. What is in no table comes from transformers.
_FROM = {
    "load_file": "safetensors.torch",
    "save_file": "safetensors.torch",
    "cross_entropy": "torch.nn.functional",
    "checkpoint_wrapper": "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
    "DistributedConfig": "transformers.distributed.configuration_utils",
    "BaseTunerLayer": "peft.tuners.tuners_utils",
    "Accelerator": "accelerate",
    "AcceleratorConfig": "transformers.trainer_pt_utils",
    "mock": "unittest",
    "Linear4bit": "bitsandbytes.nn",
    "fsdp_auto_wrap_policy": "peft.utils.other",
    "FullyShardedDataParallel": "torch.distributed.fsdp",
    "StateDictType": "torch.distributed.fsdp",
    "fully_shard": "torch.distributed.fsdp",
    "FullyShardedDataParallelPlugin": "accelerate",
}


def has_check(clause: str) -> bool:
    """Return whether a check judges a clause."""
    return any(clause in check.clauses for check in CHECKS.values()) or (CHECKS_DIRECTORY / f"{clause}.py.j2").is_file()


def check_for(clause: str) -> str:
    """Return the name of the check that judges a clause. UsageError if no script can judge it."""
    for name, check in CHECKS.items():
        if clause in check.clauses:
            return name
    if (CHECKS_DIRECTORY / f"{clause}.py.j2").is_file():
        return clause
    raise pieces.refuse(f"no check of {clause} is written as a script")


def script(
    spec: RunSpec, check: str, title: str, sentences: list[str], options: Mapping[str, Any] | None = None
) -> str:
    """Return the text of a script.

    - spec: the run.
    - check: the name of a check (`check_for`).
    - title: what must hold. It comes last, and is left out if the script would be too long.
    - sentences: what is wrong, and where that is discussed.
    - options: what the check's template takes beside the spec.

    Raises UsageError if the run cannot be told in so few lines, or names code or files of the user's.
    """
    code = _code(spec, check, options or {})
    heads = ([*sentences, title], sentences or [title], [" ".join(sentences or [title])])
    texts = [f'"""{heading(head)}\n"""\n{code}\n' for head in heads]
    text = next((one for one in texts if len(one.splitlines()) <= LINES), texts[-1])
    _check(text)
    return text


def _code(spec: RunSpec, check: str, options: Mapping[str, Any]) -> str:
    """Return the script's code, with its imports."""
    row = CHECKS.get(check, Check())
    if row.plain and spec.model.quantization is not None:
        raise pieces.refuse(
            "the base is packed, and packing it again when an adapter is merged costs more than rounding"
        )
    if row.plain and not any(method.mergeable for method in rows_of(spec.adapter.peft_type)):
        raise pieces.refuse(f"an adapter of {spec.adapter.peft_type} is never merged into its base")
    spec = _steady(spec, row)
    body = _render(check, spec, options)
    parts = [body]
    names = _names(body)
    directory = "DIRECTORY" in names
    if "trainer" in names:
        made = pieces.trainer(spec, {**row.arguments, **options.get("arguments", {})})
        parts.insert(0, made)
        names |= _names(made)
        if "AllocateRanks" in names:
            parts.insert(0, pieces.ALLOCATE.strip())
    if spec.launch.several and "nprocs" not in body:
        raise pieces.refuse(f"it has {spec.launch.ranks} ranks, and the check {check} is written for one process")
    if "other_route" in names:
        route = {GET: ADD, ADD: GET}[spec.adapter.route]
        other = pieces.adapted(spec.but(adapter={"route": route}).adapter).replace("def adapted", "def other_route")
        parts.insert(0, other)
    if "adapted" in names:
        parts.insert(0, pieces.adapted(spec.adapter))
    if "base" in names:
        parts.insert(0, pieces.base(spec.model, spec.launch))
    names |= {name for part in parts for name in _names(part)}
    if names & {"ROWS", "EVAL_ROWS", "Stream", "Augmented"}:
        parts.insert(0, pieces.rows(spec.data))
    directory = "DIRECTORY" in names
    if "nprocs" in body:
        # Ranks inherit both.
        parts.insert(0, 'DIRECTORY = os.environ.setdefault("REPRODUCE", tempfile.mkdtemp())')
        parts.insert(1, 'os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 1000))')
    elif directory:
        parts.insert(0, "DIRECTORY = tempfile.mkdtemp()")
    code = _spaced(parts)
    if "sys.exit" not in body:
        code += '\nprint(f"expected: {expected}\\nseen:     {seen}")\nsys.exit(0 if holds else 1)'
    return f"{_imports(code)}\n\n{code}"


def _steady(spec: RunSpec, row: Check) -> RunSpec:
    config = spec.adapter.config
    if (row.one_step or row.still) and "lora_dropout" in config:
        spec = spec.but(lora={"lora_dropout": 0.0})
    if row.one_step:
        given = spec.arguments
        size = int(given.get("per_device_train_batch_size", 8)) * int(given.get("gradient_accumulation_steps") or 1)
        size *= spec.launch.row_ranks
        # One step that uses all rows: which rows are drawn does not matter.
        data = {"rows": size, "order": (), "eval_rows": 0}
        keep = ("per_device_train_batch_size", "gradient_accumulation_steps", "label_smoothing_factor", "report_to")
        arguments: dict[str, Any] = {name: None for name in given if name not in keep}
        arguments |= {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0}
        spec = spec.but(data=data, **arguments)
    return spec


def _render(check: str, spec: RunSpec, options: Mapping[str, Any]) -> str:
    import jinja2

    given = {
        "spec": spec,
        "add": spec.adapter.route == ADD,
        "ranks": spec.launch.ranks,
        "loads": pieces.ranks_load(spec.model, spec.launch),
        "size": int(spec.arguments.get("per_device_train_batch_size", 8)),
        "window": int(spec.arguments.get("gradient_accumulation_steps") or 1),
        "smoothing": float(spec.arguments.get("label_smoothing_factor") or 0.0),
        "task": spec.data.task,
        "native": any(row.add_adapter for row in rows_of(spec.adapter.peft_type)),
        "virtual": "num_virtual_tokens" in spec.adapter.config and spec.adapter.peft_type != "PREFIX_TUNING",
        "family": models.family(spec.model),
        "conf": spec.adapter.config,
        "options": dict(options),
        **options,
    }
    try:
        text: str = _templates().get_template(f"{check}.py.j2").render(given)
        return text.strip("\n")
    except jinja2.UndefinedError as error:
        raise pieces.refuse(f"the check {check} does not fit this run ({error})") from None


@functools.cache
def _templates() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(CHECKS_DIRECTORY),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  Python text, not HTML
    )
    environment.filters["py"] = pieces.text
    return environment


def _spaced(parts: list[str]) -> str:
    """Join parts: one blank line around functions and classes."""
    text = parts[0]
    for before, after in itertools.pairwise(parts):
        block = after.startswith(("def ", "class ", "@")) or before.splitlines()[-1].startswith("    ")
        text += ("\n\n" if block else "\n") + after
    return re.sub(r"\n{3,}", "\n\n", text)


def _names(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def _imports(code: str) -> str:
    """Return the import lines for the names that the code uses and does not define."""
    tree = ast.parse(code)
    used = _names(code)
    defined: set[str] = set(dir(builtins)) | {"__file__"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    free = sorted(used - defined)
    plain = [name for name in free if name in _MODULES] + ["sys"]
    standard = sorted({name for name in plain if name not in _THIRD})
    third = sorted({name for name in plain if name in _THIRD})
    found: dict[str, list[str]] = {}
    homes = {**dict.fromkeys([*_PEFT, *pieces.config_classes()], "peft"), **_FROM}
    for name in (name for name in free if name not in _MODULES):
        found.setdefault(homes.get(name, "transformers"), []).append(name)
    lines = [f"import {', '.join(standard)}" if standard else ""]
    lines += [f"import {name}" for name in third]
    for module in sorted(found):
        line = f"from {module} import {', '.join(found[module])}"
        if len(line) > pieces.WIDTH + 8:
            line = f"from {module} import (\n" + textwrap.indent(pieces.joined(found[module], 100), "    ") + "\n)"
        lines.append(line)
    return "\n".join(line for line in lines if line)


_THIRD = ("torch", "accelerate", "bitsandbytes", "peft", "transformers", "numpy", "optuna", "huggingface_hub")


def _check(text: str) -> None:
    try:
        ast.parse(text)
    except SyntaxError as error:  # a template that does not fit the run
        raise AssertionError(f"the script is no Python: {error}\n{text}") from None
    number = len(text.splitlines())
    if number > LINES:
        raise pieces.refuse(f"it would have {number} lines, and {LINES} are allowed; use fewer rows or fields")


def heading(paragraphs: list[str]) -> str:
    """Return the first lines of a script, wrapped."""
    wrapped = [
        textwrap.fill(one, pieces.WIDTH, break_long_words=False, break_on_hyphens=False) for one in paragraphs if one
    ]
    return "\n".join(wrapped).replace("\\", "/").replace('"""', "'''").rstrip('"')
