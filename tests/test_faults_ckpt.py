"""Put faults into upstream under which the checks of suites/test_ckpt_*.py must fail."""

import shutil
from pathlib import Path

import torch

from harness.mutants.ckpt import before, then
from harness.spec import GET
from harness.suites import test_ckpt_adapters as adapters
from harness.suites import test_ckpt_content as content
from harness.suites import test_ckpt_files as files
from tests.faults import assert_seen, each, mutant, proves, replace, verdict_of

TRAINER = "transformers.trainer:Trainer"


def checkpoint_of(trainer):
    return Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"


def after(method, act, says):
    """Return a fault that calls `act` with the Trainer when one of its methods has ended."""
    return replace(TRAINER, method, then(act), says)


def write(name):
    """Return a function that writes a file into a checkpoint."""
    return lambda trainer, directory, *args: (Path(directory) / name).write_text("{}")


def should_save_lost(original, control):
    """trainer_state.json says that no save was due."""
    state = original(control)
    return {**state, "args": {**state["args"], "should_save": False}}


def plain_arguments(trainer, directory, *args):
    torch.save(trainer.args.to_dict(), Path(directory) / "training_args.bin")


def delete_the_best(trainer, *args):
    shutil.rmtree(checkpoint_of(trainer).parent / "checkpoint-2")


def forget_the_best(trainer, *args):
    trainer.state.best_model_checkpoint = None


def advance_the_schedule(trainer, *args):
    trainer.lr_scheduler.step(6)


def first_of_the_active(original, model):
    """Of several active adapters a model names only the first."""
    return original(model)[:1]


ROUTE = {"route": GET}
PLAIN_ARGUMENTS = "training_args.bin holds a dict, not TrainingArguments."

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "CKPT-01/missing": (
        content.test_get_peft_model_files,
        {},
        mutant("no-model-card"),
        "missing: ['README.md']",
    ),
    "CKPT-01/besides": (
        content.test_get_peft_model_files,
        {},
        after("_save", write("config.json"), "A checkpoint of get_peft_model has a config.json of the base."),
        "besides: ['config.json']",
    ),
    "CKPT-02": (
        content.test_add_adapter_files,
        {},
        replace(
            "transformers:LlamaForCausalLM",
            "can_generate",
            lambda *args: False,
            "A checkpoint of add_adapter has no generation_config.json.",
        ),
        "missing: ['generation_config.json']",
    ),
    "CKPT-03": (
        content.test_without_an_adapter_the_whole_model_is_saved,
        {},
        after(
            "_save",
            lambda trainer, directory, *args: (Path(directory) / "config.json").unlink(),
            "A checkpoint of a model without adapters has no config.json.",
        ),
        "missing: ['config.json']",
    ),
    "CKPT-04/dtype": (
        content.test_keys_are_paths_in_the_base_without_the_adapter_name,
        {"name": "plain"},
        mutant("adapter-saved-in-half-precision"),
        "F16",
    ),
    "CKPT-04/bytes": (
        content.test_same_run_writes_the_same_bytes,
        {"name": "plain"},
        mutant("a-date-in-the-file"),
        "3: ",
    ),
    "CKPT-04/metadata": (
        content.test_adapter_file_says_that_it_is_of_torch,
        {"trace": content.NAMED["plain"]},
        replace(
            "peft.peft_model",
            "safe_save_file",
            lambda original, tensors, path, metadata: original(tensors, path),
            "The adapter file does not say that its tensors are torch's.",
        ),
        "format: absent, expected pt",
    ),
    "CKPT-05": (
        content.test_adapter_config_holds_the_config,
        {"name": "plain", **ROUTE},
        mutant("wrong-alpha-in-the-config"),
        "lora_alpha: 9, expected 16",
    ),
    "CKPT-06/config": (
        content.test_config_in_memory_is_unchanged_by_a_save,
        {"inference_mode": False},
        mutant("saving-changes-the-config"),
        "lora_dropout: 0.5, expected 0.1",
    ),
    "CKPT-06/run": (
        content.test_run_that_saves_is_equal_to_one_that_does_not,
        {"name": "plain"},
        mutant("saving-draws-a-number"),
        "step 4: gradients of",
    ),
    "CKPT-07": (
        content.test_sgd_has_no_state,
        {},
        replace(
            TRAINER,
            "_save_optimizer_and_scheduler",
            before(lambda trainer, directory: add_momentum(trainer.optimizer)),
            "An optimizer without momentum is saved with a momentum buffer for each tensor.",
        ),
        "3: 14336, expected 0",
    ),
    "CKPT-08": (
        content.test_linear_schedule_is_saved_at_its_own_rate,
        {},
        mutant("schedule-saved-a-step-ahead"),
        "3: [0.006, 0.006], expected [0.006999999999999999, 0.006999999999999999]",
    ),
    "CKPT-09": (
        content.test_random_states_are_those_at_the_save,
        {"spec": content.SAVING["plain"]},
        mutant("generator-saved-a-draw-early"),
        "checkpoint-3/rng_state.pth: the state of 'cpu' is not that of the generator",
    ),
    "CKPT-10": (
        content.test_trainer_control_is_kept_as_the_save_was_asked_for,
        {},
        replace("transformers:TrainerControl", "state", should_save_lost),
        "should_save: False, expected True",
    ),
    "CKPT-11/class": (
        content.test_training_arguments_are_pickled,
        ROUTE,
        after("_save", plain_arguments, PLAIN_ARGUMENTS),
        "False",
    ),
    "CKPT-11/refused": (
        content.test_training_arguments_are_no_weights,
        {},
        after("_save", plain_arguments, PLAIN_ARGUMENTS),
        "raised nothing and returned",
    ),
    "CKPT-12": (
        files.test_checkpoints_are_written_when_due,
        {"trace": files.STRATEGIES["steps"]},
        mutant("last-checkpoint-missing"),
        "no checkpoint at step 10",
    ),
    "CKPT-13": (
        files.test_newest_and_best_checkpoints_stay,
        {"trace": files.LIMITS["limit-2/best-first"]},
        after(
            "_save_checkpoint",
            lambda trainer, *args: trainer.state.global_step == 8 and delete_the_best(trainer),
            "A later save deletes the best checkpoint.",
        ),
        "after the save at step 8: [8] are left, expected [2, 8]",
    ),
    "CKPT-13/end": (
        files.test_limit_of_one_leaves_the_best_at_the_end,
        {"name": "limit-1/best-first", "left": [2]},
        replace(
            TRAINER,
            "_finalize_training",
            before(forget_the_best),
            "At the end of a run save_total_limit=1 does not know which checkpoint is the best.",
        ),
        "[2, 10]",
    ),
    "CKPT-14/files": (
        files.test_save_only_model_leaves_out_what_resumes,
        ROUTE,
        mutant("state-saved-with-a-model-only"),
        "besides: ['optimizer.pt', 'rng_state.pth', 'scheduler.pt']",
    ),
    "CKPT-14/resume": (
        files.test_resuming_a_model_only_starts_optimizer_and_schedule_anew,
        {"spec": files.continued(files.PLAIN, 6, save_only_model=True)},
        replace(
            TRAINER,
            "_load_optimizer_and_scheduler",
            then(advance_the_schedule),
            "Resuming from a checkpoint that holds the model only continues the schedule.",
        ),
        "7: [0.004, 0.004], expected [0.01, 0.01]",
    ),
    "CKPT-15": (
        adapters.test_each_adapter_has_its_place,
        {"trace": adapters.with_others("default", "foo")},
        mutant("active-adapter-saved-alone"),
        "adapter 'foo' has no file foo/adapter_model.safetensors",
    ),
    "CKPT-16": (
        adapters.test_several_active_adapters_are_refused,
        {},
        replace("transformers:LlamaForCausalLM", "active_adapters", first_of_the_active),
        "raised nothing",
    ),
    "CKPT-18": (
        adapters.test_adapter_is_saved_in_its_own_dtype,
        {"name": "bfloat16"},
        mutant("adapter-saved-in-half-precision"),
        "is ['float16', [8, 64]], the parameter ['float32', [8, 64]]",
    ),
    "CKPT-19": (
        files.test_save_model_writes_the_adapter_and_no_state,
        {**ROUTE, "own": "README.md", "place": None},
        after("_save", write("optimizer.pt"), "save_model() writes an optimizer.pt."),
        "besides: ['optimizer.pt']",
    ),
    "CKPT-21": (
        adapters.test_loaded_adapter_is_the_trained_one,
        {"name": "plain", "how": "from_pretrained"},
        mutant("one-tensor-not-loaded"),
        "logits differs by",
    ),
    "CKPT-23": (
        adapters.test_adapter_files_do_not_mix,
        {"trace": adapters.with_others("foobar", "foo")},
        mutant("tensors-of-a-foreign-adapter"),
        "adapter 'foobar': model.layers.0.self_attn.q_proj.lora_A.weight is not in its file",
    ),
    "CKPT-24": (
        adapters.test_modules_to_save_reload_into_themselves,
        {"stem": "head"},
        mutant("modules-to-save-not-reloaded"),
        "differs",
    ),
    "CKPT-25": (
        adapters.test_adapter_file_is_exactly_the_trained_tensors,
        {"trace": adapters.TWO_STEPS},
        mutant("adapter-file-empty"),
        "checkpoint-2: no tensor for model.layers.0.self_attn.q_proj.lora_A.weight",
    ),
}


def add_momentum(optimizer):
    """Give an optimizer the state that it would have with momentum."""
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


def in_order(original, config):
    return {key: sorted(value) if isinstance(value, set) else value for key, value in original(config).items()}


@proves("CKPT-05", says="LoraConfig.to_dict lists the members of a set in an order that differs between processes.")
def test_an_upstream_that_sorts_its_sets_holds(runs, tmp_path, monkeypatch):
    """CKPT-05 fails with every release of peft so far. Sorting the sets mends it."""
    test = content.test_lists_have_the_same_order_in_every_process
    assert not verdict_of(test, runs, tmp_path / "test").holds
    replace("peft:LoraConfig", "to_dict", in_order)(monkeypatch)
    assert verdict_of(test, runs, tmp_path / "test").holds
