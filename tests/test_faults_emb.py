"""Put faults into upstream under which the checks of suites/test_emb.py must fail."""

from harness.mutants.emb import hub_asked_offline
from harness.spec import GET
from harness.suites import test_emb as emb
from tests.faults import assert_seen, each, mutant, nothing, replace

SAVING = "peft.utils.save_and_load"


# ---- faults ----


def always_asking(original, *args, **options):
    """A save asks the hub although the base has no name there."""
    from peft.utils import other

    other.file_exists("", "config.json")  # type: ignore[attr-defined]
    return original(*args, **options)


#: By clause; `tests.faults` describes a row.
FAULTS = {
    "EMB-01/twice": (
        emb.test_a_base_with_a_hub_name_is_looked_up_once_a_save,
        {"spec": emb.based_on(emb.NAME)},
        mutant("hub-asked-twice"),
        emb.NAME,
    ),
    "EMB-01/no-name": (
        emb.test_a_base_without_a_hub_name_is_not_looked_up,
        {"spec": emb.based_on("directory")},
        replace("peft.peft_model", "get_peft_model_state_dict", always_asking),
        "[('', 'config.json'), ('', 'config.json')]",
    ),
    "EMB-01/another-vocabulary": (
        emb.test_another_vocabulary_at_the_hub_saves_the_embeddings,
        {"spec": emb.based_on(emb.NAME, 260)},
        mutant("another-vocabulary-not-seen"),
        "no model.embed_tokens.weight",
    ),
    "EMB-01/same-vocabulary": (
        emb.test_the_same_vocabulary_at_the_hub_saves_the_adapter_alone,
        {"spec": emb.based_on(emb.NAME)},
        mutant("embeddings-always-saved"),
        "lm_head.weight is saved, unexpected",
    ),
    "EMB-02/offline": (
        emb.test_offline_nothing_is_asked_and_each_save_warns,
        {"spec": emb.based_on(emb.NAME)},
        mutant("hub-asked-offline"),
        emb.NAME,
    ),
    "EMB-02/silent": (
        emb.test_offline_nothing_is_asked_and_each_save_warns,
        {"spec": emb.based_on(emb.NAME)},
        replace(
            SAVING,
            "check_file_exists_on_hf_hub",
            lambda *args: False,
            "If the environment says that there is no hub, a save does not ask and does not warn.",
        ),
        "0 warnings say 'Could not find a config file",
    ),
    "EMB-02/no-network": (
        emb.test_a_failing_network_costs_a_warning_and_not_the_run,
        {"spec": emb.based_on(emb.NAME)},
        replace(
            SAVING,
            "check_file_exists_on_hf_hub",
            lambda original, *args: hub_asked_offline(nothing, *args),
            "An error of the network while a save asks the hub ends the run.",
        ),
        "the run ended with ConnectionError: no route to host",
    ),
    "EMB-03/saved": (
        emb.test_resized_embeddings_are_saved_whole,
        {"trace": emb.DIRECTORY},
        mutant("embeddings-never-saved"),
        "checkpoint-2/adapter_model.safetensors: no model.embed_tokens.weight",
    ),
    "EMB-03/resumed": (
        emb.test_resuming_restores_resized_embeddings,
        {},
        mutant("output-layer-not-loaded"),
        "lm_head.weight is not what it was in the run that wrote the checkpoint",
    ),
    "EMB-03/reloaded": (
        emb.test_reloading_restores_resized_embeddings,
        {"spec": emb.DIRECTORY, "route": GET},
        mutant("output-layer-not-loaded"),
        "lm_head.weight is not what it was when training ended",
    ),
    "EMB-05": (
        emb.test_an_adapted_embedding_is_saved_with_its_base_weight,
        {"spec": emb.SAVED.but(lora={"target_modules": emb.TARGETS["lm_head"][0]}), "layers": (emb.HEAD,)},
        mutant("embeddings-never-saved"),
        "no lm_head.weight",
    ),
    "EMB-06/plain": (
        emb.test_a_plain_lora_leaves_tied_embeddings_alone,
        {"trace": emb.TIED},
        mutant("embeddings-always-saved"),
        "model.embed_tokens.weight is saved, unexpected",
    ),
    "EMB-06/one-of-two": (
        emb.test_saving_the_embedding_trains_it_apart_from_the_output_layer,
        {"trace": emb.TIED.but(lora={"modules_to_save": ["embed_tokens"]})},
        mutant("copy-not-used"),
        "model.embed_tokens.weight is what it was before training",
    ),
    "EMB-06/both": (
        emb.test_ensure_weight_tying_keeps_one_trained_tensor,
        {"spec": emb.TIED.but(lora={"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True})},
        replace(
            "peft.tuners.lora.model:LoraModel",
            "_add_modules_to_save_to_tie",
            nothing,
            "ensure_weight_tying does not tie the copies of tied layers.",
        ),
        "model.embed_tokens.weight and lm_head.weight differ after training",
    ),
    "EMB-07/saved": (
        emb.test_chosen_rows_alone_are_trained_and_saved,
        {"trace": emb.TOKENS},
        mutant("embeddings-always-saved"),
        "is saved, unexpected",
    ),
    "EMB-07/tied": (
        emb.test_chosen_rows_of_tied_layers_are_trained_as_one,
        {"trace": emb.TOKENS.but(model={"family": "llama-tied"})},
        replace(
            "peft.utils.other",
            "_get_module_names_tied_with_embedding",
            lambda *args: [],
            "trainable_token_indices does not find the layers that are tied to the embedding.",
        ),
        "lm_head.token_adapter.trainable_tokens_delta is not in the model",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)
