"""EMB: embeddings: resized, adapted, tied, and looked up at the hub."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "EMB",
    "embeddings and lookups at the hub",
    (
        Clause(
            "EMB-01",
            "If the base has a hub name, a save of its adapter MUST ask the hub once whether that repository has a "
            "config.json. If its vocabulary differs, the embeddings MUST be saved whole. A base that was built from "
            "a config or loaded from a directory MUST NOT be looked up.",
            source="peft/utils/save_and_load.py:298-332 (get_peft_model_state_dict); "
            "peft/utils/other.py:1491-1513 (check_file_exists_on_hf_hub)",
            profile="stack",
        ),
        Clause(
            "EMB-02",
            "With HF_HUB_OFFLINE=1 a save MUST ask the hub nothing. Without a network it MUST NOT fail. In both "
            "cases each save MUST warn that the vocabulary is assumed to be unchanged, and MUST write the adapter.",
            source="peft/utils/other.py:1497-1513 (check_file_exists_on_hf_hub); "
            "peft/utils/save_and_load.py:311-316 (get_peft_model_state_dict)",
            profile="stack",
        ),
        Clause(
            "EMB-03",
            "If embeddings were resized after the base was loaded from a directory, they and the output layer MUST "
            "be saved whole in every adapter file of every checkpoint. Resuming and reloading MUST restore them.",
            source="peft/utils/save_and_load.py:321-342 (get_peft_model_state_dict); "
            "peft/peft_model.py:302-309, 376-383 (PeftModel.save_pretrained)",
        ),
        Clause(
            "EMB-04",
            "Resized embeddings MUST be saved whole if the base was built from a config, too. Nothing else holds the "
            "rows that the adapter was trained with.",
            source="peft/utils/save_and_load.py:308-332 (get_peft_model_state_dict)",
        ),
        Clause(
            "EMB-05",
            "If target_modules names an embedding or output layer, by whatever pattern, the layer MUST be saved with "
            "the adapter: the frozen base weight whole, beside its LoRA tensors. A layer that is not named MUST NOT "
            "be saved.",
            source="peft/utils/save_and_load.py:277-296, 334-342 (get_peft_model_state_dict)",
        ),
        Clause(
            "EMB-06",
            "With a plain LoRA, tied embeddings MUST stay tied, unchanged and unsaved. If modules_to_save names one "
            "of the two layers, that copy alone MUST be trained and saved. With ensure_weight_tying=True both layers "
            "MUST be one trained tensor, after reloading too.",
            source="peft/tuners/tuners_utils.py:1417-1470 (BaseTuner._check_tied_modules); "
            "peft/tuners/lora/model.py:1293 (LoraModel._add_modules_to_save_to_tie)",
        ),
        Clause(
            "EMB-07",
            "With trainable_token_indices, only those rows of the embedding MUST be trained, and they MUST be saved "
            "beside the LoRA tensors. If the two layers are tied, this MUST hold for both at once. The embedding "
            "itself MUST stay as it was.",
            source="peft/tuners/trainable_tokens/layer.py:63-67, 157 (TrainableTokensLayer); "
            "peft/utils/save_and_load.py:292-296 (get_peft_model_state_dict)",
            needs=("peft>=0.15",),
        ),
    ),
    profile="checkpoint",
)
