"""API: adapter injection and detection."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "API",
    "adapter injection and detection",
    (
        Clause(
            "API-01",
            "The Trainer MUST find the base model in whatever holds it, a PeftModel, a PeftMixedModel, a model with "
            "add_adapter adapters or a compiled one, and train the same run in it.",
            source="transformers/trainer_utils.py:69-99 (_is_peft_model, unwrap_peft_model); "
            "transformers/trainer.py:512-532 (Trainer.__init__)",
        ),
        Clause(
            "API-02",
            "A fresh LoRA MUST be an identity, and so MUST a fresh adapter of any other method that changes weights: "
            "in eval mode the logits are those of the base model, bit for bit, and so they are within "
            "disable_adapter() after training.",
            source="peft/tuners/lora/layer.py:332-345 (LoraLayer.reset_lora_parameters); peft/tuners/*/layer.py "
            "(reset_*_parameters)",
        ),
        Clause(
            "API-03",
            "Injection MUST draw from torch's global generator alone, module by module in the order of the model: the "
            "two linear layers A and B, then A anew as kaiming_uniform(a=sqrt(5)); B MUST be zero. One seed is one "
            "adapter, by either route.",
            source="peft/tuners/lora/layer.py:263-264, 332-345 (LoraLayer.update_layer, reset_lora_parameters)",
        ),
        Clause(
            "API-04",
            "An adapted layer MUST return base(x) + B(A(dropout(x))) * scaling in the dtype of the base, x cast to "
            "the dtype of A, with scaling lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora.",
            source="peft/tuners/lora/layer.py:278-281, 1087-1113 (LoraLayer.update_layer, Linear.forward)",
        ),
        Clause(
            "API-05",
            "get_peft_model and add_adapter MUST train as one run: the same gradients, losses and adapter, bit for bit.",
            source="peft/mapping_func.py:105-158 (get_peft_model); "
            "transformers/integrations/peft.py:390-428 (PeftAdapterMixin.add_adapter)",
        ),
        Clause(
            "API-06",
            "What the Trainer learns from a model it MUST learn from the base model, by either route: the names of the "
            "labels, the columns that forward() takes (all others are dropped), and whether forward() takes "
            "num_items_in_batch.",
            source="transformers/trainer.py:512-532 (Trainer.__init__), 1179-1193 "
            "(Trainer._set_signature_columns_if_needed)",
        ),
        Clause(
            "API-07",
            "The Trainer MUST set config.use_cache of the base model to TrainingArguments.use_cache, False by default, "
            "by either route, and leave it so after training.",
            source="transformers/trainer.py:644-646 (Trainer.__init__)",
            needs=("transformers>=5.0",),
        ),
        Clause(
            "API-08",
            "A second adapter added to a PeftModel MUST be inactive and frozen, and training trains the first; one "
            "added by add_adapter MUST be the active one, and training trains it alone.",
            source="transformers/integrations/peft.py:428 (PeftAdapterMixin.add_adapter); "
            "peft/tuners/tuners_utils.py:882-900, 1141-1153 (BaseTuner.inject_adapter)",
        ),
        Clause(
            "API-09",
            "Injection MUST refuse a name that is taken and activation a name that is not; add_adapter MUST refuse "
            "what is no PeftConfig and prompt learning. A model that refused MUST take a right config afterwards.",
            source="transformers/integrations/peft.py:408-462 (PeftAdapterMixin.add_adapter, set_adapter); "
            "peft/mapping.py:78-83 (inject_adapter_in_model)",
        ),
        Clause(
            "API-10",
            "A model of which no parameter is trainable, its adapter loaded for inference or made with "
            "inference_mode=True, MUST NOT train: train() raises a RuntimeError.",
            source="peft/tuners/tuners_utils.py:1141 (BaseTuner.inject_adapter); peft/peft_model.py:423, 496 "
            "(PeftModel.from_pretrained)",
        ),
        Clause(
            "API-11",
            "add_adapter, load_adapter and their kin MUST refuse a peft that is older than they need, and name the "
            "release.",
            source="transformers/integrations/peft.py:47, 408 (PeftAdapterMixin.add_adapter); "
            "transformers/utils/peft_utils.py:99-113 (check_peft_version)",
        ),
        Clause(
            "API-12",
            "The methods of a model for its adapters MUST raise ValueError where they cannot do it, and say why: on a "
            "model without adapters, for a name that is not there or is taken, for nothing to load, and for a hot swap "
            "of what is not there, is no LoRA, or was announced too late.",
            source="transformers/integrations/peft.py:174-222, 375-385, 480, 499, 521, 555, 633-647 (PeftAdapterMixin)",
            needs=("transformers>=5.0",),
        ),
        Clause(
            "API-13",
            "delete_adapter MUST take out every tensor of that adapter and nothing else; without adapters the model "
            "MUST be the base again, bit for bit, and MUST take a new one.",
            source="transformers/integrations/peft.py:622-659 (PeftAdapterMixin.delete_adapter)",
            needs=("transformers>=5.0",),
        ),
        Clause(
            "API-14",
            "An adapter loaded by the model, from a directory, from tensors and a config, by a hot swap, or by "
            "from_pretrained of its directory, MUST be the adapter that was saved, bit for bit.",
            source="transformers/integrations/peft.py:80-351, 662-700 (PeftAdapterMixin.load_adapter, "
            "maybe_load_adapters)",
            needs=("transformers>=5.0",),
        ),
        Clause(
            "API-15",
            "A trained adapter that is merged into its layers MUST compute what it did beside them, within rounding; "
            "unmerging it MUST give the base's weights back, within rounding.",
            source="peft/tuners/lora/layer.py:957-1085 (Linear.merge, unmerge); peft/tuners/tuners_utils.py "
            "(BaseTuner.merge_adapter, unmerge_adapter)",
        ),
        Clause(
            "API-16",
            "Whatever init_lora_weights names, a fresh LoRA MUST leave what the model computes as it was: bit for bit "
            "where B or A starts at zero, within rounding where the adapter starts with a part of each base weight "
            "that is taken out of it, on transposed (Conv1D) layers too; a name that it does not know is refused.",
            source="peft/tuners/lora/layer.py:288-312, 384-650 (LoraLayer.update_layer, pissa_init and its kin)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-17",
            "save_pretrained(path_initial_model_for_weight_conversion=...) MUST write a LoRA that computes on the base "
            "as it came what the adapter computes on the base that a part was taken from, within rounding, also with "
            "rslora and patterns and in either file format; of another method than LoRA it MUST be refused.",
            source="peft/peft_model.py:336-372, 398-412 (PeftModel.save_pretrained); peft/tuners/lora/model.py:1144-1190 "
            "(LoraModel._convert_state_dict_for_initial_model)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-18",
            "A config that adapts nothing and a call that a PeftModel cannot do MUST be refused with ValueError, which "
            "says what found no module, and leave the model as it was; a part of a config without effect and a file "
            "without some of the tensors MUST be warned of.",
            source="peft/tuners/tuners_utils.py:1051-1130 (BaseTuner.inject_adapter); peft/peft_model.py:288-292, "
            "493-496, 629-645, 1115-1160 (PeftModel)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-19",
            "inject_adapter_in_model with a state_dict MUST adapt the modules that its tensors name and no other, and "
            "MUST warn, by name, of modules where the config says otherwise.",
            source="peft/tuners/tuners_utils.py:940-1050 (BaseTuner.inject_adapter)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-20",
            "Of several adapters the active one MUST compute alone, bit for bit what it computes in a model of its "
            "own, also where one of them has modules_to_save and the other has none; each MUST be saved, frozen and "
            "trained by its name alone.",
            source="peft/utils/other.py:503-640, 707-740, 1136-1150 (AuxiliaryTrainingWrapper, ModulesToSaveWrapper, "
            "_set_adapter); transformers/integrations/peft.py:430-470 (PeftAdapterMixin.set_adapter)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-21",
            "gradient_checkpointing_disable() MUST undo gradient_checkpointing_enable(): no hook is left, and the run "
            "is that of a model that never had it, bit for bit.",
            source="transformers/modeling_utils.py:3258-3274 (PreTrainedModel._activation_checkpointing_disable)",
            needs=("transformers>=5.23",),
        ),
        Clause(
            "API-22",
            "Injecting an adapter MUST leave the process as it was: environment variables, torch's default dtype and device, "
            "grad mode, threads and switches of precision and determinism.",
            source="peft/tuners/tuners_utils.py:1051-1130 (BaseTuner.inject_adapter); peft/tuners/boft/layer.py:41-108 "
            "(patch_environment, get_fbd_cuda)",
        ),
    ),
)
