"""ACC: gradient accumulation."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "ACC",
    "gradient accumulation",
    (
        Clause(
            "ACC-01",
            "Accumulated micro-batches MUST train as one large batch of the same rows does, rows of unequal lengths "
            "included. Each optimizer step MUST have the same rows, gradient and logged loss. The final adapter MUST "
            "be the same.",
            source="transformers/trainer.py:1869-1908 (Trainer._run_epoch)",
        ),
        Clause(
            "ACC-02",
            "An epoch MUST make ceil(ceil(rows / batch size) / gradient_accumulation_steps) optimizer steps. If its "
            "last window is short, that window MUST still make a step, and MUST be normalised by its own tokens.",
            source="transformers/trainer.py:1858-1872 (Trainer._run_epoch), 2513-2518 (set_initial_training_values)",
        ),
        Clause(
            "ACC-03",
            "accelerate MUST NOT accumulate on its own. num_steps in accelerator_config.gradient_accumulation_kwargs "
            "MUST be used as gradient_accumulation_steps. If both are given, the Trainer MUST refuse.",
            source="transformers/trainer.py:806-831 (Trainer.create_accelerator_and_postprocess)",
            profile="trainer",
            refuses=True,
        ),
        Clause(
            "ACC-05",
            "Clipping, optimizer step, schedule and zeroing of gradients MUST happen once per window. on_substep_end "
            "MUST come after each micro-batch but the last. Gradients MUST be present at on_optimizer_step and None "
            "at on_step_end.",
            source="transformers/trainer.py:1928-1963 (Trainer._run_epoch)",
            profile="trainer",
        ),
        Clause(
            "ACC-07",
            "LoRA dropout MUST draw a separate mask for each micro-batch. (So ACC-01 holds without dropout only.)",
            source="peft/tuners/lora/layer.py:1087-1113 (Linear.forward)",
        ),
        Clause(
            "ACC-08",
            "If the forward of the base model takes no loss keywords, its loss MUST be divided exactly once, by the "
            "number of micro-batches in the window. The gradient at the optimizer step MUST be that of the large "
            "batch.",
            source="transformers/trainer.py:514-523 (Trainer.__init__), 2099-2111 (training_step)",
            profile="trainer",
        ),
        Clause(
            "ACC-09",
            "With label smoothing and accumulation, gradient and logged loss MUST be those of the large batch.",
            source="transformers/trainer_pt_utils.py:469-481 (LabelSmoother.__call__)",
            profile="trainer",
        ),
        Clause(
            "ACC-10",
            "The gradient of a window MUST NOT depend on the order of its rows, nor on how they are divided into "
            "micro-batches.",
            source="transformers/trainer.py:2298-2359 (Trainer.get_batch_samples, _get_num_items_in_batch)",
        ),
    ),
    profile="any-loop",
)
