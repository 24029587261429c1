"""Specs that `peft-harness repro` gets: numbers, kinds and names that make no run."""

from __future__ import annotations

import json
from typing import Any

from tests.bad_inputs.row import Row

NAN, INFINITE = float("nan"), float("inf")


#: Sentences that name what the value names, rather than the field.
_OTHER_WORDS = {
    ("adapter.peft_type", '"LORE"'): "adapter type",
    ("adapter.peft_type", '"lora "'): "adapter type",
    ("adapter.others", '{"../up": {}}'): "../up",
    ("model.path", '"no/such/model"'): "no/such/model",
    ("data.path", '"gone.jsonl"'): "gone.jsonl",
    ("resume.writer", '"nobody"'): "nobody",
}


def spec(name: str, body: Any, answer: str, **options: Any) -> Row:
    """Return the row of a spec that must be refused."""
    return Row("repro", name, ("repro", "spec.json"), answer, {"spec.json": body}, **options)


def field(path: str, value: Any) -> Row:
    """Return the row of a spec with one bad value. The sentence must name the field, or what the value names."""
    *parts, name = path.split(".")
    body: dict[str, Any] = {name: value}
    for part in reversed(parts):
        body = {part: body}
    words = json.dumps(value)
    answer = _OTHER_WORDS.get((path, words), name)
    return spec(f"{path} = {words if len(words) < 40 else words[:37] + '...'}", body, answer)


_BAD_COUNTS = {
    "data.rows": (-1, 0, 1e30, 2.5, True, "4", None, [4], NAN, 10**30),
    "data.eval_rows": (-1, 1e30, 0.5, False, "many", INFINITE, {"n": 1}),
    "data.length": (-16, 0, 10**12, 1.5, True, None, "16"),
    "data.min_length": (-1, 0, 17, 10**9, True, "1", 2.5),
    "data.vocab_size": (-256, 0, 1, 10**15, 256.5, True, None),
    "data.ignored": (-0.1, 1.5, NAN, INFINITE, True, "half", None),
    "data.seed": (-1, 2**64, 10**40, 0.5, True, "0"),
    "model.seed": (-1, 2**64, 10**40, 1.5, False, None),
    "adapter.seed": (2**70, -1, 0.1, True, "one"),
    "launch.ranks": (-2, 0, 10**9, 1.5, True, "2", None, NAN),
    "launch.threads": (-1, 10**6, 1.5, True, "all"),
    "launch.limit": (-1, NAN, INFINITE, 1e30, True, "1 min"),
    "arguments.max_steps": (0.5, 10**12, 1e30, True, "10", NAN, [10]),
    "arguments.num_train_epochs": (-1, NAN, INFINITE, 1e30, True, "3"),
    "arguments.per_device_train_batch_size": (-4, 0, 10**12, 1.5, True, "4", NAN),
    "arguments.gradient_accumulation_steps": (-1, 0, 10**12, 1.5, True, "2"),
    "arguments.learning_rate": (NAN, INFINITE, "fast", True, [1e-3]),
    "arguments.weight_decay": (NAN, INFINITE, "none", True),
    "arguments.max_grad_norm": (NAN, INFINITE, "one", True),
    "arguments.logging_steps": (-1, NAN, INFINITE, "often", True),
    "arguments.save_steps": (-1, NAN, "often", True),
    "arguments.save_total_limit": (0.5, "2", True, NAN),
    "arguments.seed": (-1, 2**64, 10**40, 0.5, True, "42"),
    "arguments.warmup_steps": (-1, NAN, "some", True),
    "arguments.dataloader_num_workers": (-1, 10**6, 0.5, True, "4"),
    "arguments.label_smoothing_factor": (-0.1, 1.5, NAN, "some", True),
    "model.config.hidden_size": (-64, 0, 10**12, 1.5, True, "64"),
    "model.config.num_hidden_layers": (-1, 10**9, 1.5, True, "2"),
    "model.config.vocab_size": (-1, 0, 10**13, 1.5, True),
    "adapter.config.r": (-8, 0, 10**12, 1.5, True, "8", NAN),
    "adapter.config.lora_alpha": (NAN, INFINITE, "16", True),
    "adapter.config.lora_dropout": (-0.1, 1.5, NAN, "0.1", True),
}

_BAD_CHOICES = {
    "launch.device": ("tpu", "CPU", "", "cuda:99", 0, None, "cpu\n"),
    "launch.strategy": ("fsdp3", "DDP", "", 2, None, ["ddp"]),
    "launch.state_dict_type": ("FULL", "", 1, "full_state_dict", ["FULL_STATE_DICT"]),
    "launch.activation_checkpointing": (1, "yes", None),
    "launch.options": ([], "none", 1),
    "adapter.route": ("by_hand", "", None, 1),
    "adapter.peft_type": ("LORE", "lora ", "", None, 1),
    "adapter.name": ("../../escaped", "/absolute", "", None, 1, "a/b", "nul\x00"),
    "adapter.config": ([], "LORA", None),
    "adapter.options": ([], "x"),
    "adapter.others": ({"other": 3}, [], {"../up": {}}),
    "model.family": ("martian", "", None, 7),
    "model.dtype": ("float31", "", None, "nn", "Tensor"),
    "model.quantization": ("nf3", "", 4, True),
    "model.quant_storage": ("float31", 8),
    "model.path": ("no/such/model", "", 3),
    "model.config": ([], "x", 3),
    "model.prepare_for_kbit": ("no", 1),
    "data.task": ("martian", "", None, 2),
    "data.iterable": ("yes", 1),
    "data.order": ("0123", [0, 0, 1], [-1], [1.5], [True], {"0": 1}),
    "data.path": ("gone.jsonl", 3, ""),
    "resume.checkpoint": (-4, 1.5, "last", None, 10**30, NAN),
    "resume.writer": ("nobody", 3, ""),
    "resume.damage": ("delete x", [3], ["burn everything"], [""], {"delete": "x"}),
    "resume.first_leg": ([], "x", {"no_such_part_at_all": {"x": 1}}, {"model": 3}, {"launch": {"ranks": -1}}),
    "trainer.callbacks": ("early_stopping", [3], [["early_stopping", 3]], ["no_such_callback"], {"a": 1}),
}

_WHOLE = [
    spec("an unknown part", {"modle": {}}, "modle"),
    spec("an unknown field", {"model": {"famly": "llama"}}, "famly"),
    spec("an unknown argument", {"arguments": {"learning_rat": 0.1}}, "learning_rate"),
    spec("an unknown keyword of the Trainer", {"trainer": {"surprise": 1}}, "surprise"),
    spec("a newer schema", {"schema_version": 99}, "schema_version 99"),
    spec("a schema that is no number", {"schema_version": "one"}, "schema_version"),
    spec("a schema below one", {"schema_version": -1}, "schema_version"),
    spec("a schema that is true", {"schema_version": True}, "schema_version"),
    spec("a list", [], "object"),
    spec("a string", json.dumps("spec"), "object"),
    spec("a number", "3", "object"),
    spec("null", "null", "object"),
    spec("a part that is a list", {"model": []}, "model"),
    spec("a part that is null", {"data": None}, "data"),
    spec("arguments that are a list", {"arguments": ["max_steps"]}, "arguments"),
    spec("arguments that are null", {"arguments": None}, "arguments"),
    spec("a resume that is a number", {"resume": 4}, "resume"),
    spec("rows that no vocabulary can make", {"data": {"rows": 10**6, "length": 1, "vocab_size": 2}}, "rows"),
    spec("min_length above length", {"data": {"length": 8, "min_length": 12}}, "min_length"),
    spec("ranks without a strategy", {"launch": {"ranks": 2}}, "ranks"),
    spec("a device that is not there", {"launch": {"device": "cuda"}}, "cuda"),
    spec(
        "heads that do not divide the width", {"model": {"config": {"hidden_size": 63, "num_attention_heads": 4}}}, ""
    ),
]

_TEXTS: dict[str, tuple[str | bytes, str]] = {
    "an empty file": (b"", "spec.json"),
    "white space": (b" \n\t ", "spec.json"),
    "half of an object": (b'{"model": {"family": "lla', "line 1"),
    "two objects": (b"{} {}", "line 1"),
    "a comment": (b"{} // plain", "line 1"),
    "single quotes": (b"{'model': {}}", "line 1"),
    "a trailing comma": (b'{"model": {},}', "line 1"),
    "YAML": (b"model:\n  family: llama\n", "line 1"),
    "Latin-1": ('{"model": {"family": "café"}}'.encode("latin-1"), "utf-8"),
    "UTF-16": ('{"model": {}}'.encode("utf-16"), "utf-8"),
    "random bytes": (bytes(range(256)) * 8, "utf-8"),
    "a ZIP file": (b"PK\x03\x04" + bytes(400), "spec.json"),
    "a pickle": (b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93.", "utf-8"),
    "NUL bytes": (b'{"model": \x00{}}', "line 1"),
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "deep"),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "deep"),
    "deep inside a field": (b'{"model": {"config": {"x": ' + b"[" * 5000 + b"]" * 5000 + b"}}}", "deep"),
    "a lone surrogate": (rb'{"model": {"family": "\ud800"}}', "surrogate"),
    "a lone surrogate in a name": (rb'{"mod\udfffel": {}}', "surrogate"),
    "an int of 5,000 digits": (b'{"data": {"rows": ' + b"9" * 5000 + b"}}", "digits"),
    "NaN": (b'{"data": {"ignored": NaN}}', "nan"),
    "-Infinity": (b'{"arguments": {"learning_rate": -Infinity}}', "infinity"),
    "1e999": (b'{"arguments": {"learning_rate": 1e999}}', "learning_rate"),
    "a key twice": (b'{"data": {"rows": 4, "rows": 8}}', "rows"),
    "control characters": (b'{"model": {"family": "lla\x01ma"}}', "line 1"),
    "an HTML page": (b"<!DOCTYPE html><html><body>404</body></html>", "line 1"),
    "60 MB of spaces": (b" " * 60_000_000, "large"),
    "60 MB of one string": (b'{"model": {"family": "' + b"x" * 60_000_000 + b'"}}', "large"),
}

ROWS = [
    *(field(path, value) for path, values in _BAD_COUNTS.items() for value in values),
    *(field(path, value) for path, values in _BAD_CHOICES.items() for value in values),
    *_WHOLE,
    *(spec(f"text: {name}", text, answer) for name, (text, answer) in _TEXTS.items()),
]
