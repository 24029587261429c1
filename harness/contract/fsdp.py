"""FSDP: parameters sharded over ranks, by FullyShardedDataParallel (version 1) or fully_shard (version 2)."""

from harness.contract.clause import Chapter, Clause

#: Fields of fsdp_config that the chapter is written for: TrainingArguments.fsdp is a flag, and `version` a field.
_NEEDS = ("transformers>=5.10",)

CHAPTER = Chapter(
    "FSDP",
    "sharded parameters (FSDP)",
    (
        Clause(
            "FSDP-01",
            "If fsdp_config says nothing else, fsdp=True MUST mean version 2 and FULL_STATE_DICT. Version 1 MUST "
            "give a warning that it is deprecated.",
            source="transformers/training_args.py:2826, 2852, 2864-2868 (TrainingArguments._process_fsdp_args)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-02",
            "With get_peft_model, version 1 MUST wrap each decoder layer. Within it, each module that holds a "
            "trainable weight of its own MUST be wrapped, so that no flat parameter mixes trained and frozen "
            "weights.",
            source="transformers/trainer.py:1751-1756 (Trainer._prepare_for_training); transformers/distributed/fsdp.py:"
            "267-279 (update_fsdp_plugin_peft); peft/utils/other.py:1271-1308 (fsdp_auto_wrap_policy)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-03",
            "On a 4-bit base, version 1 MUST use bnb_4bit_quant_storage for its mixed precision if that is a "
            "floating dtype. Otherwise it MUST leave its mixed precision alone.",
            source="transformers/distributed/fsdp.py:280-286 (update_fsdp_plugin_peft)",
            needs=("bitsandbytes", *_NEEDS),
        ),
        Clause(
            "FSDP-04",
            "Version 2 MUST shard the embeddings, each decoder layer, the output layer and the model around them. It "
            "MUST make no units for adapters, and MUST NOT use the policy of version 1.",
            source="transformers/trainer.py:1719-1722 (Trainer._prepare_for_training); accelerate/utils/fsdp_utils.py:"
            "751-918 (fsdp2_prepare_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-05",
            "With add_adapter, for which no policy is made, version 1 MUST wrap the decoder layers only, and MUST "
            "still train as one process does. A PeftMixedModel MUST get a policy, not an AttributeError.",
            source="transformers/trainer.py:1753 (Trainer._prepare_for_training); transformers/distributed/fsdp.py:278 "
            "(update_fsdp_plugin_peft)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-06",
            "A FULL_STATE_DICT checkpoint MUST hold the adapter's files, pytorch_model_fsdp.bin, optimizer.bin, "
            "scheduler.pt and each rank's generators. With get_peft_model, pytorch_model_fsdp.bin MUST hold the "
            "adapter only.",
            source="transformers/trainer.py:3554-3561 (Trainer._save_optimizer_and_scheduler); accelerate/utils/"
            "fsdp_utils.py:57-94, 136-160 (save_fsdp_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-07",
            "A SHARDED_STATE_DICT checkpoint MUST hold a directory of shards for the model and one for the "
            "optimizer. Both MUST have a file of each rank.",
            source="accelerate/utils/fsdp_utils.py:172-185 (save_fsdp_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-08",
            "If a checkpoint of FSDP is resumed without FSDP, a ValueError MUST refuse it and name the checkpoint.",
            source="transformers/trainer.py:3614-3640 (Trainer._load_from_checkpoint)",
            tier="mp",
            needs=_NEEDS,
            refuses=True,
        ),
        Clause(
            "FSDP-09",
            "These MUST each be refused with a ValueError before training: save_only_model with "
            "load_best_model_at_end or with SHARDED_STATE_DICT, both kinds of activation checkpointing at once, and "
            "FSDP in one process.",
            source="transformers/trainer.py:472-478 (Trainer.__init__), 880-912 "
            "(Trainer.create_accelerator_and_postprocess)",
            tier="mp",
            needs=_NEEDS,
            refuses=True,
        ),
        Clause(
            "FSDP-10",
            "Without a GPU, FSDP MUST shard or be refused. It MUST NOT silently train with DDP.",
            source="accelerate/state.py:1010 (AcceleratorState.__init__)",
            tier="mp",
            needs=_NEEDS,
            device="cpu",
        ),
        Clause(
            "FSDP-11",
            "Under mixed precision, version 2 MUST train a half-precision adapter in float32.",
            source="accelerate/utils/fsdp_utils.py:813-825 (fsdp2_prepare_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-12",
            "After training, generate() MUST run on the sharded model and give every rank the same tokens.",
            source="transformers/trainer.py:1790-1793 (Trainer._prepare_for_training)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-13",
            "If FSDP is asked for, the model MUST be sharded: every parameter is a DTensor or a part of a "
            "FlatParameter, and each of its elements lies on one rank.",
            source="accelerate/accelerator.py:1674 (Accelerator._prepare_fsdp2), 1971 (Accelerator.prepare_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-14",
            "A FULL_STATE_DICT checkpoint MUST hold every rank's shards: its adapter MUST be the trained one, bit "
            "for bit.",
            source="accelerate/accelerator.py (Accelerator.get_state_dict); transformers/trainer.py:4097-4100 "
            "(Trainer.save_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-15",
            "save_model() MUST write a whole adapter, whatever the type of the state dict.",
            source="transformers/trainer.py:4097-4100 (Trainer.save_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-16",
            "The frozen base MUST keep its dtype when it is sharded.",
            source="accelerate/utils/fsdp_utils.py:813-825 (fsdp2_prepare_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-17",
            "A sharded run MUST train as one process does with all rows together. On every rank, gradients, losses "
            "and adapter MUST be equal up to the order of sums.",
            source="torch/distributed/fsdp/_fully_shard/_fully_shard.py (fully_shard)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-18",
            "If a sharded run resumes from its checkpoint, it MUST be the uninterrupted run, bit for bit. With "
            "another number of ranks and the same rows in each step, it MUST be so up to the order of sums.",
            source="transformers/trainer.py:1802-1812 (Trainer._prepare_for_training); accelerate/utils/fsdp_utils.py:"
            "191-280 (load_fsdp_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-19",
            "A late rank MUST NOT change what is trained: the other ranks wait for what they compute with.",
            source="torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py:761-782 (FSDPParamGroup.finalize_backward)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "FSDP-20",
            "If adapters are injected into a base that was sharded as it was loaded, they MUST be whole and equal on "
            "every rank. If each rank has made its own, they MUST be rank 0's. The base MUST stay sharded.",
            source="transformers/trainer.py:1749, 2624-2655 (Trainer._sync_replicated_trainable_parameters)",
            tier="mp",
            needs=_NEEDS,
        ),
    ),
    profile="stack",
)
