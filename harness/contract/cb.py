"""CB: callbacks."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "CB",
    "callbacks",
    (
        Clause(
            "CB-01",
            "Callback events MUST come in this order. A run: init_end, train_begin, the epochs, log, train_end. An "
            "epoch: epoch_begin, its windows, epoch_end. A window: step_begin, substep_end after each micro-batch "
            "but the last, pre_optimizer_step, optimizer_step, step_end. After step_end and after epoch_end comes "
            "what is due: log; then prediction_step for each batch, log and evaluate; then save.",
            source="transformers/trainer.py:1653-1676, 1884-1992 (Trainer._inner_training_loop, _run_epoch), 2234-2282 "
            "(Trainer._maybe_log_save_evaluate)",
        ),
        Clause(
            "CB-02",
            "EarlyStoppingCallback MUST stop the run at the patience-th evaluation in a row that does not improve "
            "the best metric by strictly more than the threshold. It MUST be saved with its counter. It MUST refuse "
            "to start without metric_for_best_model or without evaluations.",
            source="transformers/trainer_callback.py:711-784 (EarlyStoppingCallback)",
            refuses=True,
        ),
        Clause(
            "CB-03",
            "A resumed run MUST count early stopping's patience from zero. With "
            "restore_callback_states_from_checkpoint=True it MUST count from the checkpoint's counter.",
            source="transformers/trainer.py:4020-4057 (Trainer._load_callback_state)",
        ),
        Clause(
            "CB-04",
            "At every event of training, callbacks MUST be given the model that the Trainer was given, without a "
            "wrapper. They MUST also be given the AcceleratedOptimizer, the scheduler and the dataloader that train "
            "it.",
            source="transformers/trainer.py:1812-1815 (Trainer._prepare_for_training), "
            "transformers/trainer_callback.py:547-565 (CallbackHandler.call_event)",
        ),
        Clause(
            "CB-05",
            "If a second callback of a class is added, there MUST be a warning, and both MUST be used. The states of "
            "several callbacks of one class MUST be saved as a list in their order. Each MUST be restored into its "
            "own callback.",
            source="transformers/trainer_callback.py:451-460 (CallbackHandler.add_callback), "
            "transformers/trainer.py:4020-4057 (Trainer._load_callback_state)",
        ),
    ),
    profile="trainer",
)
