"""HPO: hyperparameter search."""

from __future__ import annotations

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace


def without_trial(original, trainer, trial=None):
    return original(trainer, None)


def numbered(original, *args, **kwargs):
    best = original(*args, **kwargs)
    return best._replace(run_id=int(best.run_id))


def quickest(original, metrics):
    return metrics["eval_runtime"]


def putting_back(original, trainer, **options):
    kept = trainer.args.learning_rate
    best = original(trainer, **options)
    trainer.args.learning_rate = kept
    return best


MUTANTS = (
    Mutant(
        "trial-not-applied",
        "The arguments of a trial stay those of the Trainer.",
        replace(TRAINER, "_hp_search_setup", nothing),
        cells=("HPO-03/learning_rate", "HPO-03/max_steps", "HPO-07/*"),
    ),
    Mutant(
        "trials-save-into-one-directory",
        "Checkpoints of all trials lie in one directory.",
        replace(TRAINER, "_get_output_dir", without_trial),
        cells=("HPO-02/saved",),
    ),
    Mutant(
        "model-init-without-its-trial",
        "model_init is not given the trial.",
        replace(TRAINER, "call_model_init", without_trial),
        cells=("HPO-01/ranks", "HPO-03/r"),
    ),
    Mutant(
        "best-run-numbered",
        "The best run is told by a number, and not by its name.",
        replace("transformers.hyperparameter_search", "run_hp_search_optuna", numbered),
        cells=("HPO-01/the_best*",),
    ),
    Mutant(
        "objective-is-the-time",
        "Without an objective of one's own the quickest trial is the best.",
        replace("transformers.trainer", "default_compute_objective", quickest),
        cells=("HPO-04/the_default_objective_is_eval_loss", "HPO-01/the_best*"),
    ),
    Mutant(
        "evaluations-not-reported",
        "A search is not told of the evaluations of a trial.",
        replace(TRAINER, "_report_to_hp_search", nothing),
        cells=("HPO-05",),
    ),
    Mutant(
        "arguments-put-back",
        "After a search the arguments are what they were before.",
        replace(TRAINER, "hyperparameter_search", putting_back),
        cells=("HPO-07/arguments*",),
    ),
)
