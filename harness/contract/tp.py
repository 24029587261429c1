"""TP: layers that transformers splits over ranks as it loads them, and adapters beside the parts."""

from harness.contract.clause import Chapter, Clause

#: Releases in which the three libraries agree on layers that are split in DTensors.
_NEEDS = ("transformers>=5.19", "peft>=0.21")

CHAPTER = Chapter(
    "TP",
    "split layers (tensor parallelism)",
    (
        Clause(
            "TP-01",
            "Each weight of the base that the plan splits MUST lie in parts on the ranks of its group, each element on one. "
            "Beside it, the adapter's matrix on the split side (lora_B by columns, lora_A by rows) MUST be split alike. The "
            "other matrix MUST be whole and equal on each rank. So it MUST be if FSDP2 shards the parts, too.",
            source="peft/tuners/lora/model.py:100-162 (get_tp_plan_and_mesh, add_lora_tp_hooks_dtensor)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "TP-02",
            "Ranks that split the layers between them MUST train the same rows. From the same adapter, all ranks together "
            "MUST train as one process does, for layers split by columns and by rows.",
            source="transformers/trainer.py:2354-2357 (Trainer._get_num_items_in_batch), 2205-2206, 2742 "
            "(Trainer._mixed_mesh_grad_norm)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "TP-03",
            "A checkpoint's adapter file, and what save_model writes, MUST hold whole tensors with the trained values, and "
            "no tensor of the base.",
            source="peft/utils/save_and_load.py (get_peft_model_state_dict)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "TP-04",
            "A run that resumes from such a checkpoint, on split layers or in one process, and a run on split layers that "
            "resumes one process's checkpoint, MUST begin with the checkpoint's adapter, bit for bit, and at its step.",
            source="transformers/trainer.py (Trainer._load_from_checkpoint); peft/utils/save_and_load.py "
            "(set_peft_model_state_dict)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "TP-05",
            "merge_and_unload() MUST leave a model that computes what the unmerged one computes.",
            source="peft/tuners/lora/layer.py (Linear.merge)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "TP-06",
            "Ranks on CPUs MUST be refused or trained as asked. A checkpoint with an optimizer MUST be refused before the "
            "first step.",
            source="accelerate/parallelism_config.py:390 (ParallelismConfig._validate_accelerator); transformers/trainer.py:"
            "632-640",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "TP-07",
            "A matrix that is split MUST be drawn as a whole one is: no part is the copy of another, and no number is larger "
            "than the whole layer's width allows.",
            source="peft/tuners/lora/layer.py (LoraLayer.reset_lora_parameters)",
            tier="mp",
            needs=_NEEDS,
        ),
    ),
    profile="stack",
)
