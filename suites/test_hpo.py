"""HPO: hyperparameter_search with optuna, over a model whose adapters model_init injects."""

from typing import Any

import pytest

from harness.environment import satisfies
from harness.laws import search as laws
from harness.runs.scenarios import PLAIN, by_route, cases
from harness.subjects.hyperparameter_search import search
from harness.verdict import both, raises, same

#: Four steps, evaluated after the second and the last.
SHORT = PLAIN.but(max_steps=4, data={"rows": 16, "eval_rows": 8}, eval_strategy="steps", eval_steps=2)
RATES: dict[str, Any] = {"learning_rate": [1e-3, 3e-2, 2e-2]}
RANKS: dict[str, Any] = {"r": [2, 8, 4]}


@pytest.fixture(scope="module")
def searches():
    """Searches that were made, by their arguments. Laws only read them."""
    return {}


@pytest.fixture
def searched(upstream, tmp_path, searches):
    """searched(values, spec=SHORT, ...): run a search below tmp_path. The n-th trial has the n-th value of each name."""

    def run(values, spec=SHORT, **options):
        key = (repr(values), spec)
        if options or key not in searches:
            made = search(upstream, spec, tmp_path, values, **options)
            return made if options else searches.setdefault(key, made)
        return searches[key]

    return run


@pytest.mark.clause("HPO-01")
def test_a_search_needs_model_init(upstream, tmp_path, judge):
    trainer = upstream.build(SHORT, tmp_path)
    judge(
        raises(
            "hyperparameter_search of a Trainer given a model",
            RuntimeError,
            "model_init",
            trainer.hyperparameter_search,
        )
    )


@pytest.mark.clause("HPO-01")
@cases(by_route({"ranks": SHORT}))
def test_model_init_makes_the_adapters_of_each_trial(spec, searched, judge):
    judge(laws.made_models(searched({**RATES, **RANKS}, spec), RANKS["r"]))


@pytest.mark.clause("HPO-01")
def test_the_best_run_is_the_trial_with_the_lowest_eval_loss(searched, judge):
    judge(laws.best_run(searched({**RATES, **RANKS})))


@pytest.mark.clause("HPO-02")
@cases(by_route({"saved": SHORT.but(save_strategy="steps", save_steps=2)}))
def test_each_trial_saves_adapters_below_a_directory_of_its_own(spec, searched, tmp_path, judge):
    judge(laws.checkpoints(searched({**RATES, **RANKS}, spec), tmp_path, [2, 4]))


@pytest.mark.clause("HPO-03")
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(RATES, id="learning_rate"),
        pytest.param({"per_device_train_batch_size": [2, 8]}, id="per_device_train_batch_size"),
        pytest.param({"gradient_accumulation_steps": [2, 4]}, id="gradient_accumulation_steps"),
        pytest.param({"max_steps": [2, 3]}, id="max_steps"),
        pytest.param(RANKS, id="r"),
        pytest.param({"seed": [1, 2, 3]}, id="seed"),
    ],
)
def test_a_trial_trains_as_a_run_of_its_own_would(values, searched, train, judge):
    # Fields at their defaults are spelled out, since a trial may change only what the spec has.
    spec = SHORT.but(gradient_accumulation_steps=1)
    judge(laws.as_own_runs(searched(values, spec), train))


@pytest.mark.clause("HPO-03")
def test_a_suggested_seed_is_the_seed_of_its_trial(searched, judge):
    judge(laws.seeded(searched({"seed": [1, 2, 3]})))


# ---- the objective ----


def eval_loss(metrics):
    return metrics["eval_loss"]


@pytest.mark.clause("HPO-04")
def test_the_default_objective_is_eval_loss(searched, judge):
    judge(laws.objectives(searched(RATES), eval_loss))


@pytest.mark.clause("HPO-04")
def test_a_trial_that_is_not_evaluated_while_it_trains_is_evaluated_at_its_end(searched, judge):
    judge(laws.objectives(searched(RATES, SHORT.but(eval_strategy="no")), eval_loss))


@pytest.mark.clause("HPO-04")
def test_the_default_objective_is_eval_loss_after_an_evaluation_too(searched, judge):
    judge(laws.objectives(searched(RATES, before=lambda trainer: trainer.evaluate()), eval_loss))


@pytest.mark.clause("HPO-04")
def test_the_default_objective_is_the_sum_of_the_metrics_there_are(searched, judge):
    spec = SHORT.but(trainer={"compute_metrics": "harness.fixtures.metrics:counts"})
    # 8 rows of 16 labels each.
    judge(laws.objectives(searched(RATES, spec), lambda metrics: 8 + 8 * 16))


# ---- optuna ----


@pytest.mark.clause("HPO-05")
def test_every_evaluation_is_reported(searched, judge):
    judge(laws.reported(searched(RATES)))


@pytest.mark.clause("HPO-05")
def test_a_pruned_trial_ends_with_train_end(searched, judge):
    from optuna.pruners import BasePruner

    class SecondTrialAtStep2(BasePruner):
        def prune(self, study, trial):
            return (trial.number, trial.last_step) == (1, 2)

    seen = searched(RATES, pruner=SecondTrialAtStep2())
    judge(both(laws.pruned(seen, number=1, step=2), laws.reported(seen), laws.best_run(seen)))


def with_model_init(upstream, spec, directory):
    """Return a Trainer that was given model_init, outside a search."""
    return upstream.build(spec.but(trainer={"model_init": True}), directory)


@pytest.mark.clause("HPO-06")
def test_a_dict_is_no_trial_without_ray_and_wandb(upstream, tmp_path, judge):
    if satisfies("ray") or satisfies("wandb"):
        pytest.skip("ray or wandb is installed, whose trials are dicts")
    trainer = with_model_init(upstream, SHORT.but(eval_strategy="no"), tmp_path)
    train = lambda: trainer.train(trial={"learning_rate": 1.0})  # noqa: E731
    judge(raises("train(trial=a dict)", RuntimeError, "Unknown type for trial", train))


@pytest.mark.clause("HPO-06")
def test_a_fixed_trial_outside_a_search_is_noted_and_not_applied(upstream, tmp_path, judge):
    from optuna.trial import FixedTrial

    trial = FixedTrial({"learning_rate": 1.0})
    trial.suggest_float("learning_rate", 0.0, 1.0)
    trainer = with_model_init(upstream, SHORT.but(eval_strategy="no"), tmp_path)
    seen = trainer.train(trial=trial)
    expected = {
        "steps": 4,
        "learning_rate": 1e-2,
        "is_hyper_param_search": True,
        "trial_params": {"learning_rate": 1.0},
    }
    found = {
        "steps": seen.global_step,
        "learning_rate": next(e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e),
        "is_hyper_param_search": trainer.state.is_hyper_param_search,
        "trial_params": trainer.state.trial_params,
    }
    judge(same("train(trial=FixedTrial) outside a search", found, expected))


@pytest.mark.clause("HPO-07")
def test_arguments_keep_the_values_of_the_last_trial(searched, judge):
    seen = searched({**RATES, "weight_decay": [0.1, 0.0, 0.2]})
    found = {name: getattr(seen.arguments, name) for name in ("learning_rate", "weight_decay")}
    judge(same("TrainingArguments after the search", found, {"learning_rate": 2e-2, "weight_decay": 0.2}))


@pytest.mark.clause("HPO-07")
def test_values_are_cast_to_the_type_of_the_argument(searched, judge):
    seen = searched({"learning_rate": ["0.001", "0.02"], "max_steps": [2.0, 3.0]})
    found = {name: getattr(seen.arguments, name) for name in ("learning_rate", "max_steps")}
    types = {name: type(value).__name__ for name, value in found.items()}
    judge(
        both(
            same("values", found, {"learning_rate": 0.02, "max_steps": 3}),
            same("types", types, {"learning_rate": "float", "max_steps": "int"}),
            same("steps of each trial", [len(trial.trace.steps) for trial in seen.trials], [2, 3]),
        )
    )


@pytest.mark.clause("HPO-07")
def test_a_name_that_is_no_argument_is_warned_of_and_left_out(searched, judge):
    seen = searched({"no_such_argument": [1, 2]})
    told = [line for line in seen.warnings if "no_such_argument" in line and "no corresponding field" in line]
    judge(
        both(
            same("warnings, one a trial", len(told), 2),
            same("whether the arguments have it", hasattr(seen.arguments, "no_such_argument"), False),
        )
    )
