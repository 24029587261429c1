"""LOOP: optimizer, schedule, steps, TrainOutput."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "LOOP",
    "optimizer, schedule, steps, TrainOutput",
    (
        Clause(
            "LOOP-01",
            "The default optimizer MUST be torch's AdamW, wrapped by accelerate, with learning rate 5e-5, betas 0.9 "
            "and 0.999, epsilon 1e-8 and no weight decay. Each update MUST be AdamW's of the clipped gradient.",
            source="transformers/trainer_optimizer.py:201-208 (_get_adamw_torch), training_args.py:806-815",
        ),
        Clause(
            "LOOP-02",
            "With the linear schedule, let k (from 0) be the update, T all updates and w the warm-up. During "
            "warm-up, the update MUST use learning_rate * k / max(1, w). After it, it MUST use learning_rate * (T - "
            "k) / max(1, T - w). This MUST hold in every parameter group. The logged learning_rate MUST be the one "
            "just used. Each other lr_scheduler_type MUST use its own formula with lr_scheduler_kwargs as its "
            "options. reduce_lr_on_plateau MUST lower the rate after evaluations that are no better, and only then.",
            source="transformers/optimization.py:101-578 (schedules), 960-1050 (get_scheduler); "
            "transformers/trainer.py:1938-1944 (Trainer._run_epoch), 3314-3323 (Trainer._evaluate)",
        ),
        Clause(
            "LOOP-03",
            "warmup_steps MUST be a number of steps if it is 1 or more. Below 1 it MUST be a share of all steps, "
            "rounded up.",
            source="transformers/training_args.py:2154-2161 (TrainingArguments.get_warmup_steps)",
        ),
        Clause(
            "LOOP-04",
            "If max_steps is positive, a run MUST make max_steps optimizer steps. Otherwise it MUST make "
            "ceil(num_train_epochs * steps per epoch). It MUST begin as many epochs as that takes.",
            source="transformers/trainer.py:2487-2555 (Trainer.set_initial_training_values)",
        ),
        Clause(
            "LOOP-05",
            "The logged grad_norm MUST be the L2 norm over all gradients before clipping. The optimizer MUST see "
            "them scaled down to max_grad_norm. max_grad_norm 0 MUST turn clipping off, and the norm MUST still be "
            "logged.",
            source="transformers/trainer.py:1929-1933, 2773-2793 (Trainer._clip_grad_norm, _get_grad_norm)",
        ),
        Clause(
            "LOOP-06",
            "state.epoch MUST be the number of finished epochs plus the share of micro-batches done in the current "
            "one.",
            source="transformers/trainer.py:1948 (Trainer._run_epoch)",
        ),
        Clause(
            "LOOP-07",
            "A second train() on the same Trainer MUST start at global step 0 with a new schedule. It MUST continue "
            "from the weights and the optimizer state of the first.",
            source="transformers/trainer.py:1270, 1724-1727 (Trainer._prepare_for_training)",
        ),
        Clause(
            "LOOP-08",
            "train() MUST return a named tuple (global_step, training_loss, metrics). Whatever callbacks are used, "
            "its metrics MUST be train_runtime, train_samples_per_second, train_steps_per_second, total_flos, "
            "train_loss and epoch.",
            source="transformers/trainer.py:1993-2041 (Trainer._finalize_training)",
        ),
        Clause(
            "LOOP-09",
            "training_loss of an uninterrupted run MUST be the mean loss of its optimizer steps, whatever is logged.",
            source="transformers/trainer.py:1997-2000 (Trainer._finalize_training)",
        ),
        Clause(
            "LOOP-10",
            "total_flos MUST be 6 * tokens fed * parameters. Embeddings MUST NOT count. Adapters and every weight of "
            "a 4-bit base MUST count.",
            source="transformers/trainer.py:4216-4233 (Trainer.floating_point_ops)",
        ),
        Clause(
            "LOOP-11",
            "If a dataset has no length and max_steps is not given, it MUST be refused. dataloader_drop_last MUST "
            "leave out a short last batch.",
            source="transformers/trainer.py:728-733 (Trainer._validate_args)",
            refuses=True,
        ),
        Clause(
            "LOOP-12",
            "Activation checkpointing, reentrant or not, MUST NOT change a bit of gradients, losses or adapter. This "
            "MUST hold with dropout and through either injection route.",
            source="transformers/modeling_utils.py:3142-3189 (PreTrainedModel._activation_checkpointing_enable)",
            profile="any-loop",
        ),
        Clause(
            "LOOP-13",
            "Activation checkpointing MUST make the output of the input embeddings require gradients. It MUST be "
            "non-reentrant by default. gradient_checkpointing MUST switch on the same.",
            source="transformers/modeling_utils.py:2137-2172, 3148 (enable_input_require_grads), "
            "transformers/training_args.py:1533-1545",
            needs=("transformers>=5.0",),
        ),
        Clause(
            "LOOP-14",
            "torch_compile=True MUST train the run that eager mode trains, up to the order of sums in fused kernels. "
            "It MUST NOT show in a checkpoint: no key of the adapter's file has _orig_mod.",
            source="accelerate/accelerator.py:2068-2075 (Accelerator.prepare_model); transformers/training_args.py:1621-1636",
            tier="gpu",
            profile="any-loop",
        ),
    ),
    profile="trainer",
)
