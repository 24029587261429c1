"""CB: callbacks."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "CB",
    "callbacks",
    (
        Clause(
            "CB-01",
            "Callback events MUST come in this order: init_end, train_begin; an epoch between epoch_begin and "
            "epoch_end; in it a window as step_begin, substep_end after each micro-batch but the last, "
            "pre_optimizer_step, optimizer_step, step_end; after step_end and after epoch_end what is due of log, then "
            "prediction_step for each batch, log and evaluate, then save; at the end log and train_end.",
            source="transformers/trainer.py:1653-1676, 1884-1992 (Trainer._inner_training_loop, _run_epoch), 2234-2282 "
            "(Trainer._maybe_log_save_evaluate)",
        ),
        Clause(
            "CB-02",
            "EarlyStoppingCallback MUST stop the run at the evaluation that is the patience-th in a row not to improve "
            "on the best metric by strictly more than the threshold, MUST be saved with its counter, and MUST refuse "
            "to start without metric_for_best_model or without evaluations.",
            source="transformers/trainer_callback.py:711-784 (EarlyStoppingCallback)",
        ),
        Clause(
            "CB-03",
            "A resumed run MUST count early stopping's patience from zero, and from the checkpoint's counter with "
            "restore_callback_states_from_checkpoint=True.",
            source="transformers/trainer.py:4020-4057 (Trainer._load_callback_state)",
        ),
        Clause(
            "CB-04",
            "At every event of training, callbacks MUST be given the very model that the Trainer was given, no wrapper "
            "around it, the AcceleratedOptimizer, the scheduler and the dataloader that train it.",
            source="transformers/trainer.py:1812-1815 (Trainer._prepare_for_training), "
            "transformers/trainer_callback.py:547-565 (CallbackHandler.call_event)",
        ),
        Clause(
            "CB-05",
            "Adding a second callback of a class MUST be warned of and MUST leave both in use; the states of several of "
            "one class MUST be saved as a list in their order, and each MUST be restored into its own.",
            source="transformers/trainer_callback.py:451-460 (CallbackHandler.add_callback), "
            "transformers/trainer.py:4020-4057 (Trainer._load_callback_state)",
        ),
    ),
)
