"""DS: optimizer state, gradients and parameters partitioned by DeepSpeed (ZeRO stages 1, 2 and 3)."""

from harness.contract.clause import Chapter, Clause

_NEEDS = ("deepspeed", "transformers>=5.10")

CHAPTER = Chapter(
    "DS",
    "partitioned by DeepSpeed (ZeRO)",
    (
        Clause(
            "DS-01",
            "Resuming MUST use the engine's own directory (global_stepN). If there is none, a ValueError MUST ask "
            "for it.",
            source="transformers/trainer.py:1802-1805 (Trainer._prepare_for_training); transformers/integrations/"
            "deepspeed.py:680-701 (deepspeed_load_checkpoint)",
            tier="mp",
            needs=_NEEDS,
            refuses=True,
        ),
        Clause(
            "DS-02",
            "With get_peft_model, the engine's checkpoint MUST leave out the frozen parameters.",
            source="transformers/trainer.py:3544-3553 (Trainer._save_optimizer_and_scheduler)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "DS-03",
            "save_model() MUST write a whole adapter and no tensor of the base, from partitions of stage 3 too.",
            source="transformers/trainer.py:4101-4122 (Trainer.save_model)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "DS-04",
            "The logged loss MUST be that of the rows of all ranks together, divided by the accumulation once. The "
            "logged learning rate MUST be the schedule's.",
            source="transformers/trainer.py:2113-2118 (Trainer.training_step), 1426-1437 (Trainer._get_learning_rate)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "DS-05",
            "These MUST each be refused with a ValueError before training: FSDP beside DeepSpeed, "
            "auto_find_batch_size with stage 3, and save_only_model with load_best_model_at_end.",
            source="transformers/trainer.py:473 (Trainer.__init__), 889-906 (Trainer.create_accelerator_and_postprocess)",
            tier="mp",
            needs=_NEEDS,
            refuses=True,
        ),
        Clause(
            "DS-06",
            "If an adapter is exported whose tensors are partitioned, there MUST be a warning that they are empty.",
            source="peft/utils/save_and_load.py:48-94, 351 (get_peft_model_state_dict)",
            tier="mp",
            needs=("peft>=0.21", *_NEEDS),
        ),
        Clause(
            "DS-07",
            "A checkpoint MUST have the engine's optimizer state and no optimizer.pt. If the schedule is the "
            "Trainer's, it MUST have scheduler.pt.",
            source="transformers/trainer.py:3562-3577 (Trainer._save_optimizer_and_scheduler)",
            tier="mp",
            needs=_NEEDS,
        ),
        Clause(
            "DS-08",
            "Every stage MUST train as one process does with all rows together, MUST resume to the uninterrupted run "
            "bit for bit, and MUST save no empty tensor.",
            source="transformers/integrations/deepspeed.py (deepspeed_init)",
            tier="mp",
            needs=_NEEDS,
        ),
    ),
    profile="stack",
)
