"""EVAL: what an evaluation reports, and what it leaves behind."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "EVAL",
    "evaluation",
    (
        Clause(
            "EVAL-01",
            "eval_loss MUST be the mean over rows of the mean loss of their batch over its own labels: weighted by "
            "rows, not by labels. Each evaluation row MUST be used once, in order, without dropout.",
            source="transformers/trainer.py:2980-3000, 3089-3094 (Trainer.evaluation_loop); "
            "accelerate/accelerator.py:3154-3165 (Accelerator.gather_for_metrics)",
        ),
        Clause(
            "EVAL-03",
            "In several processes, eval_loss MUST be the mean over the evaluation rows, each counted once. This MUST "
            "hold, too, if the rows do not fill the last batches of all ranks.",
            source="transformers/trainer.py:2997-3000 (Trainer.evaluation_loop); accelerate/data_loader.py:1254-1260 "
            "(prepare_data_loader, even_batches)",
            tier="mp",
        ),
        Clause(
            "EVAL-04",
            "An evaluation MUST NOT change adapter, base or optimizer. It MUST draw exactly one number from torch's "
            "global generator. Without dropout, a run with evaluations MUST be the run without them, bit for bit. "
            "With dropout, it MUST be the run in which one number is drawn at each evaluation.",
            source="torch/utils/data/dataloader.py:690 (_BaseDataLoaderIter.__init__); "
            "transformers/trainer.py:2896-3094 (Trainer.evaluation_loop)",
        ),
        Clause(
            "EVAL-05",
            "compute_metrics MUST be given the labels and all outputs of the model, of every row in order, except "
            "the loss and the keys to ignore. These keys MUST be config.keys_to_ignore_at_inference by default, and "
            "ignore_keys if given. train(ignore_keys_for_eval=) MUST pass them on.",
            source="transformers/trainer.py:3224-3229, 3270-3275 (Trainer.prediction_step), 2270 "
            "(Trainer._maybe_log_save_evaluate)",
        ),
        Clause(
            "EVAL-06",
            "Without compute_metrics, an evaluation MUST gather losses only. With a dict of evaluation sets, it MUST "
            "report eval_NAME_* for each. eval_on_start MUST evaluate once before the first step.",
            source="transformers/trainer.py:2843-2855, 2868 (Trainer.evaluate), 1655-1656 "
            "(Trainer._inner_training_loop)",
        ),
        Clause(
            "EVAL-07",
            "evaluate() before train() MUST add eval_model_preparation_time to its metrics and to those of every "
            "later evaluation of that Trainer. Without it, no evaluation MUST have that metric.",
            source="transformers/trainer.py:2917-2926, 3095-3096 (Trainer.evaluation_loop)",
        ),
        Clause(
            "EVAL-08",
            "If the first evaluation does not report metric_for_best_model, the run MUST end with a KeyError that "
            "names it and the metrics that exist.",
            source="transformers/trainer.py:3433-3445 (Trainer._determine_best_metric)",
            refuses=True,
        ),
        Clause(
            "EVAL-09",
            "If the config of a PeftModel has no task_type, evaluation MUST work as for any other model: it reports "
            "eval_loss, and compute_metrics is given the labels.",
            source="transformers/trainer.py:533-536 (Trainer.__init__), 3213 (Trainer.prediction_step)",
        ),
        Clause(
            "EVAL-10",
            'eval_strategy "steps" MUST evaluate every eval_steps and at the last step, "epoch" at the end of each '
            'epoch, and "no" never. Neither MUST evaluate before eval_delay steps or epochs are done. Each MUST '
            "evaluate once where it is due.",
            source="transformers/trainer_callback.py:568-621 (DefaultFlowCallback)",
        ),
        Clause(
            "EVAL-11",
            "With predict_with_generate, Seq2SeqTrainer MUST predict the tokens that the trained model generates greedily, "
            "up to generation_max_length, and after them padding alone. test_loss MUST be that of the labels.",
            source="transformers/trainer_seq2seq.py:195-400 (Seq2SeqTrainer.predict, prediction_step)",
            device="cpu",
        ),
    ),
    profile="trainer",
)
