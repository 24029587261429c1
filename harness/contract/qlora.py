"""QLORA: adapters on a quantized base, and what a QLoRA run is set up with."""

from harness.contract.clause import Chapter, Clause

_BNB = ("bitsandbytes>=0.43",)

CHAPTER = Chapter(
    "QLORA",
    "adapters on a quantized base",
    (
        Clause(
            "QLORA-01",
            "An NF4 base that prepare_model_for_kbit_training has prepared MUST train a LoRA under activation "
            "checkpointing. Every linear layer of the decoder MUST be packed, two weights in a byte. Losses MUST be "
            "finite, and every adapter tensor MUST move.",
            source="transformers/integrations/bitsandbytes.py:162 (replace_with_bnb_linear); "
            "bitsandbytes/nn/modules.py:504 (Linear4bit)",
            needs=_BNB,
            profile="any-loop",
        ),
        Clause(
            "QLORA-02",
            "target_modules=None MUST mean the modules that peft lists for the model type (q_proj and v_proj for "
            "llama): the same run and the same file. For a model type that peft does not list, there MUST be a "
            "ValueError.",
            source="peft/tuners/lora/model.py:695-704 (LoraModel._prepare_adapter_config); peft/utils/constants.py:85",
        ),
        Clause(
            "QLORA-03",
            'target_modules="all-linear" MUST adapt every linear layer of the decoder and not the output layer, '
            "whether or not the base is quantized.",
            source="peft/tuners/tuners_utils.py:2430 (_maybe_include_all_linear_layers)",
            needs=_BNB,
        ),
        Clause(
            "QLORA-04",
            "A run on an NF4 base MUST resume bit for bit, and MUST be the same run through both injection routes.",
            source="transformers/trainer.py:3671-3731 (Trainer._load_from_checkpoint); "
            "transformers/integrations/peft.py:390-430 (PeftAdapterMixin.add_adapter)",
            needs=_BNB,
            profile="any-loop",
        ),
        Clause(
            "QLORA-05",
            "prepare_model_for_kbit_training MUST freeze the base, cast what is not packed to float32, and switch on "
            "activation checkpointing with gradients for its inputs. Without it the base MUST keep its dtype. The "
            "adapter of get_peft_model MUST be float32 in both cases.",
            source="peft/utils/other.py:158-261 (prepare_model_for_kbit_training)",
            needs=_BNB,
        ),
        Clause(
            "QLORA-06",
            "Under non-reentrant checkpointing, a float32 base that was not prepared MUST train as a prepared one "
            "does, bit for bit.",
            source="peft/utils/other.py:226-261 (prepare_model_for_kbit_training)",
            needs=_BNB,
            profile="any-loop",
        ),
        Clause(
            "QLORA-07",
            "The adapter file of a QLoRA run MUST hold the adapter in float32 and nothing of the quantized base. "
            "adapter_config.json MUST name the base, and the model card MUST list the quantization config.",
            source="peft/peft_model.py:302-415 (PeftModel.save_pretrained), 1738-1754 "
            "(PeftModel.create_or_update_model_card)",
            needs=_BNB,
            profile="checkpoint",
        ),
        Clause(
            "QLORA-08",
            "The 8-bit optimizers MUST keep the moments of a tensor in 8 bits if it has 4096 numbers or more, and "
            "otherwise in float32. They MUST resume bit for bit.",
            source="bitsandbytes/optim/optimizer.py:414, 502 (Optimizer2State.init_state); "
            "transformers/trainer_optimizer.py:246 (_get_bitsandbytes_optimizer)",
            needs=_BNB,
            profile="trainer",
        ),
        Clause(
            "QLORA-11",
            "If a quantized model was compiled, the Trainer MUST refuse it, with adapters of get_peft_model and "
            "without adapters.",
            source="transformers/trainer_utils.py:102-136 (validate_quantization_for_training)",
            needs=_BNB,
            profile="trainer",
            refuses=True,
        ),
        Clause(
            "QLORA-12",
            "The 4-bit base and its quantization state MUST survive save_pretrained, load_state_dict and resume bit "
            "for bit: the forward pass after reloading MUST equal the one before.",
            source="bitsandbytes/nn/modules.py:504-640 (Linear4bit)",
            needs=_BNB,
        ),
        Clause(
            "QLORA-13",
            "A paged optimizer MUST keep the moments of a tensor in paged memory if it has 100,000 numbers or more. "
            "It MUST train as the optimizer that is not paged does, and MUST resume, both bit for bit.",
            source="bitsandbytes/optim/optimizer.py:374-400 (Optimizer8bit.get_state_buffer, prefetch_state), 192-273 "
            "(load_state_dict)",
            tier="gpu",
            needs=_BNB,
            profile="trainer",
        ),
        Clause(
            "QLORA-14",
            "An NF4 layer MUST hold the NF4 values nearest to its weights, with the scales of blocks of 64 kept in 8 "
            "bits. It MUST compute with them in the compute dtype, in the backward pass, too. The expected weights "
            "are worked out by hand.",
            source="bitsandbytes/functional.py:884-1060 (quantize_4bit, dequantize_4bit); "
            "bitsandbytes/autograd/_functions.py (MatMul4Bit); arXiv 2305.14314, section 3",
            needs=_BNB,
        ),
        Clause(
            "QLORA-15",
            "Each method that adapts layers MUST train on an NF4 base, or MUST refuse it at injection with a "
            "ValueError or a TypeError that names the packed layer or the quantization. It MUST NOT fail only in the "
            "first step, after the base was loaded and the data prepared.",
            source="peft/tuners/*/model.py (_create_new_module); peft/tuners/*/bnb.py",
            needs=_BNB,
            refuses=True,
        ),
    ),
    profile="stack",
)
