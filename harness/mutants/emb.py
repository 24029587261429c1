"""EMB: embeddings in an adapter file, and the requests to the hub that saving them makes."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import COPY, Patch, nothing, replace, twice

SAVING = "peft.utils.save_and_load"


def hub_asked_offline(original, name, file):
    from peft.utils import other

    other.file_exists(name, file)  # type: ignore[attr-defined]
    return original(name, file)


def with_embeddings(saved: bool) -> Patch:
    """Return a patch that always saves with this value of save_embedding_layers."""
    return replace(
        "peft.peft_model",
        "get_peft_model_state_dict",
        lambda original, *args, **options: original(*args, **{**options, "save_embedding_layers": saved}),
    )


def original_used(original, wrapper, *args):
    return wrapper.original_module(*args)


def without_the_layers(original, model, tensors, *args, **options):
    others = {name: value for name, value in tensors.items() if "lm_head" not in name}
    return original(model, others, *args, **options)


MUTANTS = (
    Mutant(
        "hub-asked-twice",
        "Each save asks the hub twice for the base's config.",
        replace(SAVING, "check_file_exists_on_hf_hub", twice),
        cells=("EMB-01/hub-name", "EMB-01/resized"),
    ),
    Mutant(
        "hub-asked-offline",
        "The hub is asked although HF_HUB_OFFLINE is set.",
        replace(SAVING, "check_file_exists_on_hf_hub", hub_asked_offline),
        cells=("EMB-02/offline",),
    ),
    Mutant(
        "another-vocabulary-not-seen",
        "Embeddings are not saved although the vocabulary differs in size from the base's on the hub.",
        replace(SAVING, "get_embedding_layer_name", nothing),
        cells=("EMB-01/resized", "EMB-05/both"),
    ),
    Mutant(
        "embeddings-never-saved",
        "The adapter file lacks embeddings that were resized or adapted.",
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
        "Loading an adapter skips the output layer that was saved with it.",
        replace("peft.peft_model", "set_peft_model_state_dict", without_the_layers),
        cells=("EMB-03/*resum*", "EMB-03/saved-get_peft_model", "FRZ-06/lm_head/resumed"),
    ),
    Mutant(
        "copy-not-used",
        "The model computes with the original module, not with its copy from modules_to_save.",
        replace(COPY, "forward", original_used),
        cells=("EMB-06/one-of-two/embed_tokens", "FRZ-13/modules-to-save"),
    ),
)
