"""LOG: what is logged, and where."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "LOG",
    "the log: log_history, TensorBoard, console",
    (
        Clause(
            "LOG-01",
            "log_history MUST have an entry with loss, grad_norm, learning_rate, epoch and step for each logging step "
            "(each logging_steps-th, with logging_first_step the first, or the last of each epoch) and for no other; "
            "its loss MUST be the mean over the steps since the entry before. With include_num_input_tokens_seen each "
            "entry MUST count the tokens fed so far, padding among them or not as asked.",
            source="transformers/trainer.py:2241-2267 (Trainer._maybe_log_save_evaluate), 4181-4203 (Trainer.log)",
        ),
        Clause(
            "LOG-02",
            "report_to tensorboard MUST write one event file below output_dir/runs/, or in TENSORBOARD_LOGGING_DIR, "
            "with every number of log_history as a scalar at its step, under eval/ and train/, and as texts the "
            "arguments and the model's config and nothing else.",
            source="transformers/integrations/integration_utils.py:568-660 (default_logdir, TensorBoardCallback)",
            needs=("tensorboard",),
        ),
        Clause(
            "LOG-03",
            "The last entry of log_history MUST hold train_runtime, train_samples_per_second, train_steps_per_second, "
            "total_flos and train_loss, those of TrainOutput, at the last step, whatever logging_strategy is.",
            source="transformers/trainer.py:1993-2014 (Trainer._finalize_training)",
        ),
        Clause(
            "LOG-04",
            "The console MUST show each entry of log_history once, on standard output, with its numbers to four "
            "significant digits or more and without total_flos, whether or not progress bars are disabled.",
            source="transformers/trainer_callback.py:672-708 (ProgressCallback.on_log, PrinterCallback.on_log)",
        ),
    ),
)
