"""Put faults into upstream under which the checks of suites/test_best.py must fail, and mend known defects."""

import pytest

from harness.spec import ADD
from harness.suites import test_best as best
from tests.faults import assert_holds, assert_seen, each, mutant, nothing, replace

TRAINER = "transformers.trainer:Trainer"
LOAD = ("peft:PeftModel", "load_adapter")


# ---- faults ----


def without_explanation(original, trainer):
    """Loading the best checkpoint of a prompt encoder fails without an explanation."""
    raise RuntimeError("size mismatch")


def unchecked(original, arguments):
    """load_best_model_at_end has no defaults and no checks."""
    arguments.load_best_model_at_end = False
    original(arguments)
    arguments.load_best_model_at_end = True


#: By clause; `tests.faults` describes a row.
FAULTS = {
    "BEST-01/not-loaded": (
        best.test_training_ends_with_the_best_adapter,
        {"trace": best.LOWEST},
        mutant("adapter-not-restored"),
        "the adapter at the end is not that of checkpoint-2, but that of checkpoint-8",
    ),
    "BEST-01/worst": (
        best.test_training_ends_with_the_best_adapter,
        {"trace": best.LOWEST},
        mutant("worst-for-best"),
        "best_model_checkpoint is",
    ),
    "BEST-01/evaluated": (
        best.test_an_evaluation_afterwards_returns_the_best_metric,
        {"spec": best.LOWEST},
        mutant("adapter-not-restored"),
        "of steps [2]",
    ),
    "BEST-01/interrupted": (
        best.test_a_best_checkpoint_from_before_an_interruption_is_loaded,
        {},
        mutant("last-instead-of-best"),
        "differs by",
    ),
    "BEST-02": (
        best.test_a_run_through_add_adapter_ends_with_the_best_adapter,
        {"trace": best.LOWEST.but(adapter={"route": ADD})},
        mutant("last-instead-of-best"),
        "the adapter at the end is not that of checkpoint-2, but that of checkpoint-8",
    ),
    "BEST-03": (
        best.test_an_adapter_of_another_name_ends_as_the_best,
        {"trace": best.LOWEST.but(adapter={"name": "foo"})},
        mutant("last-instead-of-best"),
        "the adapter at the end is not that of checkpoint-2, but that of checkpoint-8",
    ),
    "BEST-04/mode": (
        best.test_the_model_is_left_ready_for_inference,
        {"spec": best.LOWEST},
        mutant("best-left-in-training-mode"),
        "modules are in training mode, the model first",
    ),
    "BEST-04/gradients": (
        best.test_the_model_is_left_ready_for_inference,
        {"spec": best.LOWEST},
        mutant("best-left-frozen"),
        "lora_A.default.weight no longer requires gradients",
    ),
    "BEST-05/first": (
        best.test_of_two_active_adapters_the_first_is_loaded_and_that_is_said,
        {},
        mutant("adapter-not-restored"),
        "[]",
    ),
    "BEST-05/warning": (
        best.test_of_two_active_adapters_the_first_is_loaded_and_that_is_said,
        {},
        replace("transformers.trainer:logger", "warning", nothing, "The Trainer logs no warning."),
        "no warning names them",
    ),
    "BEST-05/explanation": (
        best.test_a_prompt_encoder_is_loaded_whole_or_refused_with_an_explanation,
        {"spec": best.prompt_learning("PREFIX_TUNING")},
        replace(TRAINER, "_load_best_model", without_explanation),
        "RuntimeError: size mismatch",
    ),
    "BEST-06/refused": (
        best.test_a_checkpoint_that_is_not_evaluated_is_refused,
        {"spec": best.LOWEST.but(save_steps=3), "words": "a round multiple"},
        replace("transformers:TrainingArguments", "__post_init__", unchecked),
        "raised nothing",
    ),
    "BEST-06/metric": (
        best.test_the_metric_is_the_loss_and_less_of_it_is_better,
        {"changes": {}, "expected": ("loss", False)},
        replace("transformers:TrainingArguments", "__post_init__", unchecked),
        "(None, None)",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


# ---- known defects, mended ----


def load_file(directory):
    from safetensors.torch import load_file

    return load_file(f"{directory}/adapter_model.safetensors")


def into_add_adapter(original, trainer):
    from peft import set_peft_model_state_dict

    saved = {k.removeprefix("base_model.model."): v for k, v in load_file(trainer.state.best_model_checkpoint).items()}
    set_peft_model_state_dict(trainer.model, saved)


def from_its_own_directory(original, trainer):
    trainer.model.load_adapter(f"{trainer.state.best_model_checkpoint}/foo", "foo")


def in_its_own_dtype(original, *args, **options):
    return original(*args, autocast_adapter_dtype=False, **options)


def refused_with_an_explanation(original, trainer):
    raise RuntimeError("the encoder is not saved: load the model manually")


MENDED = {
    "BEST-01/dtype": (
        best.test_training_ends_with_the_best_adapter,
        {"trace": best.LOWEST.but(**best.BF16_ADAPTER)},
        replace(*LOAD, in_its_own_dtype),
    ),
    "BEST-02": (
        best.test_a_run_through_add_adapter_ends_with_the_best_adapter,
        {"trace": best.LOWEST.but(adapter={"route": ADD})},
        replace(TRAINER, "_load_best_model", into_add_adapter),
    ),
    "BEST-03": (
        best.test_an_adapter_of_another_name_ends_as_the_best,
        {"trace": best.LOWEST.but(adapter={"name": "foo"})},
        replace(TRAINER, "_load_best_model", from_its_own_directory),
    ),
    "BEST-05": (
        best.test_a_prompt_encoder_is_loaded_whole_or_refused_with_an_explanation,
        {"spec": best.prompt_learning("P_TUNING", encoder_hidden_size=16)},
        replace(TRAINER, "_load_best_model", refused_with_an_explanation),
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_a_mended_fault_is_no_longer_seen(name, runs, tmp_path, monkeypatch):
    assert_holds(MENDED[name], runs, tmp_path, monkeypatch)
