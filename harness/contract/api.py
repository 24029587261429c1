"""API: adapter injection and detection."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "API",
    "adapter injection and detection",
    (
        Clause(
            "API-01",
            "The Trainer MUST find the base model in a PeftModel, a PeftMixedModel, a model with add_adapter "
            "adapters and a compiled model, and MUST train the same run in each.",
            source="transformers/trainer_utils.py:69-99 (_is_peft_model, unwrap_peft_model); "
            "transformers/trainer.py:512-532 (Trainer.__init__)",
            profile="trainer",
        ),
        Clause(
            "API-02",
            "A fresh LoRA MUST be an identity, and so MUST a fresh adapter of any other method that changes weights. "
            "In eval mode the logits MUST be those of the base model, bit for bit. The same MUST hold within "
            "disable_adapter() after training.",
            source="peft/tuners/lora/layer.py:332-345 (LoraLayer.reset_lora_parameters); peft/tuners/*/layer.py "
            "(reset_*_parameters)",
        ),
        Clause(
            "API-03",
            "Injection MUST draw from torch's global generator only, module by module in the order of the model. For "
            "each module it MUST draw the linear layers A and B, and then A again as kaiming_uniform(a=sqrt(5)). B "
            "MUST be zero. One seed MUST give one adapter, by either route.",
            source="peft/tuners/lora/layer.py:263-264, 332-345 (LoraLayer.update_layer, reset_lora_parameters)",
        ),
        Clause(
            "API-04",
            "An adapted layer MUST return base(x) + B(A(dropout(x))) * scaling in the dtype of the base. x MUST be "
            "cast to the dtype of A. scaling MUST be lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora.",
            source="peft/tuners/lora/layer.py:278-281, 1087-1113 (LoraLayer.update_layer, Linear.forward)",
        ),
        Clause(
            "API-05",
            "get_peft_model and add_adapter MUST train the same run: the same gradients, losses and adapter, bit for "
            "bit.",
            source="peft/mapping_func.py:105-158 (get_peft_model); "
            "transformers/integrations/peft.py:390-428 (PeftAdapterMixin.add_adapter)",
            profile="any-loop",
        ),
        Clause(
            "API-06",
            "By either route, the Trainer MUST read these from the base model: the names of the labels, the columns "
            "that forward() takes, and whether forward() takes num_items_in_batch. All other columns MUST be "
            "dropped.",
            source="transformers/trainer.py:512-532 (Trainer.__init__), 1179-1193 "
            "(Trainer._set_signature_columns_if_needed)",
            profile="trainer",
        ),
        Clause(
            "API-07",
            "By either route, the Trainer MUST set config.use_cache of the base model to TrainingArguments.use_cache "
            "(False by default). The value MUST remain after training.",
            source="transformers/trainer.py:644-646 (Trainer.__init__)",
            needs=("transformers>=5.0",),
            profile="trainer",
        ),
        Clause(
            "API-08",
            "A second adapter that is added to a PeftModel MUST be inactive and frozen, and training MUST train the "
            "first adapter. A second adapter that add_adapter adds MUST be active, and training MUST train it alone.",
            source="transformers/integrations/peft.py:428 (PeftAdapterMixin.add_adapter); "
            "peft/tuners/tuners_utils.py:882-900, 1141-1153 (BaseTuner.inject_adapter)",
        ),
        Clause(
            "API-09",
            "Injection MUST refuse an adapter name that is taken, and activation a name that does not exist. "
            "add_adapter MUST refuse anything but a PeftConfig, and prompt learning. After a refusal the model MUST "
            "accept a correct config.",
            source="transformers/integrations/peft.py:408-462 (PeftAdapterMixin.add_adapter, set_adapter); "
            "peft/mapping.py:78-83 (inject_adapter_in_model)",
            refuses=True,
        ),
        Clause(
            "API-10",
            "If no parameter of a model is trainable, train() MUST raise RuntimeError. This covers adapters that "
            "were loaded for inference or made with inference_mode=True.",
            source="peft/tuners/tuners_utils.py:1141 (BaseTuner.inject_adapter); peft/peft_model.py:423, 496 "
            "(PeftModel.from_pretrained)",
            profile="trainer",
            refuses=True,
        ),
        Clause(
            "API-11",
            "If peft is older than add_adapter, load_adapter and related methods need, they MUST refuse it and name "
            "the release that they need.",
            source="transformers/integrations/peft.py:47, 408 (PeftAdapterMixin.add_adapter); "
            "transformers/utils/peft_utils.py:99-113 (check_peft_version)",
            refuses=True,
        ),
        Clause(
            "API-12",
            "If an adapter method of a model cannot do what it is asked, it MUST raise ValueError and say why. This "
            "covers a model without adapters, a name that is missing or taken, and nothing to load. It also covers a "
            "hot swap of an adapter that is missing, is no LoRA, or was prepared too late.",
            source="transformers/integrations/peft.py:174-222, 375-385, 480, 499, 521, 555, 633-647 (PeftAdapterMixin)",
            needs=("transformers>=5.0",),
            refuses=True,
        ),
        Clause(
            "API-13",
            "delete_adapter MUST remove every tensor of that adapter and nothing else. Without adapters, the model "
            "MUST be the base again, bit for bit, and MUST accept a new adapter.",
            source="transformers/integrations/peft.py:622-659 (PeftAdapterMixin.delete_adapter)",
            needs=("transformers>=5.0",),
        ),
        Clause(
            "API-14",
            "A loaded adapter MUST be the adapter that was saved, bit for bit. This MUST hold for load_adapter from "
            "a directory, from tensors and a config, and by a hot swap, and for from_pretrained of the adapter's "
            "directory.",
            source="transformers/integrations/peft.py:80-351, 662-700 (PeftAdapterMixin.load_adapter, "
            "maybe_load_adapters)",
            needs=("transformers>=5.0",),
        ),
        Clause(
            "API-15",
            "A trained adapter that is merged into its layers MUST compute what it computed unmerged, within "
            "rounding. Unmerging MUST restore the base's weights, within rounding.",
            source="peft/tuners/lora/layer.py:957-1085 (Linear.merge, unmerge); peft/tuners/tuners_utils.py "
            "(BaseTuner.merge_adapter, unmerge_adapter)",
        ),
        Clause(
            "API-16",
            "Whatever init_lora_weights is, a fresh LoRA MUST NOT change what the model computes. If B or A starts "
            "at zero, this MUST hold bit for bit. If the adapter starts with a part taken out of each base weight, "
            "it MUST hold within rounding, on transposed (Conv1D) layers too. An unknown name MUST be refused.",
            source="peft/tuners/lora/layer.py:288-312, 384-650 (LoraLayer.update_layer, pissa_init and its kin)",
            needs=("peft>=0.21",),
            refuses=True,
        ),
        Clause(
            "API-17",
            "save_pretrained(path_initial_model_for_weight_conversion=...) MUST write a LoRA for the original base. "
            "On it, that LoRA MUST compute what the trained adapter computes on the base that lost a part, within "
            "rounding. This MUST hold with rslora and patterns, too, and in either file format. For a method other "
            "than LoRA it MUST be refused.",
            source="peft/peft_model.py:336-372, 398-412 (PeftModel.save_pretrained); peft/tuners/lora/model.py:1144-1190 "
            "(LoraModel._convert_state_dict_for_initial_model)",
            needs=("peft>=0.21",),
            refuses=True,
        ),
        Clause(
            "API-18",
            "A config that adapts nothing MUST be refused with ValueError, and so MUST a call that a PeftModel "
            "cannot do. The error MUST say what found no module, and the model MUST stay as it was. If a part of a "
            "config has no effect, or a file lacks some of the tensors, there MUST be a warning.",
            source="peft/tuners/tuners_utils.py:1051-1130 (BaseTuner.inject_adapter); peft/peft_model.py:288-292, "
            "493-496, 629-645, 1115-1160 (PeftModel)",
            needs=("peft>=0.21",),
            refuses=True,
        ),
        Clause(
            "API-19",
            "inject_adapter_in_model with a state_dict MUST adapt the modules that its tensors name, and no others. "
            "If the config names other modules, it MUST warn of each by name.",
            source="peft/tuners/tuners_utils.py:940-1050 (BaseTuner.inject_adapter)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-20",
            "If a model has several adapters, the active adapter MUST compute alone, bit for bit as in a model of "
            "its own. This MUST hold, too, if one adapter has modules_to_save and another has none. Each adapter "
            "MUST be saved, frozen and trained by its name alone.",
            source="peft/utils/other.py:503-640, 707-740, 1136-1150 (AuxiliaryTrainingWrapper, ModulesToSaveWrapper, "
            "_set_adapter); transformers/integrations/peft.py:430-470 (PeftAdapterMixin.set_adapter)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-21",
            "gradient_checkpointing_disable() MUST undo gradient_checkpointing_enable(). No hook may be left, and "
            "the run MUST be that of a model that never had it, bit for bit.",
            source="transformers/modeling_utils.py:3258-3274 (PreTrainedModel._activation_checkpointing_disable)",
            needs=("transformers>=5.23",),
        ),
        Clause(
            "API-22",
            "Injecting an adapter MUST leave the process as it was: environment variables, torch's default dtype and "
            "device, grad mode, threads, and the switches of precision and determinism.",
            source="peft/tuners/tuners_utils.py:1051-1130 (BaseTuner.inject_adapter); peft/tuners/boft/layer.py:41-108 "
            "(patch_environment, get_fbd_cuda)",
        ),
        Clause(
            "API-23",
            "A verb MUST leave what it is not about. Disabling, enabling, saving, merging and unmerging MUST leave the "
            "training mode of each module and requires_grad of each parameter as they were; an adapter that was loaded "
            "for inference MUST stay frozen. Casting a model MUST cast its adapter, and cast up and back the model MUST "
            "have its bits again.",
            source="peft/tuners/tuners_utils.py:2000-2017 (BaseTunerLayer.enable_adapters); "
            "peft/peft_model.py:1023-1077 (PeftModel.disable_adapter)",
        ),
        Clause(
            "API-24",
            "add_weighted_adapter of one adapter with weight 1 MUST give that adapter. Of several it MUST give what its "
            "combination_type says: the weighted sum (cat, svd, linear), or the sum after pruning and election of signs "
            "(ties, dare, magnitude_prune). The sources MUST stay as they were. The new adapter MUST be the same when "
            "it is saved and loaded. What cannot be combined MUST be refused.",
            source="peft/tuners/lora/model.py:707-1056 (LoraModel.add_weighted_adapter); peft/utils/merge_utils.py",
            needs=("peft>=0.21",),
            refuses=True,
        ),
        Clause(
            "API-25",
            "If several adapters are active, each MUST act. Merged together the model MUST compute what it did, within "
            "rounding; one that is merged by its name MUST act alone. Disabled they MUST leave the base, bit for bit, "
            "one that is deleted MUST leave the other, and training MUST train all that are active.",
            source="peft/tuners/tuners_utils.py:1313-1349, 2493-2518 (BaseTuner.merge_adapter, check_adapters_to_merge)",
            needs=("peft>=0.21",),
        ),
        Clause(
            "API-26",
            "An adapter that save_as_lora converts with rank=1.0 MUST compute as a LoRA what it computed, within "
            "rounding. Methods and layers that cannot be converted MUST be refused.",
            source="peft/tuners/lora/conversion.py:145-355 (convert_to_lora, save_as_lora)",
            needs=("peft>=0.21",),
            refuses=True,
        ),
        Clause(
            "API-27",
            "evaluate() and predict() MUST leave every module in evaluation mode, and all else as it was: tensors, "
            "requires_grad, hooks, active, merged and disabled adapters. The next step MUST be made in training mode. If an "
            "exception or KeyboardInterrupt ends train(), requires_grad, hooks and adapters MUST be as one that came to "
            "its end leaves them, and the model MUST train as a new one with its values does.",
            source="transformers/trainer.py:1481-1540, 1643-1676, 2010-2041 (Trainer.train, _inner_training_loop, "
            "_finalize_training), 2955-2959 (evaluation_loop)",
            profile="trainer",
            device="cpu",
        ),
    ),
    profile="stack",
)
