"""EMB: embeddings: resized, adapted, tied, and looked up at the hub."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "EMB",
    "embeddings and lookups at the hub",
    (
        Clause(
            "EMB-01",
            "A save of an adapter whose base has a hub name MUST ask the hub once whether that repository has a "
            "config.json, and save the embeddings whole where its vocabulary is another; a base that was built from a "
            "config or loaded from a directory MUST NOT be looked up.",
            source="peft/utils/save_and_load.py:298-332 (get_peft_model_state_dict); "
            "peft/utils/other.py:1491-1513 (check_file_exists_on_hf_hub)",
        ),
        Clause(
            "EMB-02",
            "With HF_HUB_OFFLINE=1 a save MUST ask the hub nothing, and without a network it MUST go on: each save "
            "warns that the vocabulary is assumed to be unchanged, and the adapter is written.",
            source="peft/utils/other.py:1497-1513 (check_file_exists_on_hf_hub); "
            "peft/utils/save_and_load.py:311-316 (get_peft_model_state_dict)",
        ),
        Clause(
            "EMB-03",
            "Embeddings that were resized after the base was loaded from a directory MUST be saved whole, with the "
            "output layer, in every adapter file of every checkpoint, and MUST be restored by resuming and reloading.",
            source="peft/utils/save_and_load.py:321-342 (get_peft_model_state_dict); "
            "peft/peft_model.py:302-309, 376-383 (PeftModel.save_pretrained)",
        ),
        Clause(
            "EMB-04",
            "Embeddings that were resized MUST be saved whole also where the base was built from a config: nothing "
            "else holds the rows that the adapter was trained beside.",
            source="peft/utils/save_and_load.py:308-332 (get_peft_model_state_dict)",
        ),
        Clause(
            "EMB-05",
            "An embedding or output layer that target_modules names, by whatever pattern, MUST be saved with the "
            "adapter: the frozen base weight whole, beside the layer's LoRA tensors, and no layer that is not named.",
            source="peft/utils/save_and_load.py:277-296, 334-342 (get_peft_model_state_dict)",
        ),
        Clause(
            "EMB-06",
            "Tied embeddings MUST stay tied, unchanged and unsaved under a plain LoRA; modules_to_save of one of the "
            "two layers MUST train and save that copy alone; with ensure_weight_tying=True both layers MUST be one "
            "trained tensor, also after reloading.",
            source="peft/tuners/tuners_utils.py:1417-1470 (BaseTuner._check_tied_modules); "
            "peft/tuners/lora/model.py:1293 (LoraModel._add_modules_to_save_to_tie)",
        ),
        Clause(
            "EMB-07",
            "With trainable_token_indices those rows of the embedding alone MUST be trained and saved beside the LoRA "
            "tensors, for both layers at once where they are tied; the embedding itself stays as it was.",
            source="peft/tuners/trainable_tokens/layer.py:63-67, 157 (TrainableTokensLayer); "
            "peft/utils/save_and_load.py:292-296 (get_peft_model_state_dict)",
            needs=("peft>=0.15",),
        ),
    ),
)
