"""Put faults into upstream under which the checks of suites/test_io.py must fail."""

import pytest

from harness.spec import ADD
from harness.suites import test_io as io
from tests.faults import assert_seen, each, mutant, replace

WITHOUT_TAGS = replace(
    "peft:PeftModel",
    "_get_peft_specific_model_tags",
    lambda *args: ["transformers"],
    "The model card has no tags of peft's.",
)

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "IO-01/card": (
        io.test_each_checkpoint_has_a_card_of_library_peft,
        {"trace": io.SAVED},
        mutant("no-model-card"),
        "checkpoint-2/README.md is missing",
    ),
    "IO-01/tags": (
        io.test_the_card_is_tagged_with_task_method_and_base,
        {"trace": io.NAMED},
        WITHOUT_TAGS,
        "no tag 'lora'",
    ),
    "IO-01/add_adapter": (
        io.test_add_adapter_writes_no_card,
        {"trace": io.SAVED.but(adapter={"route": ADD})},
        mutant("card-of-add-adapter"),
        "checkpoint-2/README.md is there",
    ),
    "IO-02/library": (
        io.test_the_trainers_card_stays_one_of_library_peft,
        {},
        mutant("no-model-card"),
        "library_name is 'transformers', expected 'peft'",
    ),
    "IO-02/tags": (
        io.test_the_trainers_card_keeps_the_tags_of_peft,
        {},
        WITHOUT_TAGS,
        "no tag 'lora'",
    ),
    "IO-03": (
        io.test_nothing_is_reported_unless_asked_for,
        {},
        mutant("reported-unasked"),
        "TensorBoardCallback",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    if name == "IO-03":
        pytest.importorskip("tensorboard", reason="the fault reports to a tracker, which must be installed")
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)
