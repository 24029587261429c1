"""Files that commands read: rows, case files, requirement files, journals, models, and the user's own modules."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.bad_inputs.row import Row

GOOD_ROW = '{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}\n'


def _rows(name: str, text: str | bytes, answer: str) -> Row:
    body = {"data": {"path": "rows.jsonl", "rows": 1}, "arguments": {"max_steps": 1, "report_to": "none"}}
    return Row("repro", f"rows: {name}", ("repro", "spec.json"), answer, {"spec.json": body, "rows.jsonl": text})


_JSONL = [
    _rows("an empty file", "", "rows.jsonl"),
    _rows("blank lines", "\n\n  \n", "rows.jsonl"),
    _rows("half a line", GOOD_ROW + '{"input_ids": [1\n', "line 2"),
    _rows("a list", "[1, 2]\n", "line 1"),
    _rows("a word", "hello\n", "line 1"),
    _rows("text only", '{"text": "hello"}\n', "line 1"),
    _rows("labels of another length", '{"input_ids": [1, 2], "labels": [1]}\n', "line 1"),
    _rows("no tokens", '{"input_ids": [], "labels": []}\n', "line 1"),
    _rows("floats", '{"input_ids": [1.5], "labels": [1]}\n', "line 1"),
    _rows("strings", '{"input_ids": ["a"], "labels": ["a"]}\n', "line 1"),
    _rows("booleans", '{"input_ids": [true], "labels": [true]}\n', "line 1"),
    _rows("negative tokens", '{"input_ids": [-1], "labels": [1]}\n', "line 1"),
    _rows("tokens outside of the vocabulary", '{"input_ids": [99999], "labels": [1]}\n', "line 1"),
    _rows("labels outside of the vocabulary", '{"input_ids": [1, 1], "labels": [99999, 99999]}\n', "line 1"),
    _rows("labels below -100", '{"input_ids": [1, 1], "labels": [-7, -7]}\n', "line 1"),
    _rows("huge ints", '{"input_ids": [1' + "0" * 30 + '], "labels": [1]}\n', "line 1"),
    _rows("an int of 5,000 digits", '{"input_ids": [' + "9" * 5000 + '], "labels": [1]}\n', "line 1"),
    _rows("NaN", '{"input_ids": [NaN], "labels": [1]}\n', "line 1"),
    _rows("null", '{"input_ids": null, "labels": null}\n', "line 1"),
    _rows("nested rows", '{"input_ids": [[1, 2]], "labels": [[1, 2]]}\n', "line 1"),
    _rows("deep lists", '{"input_ids": ' + "[" * 5000 + "]" * 5000 + ', "labels": []}\n', "line 1"),
    _rows("Latin-1", '{"text": "caf\xe9"}\n'.encode("latin-1"), "utf-8"),
    _rows("UTF-16", GOOD_ROW.encode("utf-16"), "utf-8"),
    _rows("a lone surrogate", r'{"input_ids": [1], "labels": [1], "note": "\udc00"}', "surrogate"),
    _rows("CSV", "input_ids,labels\n1,2\n", "line 1"),
    _rows("Parquet", b"PAR1" + bytes(100) + b"PAR1", "rows.jsonl"),
    _rows("a gzip file", b"\x1f\x8b\x08\x00" + bytes(range(256)), "rows.jsonl"),
    _rows("a JSON array of rows", "[" + GOOD_ROW.strip() + "]", "line 1"),
    Row(
        "repro",
        "rows: too few",
        ("repro", "spec.json"),
        "rows",
        {"spec.json": {"data": {"path": "rows.jsonl", "rows": 40}}, "rows.jsonl": GOOD_ROW},
    ),
]

_CASE = {
    "test": "test_rng.py::test_numbers_drawn_before_trainer_change_nothing",
    "subject": "hf-trainer",
    "device": "cpu",
    "preload": [],
    "spec": None,
}


def _case(name: str, change: dict[str, Any], answer: str, without: str = "") -> Row:
    body = {key: value for key, value in {**_CASE, **change}.items() if key != without}
    return Row("repro", f"case file: {name}", ("repro", "case.json"), answer, {"case.json": body})


_LIFE = {"spec": {}, "subject": "hf-trainer", "device": "cpu", "preload": []}


def _life(name: str, life: Any, answer: str = "life") -> Row:
    return Row("repro", f"life: {name}", ("repro", "case.json"), answer, {"case.json": {**_LIFE, "life": life}})


_CASES = [
    _case("without a subject", {}, "subject", without="subject"),
    _case("without a device", {}, "device", without="device"),
    _case("without preloads", {}, "preload", without="preload"),
    _case("a test that is no test", {"test": "conftest.py"}, "conftest.py"),
    _case("a test of another folder", {"test": "../../mine/test_x.py"}, "test_x.py"),
    _case("an absolute test", {"test": "/etc/passwd"}, "passwd"),
    _case("a test that is a number", {"test": 3}, "test"),
    _case("a test that is null", {"test": None}, "test"),
    _case("a test that is empty", {"test": ""}, "test"),
    _case("a test that does not exist", {"test": "test_rng.py::test_no_such_test"}, "test_no_such_test"),
    _case("a test that is an option", {"test": "-p no:terminal"}, "test"),
    _case("a subject that is a number", {"subject": 3}, "subject"),
    _case("a subject that nobody knows", {"subject": "nobody"}, "nobody"),
    _case("a subject of code", {"subject": "os:getcwd"}, "--trust-code"),
    _case("a subject that is an option", {"subject": "--version"}, "subject"),
    _case("a device that is a list", {"device": ["cpu"]}, "device"),
    _case("a device that there is not", {"device": "tpu"}, "tpu"),
    _case("preloads that are a word", {"preload": "os"}, "preload"),
    _case("preloads that are numbers", {"preload": [3]}, "preload"),
    _case("preloads of code", {"preload": ["this"]}, "--trust-code"),
    _case("a newer schema", {"schema_version": 99}, "schema_version"),
    _case("a spec that is a number", {"spec": 3, "test": None}, ""),
    _life("a word", "train"),
    _life("a number", 3),
    _life("a list of words", ["train"]),
    _life("an unknown verb", [{"do": "fly"}]),
    _life("no verb", [{"steps": 3}]),
    _life("a private method", [{"do": "_check"}]),
    _life("a dunder", [{"do": "__init__"}]),
    _life("a wrong argument", [{"do": "train", "no_such": 1}]),
]


def _trust(name: str, body: Any, answer: str) -> Row:
    """Return the row of a spec that names code, or a file outside of its run. It must do nothing."""
    mine = "open('../precious/marker', 'w').write('run')\ndef factory(*a, **k):\n    raise SystemExit(0)\n"
    return Row("repro", f"trust: {name}", ("repro", "spec.json"), answer, {"spec.json": body, "mine.py": mine})


_RESUMED = {"arguments": {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "report_to": "none"}}

_TRUST = [
    *(
        _trust(f"{where} {value!r}", body, "--trust-code")
        for value in ("mine:factory", "os:system", "subprocess:run", "builtins:exec", "harness.fixtures.models:load_object")
        for where, body in (
            ("model.family", {"model": {"family": value}}),
            ("a callback", {"trainer": {"callbacks": [value]}}),
            ("compute_metrics", {"trainer": {"compute_metrics": value}}),
            ("resume.writer", {**_RESUMED, "resume": {"checkpoint": 2, "writer": value}}),
            ("a first leg", {**_RESUMED, "resume": {"checkpoint": 2, "first_leg": {"model": {"family": value}}}}),
        )
    ),
    *(
        _trust(f"damage {act!r}", {**_RESUMED, "resume": {"checkpoint": 2, "damage": [act]}}, "damage")
        for act in (
            "delete ../../../../precious/thesis.txt", "truncate ../../../../precious/thesis.txt 0", "delete /etc/hostname",
            "truncate adapter_model.safetensors -1", "truncate adapter_model.safetensors 1e3", "torn in ../x", "delete",
            "delete \x00", "newest", "newest newest remove", "remove everything",
        )
    ),
    *(
        _trust(f"argument {name}", {"arguments": {"max_steps": 1, "report_to": "none", name: value}}, name)
        for name, value in {
            "resume_from_checkpoint": "../precious", "deepspeed": "../precious/thesis.txt",
            "torch_compile_backend": "no_such_backend", "optim": "no_such_optimizer", "fsdp": "full_shart",
            "accelerator_config": "../precious/thesis.txt",
        }.items()
    ),
    *(
        _trust(f"adapter.config {name}", {"adapter": {"config": {
            "r": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", name: value}}}, name)
        for name, value in {
            "megatron_core": "mine", "auto_mapping": {"base_model_class": "factory", "parent_library": "mine"},
            "target_modules": "(a*)*b" * 5 + "$[",
        }.items()
    ),
]  # fmt: skip


def _model(name: str, config: Any, answer: str, **files: Any) -> Row:
    """Return the row of a model directory that holds no model."""
    written = {f"model/{file.replace('__', '.')}": content for file, content in files.items()}
    if config is not None:
        written["model/config.json"] = config
    body = {"model": {"path": "model"}, "arguments": {"max_steps": 1, "report_to": "none"}}
    return Row("repro", f"model: {name}", ("repro", "spec.json"), answer, {"spec.json": body, **written})


_TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 256,
}  # fmt: skip

_MODELS = [
    _model("no config", None, "config.json", note__txt="nothing"),
    _model("a config that is no JSON", "{", "model"),
    _model("an empty config", "", "model"),
    _model("a config that is a list", [], "model"),
    _model("a config of an unknown class", {"model_type": "martian"}, "model"),
    _model("a config of an encoder", {"model_type": "vit"}, "model"),
    _model("a config without a type", {"hidden_size": 16}, "model"),
    _model(
        "remote code",
        {**_TINY, "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}},
        "model",
        mine__py="open('../../precious/marker', 'w').write('run')\n",
    ),
    _model("no weights", _TINY, "model"),
    _model("weights that are empty", _TINY, "model", model__safetensors=b""),
    _model("weights that are text", _TINY, "model", model__safetensors="weights"),
    _model("weights whose header is too long", _TINY, "model", model__safetensors=b"\xff" * 7 + b"\x00" + b"{}"),
    _model("weights without a tensor", _TINY, "model", model__safetensors=(2).to_bytes(8, "little") + b"{}"),
    _model("weights as a pickle", _TINY, "model", pytorch_model__bin=b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00N."),
    _model("an index of missing files", _TINY, "model", **{"model__safetensors__index__json": {
        "metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "../../precious/thesis.txt"}}}),
]  # fmt: skip


def _require(name: str, requirement: str, answer: str, files: dict[str, Any] | None = None, **options: Any) -> Row:
    line = ("check", "--clause", "RNG-01", "--with", requirement)
    return Row("check --with", name, line, answer, files or {}, **options)


def _linked(directory: Path) -> None:
    (directory / "pins.txt").symlink_to("pins.txt")


_REQUIREMENTS = [
    _require("nothing", "", "requirement"),
    _require("blanks", "   ", "requirement"),
    _require("a missing file", "gone.txt", "gone.txt"),
    _require("a missing lock", "gone.lock", "gone.lock"),
    _require("no version", "peft==", "peft=="),
    _require("one equals sign", "peft=0.18.1", "peft=0.18.1"),
    _require("a sentence", "the newest, please!", "please!"),
    _require("an option", "--index-url=x", "--index-url"),
    _require("a name of dots", "...", "..."),
    _require("a NUL", "peft\x00", "peft"),
    _require("a line feed in a name", "pe\nft==1=1", "1=1"),
    _require("a directory", "{}", "directory"),
    _require("a file that includes itself", "pins.txt", "pins.txt", {"pins.txt": "-r pins.txt\n"}),
    _require("a circle of two", "a.txt", "a.txt", {"a.txt": "-r b.txt\n", "b.txt": "-r a.txt\n"}),
    _require(
        "a circle through a folder", "a.txt", "a.txt", {"a.txt": "-r sub/b.txt\n", "sub/b.txt": "-r ../a.txt\n"}
    ),
    _require("a missing include", "pins.txt", "gone.txt", {"pins.txt": "-r gone.txt\n"}),
    _require("an include of a directory", "pins.txt", "sub", {"pins.txt": "-r sub\n", "sub/x": ""}),
    _require("constraints that are missing", "pins.txt", "gone.txt", {"pins.txt": "peft\n-c gone.txt\n"}),
    _require("a link to itself", "pins.txt", "pins.txt", before=_linked),
    _require("a pipe", "pins.txt", "pins.txt", before=lambda directory: os.mkfifo(directory / "pins.txt")),
    _require("random bytes", "pins.txt", "pins.txt", {"pins.txt": bytes(range(256))}),
    _require("UTF-16", "pins.txt", "pins.txt", {"pins.txt": "peft==0.18.1\n".encode("utf-16")}),
    _require("NUL in a file", "pins.txt", "pins.txt", {"pins.txt": "peft\x00==0.18.1\n"}),
    _require("60 MB", "pins.txt", "pins.txt", {"pins.txt": b"peft\n" * 12_000_000}),
    _require("a broken line", "pins.txt", "pins.txt", {"pins.txt": "peft==0.18.1\npeft = is = good\n"}),
    _require("a file of conda without a pip part", "environment.yml", "has no pip part",
             {"environment.yml": "name: x\ndependencies:\n  - peft=0.18.1\n"}),
    _require("a package.json", "package.json", "package.json", {"package.json": {"dependencies": {"peft": "1"}}}),
    _require("an HTML page", "pins.txt", "pins.txt", {"pins.txt": "<!DOCTYPE html>\n<html></html>\n"}),
]  # fmt: skip

_MODULES = {
    "raises": "raise RuntimeError('not today')\n",
    "does not parse": "def (\n",
    "divides by zero": "1 / 0\n",
    "asks for exit 0": "import sys; sys.exit(0)\n",
    "asks for exit 0 in words": "raise SystemExit('all is well')\n",
    "raises an exception of its own": "class E(BaseException): pass\nraise E('mine')\n",
    "raises KeyboardInterrupt": "raise KeyboardInterrupt\n",
    "recurs": "def f(): f()\nf()\n",
    "has bytes that are no UTF-8": b"x = '\xff'\n",
    "has NUL": b"x = 1\x00\n",
    "imports what is missing": "import no_such_package_at_all\n",
    "imports itself wrongly": "from mine import factory\n",
}

_FACTORIES = {
    "is a number": "factory = 3\n",
    "is None": "factory = None\n",
    "needs an argument": "def factory(needed): ...\n",
    "returns None": "def factory(): ...\n",
    "returns a number": "def factory(): return 3\n",
    "raises": "def factory(): raise RuntimeError('not today')\n",
    "leaves": "def factory():\n    import sys; sys.exit(0)\n",
    "is a class without the protocol": "class factory: pass\n",
    "has a name that is a number": "class factory:\n    name = 3\n    def unsupported(self, spec): ...\n"
    "    def train(self, spec, directory): ...\n",
}

_USER_MODULES = [
    *(
        Row("check", f"{option} that {name}", ("check", "--clause", "RNG-01", option, value), "mine", {"mine.py": code})
        for name, code in _MODULES.items()
        for option, value in (("--subject", "mine:factory"), ("--preload", "mine"))
    ),
    *(
        Row("check", f"--subject whose factory {name}", ("check", "--clause", "RNG-01", "--subject", "mine:factory"),
            "mine:factory", {"mine.py": code})
        for name, code in _FACTORIES.items()
    ),
    *(
        Row("check", f"{option} that ends the process with {status}",
            ("check", "--clause", "RNG-01", option, value), "mine",
            {"mine.py": f"import os; os._exit({status})\n"}, own_child=True)
        for status in (0, 1)
        for option, value in (("--subject", "mine:factory"), ("--preload", "mine"))
    ),
]  # fmt: skip


def _journal(name: str, content: Any) -> Row:
    line = ("check", "--clause", "RNG-01", "--", "--journal", "thesis.txt")
    return Row("check", f"--journal on {name}", line, "thesis.txt", {"thesis.txt": content})


_JOURNALS = [
    _journal("a thesis", "Chapter one. It was a dark and stormy night.\n"),
    _journal("random bytes", bytes(range(256)) * 4),
    _journal("a journal of another run", json.dumps({"run": ["nobody"]}) + "\n"),
    _journal("JSON", [1, 2, 3]),
]

ROWS = [*_JSONL, *_CASES, *_TRUST, *_MODELS, *_REQUIREMENTS, *_USER_MODULES, *_JOURNALS]
