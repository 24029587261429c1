"""TrainingArguments that people bring: names and values of other releases, pickles, directories of runs, and cut runs."""

import json

import pytest

from harness import brought
from harness.brought import argument_names
from harness.brought.notes import Notes
from harness.errors import UsageError
from tests.brought import FILES, adapter, without_names, written


def read(tmp_path, arguments, **options):
    if isinstance(arguments, dict):
        arguments = written(tmp_path, "arguments.json", arguments)
    return brought.read(adapter=adapter(tmp_path), arguments=arguments, device="cpu", **options)


@pytest.mark.parametrize("release", ["4_45", "4_57"])
def test_arguments_of_older_releases_are_read_as_the_newest_names(tmp_path, release):
    found = read(tmp_path, FILES / f"arguments_{release}.json")
    arguments = without_names(found.spec)["arguments"]
    assert arguments == {
        "activation_checkpointing": True,
        "eval_steps": 2,
        "eval_strategy": "steps",
        "gradient_accumulation_steps": 4,
        "learning_rate": 0.0002,
        "load_best_model_at_end": True,
        "logging_steps": 1,
        "lr_scheduler_type": "cosine",
        "metric_for_best_model": "loss",
        "neftune_noise_alpha": 5.0,
        "num_train_epochs": 2,
        "optim": "adamw_torch",
        "per_device_eval_batch_size": 4,
        "per_device_train_batch_size": 4,
        "save_steps": 4,
        "save_total_limit": 3,
        "train_sampling_strategy": "group_by_length",
        "warmup_steps": 0.03,
    }
    for words in (
        "gradient_checkpointing=True: read as activation_checkpointing",
        "group_by_length=True: read as train_sampling_strategy='group_by_length'",
        "warmup_ratio=0.03: read as warmup_steps",
        "these change nothing here",
        "num_train_epochs 3 -> 2",
    ):
        assert len([sentence for sentence in found.sentences if words in sentence]) == 1, words
    assert found.not_looked_at == {}


RENAMED = {
    "evaluation_strategy": ({"evaluation_strategy": "epoch"}, {"eval_strategy": "epoch"}),
    "no-in-yaml": ({"eval_strategy": False}, {"eval_strategy": "no"}),
    "warmup_ratio": ({"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0.1}),
    "warmup_ratio-and-steps": ({"warmup_ratio": 0.1, "warmup_steps": 5}, {"warmup_steps": 5}),
    "group_by_length": ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
    "no_cuda": ({"no_cuda": True}, {"use_cpu": True}),
    "per_gpu": ({"per_gpu_train_batch_size": 2}, {"per_device_train_batch_size": 2}),
    "split_batches": ({"split_batches": True}, {"accelerator_config": {"split_batches": True}}),
    "dispatch_batches": (
        {"dispatch_batches": True, "accelerator_config": {"even_batches": False, "non_blocking": False}},
        {"accelerator_config": {"even_batches": False, "dispatch_batches": True}},
    ),
    "metrics": ({"include_inputs_for_metrics": True}, {"include_for_metrics": ["inputs"]}),
    "adafactor": ({"adafactor": True}, {"optim": "adafactor"}),
    "torchdynamo": ({"torchdynamo": "eager"}, {"torch_compile": True, "torch_compile_backend": "eager"}),
    "checkpointing": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    "fsdp": (
        {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
        {"fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}},
    ),
}


@pytest.mark.parametrize(("given", "wanted"), RENAMED.values(), ids=RENAMED)
def test_a_name_of_another_release_is_mapped_with_a_sentence(given, wanted):
    notes = Notes()
    assert argument_names.newest(given, "here", notes) == wanted
    old = [name for name in given if name not in wanted and given[name] not in (0, False)]
    assert all(any(sentence.startswith(f"{name}=") for sentence in notes.sentences) for name in old)


def test_what_has_no_meaning_here_changes_nothing_and_is_named_once():
    notes = Notes()
    given = {
        **{"run_name": "mine", "ddp_timeout": 9, "report_to": ["wandb"], "hub_model_id": "me/x", "logging_dir": "x"},
        **{"push_to_hub": True, "push_to_hub_token": "<PUSH_TO_HUB_TOKEN>", "overwrite_output_dir": True},
        **{"tokenizer": None, "use_mps_device": False, "dataloader_pin_memory": False},
    }
    assert argument_names.newest(given, "here", notes) == {}
    (sentence,) = notes.sentences
    assert sentence.endswith("run_name, ddp_timeout, report_to, hub_model_id, logging_dir")


def test_what_the_installed_release_lacks_is_not_looked_at():
    notes = Notes()
    kept = argument_names.installed({"use_ipex": True, "save_safetensors": True, "tp_size": 0, "seed": 7}, notes)
    assert "seed" in kept and "tp_size" not in kept
    assert set(notes.not_looked_at) <= {"use_ipex"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"lerning_rate": 1e-4},
            "no release of transformers has the argument 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        ({"learning_rate": -1}, "learning_rate: expected a number"),
        ({"max_steps": "many"}, "max_steps: expected an int"),
        ({"per_device_train_batch_size": [8]}, "per_device_train_batch_size: expected an int"),
        ({"logging_steps": 10**400}, "an integer of"),
        ({"warmup_steps": {}}, "warmup_steps: expected a number of steps"),
    ],
)
def test_a_wrong_argument_is_one_sentence(tmp_path, given, words):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, written(tmp_path, "arguments.json", json.dumps(given)))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_argument_that_is_not_used_is_not_looked_at(tmp_path):
    found = read(tmp_path, {"an_argument_of_tomorrow": None, "generation_max_length": 20, "packing": True})
    assert set(found.not_looked_at) == {"an_argument_of_tomorrow", "generation_max_length", "packing"}


# ---- pickles and directories ----


@pytest.fixture
def pickled(tmp_path):
    import torch
    from transformers import TrainingArguments

    made = TrainingArguments(str(tmp_path), learning_rate=3e-4, use_cpu=True, bf16=True, report_to="none", max_steps=50)
    # As other releases leave it: a field that is gone, and objects that are no field.
    made.__dict__.update({"evaluation_strategy": "steps", "eval_steps": 10, "distributed_state": object})
    torch.save(made, tmp_path / "training_args.bin")
    return tmp_path / "training_args.bin"


def test_a_pickle_is_read_only_if_it_is_trusted(tmp_path, pickled):
    with pytest.raises(UsageError, match=r"--trust-pickle") as caught:
        read(tmp_path, pickled)
    assert "json.dump" in str(caught.value)
    arguments = read(tmp_path, pickled, trust_pickle=True).spec.arguments
    assert arguments["learning_rate"] == 3e-4 and arguments["bf16"] is True and arguments["max_steps"] == 8
    assert arguments["eval_strategy"] == "steps" and "distributed_state" not in arguments


def test_an_untrusted_pickle_is_not_loaded(tmp_path):
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    with pytest.raises(UsageError, match="a pickle"):
        read(tmp_path, written(tmp_path, "training_args.bin", evil))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cnowhere.at.all\nThing\n.", "names a class that is not installed here"),
        (b"half", "cannot be unpickled"),
    ],
)
def test_a_trusted_pickle_of_something_else_is_one_sentence(tmp_path, content, words):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, written(tmp_path, "training_args.bin", content), trust_pickle=True)


def test_a_trusted_pickle_without_arguments_is_one_sentence(tmp_path):
    import torch

    torch.save([1], tmp_path / "training_args.bin")
    with pytest.raises(UsageError, match="holds no TrainingArguments, but a list"):
        read(tmp_path, tmp_path / "training_args.bin", trust_pickle=True)


STATE = {
    "global_step": 30,
    "max_steps": 30,
    "num_train_epochs": 3,
    "train_batch_size": 2,
    "logging_steps": 10,
    "eval_steps": 10,
    "save_steps": 10,
    "log_history": [
        {"learning_rate": 1e-4, "loss": 2.0, "step": 10},
        {"learning_rate": 2e-4, "loss": 1.0, "step": 20},
        {"eval_loss": 1.0, "step": 20},
    ],
}


@pytest.mark.parametrize("option", ["adapter", "arguments"])
@pytest.mark.parametrize("below", ["", "checkpoint-20"])
def test_the_directory_of_a_run_has_adapter_and_arguments(tmp_path, pickled, option, below):
    if below:
        written(tmp_path, "checkpoint-9/trainer_state.json", {**STATE, "train_batch_size": 1})
    adapter(tmp_path / below)
    written(tmp_path, f"{below}/trainer_state.json".lstrip("/"), STATE)
    found = brought.read(**{option: tmp_path}, device="cpu")
    arguments = found.spec.arguments
    assert arguments["learning_rate"] == 2e-4 and arguments["per_device_train_batch_size"] == 2
    assert arguments["eval_strategy"] == "steps" and arguments["max_steps"] == 8
    assert "a pickle" in found.not_looked_at["training_args.bin"]
    assert any("from trainer_state.json" in sentence for sentence in found.sentences)
    trusted = brought.read(**{option: tmp_path}, device="cpu", trust_pickle=True)
    assert trusted.spec.arguments["learning_rate"] == 3e-4


def test_a_directory_without_arguments_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"has neither training_args.bin nor trainer_state.json"):
        read(tmp_path, tmp_path)


# ---- a small run ----


@pytest.mark.parametrize(
    ("given", "wanted", "rows"),
    [
        (
            {"max_steps": 1000, "warmup_steps": 250, "save_steps": 100},
            {"max_steps": 8, "warmup_steps": 2, "save_steps": 4},
            15,
        ),
        ({"max_steps": 3, "save_steps": 500}, {"max_steps": 3, "save_steps": 1}, 7),
        ({"num_train_epochs": 1}, {"num_train_epochs": 1, "save_steps": 4}, 31),
        ({"num_train_epochs": 0.5}, {"num_train_epochs": 0.5, "save_steps": 2}, 31),
        ({"num_train_epochs": 10, "dataloader_drop_last": True}, {"num_train_epochs": 2}, 16),
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 64}, {"gradient_accumulation_steps": 4}, 16),
        ({"warmup_ratio": 1.0}, {"warmup_steps": 8}, 15),
        ({"logging_steps": 0.1, "save_steps": 0.25}, {"logging_steps": 0.1, "save_steps": 0.25}, 15),
        (
            {"save_strategy": "epoch", "dataloader_num_workers": 16},
            {"save_strategy": "epoch", "dataloader_num_workers": 2},
            15,
        ),
        ({"eval_strategy": "steps", "max_steps": 100}, {"eval_steps": 4, "per_device_eval_batch_size": 4}, 15),
        (
            {"eval_strategy": "steps", "eval_steps": 50, "save_steps": 200, "load_best_model_at_end": True},
            {"eval_steps": 2, "save_steps": 4},
            15,
        ),
        ({"eval_strategy": "steps", "eval_steps": 500, "eval_delay": 900}, {"eval_steps": 4, "eval_delay": 4}, 15),
    ],
)
def test_a_run_is_made_small_by_rule(tmp_path, given, wanted, rows):
    spec = read(tmp_path, given).spec
    assert {name: spec.arguments.get(name) for name in wanted} == wanted
    assert spec.data.rows == rows
    assert (spec.data.eval_rows > 0) == ("eval_strategy" in given)


def test_what_needs_a_gpu_is_left_out_on_a_cpu(tmp_path):
    found = read(tmp_path, {"fp16": True, "tf32": True, "bf16_full_eval": True})
    assert set(found.not_looked_at) == {"fp16", "tf32"}
    assert not {"fp16", "tf32"} & set(found.spec.arguments) and found.spec.arguments["bf16_full_eval"]


def test_a_metric_that_needs_a_function_gives_way_to_the_loss(tmp_path):
    given = {"eval_strategy": "epoch", "metric_for_best_model": "eval_f1", "greater_is_better": True}
    found = read(tmp_path, given)
    assert found.spec.arguments["metric_for_best_model"] == "loss" and "greater_is_better" not in found.spec.arguments
    assert "metric_for_best_model" in found.not_looked_at


# ---- launches ----


def test_deepspeed_and_fsdp_become_a_launch_of_two_ranks(tmp_path):
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}, "reduce_bucket_size": 5e8}
    written(tmp_path, "ds.json", {"zero_optimization": zero, "train_batch_size": 256, "bf16": {"enabled": "auto"}})
    found = read(tmp_path, {"deepspeed": "ds.json"})  # beside the arguments, not in the current directory
    launch = found.spec.launch
    assert (launch.strategy, launch.ranks, launch.cpu_offload) == ("zero3", 2, True)
    assert launch.options == {"bf16": {"enabled": "auto"}}
    assert {"deepspeed.offload_param", "deepspeed.zero_optimization"} <= set(found.not_looked_at)
    config = {"fsdp_version": 2, "fsdp_offload_params": False, "fsdp_state_dict_type": "FULL_STATE_DICT", "xla": False}
    launch = read(tmp_path, {"fsdp": "full_shard auto_wrap", "fsdp_config": config}).spec.launch
    assert (launch.strategy, launch.ranks, launch.state_dict_type) == ("fsdp2", 2, "FULL_STATE_DICT")
    assert read(tmp_path, {"fsdp": [], "fsdp_config": {"min_num_params": 0}}).spec.launch.strategy == "single"


def test_a_launch_that_is_named_counts(tmp_path):
    found = read(tmp_path, {"fsdp": "full_shard"}, launch="ddp:3")
    assert (found.spec.launch.strategy, found.spec.launch.ranks) == ("ddp", 3)
    assert found.spec.data.rows == 4 * 4 * 3 - 1
    with pytest.raises(UsageError, match=r"--launch 'warp': expected one of single, ddp"):
        read(tmp_path, {}, launch="warp")
