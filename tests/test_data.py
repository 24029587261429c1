"""Rows to train on: the sentence about a bad row, rows that cannot be made, and rows that do not fit the model."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from harness import subjects
from harness.errors import UsageError
from harness.fixtures import data, models
from harness.fixtures.metrics import counts
from harness.processes.imports import import_upstream
from harness.runs.scenarios import PLAIN
from harness.spec import DataSpec, ModelSpec

GOOD = '{"input_ids": [1, 2], "labels": [1, -100]}\n'


def sentence_about(call):
    began = time.process_time()
    with pytest.raises(UsageError) as caught:
        call()
    assert time.process_time() - began < 2
    assert str(caught.value).isprintable()
    return str(caught.value)


def in_file(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    return str(tmp_path / "rows.jsonl")


BAD = {
    "half a line": ('{"input_ids": [1', "not JSON (Expecting ',' delimiter, column 17)"),
    "a list": ("[1, 2]", "expected a JSON object, found list"),
    "text only": ('{"text": "hello"}', "expected input_ids and labels"),
    "no tokens": ('{"input_ids": [], "labels": []}', "expected input_ids and labels"),
    "labels of another length": ('{"input_ids": [1, 2], "labels": [1]}', "two lists of ints of one length"),
    "floats": ('{"input_ids": [1.0], "labels": [1]}', "two lists of ints"),
    "booleans": ('{"input_ids": [true], "labels": [1]}', "two lists of ints"),
    "boolean labels": ('{"input_ids": [1], "labels": [false]}', "two lists of ints"),
    "a text": ('{"input_ids": "12", "labels": "12"}', "two lists of ints"),
    "a negative token": ('{"input_ids": [-1], "labels": [1]}', "an id of input_ids is below 0"),
    "a huge token": ('{"input_ids": [1' + "0" * 30 + '], "labels": [1]}', "an id of input_ids is below 0 or above"),
    "a negative label": ('{"input_ids": [1], "labels": [-7]}', "a label is neither a token nor -100"),
    "a huge label": ('{"input_ids": [1], "labels": [1' + "0" * 30 + "]}", "a label is neither a token nor -100"),
    "tokens twice": ('{"input_ids": [1], "input_ids": [1], "labels": [1]}', "has the key 'input_ids' twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_its_line(tmp_path, name):
    row, words = BAD[name]
    path = in_file(tmp_path, f"{GOOD}\n{row}\n{GOOD}")
    sentence = sentence_about(lambda: data.rows(DataSpec(path=path, rows=2)))
    assert sentence.startswith(f"{path}, line 3: ")
    assert words in sentence


def test_rows_of_a_file_are_padded_to_the_longest(tmp_path):
    path = in_file(tmp_path, GOOD + '{"input_ids": [3], "labels": [3], "note": "\u2028"}\n')
    ((first, second), _) = data.rows(DataSpec(path=path, rows=2))
    assert first == {"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [1, -100]}
    assert second == {"input_ids": [3, 0], "attention_mask": [1, 0], "labels": [3, -100]}


def test_only_as_many_rows_are_read_as_are_asked_for(tmp_path):
    path = in_file(tmp_path, GOOD * 3 + "not JSON\n")
    assert [line for line, _ in data.read_jsonl(path, 3)] == [1, 2, 3]
    assert "line 4: not JSON" in sentence_about(lambda: data.read_jsonl(path))
    assert "no rows" in sentence_about(lambda: data.read_jsonl(in_file(tmp_path, "\n \n")))


@pytest.mark.parametrize(
    "fields", [{"rows": 100, "length": 3, "vocab_size": 3}, {"rows": 9000, "length": 9, "vocab_size": 3}]
)
def test_rows_that_cannot_be_made_end_the_search(fields):
    assert "rows differ, and no more are found" in sentence_about(lambda: data.rows(DataSpec(**fields)))


def test_all_rows_that_there_are_can_be_made():
    made, _ = data.rows(DataSpec(rows=255, length=1))
    assert sorted(row["input_ids"][0] for row in made) == list(range(1, 256))


@pytest.mark.parametrize("subject", ["hf-trainer", "reference"])
@pytest.mark.parametrize("key", ["input_ids", "labels"])
def test_a_token_that_the_model_does_not_have_is_named_by_its_line(tmp_path, subject, key):
    row = {"input_ids": [1, 255], "labels": [1, 255], **{key: [1, 256]}}
    path = in_file(tmp_path, GOOD + json.dumps(row))
    import_upstream()
    spec = PLAIN.but(data={"path": path, "rows": 1}, max_steps=1, report_to="none")
    assert subjects.load(subject).train(spec, tmp_path / "one").error is None
    spec = spec.but(data={"rows": 2})
    sentence = sentence_about(lambda: subjects.load(subject).train(spec, tmp_path / "two"))
    assert sentence == f"{path}, line 2: token 256, but the model has 256 tokens"


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path):
    import_upstream()
    spec = PLAIN.but(data={"vocab_size": 1000}, max_steps=1)
    sentence = sentence_about(lambda: subjects.load("hf-trainer").train(spec, tmp_path))
    assert sentence == "data, vocab_size: 1000 tokens, but the model has 256; set it to 256 or less"


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 2**18, "num_attention_heads": 64, "vocab_size": 2**24},
        {"hidden_size": 2**16, "num_hidden_layers": 4096, "intermediate_size": 2**18, "num_attention_heads": 64},
    ],
)
def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(config):
    import_upstream()
    assert "GB of memory; set a smaller hidden_size" in sentence_about(lambda: models.build(ModelSpec(config=config)))


@pytest.mark.parametrize("listed", [False, True])
def test_rows_and_labels_are_counted_in_an_array_and_in_a_list_of_batches(listed):
    batches = [np.array([[5, -100], [-100, -100]]), np.array([[7, 8]])]
    given = batches if listed else np.concatenate(batches)
    assert counts(SimpleNamespace(label_ids=given)) == {"rows": 3, "labels": 3}
    # A row that is lost shows.
    assert counts(SimpleNamespace(label_ids=given[:1]))["rows"] < 3
