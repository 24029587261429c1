"""EMB: embeddings in an adapter file, and what is looked up at the hub for them."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import COPY, Fault, nothing, replace, twice

SAVING = "peft.utils.save_and_load"


def whatever_is_set(original, name, file):
    from peft.utils import other

    other.file_exists(name, file)
    return original(name, file)


def with_embeddings(wanted: bool) -> Fault:
    """Saving with save_embedding_layers=True or False, whatever was asked for."""
    return replace(
        "peft.peft_model",
        "get_peft_model_state_dict",
        lambda original, *args, **options: original(*args, **{**options, "save_embedding_layers": wanted}),
    )


def by_the_original(original, wrapper, *args):
    return wrapper.original_module(*args)


def without_the_layers(original, model, tensors, *args, **options):
    kept = {name: value for name, value in tensors.items() if "lm_head" not in name}
    return original(model, kept, *args, **options)


MUTANTS = (
    Mutant(
        "hub-asked-twice",
        "Each save asks the hub twice for the base's config.",
        replace(SAVING, "check_file_exists_on_hf_hub", twice),
        cells=("EMB-01/hub-name", "EMB-01/resized"),
    ),
    Mutant(
        "hub-asked-offline",
        "The hub is asked where the environment says that there is none.",
        replace(SAVING, "check_file_exists_on_hf_hub", whatever_is_set),
        cells=("EMB-02/offline",),
    ),
    Mutant(
        "another-vocabulary-not-seen",
        "A vocabulary of another size than the base's at the hub saves no embeddings.",
        replace(SAVING, "get_embedding_layer_name", nothing),
        cells=("EMB-01/resized", "EMB-05/both"),
    ),
    Mutant(
        "embeddings-never-saved",
        "Resized or adapted embeddings are not in the adapter file.",
        with_embeddings(False),
        cells=("EMB-03/directory", "EMB-05/both"),
    ),
    Mutant(
        "embeddings-always-saved",
        "Every adapter file holds the embeddings and the output layer.",
        with_embeddings(True),
        cells=("EMB-06/plain", "EMB-07/untied", "CKPT-25/plain"),
    ),
    Mutant(
        "output-layer-not-loaded",
        "Loading an adapter passes over the output layer that was saved with it.",
        replace("peft.peft_model", "set_peft_model_state_dict", without_the_layers),
        cells=("EMB-03/*resum*", "EMB-03/saved-get_peft_model", "FRZ-06/lm_head/resumed"),
    ),
    Mutant(
        "copy-not-used",
        "The model computes with the original of a module that modules_to_save copied.",
        replace(COPY, "forward", by_the_original),
        cells=("EMB-06/one-of-two/embed_tokens", "FRZ-13/modules-to-save"),
    ),
)
