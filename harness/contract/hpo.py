"""HPO: hyperparameter search with optuna."""

from harness.contract.clause import Chapter, Clause

OPTUNA = ("optuna",)

CHAPTER = Chapter(
    "HPO",
    "hyperparameter search",
    (
        Clause(
            "HPO-01",
            "hyperparameter_search MUST refuse a Trainer without model_init (RuntimeError). In each trial it MUST "
            "train the model that model_init made for it, whatever its adapters. It MUST return a BestRun with the "
            "number of the best trial as a string, its objective and all values suggested for it.",
            source="transformers/trainer.py:4555-4590 (Trainer.hyperparameter_search, call_model_init), "
            "transformers/integrations/integration_utils.py:235-287 (run_hp_search_optuna)",
            needs=OPTUNA,
            refuses=True,
        ),
        Clause(
            "HPO-02",
            "Each trial MUST save its checkpoints below output_dir/run-<number>, and adapters only. trial_params in "
            "their trainer_state.json MUST hold all suggested values.",
            source="transformers/trainer.py:3335-3353 (Trainer._get_output_dir), "
            "transformers/trainer_callback.py:170-185 (TrainerState.init_training_references)",
            needs=OPTUNA,
        ),
        Clause(
            "HPO-03",
            "A trial MUST train as a separate run with the suggested values does, bit for bit. This MUST hold for "
            "every argument, the seed included.",
            source="transformers/trainer.py:1484-1487, 1540-1541, 4592-4650 (Trainer.train, _hp_search_setup)",
            needs=OPTUNA,
        ),
        Clause(
            "HPO-04",
            "Without compute_objective, a trial MUST be judged by the eval_loss of its last evaluation. With "
            "compute_metrics, it MUST be judged by the sum of its metrics. What was evaluated before the search MUST "
            "NOT matter.",
            source="transformers/trainer_utils.py:431-449 (default_compute_objective), transformers/trainer.py:3089-3096 "
            "(Trainer.evaluation_loop)",
            needs=OPTUNA,
        ),
        Clause(
            "HPO-05",
            "Every evaluation of a trial MUST be reported to the study at its step. If the trial is then pruned, it "
            "MUST end there, after train_end.",
            source="transformers/trainer.py:4652-4668 (Trainer._report_to_hp_search)",
            needs=OPTUNA,
        ),
        Clause(
            "HPO-06",
            "If neither ray nor wandb is installed, train(trial=a dict) MUST raise RuntimeError. Outside a search, "
            "train(trial=an optuna trial) MUST record the trial in its state and apply none of its values.",
            source="transformers/integrations/integration_utils.py:217-232 (hp_params), transformers/trainer.py:4600-4604 "
            "(Trainer._hp_search_setup)",
            needs=OPTUNA,
            refuses=True,
        ),
        Clause(
            "HPO-07",
            "Suggested values MUST be cast to the type that the argument had. If a name is no argument, there MUST "
            "be a warning and it MUST be left out. The arguments MUST keep the values of the last trial.",
            source="transformers/trainer.py:4612-4624 (Trainer._hp_search_setup)",
            needs=OPTUNA,
        ),
    ),
    profile="trainer",
)
