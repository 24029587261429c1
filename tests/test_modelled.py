"""What the laws model, and fields at their defaults."""

import dataclasses

import pytest
from transformers import TrainingArguments

from harness import compat, defaults
from harness.laws import modelled
from harness.laws.universal import LAWS_OF_ONE_RUN, LAWS_OF_SEVERAL_RUNS
from harness.runs.scenarios import PLAIN
from harness.spec import RunSpec

CLAUSES = (*LAWS_OF_ONE_RUN, *LAWS_OF_SEVERAL_RUNS)


def test_each_argument_of_this_release_is_known_or_said_to_be_unknown():
    """A new release may have more: then `why_not` names them. This fails on the pinned release only, as a reminder."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert sorted(names - modelled._KNOWN) == []


def test_the_table_names_nothing_that_no_release_has():
    compat.check_arguments(set())
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    elsewhere = {name for fields in compat.ARGUMENTS.values() for name in fields}
    assert sorted(modelled._KNOWN - names - elsewhere) == []


COLLATORS = "harness.fixtures.collators"


def test_each_exception_names_an_argument_and_clauses_that_exist():
    for key, clauses in modelled.EXCEPTIONS.items():
        name = key.partition("=")[0]
        assert name.startswith("trainer.") or name in modelled._KNOWN, key
        assert set(clauses) <= set(CLAUSES), key
    assert set(modelled.WHATEVER_IS_SET) <= set(CLAUSES)


@pytest.mark.parametrize(
    ("changes", "clause", "said"),
    [
        ({"neftune_noise_alpha": 5.0}, "LOSS-01", "`neftune_noise_alpha`: the noise is drawn anew"),
        ({"neftune_noise_alpha": 5.0}, "FRZ-01", None),
        ({"neftune_noise_alpha": None}, "LOSS-01", None),
        ({"train_sampling_strategy": "group_by_length"}, "ACC-01", "`train_sampling_strategy`: it decides by length"),
        ({"train_sampling_strategy": "sequential"}, "ACC-01", None),
        (
            {"argument_of_next_year": 3},
            "LOOP-02",
            "`argument_of_next_year`: this release of peft-harness does not know",
        ),
        ({"argument_of_next_year": 3}, "FRZ-01", None),
        ({"trainer": {"callbacks": []}}, "LOOP-04", None),
        ({"trainer": {"callbacks": ["early_stopping"]}}, "LOOP-04", "`trainer.callbacks`: a callback may stop"),
        ({"trainer": {"data_collator": "mine:collate"}}, "LOSS-01", "`trainer.data_collator`: the batches are put"),
        ({"trainer": {"data_collator": f"{COLLATORS}:padding_free"}}, "LOSS-01", None),
        ({"trainer": {"data_collator": [f"{COLLATORS}:packed", {"length": 40}]}}, "RNG-02", None),
        ({"trainer": {"data_collator": f"{COLLATORS}:for_language_modeling"}}, "LOSS-01", None),
        (
            {"trainer": {"data_collator": f"{COLLATORS}:for_language_modeling"}, "data": {"ignored": 0.2}},
            "LOSS-01",
            "`trainer.data_collator`",
        ),
        ({"trainer": {"optimizers": "mine:factory"}}, "ACC-01", None),
        ({"trainer": {"optimizers": "mine:factory"}}, "LOOP-02", None),
        ({"trainer": {"optimizers": "mine:factory"}}, "CKPT-07", "`trainer.optimizers`: the optimizer"),
    ],
)
def test_what_is_not_modelled_is_named(changes, clause, said):
    reason = modelled.why_not(clause, PLAIN.but(**changes))
    assert (reason is None) if said is None else reason.startswith(said)


def test_a_limit_of_null_is_named():
    spec = dataclasses.replace(PLAIN, arguments={**PLAIN.arguments, "max_grad_norm": None})
    assert modelled.why_not("LOOP-05", spec).startswith("`max_grad_norm`: null")
    assert modelled.why_not("LOOP-04", spec) is None
    assert modelled.why_not("LOOP-05", PLAIN.but(max_grad_norm=0.0)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"modules_to_save": None, "use_dora": False, "rank_pattern": {}, "peft_type": "LORA"}},
        {"label_smoothing_factor": 0.0, "eval_strategy": "no", "lr_scheduler_type": "linear"},
        {"dataloader_num_workers": 0, "weight_decay": 0.0, "gradient_accumulation_steps": 1},
    ],
)
def test_a_field_at_its_default_is_as_none(changes):
    assert defaults.plain(PLAIN.but(**changes)) == defaults.plain(PLAIN)


@pytest.mark.parametrize(
    "changes", [{"lora": {"use_dora": True}}, {"weight_decay": 0.1}, {"optim": "sgd"}, {"lora": {"peft_type": "IA3"}}]
)
def test_a_field_that_is_not_at_its_default_is_kept(changes):
    assert defaults.plain(PLAIN.but(**changes)) != defaults.plain(PLAIN)


def test_an_optimizer_at_the_default_is_kept_since_releases_differ():
    spec = RunSpec(arguments={"optim": TrainingArguments.__dataclass_fields__["optim"].default})
    assert defaults.plain(spec).arguments == spec.arguments
