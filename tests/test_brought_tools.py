"""Configurations of TRL, LLaMA-Factory and axolotl, rows in JSONL, specs with options, and files that are none of these."""

import json
import os
import re
import time

import pytest

from harness import brought, subjects
from harness.brought.jsonl_rows import read_rows
from harness.brought.notes import Notes
from harness.brought.settings_files import parse_yaml
from harness.errors import UsageError
from harness.fixtures import data
from harness.spec import RunSpec
from tests.brought import LLAMA, adapter, written

TRL = """
# trl sft --config FILE
model_name_or_path: some-org/some-base
dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: some-org/some-rows
use_peft: true
lora_r: 32
lora_alpha: 64
lora_dropout: 0.0
lora_target_modules: [all-linear]
use_rslora: true
load_in_4bit: true
use_bnb_nested_quant: true
learning_rate: 1e-4
lr_scheduler_type: cosine
warmup_ratio: 0.05
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
max_steps: 400
save_steps: 100
max_length: 4096
packing: true
eval_strategy: no
report_to: trackio
"""

LLAMA_FACTORY = """
### llamafactory-cli train FILE
model_name_or_path: some-org/some-base
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
additional_target: embed_tokens
loraplus_lr_ratio: 8.0
quantization_bit: 4
dataset: rows_of_mine
template: default
cutoff_len: 1024
preprocessing_num_workers: 8
output_dir: out
overwrite_output_dir: true
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 4
learning_rate: 2.0e-4
num_train_epochs: 3.0
lr_scheduler_type: linear
bf16: true
flash_attn: sdpa
neftune_noise_alpha: 5
"""

AXOLOTL = """
# axolotl train FILE
base_model: some-org/some-base
adapter: qlora
load_in_4bit: true
load_in_8bit: false
lora_r: 128
lora_alpha: 64
lora_dropout: 0.05
lora_target_modules:
lora_target_linear: true
datasets:
  - path: rows.jsonl
    type: alpaca
val_set_size: 0.1
sequence_len: 2048
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
fp16:
gradient_checkpointing: true
flash_attention: true
evals_per_epoch: 1
saves_per_epoch: 1
warmup_steps: 10
wandb_project: mine
special_tokens:
  pad_token: <pad>
"""


def read(tmp_path, text, **options):
    return brought.read(config=written(tmp_path, "run.yaml", text), device="cpu", **options)


def test_a_configuration_of_trl(tmp_path):
    found = read(tmp_path, TRL)
    spec = found.spec
    assert spec.adapter.config == {
        **{"r": 32, "lora_alpha": 64, "lora_dropout": 0.0, "target_modules": "all-linear", "use_rslora": True},
        "task_type": "CAUSAL_LM",
    }
    assert (spec.model.family, spec.model.dtype, spec.model.quantization) == ("llama", "bfloat16", "nf4")
    assert spec.model.prepare_for_kbit and spec.model.attn_implementation is None
    assert spec.trainer == {"data_collator": "harness.fixtures.collators:packed"}
    wanted = {"learning_rate": 1e-4, "max_steps": 8, "save_steps": 4, "bf16": True, "activation_checkpointing": True}
    assert wanted.items() <= spec.arguments.items() and spec.arguments["warmup_steps"] == 0.05
    assert "eval_strategy" not in spec.arguments
    assert set(found.not_looked_at) == {"dataset_name", "attn_implementation"}
    assert any("defaults of TRL's SFTConfig: gradient_checkpointing=True, bf16=True" in s for s in found.sentences)
    assert any("'some-org/some-base' is not looked up" in sentence for sentence in found.sentences)


def test_a_configuration_of_llama_factory(tmp_path):
    found = read(tmp_path, LLAMA_FACTORY)
    spec = found.spec
    assert spec.adapter.config == {
        **{"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        **{"modules_to_save": ["embed_tokens"], "task_type": "CAUSAL_LM"},
    }
    assert (spec.model.dtype, spec.model.quantization, spec.model.attn_implementation) == ("bfloat16", "nf4", "sdpa")
    assert spec.trainer == {"optimizers": ["harness.fixtures.optimizers:loraplus", {"loraplus_lr_ratio": 8.0}]}
    wanted = {"neftune_noise_alpha": 5, "num_train_epochs": 2, "bf16": True, "activation_checkpointing": True}
    assert wanted.items() <= spec.arguments.items()
    assert set(found.not_looked_at) == {"dataset", "template", "preprocessing_num_workers", "plot_loss"}


def test_a_configuration_of_axolotl(tmp_path):
    found = read(tmp_path, AXOLOTL)
    spec = found.spec
    assert spec.adapter.config == {
        **{"r": 64, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear", "task_type": "CAUSAL_LM"},
    }
    assert (spec.model.dtype, spec.model.quantization, spec.model.prepare_for_kbit) == ("bfloat16", "nf4", True)
    wanted = {"optim": "adamw_bnb_8bit", "eval_strategy": "steps", "eval_steps": 0.25, "save_steps": 0.25, "bf16": True}
    assert wanted.items() <= spec.arguments.items() and spec.data.eval_rows
    assert set(found.not_looked_at) == {"datasets", "wandb_project", "special_tokens", "attn_implementation"}
    assert any(sentence.startswith("r: 128 became 64") for sentence in found.sentences)


def test_other_options_replace_parts_of_a_configuration(tmp_path):
    model = written(tmp_path, "base/config.json", LLAMA).parent
    arguments = written(tmp_path, "a.json", {"learning_rate": 5e-3})
    adapter(tmp_path, r=4)
    found = read(
        tmp_path, AXOLOTL, model=model, adapter=tmp_path / "adapter_config.json", arguments=arguments, launch="ddp"
    )
    assert found.spec.model.family == "config:llama" and found.spec.adapter.config["r"] == 4
    assert found.spec.arguments["learning_rate"] == 5e-3 and "optim" not in found.spec.arguments
    assert found.spec.launch.strategy == "ddp"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lora_alpha: 16\nlearning_rate: 1e-4\n", "say it with --config-kind trl|llama-factory|axolotl"),
        ("base_model: x\nmicro_batch_size: 1\n", "trains no adapter"),
        ("model_name_or_path: x\nlora_r: 8\nuse_peft: false\n", "trains no adapter"),
        ("stage: dpo\nfinetuning_type: lora\n", "stage: 'dpo' has a loss of its own"),
        ("stage: sft\nfinetuning_type: full\nmodel_name_or_path: x\n", "trains no adapter"),
        ("base_model: x\nrl: dpo\nadapter: lora\n", "preference training has a loss of its own"),
        ("base_model: x\nadapter: llama-adapter\n", "'llama-adapter' is no adapter of peft"),
        ("base_model: x\nadapter: lora\nevals_per_epoch: often\n", "evals_per_epoch: expected a number"),
        ("stage: sft\nlora_rank: many\n", "r: expected an int"),
        ("stage: sft\nlora_target: 5\n", "lora_target: expected a list of names, found 5"),
        ("use_peft: true\nlora_r: 8\nlearning_rate: fast\n", "learning_rate: expected a number"),
        ("use_peft: true\nlora_r: 8\nlora_dropout: {}\n", "lora_dropout: expected a number"),
        ("- 1\n- 2\n", "expected an object with the fields"),
    ],
)
def test_a_configuration_that_cannot_be_judged_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


#: What an `accelerate config` file says -> strategy, ranks, and an option of the launch.
ACCELERATE = {
    "distributed_type: 'NO'\nmixed_precision: bf16\nnum_processes: 1": ("single", 1, {}),
    "distributed_type: MULTI_GPU\nnum_processes: 8\nrdzv_backend: static": ("ddp", 2, {}),
    "distributed_type: FSDP\nfsdp_config:\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\nnum_processes: 2": (
        *("fsdp1", 2),
        {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    ),
    "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_offload_params: true": ("fsdp2", 2, {}),
    "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 3\n  zero3_init_flag: true": ("zero3", 2, {}),
}


def test_flat_parameters_whose_gradients_nobody_sees_are_not_blamed_on_upstream(tmp_path):
    """A file gets the original parameters, with a word. A spec that asks for flat ones is not trained."""
    file = tmp_path / "accelerate.yaml"
    file.write_text("distributed_type: FSDP\nfsdp_config:\n  fsdp_use_orig_params: false\n")
    read = brought.read(adapter=adapter(tmp_path), launch=str(file), device="cpu")
    assert read.spec.launch.options["use_orig_params"] is True
    assert "it is true" in read.not_looked_at["fsdp_config.use_orig_params"]
    spec = RunSpec().but(launch={"strategy": "fsdp1", "ranks": 2, "options": {"use_orig_params": False}})
    assert "torch shows nobody the gradients" in (subjects.load("hf-trainer").unsupported(spec) or "")


@pytest.mark.parametrize(("text", "wanted"), ACCELERATE.items(), ids=lambda value: str(value)[18:34])
def test_a_file_of_accelerate_launch_says_how_a_run_is_spread(tmp_path, text, wanted):
    file = tmp_path / "accelerate.yaml"
    file.write_text(f"compute_environment: LOCAL_MACHINE\n{text}\ndynamo_config: {{dynamo_backend: INDUCTOR}}\n")
    read = brought.read(adapter=adapter(tmp_path), launch=str(file), device="cpu")
    strategy, ranks, options = wanted
    assert (read.spec.launch.strategy, read.spec.launch.ranks) == (strategy, ranks)
    assert options.items() <= read.spec.launch.options.items() and not read.spec.launch.cpu_offload
    assert read.spec.arguments.get("bf16", False) is ("bf16" in text)
    assert "launch.dynamo_config" in read.not_looked_at
    assert ("fsdp_config.offload_params" in read.not_looked_at) is ("offload" in text)
    with pytest.raises(
        UsageError, match=r"accelerate\.yaml: a configuration of `accelerate launch`; name it with --launch"
    ):
        brought.read(config=file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stage: sft", "no configuration of `accelerate launch`, because it has no distributed_type"),
        (
            "distributed_type: MEGATRON_LM",
            "'MEGATRON_LM' is not launched here; expected NO, MULTI_GPU, FSDP or DEEPSPEED",
        ),
        ("distributed_type: FSDP\nfsdp_config: [1]", "fsdp_config: expected `field: value` lines"),
    ],
)
def test_a_file_that_launches_nothing_here_is_one_sentence(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        brought.read(adapter=adapter(tmp_path), launch=str(tmp_path / "x.yaml"), device="cpu")


def test_what_a_tool_does_to_labels_and_models_is_named(tmp_path):
    """Labels of prompts are left out of the made rows, too. A field with a typing error names the one that was meant."""
    file = tmp_path / "sft.yaml"
    file.write_text(
        "use_peft: 'yes'\ncompletion_only_loss: true\nloss_type: dft\nlora_rr: 8\n"
        "model_init_kwargs: {torch_dtype: bfloat16, attn_implementation: eager, device_map: auto}\n"
    )
    read = brought.read(config=file, device="cpu")
    assert read.spec.data.ignored == 0.3
    assert (read.spec.model.dtype, read.spec.model.attn_implementation) == ("bfloat16", "eager")
    why = read.not_looked_at
    assert why["completion_only_loss"] == "which labels count is decided by the rows"
    assert why["loss_type"] == "a loss of the tool's own, which is not judged"
    assert why["lora_rr"].endswith("did you mean 'lora_r'?")
    assert "model_init_kwargs.device_map" in why


def test_a_configuration_of_trl_without_an_adapter_is_known(tmp_path):
    (tmp_path / "sft.yaml").write_text("model_name_or_path: x\ndataset_name: y\nmax_length: 512\ndatasets: []\n")
    with pytest.raises(UsageError, match="trains no adapter"):
        brought.read(config=tmp_path / "sft.yaml")


def test_the_kind_of_a_configuration_can_be_said(tmp_path):
    text = "model_name_or_path: x\nuse_peft: true\nlora_alpha: 8\n"
    assert read(tmp_path, text, config_kind="trl").spec.adapter.config["lora_alpha"] == 8
    with pytest.raises(UsageError, match=r"--config-kind 'unsloth': expected one of trl, llama-factory, axolotl"):
        read(tmp_path, text, config_kind="unsloth")


# ---- rows ----

ROWS = {
    "tokens": ({"input_ids": [5, 300, 7], "labels": [-100, 300, 7]}, [5, 1 + 300 % 99, 7], [-100, 1 + 300 % 99, 7]),
    "tokens without labels": ({"input_ids": [5, 6], "attention_mask": [1, 1]}, [5, 6], [5, 6]),
    "padded tokens": ({"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}, [5, 6], [5, 6]),
    "text": ({"text": "AB"}, [66, 67], [66, 67]),
    "prompt": ({"prompt": "A", "completion": "B"}, [66, 67], [-100, 67]),
    "instruction": ({"instruction": "A", "output": "B"}, [66, 11, 11, 67], [-100, -100, -100, 67]),
    "an empty text": ({"text": ""}, [1], [1]),
}


@pytest.mark.parametrize(("row", "tokens", "labels"), ROWS.values(), ids=ROWS)
def test_rows_become_tokens(tmp_path, row, tokens, labels):
    other = {"text": "another row"}
    path = written(tmp_path, "rows.jsonl", f"{json.dumps(row)}\n\n{json.dumps(other)}\n{json.dumps(other)}\n")
    notes = Notes()
    first, second = read_rows(path, 10, 100, notes)
    assert first == {"input_ids": tokens, "labels": labels}
    assert len(second["input_ids"]) == len("another row")
    assert any("1 row" in sentence and "left out" in sentence for sentence in notes.sentences)


def test_a_long_conversation_keeps_something_to_learn(tmp_path):
    turns = [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "answer"}]
    lines = [json.dumps({"messages": [*turns[:1], {**turns[1], "content": f"answer {n}"}]}) for n in range(3)]
    rows = read_rows(written(tmp_path, "rows.jsonl", "\n".join(lines)), 3, 256, Notes())
    assert all(len(row["input_ids"]) == 32 and sum(label != -100 for label in row["labels"]) > 1 for row in rows)


def test_rows_are_in_the_spec_itself(tmp_path):
    lines = [json.dumps({"text": f"row {number}"}) for number in range(100)]
    path = written(tmp_path, "rows.jsonl", "\n".join(lines))
    arguments = written(tmp_path, "a.json", {"eval_strategy": "epoch"})
    spec = brought.read(adapter=adapter(tmp_path), arguments=arguments, data=path, device="cpu").spec
    assert (spec.data.rows, spec.data.eval_rows, len(spec.data.inline)) == (15, 5, 20)
    again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and again.hash == spec.hash
    training, held_out = data.rows(again.data)
    assert training[0]["input_ids"][:5] == [1 + byte for byte in b"row 0"] and len(held_out) == 5
    with pytest.raises(UsageError, match="inline: 2 rows, but 15"):
        RunSpec.from_json({"data": {"rows": 15, "inline": [{"input_ids": [1], "labels": [1]}] * 2}})
    with pytest.raises(UsageError, match="data, inline, line 1: expected input_ids and labels"):
        data.rows(RunSpec().but(data={"rows": 1, "inline": [{"text": "x"}]}).data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": "b"\n', "line 2: not JSON (Expecting ',' delimiter, column 13)"),
        ('{"text": "a"}\n[1]\n', "line 2: expected a JSON object, found list"),
        ('{"text": "a"}\n{"title": "b"}\n', "line 2: has no tokens and no text that is known ('title')"),
        ('{"input_ids": [1, "2"]}\n', "line 1: input_ids is [1, '2']; expected a list of ints"),
        ('{"input_ids": [1, 2], "labels": [1]}\n', "line 1: 2 input_ids and 1 labels"),
        ('{"input_ids": [-1]}\n', "line 1: a token below 0"),
        ('{"input_ids": [NaN]}\n', "line 1: NaN is no JSON number (column 16)"),
        ('{"messages": ["hi"]}\n', "line 1: an entry of a conversation is 'hi'"),
        ('{"text": 5}\n', "line 1: text is 5; expected a text"),
        ('{"text": "a"}\n{"text": "a"}\n', "fewer than two rows that differ"),
        ("", "no rows; expected one JSON object a line"),
        (b'{"text": "\xff"}\n', "line 1: not UTF-8 text"),
    ],
)
def test_a_wrong_row_is_one_sentence_with_its_line(tmp_path, content, words):
    with pytest.raises(UsageError) as caught:
        read_rows(written(tmp_path, "rows.jsonl", content), 8, 256, Notes())
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- specs ----


def test_a_spec_is_read_with_names_of_other_releases(tmp_path):
    body = {
        "arguments": {"evaluation_strategy": "epoch", "max_steps": 3, "report_to": "none", "run_name": "x"},
        "adapter": {"config": {"r": 4, "target_modules": ["q_proj"], "inference_mode": True}},
        "data": {"rows": 12, "eval_rows": 2},
    }
    found = brought.read(written(tmp_path, "spec.json", body))
    assert found.spec.arguments == {"max_steps": 3, "report_to": "none", "eval_strategy": "epoch"}
    assert found.spec.adapter.config == {"r": 4, "target_modules": ["q_proj"]}
    assert len(found.sentences) == 3


def test_options_replace_parts_of_a_spec(tmp_path):
    spec = written(tmp_path, "spec.json", {"arguments": {"max_steps": 30, "report_to": "none"}, "data": {"rows": 12}})
    model = written(tmp_path, "base/config.json", LLAMA).parent
    found = brought.read(spec, model=model, launch="ddp").spec
    assert found.model.family == "config:llama" and found.launch.ranks == 2
    assert found.arguments["max_steps"] == 30 and found.data.rows == 12  # what is not named stays
    arguments = written(tmp_path, "a.json", {"max_steps": 300})
    assert brought.read(spec, arguments=arguments).spec.arguments["max_steps"] == 8
    with pytest.raises(UsageError, match="a spec and a configuration are two runs"):
        brought.read(spec, config=spec)


def test_nothing_is_one_sentence():
    with pytest.raises(UsageError, match="nothing to judge; name a spec, or --adapter"):
        brought.read()


# ---- files that are none ----

DEEP = "[" * 100_000 + "]" * 100_000
ODD = {
    "empty": (b"", "empty"),
    "a list": (b"[1, 2]", "expected an object"),
    "null": (b"null", "found null"),
    "NaN": (b'{"r": NaN}', "NaN"),
    "twice": (b'{"r": 1, "r": 2}', "the key 'r' twice"),
    "deep": (DEEP.encode(), "nested too deep"),
    "not UTF-8": (b'{"r": "\xff"}', "not UTF-8"),
    "binary": (bytes(range(256)) * 4, "not UTF-8"),
    "half": (b'{"r": ', "not JSON"),
    "huge number": (b'{"r": ' + b"9" * 5000 + b"}", "an integer of 5000 digits"),
    "a NUL": (b"\x00", "not JSON"),
    "100 MB": (None, "too large (100,000,000 bytes"),
}


@pytest.mark.parametrize("option", ["adapter", "arguments", "config", "spec_file", "model"])
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_is_one_sentence_in_a_second(tmp_path, option, kind):
    content, words = ODD[kind]
    path = written(tmp_path, "file.json", content or "")
    if content is None:
        os.truncate(path, 10**8)
    began = time.process_time()
    with pytest.raises(UsageError) as caught:
        brought.read(**{option: path})
    assert time.process_time() - began < 2  # a second, twice on a busy machine
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 1000
    if not (option == "spec_file" and kind in ("a list", "null", "NaN")):  # specs have sentences of their own
        assert words in sentence


def test_a_byte_order_mark_is_taken(tmp_path):
    path = written(tmp_path, "arguments.json", b'\xef\xbb\xbf{"learning_rate": 0.5}')
    found = brought.read(adapter=adapter(tmp_path), arguments=path, device="cpu")
    assert found.spec.arguments["learning_rate"] == 0.5


@pytest.mark.parametrize("option", ["adapter", "arguments", "config", "model", "data"])
def test_a_file_that_is_not_there_is_one_sentence(tmp_path, option):
    options = {"adapter": adapter(tmp_path)} if option != "adapter" else {}
    with pytest.raises(UsageError) as caught:
        brought.read(**{**options, option: tmp_path / "gone.json"})
    assert "gone.json" in str(caught.value)


YAML = {
    "numbers": ("a: 1e-4\nb: 1_000\nc: .5\nd: 0x10\n", {"a": 1e-4, "b": 1000, "c": 0.5, "d": 16}),
    "words": ("a: no\nb: 'no'\nc: ~\nd: 2020-01-01\n", {"a": False, "b": "no", "c": None, "d": "2020-01-01"}),
    "merged": ("a: &x {r: 1, s: 2}\nb:\n  <<: *x\n  r: 3\n", {"a": {"r": 1, "s": 2}, "b": {"r": 3, "s": 2}}),
    "lists": ("a:\n- 1\n- [x, y]\n", {"a": [1, ["x", "y"]]}),
}


@pytest.mark.parametrize(("text", "wanted"), YAML.values(), ids=YAML)
def test_yaml_is_read_as_json_would_have_it(text, wanted):
    assert parse_yaml(text, "here") == wanted


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty; expected a mapping"),
        ("a: 1\nb: 2\na: 3\n", "line 3: an object has the key 'a' twice"),
        ("a: &a [*a]\n", "an alias contains itself (line 1)"),
        (BOMB, "stands for more than 20,000 values"),
        ("[" * 100_000, "nested too deep, in more than 64 levels (line 1)"),
        ("- " * 100 + "x", "nested too deep"),
        ("a: !!python/object/apply:os.system [ls]\n", "the tag 'python/object/apply:os.system' names an object"),
        ("a: .nan\n", "line 1: .nan is no number"),
        ("a: -.inf\n", "line 1: -.inf is no number"),
        ("a: 1e999\n", "'1e999' is too large for a float"),
        ("a: 1\n---\nb: 2\n", "not YAML (but found another document, line 2"),
        ("a: [1, 2\n", "not YAML ("),
        ("\ta: 1\n", "not YAML (found character"),
        ("a: *b\n", "not YAML (found undefined alias"),
        ("? [a]\n: b\n", "a key is no text"),
        ("a: " + "9" * 400, "an integer of 400 digits"),
        ("a: \x00\n", "not YAML ("),
    ],
)
def test_odd_yaml_is_one_sentence(text, words):
    began = time.process_time()
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "here")
    assert time.process_time() - began < 2
    assert words in str(caught.value) and str(caught.value).isprintable()
