"""Each method, option, start and task of the installed peft has a row that judges it, or a reason why it has none."""

import dataclasses
import re
import typing
from pathlib import Path

import peft
import pytest
from peft.tuners.lora import layer

from harness.fixtures import models
from harness.fixtures.methods import FURTHER, METHODS, NO_ROW, rows_of
from harness.paths import SUITES
from harness.runs import kinds
from harness.runs.scenarios import PLAIN

TYPES = [kind.value for kind in peft.PeftType]


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_has_a_row_or_a_reason(kind):
    assert bool(rows_of(kind)) != (kind in NO_ROW), f"{kind}: add it to FURTHER or NO_ROW of fixtures/methods.py"


def test_each_config_that_peft_exports_is_of_such_a_type():
    made = [getattr(peft, name) for name in peft.__all__ if name.endswith("Config")]
    configs = [kind for kind in made if issubclass(kind, peft.PeftConfig)]
    of_types = {peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in peft.PeftType}
    # Those without a type of their own are bases of others.
    bases = {peft.PeftConfig, peft.PromptLearningConfig}
    assert len(configs) > 40
    assert [kind.__name__ for kind in configs if kind not in of_types | bases] == []


def test_no_method_is_in_both_tables_and_no_reason_is_about_nothing():
    assert not set(METHODS) & set(FURTHER)
    assert not set(NO_ROW) - set(TYPES)


def starts():
    """Return the values of init_lora_weights that the installed peft takes, without numbers in them."""
    hint = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    named = {value for part in typing.get_args(hint) for value in typing.get_args(part)}
    compared = set(re.findall(r'init_lora_weights == "(\w+)"', Path(layer.__file__).read_text()))
    return sorted({value.partition("_niter")[0] for value in named | compared})


@pytest.mark.parametrize("start", starts())
def test_each_start_of_lora_has_a_row_or_a_reason(start):
    rows = {str(spec.adapter.config["init_lora_weights"]).partition("_niter")[0] for spec in kinds.INITS.values()}
    assert (start in rows) != (start in kinds.NO_INIT), f"{start}: add it to INITS or NO_INIT of harness/runs/kinds.py"


def test_the_starts_are_read():
    assert {"pissa", "olora", "corda", "eva", "gaussian"} <= set(starts())


text_of_suites = "".join(path.read_text() for path in sorted(SUITES.glob("test_*.py")))

FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]

#: Fields of every peft config, which say what the adapter is and not how it adapts.
OF_ANY_CONFIG = [field.name for field in dataclasses.fields(peft.PeftConfig)]


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in OF_ANY_CONFIG])
def test_each_field_of_a_lora_is_set_by_a_run_or_has_a_reason(field):
    rows = [spec.adapter.config for spec in kinds.KINDS.values()] + [row.config for row in METHODS.values()]
    judged = any(field in config for config in [*rows, PLAIN.adapter.config]) or f"{field}=" in text_of_suites
    judged = judged or f'"{field}":' in text_of_suites
    assert judged != (field in kinds.NO_OPTION), f"{field}: add it to OPTIONS or NO_OPTION of harness/runs/kinds.py"


@pytest.mark.parametrize("task", [kind.value for kind in peft.TaskType])
def test_each_task_of_pefts_has_rows_or_a_reason(task):
    assert (task in models.TASK_TYPES.values()) != (task in kinds.NO_TASK)


@pytest.mark.parametrize("task", models.TASK_TYPES)
def test_each_task_of_the_harness_is_trained(task):
    trained = {spec.data.task for spec in kinds.KINDS.values()} | {row.task for row in models.FAMILIES.values()}
    assert task in trained


def test_a_type_without_a_row_is_found(monkeypatch):
    monkeypatch.delitem(FURTHER, "beft")
    with pytest.raises(AssertionError, match="BEFT: add it"):
        test_each_type_has_a_row_or_a_reason("BEFT")
