"""Rarer models and adapters that people bring: which rows they get, how they are made to fit, and what is refused."""

import pytest
import torch

from harness import brought, lacking
from harness.errors import UsageError
from harness.fixtures import data, models
from harness.laws import recompute
from harness.runs import kinds
from harness.spec import DataSpec, RunSpec
from harness.subjects.rows import Rows
from tests.brought import adapter, written

VISION = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def read(tmp_path, config, **fields):
    model = written(tmp_path, "model/config.json", config).parent
    return brought.read(adapter=adapter(tmp_path, **fields), model=model, device="cpu")


@pytest.mark.parametrize(
    ("config", "task_type", "task", "shape"),
    [
        ({"model_type": "bert", "architectures": ["BertForTokenClassification"]}, "TOKEN_CLS", models.TOKENS, ()),
        ({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}, None, models.ANSWERS, ()),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, None, models.MASKED, ()),
        (
            {"model_type": "vit", "architectures": ["ViTForImageClassification"], **VISION},
            None,
            models.IMAGES,
            (3, 32, 32),
        ),
        ({"model_type": "whisper", "is_encoder_decoder": True}, None, models.SPEECH, (8, 256)),
        ({"model_type": "llava"}, "CAUSAL_LM", models.IMAGE_TEXT, ()),
        ({"model_type": "mamba"}, "CAUSAL_LM", models.CAUSAL, ()),
    ],
    ids=["tokens", "answers", "masked", "images", "speech", "image-text", "mamba"],
)
def test_a_model_gets_the_rows_of_its_task(tmp_path, config, task_type, task, shape):
    found = read(tmp_path, config, task_type=task_type, target_modules="all-linear").spec
    assert (found.data.task, found.data.shape, found.model.task) == (task, shape, task)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "clip"}, "no AutoModelForCausalLM for 'clip'"),
        ({"model_type": "speech_to_text"}, "models of Whisper's kind alone"),
    ],
)
def test_a_model_without_rows_is_one_sentence(tmp_path, config, words):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, config, task_type=None)


def test_features_are_refused_with_the_tasks_that_have_rows(tmp_path):
    with pytest.raises(UsageError, match="'FEATURE_EXTRACTION'; rows can be made for CAUSAL_LM, "):
        read(tmp_path, {"model_type": "bert"}, task_type="FEATURE_EXTRACTION")


@pytest.mark.parametrize(
    ("peft_type", "fields", "wanted"),
    [
        ("VBLORA", {}, {"vector_length": 8}),
        ("ROAD", {}, {"group_size": 8}),
        ("C3A", {}, {"block_size": 8}),
        ("WAVEFT", {}, {"n_frequency": 1024}),
        ("SHIRA", {}, {"r": 8}),
        ("TRAINABLE_TOKENS", {"token_indices": [128000, 3]}, {"token_indices": [0, 3]}),
        ("CPT", {"cpt_token_ids": [3, 259], "num_virtual_tokens": 2}, {"cpt_token_ids": [3, 3]}),
    ],
)
def test_sizes_that_a_file_leaves_at_their_defaults_are_fitted(tmp_path, peft_type, fields, wanted):
    file = written(
        tmp_path, "adapter/adapter_config.json", {"peft_type": peft_type, "task_type": "CAUSAL_LM", **fields}
    )
    config = brought.read(adapter=file.parent, device="cpu").spec.adapter.config
    assert {name: config[name] for name in wanted} == wanted


def test_adapters_of_adapters_are_refused_in_a_sentence():
    assert "were trained before" in (lacking.method("LORA", {"arrow_config": {}}) or "")
    assert "were trained before" in (lacking.method("XLORA", {}) or "")
    assert lacking.method("LORA", {"r": 8}) is None


# ---- rows ----


@pytest.mark.parametrize("task", models.TASK_TYPES)
def test_a_batch_tells_which_rows_it_holds(task):
    spec = DataSpec(rows=4, length=8, min_length=5, task=task, prefix=(255, 255) if task == models.IMAGE_TEXT else ())
    made = data.rows(spec)[0]
    items = data.dataset(made, spec)
    batch = {name: torch.stack([items[row][name] for row in (2, 0)]) for name in data.columns(spec)}
    tokens = data.tokens_of(batch, max(len(row["input_ids"]) for row in made))
    assert Rows(made).of(tokens, batch.get("attention_mask")) == [2, 0]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (models.IMAGES, [1]),
        (models.ANSWERS, [3, 3]),
        (models.TOKENS, [1, 0, 0, -100]),
        (models.MASKED, [-100, -100, -100, -100]),
        (models.SPEECH, [3, 4, 6, -100]),
    ],
)
def test_the_targets_of_a_row(task, expected):
    row = data.pad([3, 4, 6], [3, 4, 6], 4)
    made = data._for_task({**row, "attention_mask": [1, 1, 1, 1]}, DataSpec(task=task))
    assert recompute._TARGETS[task](made) == expected


def test_no_loss_is_left_out_without_a_reason():
    judged = {name for name, spec in kinds.KINDS.items() if not recompute.obstacles(spec)}
    assert {f"task/{task}" for task in kinds.TASKS} <= judged
    assert set(kinds.KINDS) - judged == {f"method/{name}" for name in ("lily", "pvera", "shadow", "cpt")} | {
        "option/monteclora"
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"task": "image-classification", "shape": [3, 4096, 4096]},
            "shape: 40 rows of 50,331,648 numbers are too many",
        ),
        ({"task": "image-classification", "shape": [3, 0, 16]}, "shape: expected"),
        ({"prefix": [255]}, "prefix: rows of task 'causal' have none"),
    ],
)
def test_a_shape_or_a_prefix_that_makes_no_rows_is_refused(fields, words):
    with pytest.raises(UsageError, match=words):
        RunSpec.from_json({"data": fields})
