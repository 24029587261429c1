"""Put faults into upstream: how an adapter starts, configs that cannot be met, and several adapters in a model."""

import warnings

import torch

from harness.mutants.api import pissa_without_subtraction
from harness.suites import test_api_config as config
from harness.suites import test_api_init as init
from harness.suites import test_api_switch as switch
from harness.suites import test_best as best
from harness.suites import test_emb as emb
from harness.suites import test_io as io
from harness.suites import test_res_equal as res
from harness.suites import test_tables as tables
from tests.faults import assert_seen, each, mutant, nothing, replace

LORA = "peft.tuners.lora.layer:LoraLayer"
TUNER = "peft.tuners.tuners_utils:BaseTuner"
PEFT = "peft:PeftModel"
COPY = "peft.utils.other:ModulesToSaveWrapper"


# ---- faults ----


def not_at_zero(original, layer, name, *args, **options):
    """Both matrices of a LoRA start at 0.001, so the fresh adapter adds something to the base."""
    original(layer, name, *args, **options)
    torch.nn.init.constant_(layer.lora_A[name].weight, 1e-3)
    torch.nn.init.constant_(layer.lora_B[name].weight, 1e-3)


def taken_for_the_default(original, layer, name, kind):
    """An initialisation that peft does not know is taken for the default one."""
    return original(layer, name, True)


def unconverted(original, model, config, path, state, options):
    """An IA3 adapter is saved as it is, although a conversion to the initial weights was asked for."""
    return state


def started_from_zero(original, model, state, initial, options):
    """Converting a PiSSA adapter doubles its rank with zeros and subtracts nothing."""
    doubled = {name: torch.cat([tensor, tensor * 0], dim=int("lora_B" in name)) for name, tensor in state.items()}
    return original(model, state, initial, options) and doubled


def without_a_warning(original, *args, **options):
    """No warning is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return original(*args, **options)


def without_its_tensors(original, tuner, model, name, **options):
    """Injecting an adapter ignores the tensors that say which modules are adapted."""
    options.pop("state_dict", None)
    return original(tuner, model, name, **options)


def whatever_is_chosen(original, model, directory, selected_adapters=None, **options):
    """save_pretrained ignores selected_adapters and saves all adapters."""
    return original(model, directory, **options)


def under_one_name(original, wrapper, adapter_names, requires_grad=True):
    """set_requires_grad changes nothing if it is given a list of adapters."""
    return original(wrapper, adapter_names, requires_grad) if isinstance(adapter_names, str) else None


def without_an_error(original, model, *args, **options):
    """The error is swallowed, and the call returns as if it had worked."""
    try:
        return original(model, *args, **options)
    except Exception:
        return None


def twice_over(original, model, directory):
    """Each save appends a line to the model card."""
    original(model, directory)
    with open(f"{directory}/README.md", "a", encoding="utf-8") as card:
        card.write("\n- PEFT\n")


def always_of_peft(original, trainer, *args, **options):
    """The model card of any model names peft as its library."""
    original(trainer, *args, **options)
    path = f"{trainer.args.output_dir}/README.md"
    with open(path, encoding="utf-8") as card:
        text = card.read()
    with open(path, "w", encoding="utf-8") as card:
        card.write(text.replace("library_name: transformers", "library_name: peft"))


def apart(original, tuner, *args, **options):
    """The LoRA matrices of lm_head are copies, no longer tied to those of the embedding."""
    original(tuner, *args, **options)
    head = tuner.model.lm_head
    for module in (head.lora_A, head.lora_B):
        for linear in module.values():
            linear.weight = torch.nn.Parameter(linear.weight.detach().clone())


def parameters(table, names, id):
    """Return the parameters of one case of a table of suites/."""
    return dict(zip(names, table[id], strict=True))


#: By clause; `tests.faults` describes a row.
FAULTS = {
    "API-16/moved": (
        init.test_what_is_moved_into_the_adapter_is_taken_from_the_base,
        {"spec": init.MOVED["pissa"]},
        mutant("pissa-not-taken-out"),
        "logits differs by",
    ),
    "API-16/zero": (
        init.test_an_adapter_that_starts_at_zero_is_an_identity,
        {"spec": init.started(init.PLAIN, "mica")["mica"]},
        replace(LORA, "mica_init", not_at_zero),
        "logits differs by",
    ),
    "API-16/data": (
        init.test_what_is_moved_after_a_look_at_the_data_is_taken_from_the_base,
        {"prepare": init.lora_ga},
        replace(
            LORA,
            "lora_ga_init",
            pissa_without_subtraction,
            "What LoRA-GA moves into the adapter is not taken out of the base.",
        ),
        "logits differs by",
    ),
    "API-16/unknown": (
        init.test_an_unknown_initialisation_is_refused,
        {"spec": init.started(init.PLAIN, "unheard-of")["unheard-of"]},
        replace(LORA, "reset_lora_parameters", taken_for_the_default),
        "raised nothing",
    ),
    "API-17/converted": (
        init.test_a_converted_adapter_computes_the_same_on_the_base_as_it_came,
        {"spec": init.CONVERTED["pissa"], "safe": True},
        replace("peft.tuners.lora:LoraModel", "subtract_mutated_init", started_from_zero),
        "logits differs by",
    ),
    "API-17/refused": (
        init.test_another_method_is_not_converted,
        {},
        replace("peft.tuners.ia3:IA3Model", "_convert_state_dict_for_initial_model", unconverted),
        "raised",
    ),
    "API-18/nothing": (
        config.test_a_config_that_adapts_nothing_is_refused,
        {"spec": config.NOTHING["no-targets"][0], "words": config.NOTHING["no-targets"][1]},
        replace(TUNER, "inject_adapter", nothing, "A config that adapts nothing is accepted, and nothing is injected."),
        "raised nothing",
    ),
    "API-18/warned": (
        config.test_a_second_name_that_is_part_of_the_prefix_is_warned_of,
        {},
        replace(PEFT, "add_adapter", without_a_warning, "PeftModel.add_adapter gives no warning."),
        "False",
    ),
    "API-18/missing": (
        config.test_a_file_without_tensors_of_the_adapter_is_warned_of,
        {},
        replace(PEFT, "from_pretrained", without_a_warning, "PeftModel.from_pretrained gives no warning."),
        "0",
    ),
    "API-18/refused": (
        config.test_a_call_that_cannot_be_done_is_refused,
        parameters(config.CALLS, ("call", "words"), "two-copies"),
        replace(
            COPY,
            "check_set_adapter",
            lambda original, wrapper, names: names[0],
            "Of two adapters with a copy of one module the first is activated, and the second is ignored.",
        ),
        "raised nothing",
    ),
    "API-18/afterwards": (
        config.test_a_second_adapter_that_fits_nowhere_leaves_the_first_as_it_was,
        {},
        replace(PEFT, "add_adapter", without_an_error, "PeftModel.add_adapter swallows every error."),
        "raised nothing",
    ),
    "API-19/modules": (
        config.test_tensors_say_which_modules_are_adapted,
        parameters(config.BY_TENSORS, ("targets", "paths", "named"), "fewer"),
        replace(TUNER, "inject_adapter", without_its_tensors),
        "q_proj",
    ),
    "API-19/warned": (
        config.test_tensors_say_which_modules_are_adapted,
        parameters(config.BY_TENSORS, ("targets", "paths", "named"), "others"),
        replace(TUNER, "inject_adapter", without_a_warning, "Injecting an adapter gives no warning."),
        "no warning names",
    ),
    "API-20/copies": (
        switch.test_the_active_adapter_computes_alone,
        {"first": switch.PAIRS["first-head"][0], "second": switch.PAIRS["first-head"][1]},
        mutant("copies-stay-active"),
        "logits with the second",
    ),
    "API-20/prompts": (
        switch.test_the_active_adapter_computes_alone,
        {"first": switch.PAIRS["prompt-tuning"][0], "second": switch.PAIRS["prompt-tuning"][1]},
        mutant("prompts-not-switched"),
        "logits with the second",
    ),
    "API-20/saved": (
        switch.test_a_chosen_adapter_is_saved_alone,
        {"first": switch.PAIRS["first-head"][0], "second": switch.PAIRS["first-head"][1]},
        replace(PEFT, "save_pretrained", whatever_is_chosen),
        "adapter_model.safetensors",
    ),
    "API-20/by-name": (
        switch.test_several_can_be_frozen_and_trained_by_name,
        {},
        replace("peft.utils.other:AuxiliaryTrainingWrapper", "set_requires_grad", under_one_name),
        "lm_head",
    ),
    "API-21": (
        switch.test_checkpointing_that_was_undone_leaves_the_run,
        {"spec": switch.PLAIN.but(adapter={"route": "add_adapter"})},
        mutant("gradients-of-inputs-left-on"),
        "1 more hook",
    ),
    "API-22": (
        tables.test_injection_leaves_the_process_as_it_was,
        {"spec": tables.GOTTEN["llama/lora"], "uncompiled": None},
        mutant("environment-left-changed"),
        "environment variable CXX: clang++, was not set",
    ),
    "API-13/heads": (
        switch.test_of_two_adapters_the_other_one_is_left_whole,
        {"first": switch.PAIRS["both-heads"][0], "second": switch.PAIRS["both-heads"][1], "gone": "second"},
        replace(COPY, "delete_adapter", nothing, "Deleting an adapter leaves its copies of modules_to_save."),
        "lm_head.modules_to_save.second.weight is left",
    ),
    "BEST-07": (
        best.test_a_best_checkpoint_that_does_not_fit_is_an_error,
        {"damage": "another-rank"},
        replace(PEFT, "load_adapter", without_an_error, "PeftModel.load_adapter swallows every error."),
        "raised nothing",
    ),
    "IO-01": (
        io.test_a_card_that_is_written_again_stays_as_it_is,
        {},
        replace(PEFT, "create_or_update_model_card", twice_over),
        "'base_model: someone/their-base', 'library_name: peft'",
    ),
    "IO-02": (
        io.test_without_a_card_of_peft_the_trainers_is_none,
        {},
        replace("transformers.trainer:Trainer", "create_model_card", always_of_peft),
        "library_name: peft",
    ),
    "RES-17": (
        res.test_of_two_active_adapters_both_are_restored_and_the_first_goes_on,
        {},
        mutant("second-adapter-not-restored"),
        "differs by",
    ),
    "EMB-06": (
        emb.test_lora_of_tied_layers_is_one,
        {"trace": emb.TIED.but(lora={"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True})},
        replace("peft.tuners.lora:LoraModel", "inject_adapter", apart),
        "differs by",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)
