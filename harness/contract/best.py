"""BEST: the best checkpoint, loaded at the end of training."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "BEST",
    "the best checkpoint at the end",
    (
        Clause(
            "BEST-01",
            "With load_best_model_at_end=True, the final adapter MUST be that of the best evaluated checkpoint, bit "
            "for bit, whatever the strategies, the metric and the adapter. A later evaluation MUST return "
            "best_metric to the last digit.",
            source="transformers/trainer.py:3735-3800 (Trainer._load_best_model), 3371-3389 "
            "(Trainer._save_checkpoint), 3424-3459 (Trainer._determine_best_metric)",
        ),
        Clause(
            "BEST-02",
            "A run through add_adapter MUST end with the adapter of its best checkpoint, as a run through "
            "get_peft_model does.",
            source="transformers/trainer.py:3813-3824 (Trainer._load_best_model)",
        ),
        Clause(
            "BEST-03",
            "Whatever its name, an adapter MUST end as that of its best checkpoint.",
            source="transformers/trainer.py:3738-3741, 3758-3763, 3835-3839 (Trainer._load_best_model)",
        ),
        Clause(
            "BEST-04",
            "After the best adapter is loaded, the model MUST be in eval mode. Exactly the parameters that were "
            "trained MUST require gradients.",
            source="peft/peft_model.py:1602-1604 (PeftModel.load_adapter)",
        ),
        Clause(
            "BEST-05",
            "If several adapters are active, the first MUST be loaded, with a warning that the others are not. A "
            "prompt encoder that is not saved whole MUST be refused with a message that says how to load it. It MUST "
            "NOT be loaded as something else.",
            source="transformers/trainer.py:3776-3796 (Trainer._load_best_model); peft/peft_model.py:744-763 "
            "(PeftModel.get_prompt_embedding_to_save)",
            needs=("transformers>=4.48",),  # the first with a message for prompt learning
            refuses=True,
        ),
        Clause(
            "BEST-06",
            "load_best_model_at_end=True MUST be refused unless each checkpoint is evaluated: equal strategies, "
            "save_steps a multiple of eval_steps, or save_strategy='best'. The metric MUST default to the loss. A "
            "greater metric MUST count as better unless its name ends with 'loss'.",
            source="transformers/training_args.py:1585-1592, 1748-1774 (TrainingArguments.__post_init__)",
            refuses=True,
        ),
        Clause(
            "BEST-07",
            "If the adapter file of the best checkpoint is damaged or has another rank, training MUST end with an "
            "error. It MUST NOT be passed over.",
            source="transformers/trainer.py:3780-3799 (Trainer._load_best_model)",
            refuses=True,
        ),
    ),
    profile="trainer",
)
