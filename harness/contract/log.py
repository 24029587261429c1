"""LOG: what is logged, and where."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "LOG",
    "the log: log_history, TensorBoard, console",
    (
        Clause(
            "LOG-01",
            "log_history MUST have an entry with loss, grad_norm, learning_rate, epoch and step for each logging "
            "step, and for no other step. Logging steps are each logging_steps-th, the first with "
            "logging_first_step, or the last of each epoch. The loss MUST be the mean over the steps since the entry "
            "before. With include_num_input_tokens_seen, each entry MUST count the tokens so far, with or without "
            "padding as asked.",
            source="transformers/trainer.py:2241-2267 (Trainer._maybe_log_save_evaluate), 4181-4203 (Trainer.log)",
        ),
        Clause(
            "LOG-02",
            "report_to tensorboard MUST write one event file below output_dir/runs/ or in TENSORBOARD_LOGGING_DIR. "
            "It MUST have every number of log_history as a scalar at its step, under eval/ and train/. As texts it "
            "MUST have the arguments and the model's config, and nothing else.",
            source="transformers/integrations/integration_utils.py:568-660 (default_logdir, TensorBoardCallback)",
            needs=("tensorboard",),
        ),
        Clause(
            "LOG-03",
            "Whatever logging_strategy is, the last entry of log_history MUST hold train_runtime, "
            "train_samples_per_second, train_steps_per_second, total_flos and train_loss, at the last step. The "
            "values MUST be those of TrainOutput.",
            source="transformers/trainer.py:1993-2014 (Trainer._finalize_training)",
        ),
        Clause(
            "LOG-04",
            "The console MUST show each entry of log_history once, on standard output, without total_flos and with "
            "numbers to four significant digits or more. This MUST hold with and without progress bars.",
            source="transformers/trainer_callback.py:672-708 (ProgressCallback.on_log, PrinterCallback.on_log)",
        ),
    ),
    profile="trainer",
)
