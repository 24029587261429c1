"""Where two runs part: the module or the stage that was changed is named, and rounding is not taken for a change."""

import json
import os
import re

import jsonschema
import pytest
import torch

from harness import subjects
from harness.errors import UsageError
from harness.paths import PACKAGE
from harness.processes.cuda_free_fork import _BY_NVML as NVML
from harness.runs.scenarios import PLAIN
from harness.subjects.hf_trainer import HFTrainer
from harness.throughput import speed
from harness.throughput.shapes import SHAPES
from harness.where import both_sides, command, hint, marks, sides

SPEC = PLAIN.but(lora={"lora_dropout": 0.0}, data={"min_length": 6}, max_steps=2)


def side(spec, directory, subject=None):
    def record(seed):
        into = directory / f"{spec.hash}-{seed}-{subject}"
        into.mkdir(parents=True)
        return both_sides.record(subjects.load(subject) if subject else HFTrainer(), spec, into, seed)

    return both_sides.Side("", spec, record)


def found(one, other, tmp_path, subject=None, **options):
    return both_sides.find(side(one, tmp_path / "a"), side(other, tmp_path / "b", subject), **options)


CHANGES = {
    "rows": ({"data_seed": 3}, "data", ""),
    "scaling": ({"lora": {"lora_alpha": 17}}, "backward", "model.layers.1.self_attn.v_proj"),
    "initial": ({"adapter": {"seed": 5}}, "start", "model.layers.0.self_attn.q_proj.lora_A.weight"),
    "clipping": ({"max_grad_norm": 0.01}, "clipping", "model.layers.0.self_attn.q_proj.lora_B"),
    "rate": ({"learning_rate": 1.001e-2}, "schedule", ""),
    "optimizer": ({"weight_decay": 0.1}, "optimizer", "model.layers.0.self_attn.q_proj.lora_A.weight"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_stage_or_module_that_was_changed_is_named(name, tmp_path):
    changes, stage, module = CHANGES[name]
    first = found(SPEC, SPEC.but(**changes), tmp_path, exact=True).first
    assert (first.stage, first.module) == (stage, module), first.sentence()


def test_the_trainer_and_the_reference_do_not_part(tmp_path):
    whole = found(SPEC, SPEC, tmp_path, subject="reference")
    assert whole.bit is None and whole.compared > 300 and set(whole.alone) <= {"log"}


def test_rows_cut_otherwise_part_by_rounding_alone_and_a_fault_beside_it_is_seen(tmp_path):
    split = SPEC.but(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    rounded = found(SPEC, split, tmp_path / "rounded")
    assert rounded.bit is not None and rounded.first is None and rounded.nearest < 1
    first = found(SPEC, split.but(lora={"lora_alpha": 16.01}), tmp_path / "apart").first
    assert first.module == "model.layers.1.self_attn.v_proj" and first.mark.row >= 0


def test_a_case_that_fails_says_where_its_run_leaves_the_reference(monkeypatch):
    monkeypatch.delenv(hint.OFF)
    monkeypatch.setattr(hint, "_spent", [])
    said = hint.line(HFTrainer(), [SPEC, SPEC.but(lora={"lora_alpha": 17})])
    assert said.startswith("model.layers.1.self_attn.v_proj, backward, micro-batch 1, step 1 (")
    assert not hint.line(HFTrainer(), [SPEC]) and len(hint._spent) == 2


def test_neighbours_are_one_last_place_away():
    for dtype in (torch.float32, torch.bfloat16):
        plain = torch.tensor([1.0, -3.5, 0.0, float("inf")], dtype=dtype)
        moved = marks.neighbours(plain, torch.Generator().manual_seed(0))
        assert torch.equal(moved[2:], plain[2:]) and not (moved[:2] == plain[:2]).any()
        assert ((moved[:2] / plain[:2] - 1).abs() <= torch.finfo(dtype).eps).all()


def test_sides_are_read_word_by_word(tmp_path):
    read = lambda words: sides.read(words, "A", PLAIN, "hf-trainer", "cpu", trusted=False)  # noqa: E731
    assert read("reference").subject == "reference"
    assert read("ddp:2 lora.r=4 bf16=true").spec == PLAIN.but(
        lora={"r": 4}, bf16=True, launch={"strategy": "ddp", "ranks": 2}
    )
    assert read("transformers==5.1.0 peft==0.18.1").stack == "transformers==5.1.0 peft==0.18.1"
    assert not read("current").stack
    (tmp_path / "mine.json").write_text(json.dumps(SPEC.to_json()))
    assert read(str(tmp_path / "mine.json")).spec.arguments["max_steps"] == 2
    with pytest.raises(UsageError, match="A: 'nonsense' names nothing: no spec"):
        read("nonsense")
    with pytest.raises(UsageError, match=r"[Nn]o such file"):
        read("missing.json")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("model=llama", "A: 'model=llama' names a part of a spec; a setting names one field, such as"),
        ("resume=1", "A: 'resume=1' names a part of a spec"),
        ("lora=4", "A: 'lora=4' names a part of a spec"),
        ("model.nothing=3", "A, model: unknown field 'nothing'"),
        ("launch.self=3", "A, launch: unknown field 'self'"),
        ("max_steps=some", "A, arguments, max_steps: expected an int"),
    ],
)
def test_a_setting_that_is_none_is_one_sentence(word, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        sides.read(word, "A", PLAIN, "hf-trainer", "cpu", trusted=False)


def test_null_removes_what_may_be_left_out():
    spec = PLAIN.but(max_grad_norm=0.5, lora={"use_rslora": True})
    read = sides.read("max_grad_norm=null lora.use_rslora=null", "A", spec, "hf-trainer", "cpu", trusted=False)
    assert read.spec == spec.but(max_grad_norm=None, lora={"use_rslora": None}) != spec


def test_the_report_is_as_its_schema_says(tmp_path):
    named = sides.read("reference", "B", SPEC, "hf-trainer", "cpu", trusted=False)
    result = found(SPEC, SPEC.but(lora={"lora_alpha": 17}), tmp_path, exact=True)
    body = command.to_json(named, named, result, True)
    schema = json.loads((PACKAGE / "where" / "report_schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(body)), schema)
    assert body["first"]["values"][0] != body["first"]["values"][1]


def test_what_forks_the_sides_starts_no_cuda(monkeypatch, tmp_path):
    """Asking torch about GPUs starts CUDA, and a fork of a process that has started it cannot train on a GPU."""
    by_nvml, before = [], os.environ.get(NVML)
    monkeypatch.setattr(command, "check_device", lambda device: by_nvml.append(os.environ.get(NVML)))
    monkeypatch.setattr(command, "import_upstream", lambda **options: by_nvml.append(os.environ.get(NVML)))
    side = sides.read("", "A", SPEC, "hf-trainer", "cpu", trusted=False)
    monkeypatch.setattr(both_sides, "find", lambda ours, theirs, exact: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.where(side, side, False, None, lambda side, directory: command.in_forks(side, directory, 0))
    assert by_nvml == ["1"] * 4 and os.environ.get(NVML) == before


def test_a_row_farther_from_float32_than_the_trainer_is_marked():
    rows = [speed.Row("trainer", 1.0, 0, 5.01), speed.Row("near", 1.0, 0, 5.005), speed.Row("far", 1.0, 0, 4.98)]
    measured = speed.Measured(SHAPES["tiny"], rows, float32=5.0)
    assert [measured.farther(row) for row in rows] == [False, False, True]
    assert measured.from_float32(rows[2]) == pytest.approx(0.02)


def test_the_float32_run_of_a_shape_has_the_weights_of_its_own_dtype(tmp_path):
    from harness.fixtures import models

    half = PLAIN.but(model={"dtype": "bfloat16"}, bf16=True)
    exact = speed.in_float32(half)
    weights = [models.build(spec.model).lm_head.weight for spec in (half, exact)]
    assert weights[1].dtype == torch.float32 and torch.equal(weights[0].float(), weights[1])
    assert subjects.load("reference").unsupported(exact) is None and "bf16" not in exact.arguments


def test_a_file_that_is_named_after_a_setting_does_not_undo_it(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PLAIN.but(max_steps=3).to_json()))
    for words in (f"lora.r=4 {file}", f"{file} lora.r=4"):
        read = sides.read(words, "A", PLAIN, "hf-trainer", "cpu", trusted=False).spec
        assert (read.adapter.config["r"], read.arguments["max_steps"]) == (4, 3)
