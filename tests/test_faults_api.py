"""Put faults into upstream under which the checks of the chapter API must fail."""

import torch

from harness.mutants.api import drawing, with_cache
from harness.spec import ADD, GET
from harness.suites import test_api as api
from harness.suites import test_api_layers as layers
from harness.suites import test_api_manage as manage
from tests.faults import assert_seen, each, mutant, nothing, replace

TRAINER = "transformers.trainer:Trainer"
LLAMA = "transformers:LlamaForCausalLM"


# ---- faults ----


def one_tensor_lost(original, model, *args, **options):
    """load_adapter leaves one of the adapter's tensors at zero."""
    original(model, *args, **options)
    layer = model.model.layers[0].self_attn.q_proj
    torch.nn.init.zeros_(layer.lora_B[layer.active_adapters[0]].weight)


def with_loss_keywords(original, trainer, *args, **options):
    """The Trainer takes every model for one with loss keywords, and passes it num_items_in_batch."""
    original(trainer, *args, **options)
    trainer.model_accepts_loss_kwargs = True


def under_another_name(original, model, name, config):
    """PeftModel.add_adapter ignores the name that it is given."""
    return original(model, "another", config)


def added_under_another_name(original, model, config, adapter_name=None):
    """A second adapter of a name that is taken gets another name, without an error."""
    return original(model, config, adapter_name="another" if model._hf_peft_config_loaded else adapter_name)


def loaded_as_trainable(original, *args, **options):
    """PeftModel.from_pretrained loads every adapter as trainable."""
    return original(*args, **{**options, "is_trainable": True})


#: By clause; `tests.faults` describes a row.
FAULTS = {
    "API-01/columns": (
        api.test_the_base_is_found_in_whatever_holds_it,
        {"spec": api.PLAIN, "compiled": False},
        mutant("columns-of-the-wrapper"),
        "the batch lacks input_ids",
    ),
    "API-01/labels": (
        api.test_the_base_is_found_in_whatever_holds_it,
        {"spec": api.MIXED, "compiled": False},
        mutant("base-not-unwrapped"),
        "label_names is [], expected ['labels']",
    ),
    "API-01/mixed": (
        api.test_a_mixed_model_is_the_same_run,
        {},
        replace("peft:PeftMixedModel", "__init__", drawing, "A PeftMixedModel draws a random number when it is made."),
        "step 1: gradients of",
    ),
    "API-02/fresh": (
        layers.test_a_fresh_lora_is_an_identity,
        {"spec": layers.PLAIN},
        mutant("fresh-adapter-not-zero"),
        "logits differs by",
    ),
    "API-02/disabled": (
        layers.test_a_disabled_lora_is_an_identity_after_training,
        {"route": ADD},
        replace(LLAMA, "disable_adapters", nothing, "disable_adapters leaves the adapters on."),
        "logits differs by",
    ),
    "API-03": (
        layers.test_an_adapter_is_drawn_from_its_seed,
        {"trace": layers.PLAIN},
        mutant("adapter-drawn-from-another-range"),
        "lora_A.weight differs by",
    ),
    "API-04/scaling": (
        layers.test_a_layer_adds_its_scaled_adapter,
        {"spec": layers.PLAIN, "scaling": 2.0},
        mutant("scaling-left-out"),
        "the layer's output differs by",
    ),
    "API-04/dropout": (
        layers.test_dropout_is_of_the_adapters_input_alone,
        {"route": GET},
        mutant("dropout-off"),
        "in training mode differs by",
    ),
    "API-05": (
        api.test_both_routes_are_one_run,
        {"spec": api.PLAIN},
        mutant("routes-draw-differently"),
        "step 1: gradients of",
    ),
    "API-06/columns": (
        api.test_columns_are_those_that_the_bases_forward_takes,
        {"spec": api.PLAIN, "taken": "position_ids"},
        mutant("unknown-columns-kept"),
        "the batch has source, which forward() does not take",
    ),
    "API-06/not-given": (
        api.test_a_base_with_loss_keywords_is_given_the_number_of_items,
        {"spec": api.PLAIN},
        mutant("mean-of-means"),
        "False, expected True",
    ),
    "API-06/given": (
        api.test_a_base_without_loss_keywords_is_not_given_the_number_of_items,
        {"spec": api.BRIEF.but(model={"family": "harness.fixtures.plain_loss:llama"})},
        replace(TRAINER, "__init__", with_loss_keywords),
        "unexpected keyword argument 'num_items_in_batch'",
    ),
    "API-07/Trainer": (
        api.test_the_cache_is_switched_as_the_arguments_say,
        {"spec": api.BRIEF, "use_cache": False},
        replace(TRAINER, "__init__", with_cache, "Trainer() switches the cache of keys and values on."),
        "Trainer(): True, expected False",
    ),
    "API-07/train": (
        api.test_the_cache_is_switched_as_the_arguments_say,
        {"spec": api.BRIEF, "use_cache": False},
        mutant("cache-left-on"),
        "train(): True, expected False",
    ),
    "API-08/add_adapter": (
        api.test_which_of_two_adapters_is_trained,
        {"spec": api.ADDED, "trained": "second"},
        mutant("adapter-not-switched"),
        "adapter 'default': model.layers.0.self_attn.q_proj.lora_B.weight has moved",
    ),
    "API-08/get_peft_model": (
        api.test_which_of_two_adapters_is_trained,
        {"spec": api.BRIEF, "trained": "default"},
        replace("peft:PeftModel", "add_adapter", under_another_name),
        "the model has no adapter 'second'",
    ),
    "API-09/taken/add_adapter": (
        api.test_a_name_that_is_taken_is_refused,
        {"spec": api.ADDED, "words": "already exists"},
        replace(LLAMA, "add_adapter", added_under_another_name),
        "raised nothing",
    ),
    "API-09/unknown": (
        api.test_activating_an_unknown_adapter_is_refused,
        {"spec": api.ADDED, "names": "second"},
        mutant("unknown-adapter-activated"),
        "raised nothing",
    ),
    "API-09/none": (
        api.test_activating_an_adapter_before_one_is_added_is_refused,
        {},
        mutant("unknown-adapter-activated"),
        "raised nothing",
    ),
    "API-09/not-a-config": (
        api.test_add_adapter_refuses_what_it_cannot_inject,
        {"config": api.REFUSED["dict"][0], "kind": TypeError, "words": "should be an instance of PeftConfig"},
        replace(LLAMA, "add_adapter", nothing, "add_adapter accepts a dict as a config, and adds nothing."),
        "raised nothing",
    ),
    "API-10/inference_mode": (
        api.test_an_adapter_for_inference_does_not_train,
        {"spec": api.BRIEF.but(lora={"inference_mode": True})},
        mutant("inference-mode-trained"),
        "raised nothing",
    ),
    "API-10/loaded": (
        api.test_an_adapter_loaded_for_inference_does_not_train,
        {"route": GET},
        replace("peft:PeftModel", "from_pretrained", loaded_as_trainable),
        "raised nothing",
    ),
    "API-10/trainable": (
        api.test_an_adapter_loaded_as_trainable_trains,
        {"route": GET},
        replace("torch.optim:AdamW", "step", nothing, "The optimizer updates no parameter."),
        "is what it was before training",
    ),
    "API-11": (
        api.test_an_old_peft_is_refused,
        {"call": api.OF_ADAPTERS["set_adapter"]},
        replace("transformers.integrations.peft", "check_peft_version", nothing, "The version of peft is not checked."),
        "raised nothing",
    ),
    "API-12/without": (
        manage.test_a_model_without_adapters_refuses,
        {"call": manage.WITHOUT["disable_adapters"]},
        replace(LLAMA, "disable_adapters", nothing, "disable_adapters accepts a model that has no adapter."),
        "raised nothing",
    ),
    "API-12/unknown": (
        manage.test_what_cannot_be_done_is_refused,
        dict(zip(("model", "call", "words"), manage.REFUSED["delete/unknown"], strict=True)),
        replace(LLAMA, "delete_adapter", nothing, "delete_adapter accepts a name that no adapter has."),
        "raised nothing",
    ),
    "API-12/late": (
        manage.test_swapping_is_to_be_announced_before_the_first_adapter,
        {"check": "error"},
        replace(LLAMA, "enable_peft_hotswap", nothing, "enable_peft_hotswap accepts a model that has an adapter."),
        "raised nothing",
    ),
    "API-13/one": (
        manage.test_deleting_takes_out_one_adapter_and_leaves_the_other,
        {"names": "second"},
        mutant("deleted-adapter-left"),
        "q_proj.lora_A.second.weight is left",
    ),
    "API-13/last": (
        manage.test_without_its_last_adapter_a_model_is_the_base_and_takes_a_new_one,
        {},
        mutant("deleted-adapter-left"),
        "logits of the base",
    ),
    "API-14/loaded": (
        manage.test_a_loaded_adapter_is_the_one_that_was_saved,
        {"load": manage.from_tensors},
        replace(LLAMA, "load_adapter", one_tensor_lost),
        "logits",
    ),
    "API-14/state-dict": (
        manage.test_the_state_dict_of_an_adapter_is_its_file,
        {"name": "default"},
        replace(
            "peft.utils",
            "load_peft_weights",
            lambda original, *args, **options: {},
            "load_peft_weights reads no tensor from an adapter file.",
        ),
        "state dict",
    ),
    "API-14/routes": (
        manage.test_an_adapter_loaded_by_the_model_is_the_one_loaded_by_peft,
        {},
        replace(LLAMA, "load_adapter", one_tensor_lost),
        "logits of the model",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)
