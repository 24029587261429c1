"""EVAL: what an evaluation reports, and what it leaves behind."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "EVAL",
    "evaluation",
    (
        Clause(
            "EVAL-01",
            "eval_loss MUST be the mean over rows of their batch's mean loss over its own labels (weighted by rows, "
            "not by labels), each evaluation row taken once, in order, without dropout.",
            source="transformers/trainer.py:2980-3000, 3089-3094 (Trainer.evaluation_loop); "
            "accelerate/accelerator.py:3154-3165 (Accelerator.gather_for_metrics)",
        ),
        Clause(
            "EVAL-03",
            "In several processes eval_loss MUST be the mean over the evaluation rows, each counted once, also where "
            "the rows do not fill the last batches of all ranks.",
            source="transformers/trainer.py:2997-3000 (Trainer.evaluation_loop); accelerate/data_loader.py:1254-1260 "
            "(prepare_data_loader, even_batches)",
            tier="mp",
        ),
        Clause(
            "EVAL-04",
            "An evaluation MUST change neither adapter nor base nor optimizer, and MUST draw one number from torch's "
            "global generator and no other: without dropout, a run with evaluations is the run without them, bit for "
            "bit; with dropout, the run with one number drawn where the other evaluates.",
            source="torch/utils/data/dataloader.py:690 (_BaseDataLoaderIter.__init__); "
            "transformers/trainer.py:2896-3094 (Trainer.evaluation_loop)",
        ),
        Clause(
            "EVAL-05",
            "compute_metrics MUST be given the labels and all outputs of the model but the loss and the keys to "
            "ignore, of every row in order: by default config.keys_to_ignore_at_inference, else ignore_keys in their "
            "place, which train(ignore_keys_for_eval=) hands on.",
            source="transformers/trainer.py:3224-3229, 3270-3275 (Trainer.prediction_step), 2270 "
            "(Trainer._maybe_log_save_evaluate)",
        ),
        Clause(
            "EVAL-06",
            "Without compute_metrics an evaluation MUST gather losses only; a dict of evaluation sets MUST report "
            "eval_NAME_* for each; eval_on_start MUST evaluate once before the first step.",
            source="transformers/trainer.py:2843-2855, 2868 (Trainer.evaluate), 1655-1656 "
            "(Trainer._inner_training_loop)",
        ),
        Clause(
            "EVAL-07",
            "evaluate() before train() MUST add eval_model_preparation_time to its metrics and to those of every later "
            "evaluation of that Trainer; without it none has it.",
            source="transformers/trainer.py:2917-2926, 3095-3096 (Trainer.evaluation_loop)",
        ),
        Clause(
            "EVAL-08",
            "A metric_for_best_model that the first evaluation does not report MUST end the run with a KeyError that "
            "names it and the metrics there are.",
            source="transformers/trainer.py:3433-3445 (Trainer._determine_best_metric)",
        ),
        Clause(
            "EVAL-09",
            "A PeftModel whose config has no task_type MUST be evaluated as any other: eval_loss is reported, and "
            "compute_metrics is given the labels.",
            source="transformers/trainer.py:533-536 (Trainer.__init__), 3213 (Trainer.prediction_step)",
        ),
    ),
)
