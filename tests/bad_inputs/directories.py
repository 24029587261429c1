"""Directories of somebody's adapter or checkpoint that are damaged, hostile or something else: `adapter` and `checkpoint`."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from tests.bad_inputs.options import _link, words
from tests.bad_inputs.row import Row

_CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
_NAME = "base_model.model.q_proj.lora_A.weight"


def _file(header: Any, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """Return a file of safetensors. header: its JSON, or its bytes. length: what the file says of its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _tensor(**changes: Any) -> dict[str, Any]:
    return {_NAME: {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}}


#: What a file of tensors cannot be.
_TENSORS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a header of 2**63 bytes": _file(_tensor(), length=2**63),
    "a header of 200 MB": _file(_tensor(), length=200 * 2**20),
    "a header that is no JSON": _file(b"{" * 40),
    "a header of deep lists": _file(b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "a header that is a list": _file([1, 2]),
    "a header in Latin-1": _file(b'{"caf\xe9": 1}'),
    "a tensor that is a word": _file({_NAME: "zeros"}),
    "an unknown dtype": _file(_tensor(dtype="F7")),
    "a dtype that is a number": _file(_tensor(dtype=3)),
    "a negative shape": _file(_tensor(shape=[-4, -4])),
    "a shape of 2**62": _file(_tensor(shape=[2**62, 2**62])),
    "a shape that is a word": _file(_tensor(shape="4x4")),
    "a shape that is true": _file(_tensor(shape=[True, 16])),
    "offsets beyond the end": _file(_tensor(data_offsets=[0, 6400])),
    "offsets backwards": _file(_tensor(data_offsets=[64, 0])),
    "negative offsets": _file(_tensor(data_offsets=[-64, 0])),
    "offsets of 1e300": _file(_tensor(data_offsets=[0, 1e300])),
    "offsets that are null": _file(_tensor(data_offsets=None)),
    "half of the data": _file(_tensor(), bytes(32)),
    "NaN": _file(_tensor(), b"\x00\x00\xc0\x7f" * 16),
    "a name twice": _file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
                          b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "a name of control characters": _file({"\x1b[2J\r\n": _tensor()[_NAME]}),
    "no tensor": _file({}, b""),
}  # fmt: skip

#: What an adapter_config.json cannot be.
_CONFIGS: dict[str, Any] = {
    "empty": "",
    "a list": [_CONFIG],
    "null": "null",
    "random bytes": bytes(range(256)),
    "deep": "[" * 5000,
    "a peft_type that is a list": {**_CONFIG, "peft_type": ["LORA"]},
    "a peft_type that nobody knows": {**_CONFIG, "peft_type": "MARTIAN"},
    "a peft_type of code": {**_CONFIG, "peft_type": "os.system"},
    "a rank that is NaN": json.dumps({**_CONFIG, "r": float("nan")}),
    "a rank that is a list": {**_CONFIG, "r": [4]},
    "a pattern that is a number": {**_CONFIG, "rank_pattern": 3},
    "a pattern that backtracks": {**_CONFIG, "rank_pattern": {"(a*)*b" * 5 + "$": 3}},
    "a module that peft imports": {**_CONFIG, "auto_mapping": {"base_model_class": "x", "parent_library": "mine"}},
}

_GOOD = _file({f"base_model.model.q_proj.lora_{half}.weight": {
    "dtype": "F32", "shape": [4, 4], "data_offsets": [64 * at, 64 * at + 64]}
    for at, half in enumerate("AB")}, bytes(128))  # fmt: skip


def _zip(names: int, size: int) -> bytes:
    """Return a file of torch.save whose pickle is no pickle. size: bytes of each entry once it is unpacked."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(names):
            archive.writestr(f"archive/data/{number}", bytes(size))
        archive.writestr("archive/data.pkl", bytes(size))
    return held.getvalue()


#: What a state of a checkpoint cannot be: file -> name -> content.
_STATES: dict[str, dict[str, Any]] = {
    "trainer_state.json": {
        "empty": "",
        "a list": [],
        "deep": "[" * 5000,
        "NaN as step": json.dumps({"global_step": float("nan"), "log_history": []}),
        "a step of 1e300": {"global_step": 1e300, "log_history": []},
        "a negative step": {"global_step": -3, "log_history": []},
        "a step that is a word": {"global_step": "four", "log_history": []},
        "logs that are a word": {"global_step": 4, "log_history": "none"},
        "a best checkpoint elsewhere": {"global_step": 4, "log_history": [], "best_model_checkpoint": "/etc\u0000/x"},
    },
    "optimizer.pt": {
        "empty": b"",
        "text": "state\n",
        "random bytes": bytes(range(256)) * 8,
        "a pickle that calls": b"\x80\x04cos\nsystem\n(S'touch ../precious/marker'\ntR.",
        "an archive that unpacks to 1 GB": _zip(1, 2**29),
        "an archive of 20,000 entries": _zip(20_000, 1),
    },
    "rng_state.pth": {"half a zip": _zip(1, 100)[:60], "a pickle of itself": b"\x80\x04\x95" + b"\xff" * 40},
}


def _adapter(name: str, config: Any, tensors: bytes, more: dict[str, Any] | None = None, **options: Any) -> list[Row]:
    """Return the rows of both commands. What they say of it, and whether it is torn or foreign, are tested elsewhere."""
    files = {"a/adapter_config.json": config, "a/adapter_model.safetensors": tensors, **(more or {})}
    return [words(f"{command} a", "", name, files=files, **options) for command in ("adapter", "checkpoint")]


def _state(file: str, name: str, content: Any) -> Row:
    files = {"run/checkpoint-4/adapter_config.json": _CONFIG, "run/checkpoint-4/adapter_model.safetensors": _GOOD,
             "run/checkpoint-4/trainer_state.json": {"global_step": 4, "log_history": []},
             f"run/checkpoint-4/{file}": content}  # fmt: skip
    return words("checkpoint run", "", f"{file}: {name}", files=files, codes=ANY)


def _pipe_in(directory: Path) -> None:
    (directory / "a").mkdir()
    os.mkfifo(directory / "a" / "adapter_config.json")


TORN = (1, 2)
#: Files that are whole may lie beside a config that no peft takes. That is said, and no file is torn.
ANY = (0, 1, 2)

ROWS: list[Row] = [
    *(row for name, content in _TENSORS.items() for row in _adapter(f"tensors: {name}", _CONFIG, content, codes=TORN)),
    *(row for name, config in _CONFIGS.items() for row in _adapter(f"config: {name}", config, _GOOD, codes=ANY)),
    *(_state(file, name, content) for file, each in _STATES.items() for name, content in each.items()),
    *(
        words(f"{command} a", "pipe", "a config that is a pipe", before=_pipe_in, codes=TORN)
        for command in ("adapter", "checkpoint")
    ),
    *(
        words(f"{command} a", "", "tensors that are /dev/zero", files={"a/adapter_config.json": _CONFIG},
              before=_link("a/adapter_model.safetensors", "/dev/zero"), codes=TORN)
        for command in ("adapter", "checkpoint")
    ),
    words("checkpoint run", "", "a checkpoint that is a file", codes=TORN, files={"run/checkpoint-4": "mine\n"}),
    words("checkpoint run", "", "a checkpoint of a huge step", codes=TORN,
          files={"run/checkpoint-" + "9" * 200 + "/adapter_config.json": ""}),
]  # fmt: skip
