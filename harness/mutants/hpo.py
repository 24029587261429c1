"""HPO: hyperparameter search."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace


def without_the_trial(original, trainer, trial=None):
    return original(trainer, None)


def best_run_as_a_number(original, *args, **kwargs):
    best = original(*args, **kwargs)
    return best._replace(run_id=int(best.run_id))


def run_time_as_objective(original, metrics):
    return metrics["eval_runtime"]


def arguments_restored(original, trainer, **options):
    before = trainer.args.learning_rate
    best = original(trainer, **options)
    trainer.args.learning_rate = before
    return best


MUTANTS = (
    Mutant(
        "trial-not-applied",
        "The values of a trial are not applied to the arguments.",
        replace(TRAINER, "_hp_search_setup", nothing),
        cells=("HPO-03/learning_rate", "HPO-03/max_steps", "HPO-07/*"),
    ),
    Mutant(
        "trials-save-into-one-directory",
        "All trials save their checkpoints into one directory.",
        replace(TRAINER, "_get_output_dir", without_the_trial),
        cells=("HPO-02/saved",),
    ),
    Mutant(
        "model-init-without-its-trial",
        "model_init is called without the trial.",
        replace(TRAINER, "call_model_init", without_the_trial),
        cells=("HPO-01/ranks", "HPO-03/r"),
    ),
    Mutant(
        "best-run-numbered",
        "The id of the best run is a number, not a string.",
        replace("transformers.hyperparameter_search", "run_hp_search_optuna", best_run_as_a_number),
        cells=("HPO-01/the_best*",),
    ),
    Mutant(
        "objective-is-the-time",
        "The default objective is the run time of the evaluation.",
        replace("transformers.trainer", "default_compute_objective", run_time_as_objective),
        cells=("HPO-04/the_default_objective_is_eval_loss", "HPO-01/the_best*"),
    ),
    Mutant(
        "evaluations-not-reported",
        "The evaluations of a trial are not reported to the search.",
        replace(TRAINER, "_report_to_hp_search", nothing),
        cells=("HPO-05",),
    ),
    Mutant(
        "arguments-put-back",
        "After a search the arguments have the values from before it, not those of the last trial.",
        replace(TRAINER, "hyperparameter_search", arguments_restored),
        cells=("HPO-07/arguments*",),
    ),
)
