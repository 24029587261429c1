"""FRZ: what is trained, what stays frozen."""

from harness.contract.clause import Chapter, Clause

_BNB = ("bitsandbytes>=0.43",)

CHAPTER = Chapter(
    "FRZ",
    "what is trained, what stays frozen",
    (
        Clause(
            "FRZ-01",
            "After training, every tensor of model.state_dict() that belongs to no adapter MUST be bit-identical to "
            "what it was before.",
            source="peft/tuners/tuners_utils.py:506-543 (BaseTuner._mark_only_adapters_as_trainable)",
        ),
        Clause(
            "FRZ-02",
            "Whatever the method, the optimizer MUST hold exactly the adapter's parameters. For a LoRA these are r * "
            "(inputs + outputs) numbers in the group with weight decay, and nothing in the group without.",
            source="transformers/trainer.py:1259-1286 (Trainer.create_optimizer)",
        ),
        Clause(
            "FRZ-03",
            "A frozen parameter MUST NOT hold a gradient when the optimizer steps.",
            source="peft/tuners/tuners_utils.py:506-543 (BaseTuner._mark_only_adapters_as_trainable)",
        ),
        Clause(
            "FRZ-04",
            "After training on a quantized base, its packed weights and all of its quantization state MUST be "
            "bit-identical to what they were before.",
            source="bitsandbytes/nn/modules.py:504-640 (Linear4bit)",
            needs=_BNB,
        ),
        Clause(
            "FRZ-05",
            'bias="all" MUST train every bias of the base, and bias="lora_only" the biases of the adapted layers. '
            "They MUST be trained without weight decay and saved with the adapter.",
            source="peft/tuners/tuners_utils.py:525-539 (BaseTuner._mark_only_adapters_as_trainable)",
            profile="checkpoint",
        ),
        Clause(
            "FRZ-06",
            "modules_to_save MUST train a copy of the module and leave the original as it was. The copy MUST be "
            "saved under the module's own name, and resuming MUST restore it.",
            source="peft/utils/other.py:598-667 (ModulesToSaveWrapper)",
            profile="checkpoint",
        ),
        Clause(
            "FRZ-07",
            "If the user unfreezes a base parameter after injection, it MUST be trained and MUST be saved with the "
            "adapter.",
            source="peft/utils/save_and_load.py:225-245 (get_peft_model_state_dict)",
            profile="checkpoint",
        ),
        Clause(
            "FRZ-08",
            "DoRA MUST train a magnitude for each output of each adapted layer beside A and B. It MUST be trained "
            "with weight decay and saved.",
            source="peft/tuners/lora/dora.py:130 (DoraLinearLayer.update_layer)",
            profile="checkpoint",
        ),
        Clause(
            "FRZ-09",
            "The name of an adapter MUST NOT decide on weight decay. The same adapter under any name MUST give the "
            "same run.",
            source="transformers/trainer.py:1408-1418 (Trainer.get_decay_parameter_names); "
            "transformers/trainer_pt_utils.py:1348-1369 (get_parameter_names)",
        ),
        Clause(
            "FRZ-10",
            "The Trainer MUST refuse a quantized model without adapters.",
            source="transformers/trainer_utils.py:102-136 (validate_quantization_for_training)",
            needs=_BNB,
            profile="trainer",
            refuses=True,
        ),
        Clause(
            "FRZ-11",
            "Trainable parameters MUST stay trainable and frozen ones frozen if adapters are disabled for a while, "
            "if another adapter is made active, and if one is added. No base tensor and no original of "
            "modules_to_save may ever require gradients.",
            source="peft/tuners/tuners_utils.py:2000-2017 (BaseTunerLayer.enable_adapters); peft/utils/other.py:669-738 "
            "(ModulesToSaveWrapper.enable_adapters, set_adapter); "
            "transformers/integrations/peft.py:490-505 (PeftAdapterMixin.enable_adapters)",
            profile="stack",
        ),
        Clause(
            "FRZ-12",
            "An adapter that is loaded with is_trainable=False MUST leave no parameter trainable, modules_to_save, "
            "biases and second adapters included. It MUST stay frozen beside an adapter that is trained.",
            source="peft/peft_model.py:423, 1487-1497 (PeftModel.from_pretrained, load_adapter); "
            "transformers/integrations/peft.py:235, 334 (PeftAdapterMixin.load_adapter)",
            profile="stack",
        ),
        Clause(
            "FRZ-13",
            "The update MUST reach every adapter tensor: each lora_B from the first step on, each lora_A from the "
            "second, and every tensor of another method by the second. This MUST hold beside a trainable head and "
            "under either kind of activation checkpointing, too.",
            source="transformers/modeling_utils.py:2137-2172, 3110-3189 (enable_input_require_grads, "
            "activation_checkpointing_enable)",
        ),
        Clause(
            "FRZ-14",
            "Adapters MUST sit on exactly the modules that target_modules names, by suffix, path or pattern, without "
            'those of exclude_modules. "all-linear" MUST NOT adapt the head of the task. If the task is SEQ_CLS, the '
            "head MUST be trained whole.",
            source="peft/tuners/tuners_utils.py:2337, 2430-2487 (check_target_module_exists, "
            "_maybe_include_all_linear_layers); peft/peft_model.py:1830 (PeftModelForSequenceClassification.__init__)",
            profile="stack",
        ),
        Clause(
            "FRZ-15",
            "A second adapter beside the trained one MUST stay as it is, bit for bit, and MUST NOT change the run.",
            source="peft/tuners/tuners_utils.py:506-543 (BaseTuner._mark_only_adapters_as_trainable); "
            "peft/peft_model.py (PeftModel.add_adapter)",
        ),
    ),
    profile="any-loop",
)
