"""Where an exception was raised, and how that reaches a case from a run in this process or in another."""

import json

from harness.raised import place_in, where_raised
from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.subjects.hf_trainer import HFTrainer

#: No module of the model has this name.
NOWHERE = RunSpec().but(lora={"target_modules": ["no_such_module"]}, max_steps=1)


def caught(call):
    try:
        call()
    except Exception as error:
        return where_raised(error)
    raise AssertionError("it raised nothing")


def test_an_error_of_upstream_has_its_innermost_function_and_the_way_there():
    from peft import LoraConfig, get_peft_model
    from torch import nn

    found = caught(lambda: get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["x"])))
    assert (found["package"], found["file"]) == ("peft", "peft/tuners/tuners_utils.py")
    assert found["kind"] in ("ValueError", "NoMatchingPeftModuleError")
    assert found["message"].startswith("Target modules")
    assert any(call.endswith(":get_peft_model") for call in found["calls"])
    assert json.loads(json.dumps(found)) == found


def test_an_error_of_ours_has_no_place():
    assert caught(lambda: [][0]) == {"kind": "IndexError", "message": "list index out of range"}


def test_a_printed_stack_has_a_place():
    hung = '  File "/e/site-packages/peft/a.py", line 3 in save\n  File "/e/site-packages/transformers/b.py", line 4 in train'
    traceback = 'Traceback (most recent call last):\n  File "/e/site-packages/peft/a.py", line 3, in save'
    for text in (hung, traceback):
        assert (place_in(text)["file"], place_in(text)["function"]) == ("peft/a.py", "save")
    assert place_in("no stack") == {}


def test_a_run_that_fails_says_where_each_time_it_is_asked_for(tmp_path):
    runs = Runs(HFTrainer(), tmp_path)
    for _ in range(2):
        trace = runs.train(NOWHERE)
        assert runs.broken == [trace]
        assert (trace.raised["package"], trace.raised["kind"]) == ("peft", trace.error.partition(":")[0])
        runs.broken.clear()


def test_a_run_of_several_processes_says_where(tmp_path):
    runs = Runs(HFTrainer(), tmp_path)
    trace = runs.train(NOWHERE.but(launch={"strategy": "ddp", "ranks": 2}))
    assert (trace.raised["package"], trace.raised["kind"]) == ("peft", trace.error.partition(":")[0])
    assert trace.raised["function"] != ""
