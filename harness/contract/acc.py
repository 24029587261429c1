"""ACC: gradient accumulation."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "ACC",
    "gradient accumulation",
    (
        Clause(
            "ACC-01",
            "Micro-batches accumulated MUST train as the large batch does: at each optimizer step the same rows, "
            "gradient and logged loss, and in the end the same adapter, for rows of unequal lengths too.",
            source="transformers/trainer.py:1869-1908 (Trainer._run_epoch)",
        ),
        Clause(
            "ACC-02",
            "An epoch MUST make ceil(ceil(rows / batch size) / gradient_accumulation_steps) optimizer steps; its last "
            "window may be short, steps all the same, and is normalised by its own tokens.",
            source="transformers/trainer.py:1858-1872 (Trainer._run_epoch), 2513-2518 (set_initial_training_values)",
        ),
        Clause(
            "ACC-03",
            "accelerate MUST NOT accumulate on its own: num_steps in accelerator_config.gradient_accumulation_kwargs "
            "MUST be taken for gradient_accumulation_steps, and MUST be refused beside it.",
            source="transformers/trainer.py:806-831 (Trainer.create_accelerator_and_postprocess)",
        ),
        Clause(
            "ACC-05",
            "Clipping, optimizer step, schedule and zeroing of gradients MUST happen once a window: on_substep_end "
            "after each micro-batch but the last, gradients present at on_optimizer_step and None at on_step_end.",
            source="transformers/trainer.py:1928-1963 (Trainer._run_epoch)",
        ),
        Clause(
            "ACC-07",
            "LoRA dropout MUST draw a mask of its own for each micro-batch, so ACC-01 holds for dropout 0 only.",
            source="peft/tuners/lora/layer.py:1087-1113 (Linear.forward)",
        ),
        Clause(
            "ACC-08",
            "The loss of a base model whose forward takes no loss keywords MUST be divided exactly once, by the number "
            "of micro-batches of the window: the gradient at the optimizer step is that of the large batch.",
            source="transformers/trainer.py:514-523 (Trainer.__init__), 2099-2111 (training_step)",
        ),
        Clause(
            "ACC-09",
            "Label smoothing with accumulation MUST have the gradient and the logged loss of the large batch.",
            source="transformers/trainer_pt_utils.py:469-481 (LabelSmoother.__call__)",
        ),
        Clause(
            "ACC-10",
            "The gradient of a window MUST NOT depend on the order of its rows, nor on which micro-batch has which row.",
            source="transformers/trainer.py:2298-2359 (Trainer.get_batch_samples, _get_num_items_in_batch)",
        ),
    ),
)
