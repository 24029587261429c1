"""The TrainerCallback that observes: it has a method for every event, and reports what the Trainer does in order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers
from transformers import TrainerCallback

from harness import subjects
from harness.processes.imports import import_upstream
from harness.spec import RunSpec
from harness.subjects import reporter
from harness.subjects.reporter import Reporter


def test_every_event_of_the_installed_release_is_reported():
    missing = reporter.unreported_events()
    assert not missing, (
        f"transformers {transformers.__version__} has callback events that are not observed: {', '.join(missing)}. "
        "Give each a method in harness/subjects/reporter.py:Reporter."
    )


def test_a_new_event_is_noticed(monkeypatch):
    monkeypatch.setattr(TrainerCallback, "on_lunch", lambda self, *args, **kwargs: None, raising=False)
    assert reporter.unreported_events() == ["on_lunch"]


class Recorder:
    """Stands in for an Observer: keeps the events and the calls that go with them."""

    def __init__(self):
        self.trace = SimpleNamespace(spec=RunSpec())
        self.calls = []

    def event(self, name, step):
        self.calls.append((name, step))

    def watch_optimizer(self, optimizer):
        self.calls.append(("watch_optimizer", optimizer))

    def evaluated(self, metrics):
        self.calls.append(("evaluated", metrics))

    def meet(self):
        self.calls.append(("meet",))

    def checkpoint(self, path):
        self.calls.append(("checkpoint", path.name))


#: What each event passes on beside its own name. Events that are not named here pass on nothing else.
OTHERS = {
    "on_train_begin": ([("watch_optimizer", "the optimizer")], []),
    "on_evaluate": ([], [("evaluated", {"eval_loss": 1.0})]),
    "on_save": ([], [("meet",), ("checkpoint", "checkpoint-3")]),
}


@pytest.mark.parametrize("method", [name for name in vars(Reporter) if name.startswith("on_")])
def test_an_event_is_reported_by_its_name(method, tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    recorder = Recorder()
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=3)
    options = {"optimizer": "the optimizer", "metrics": {"eval_loss": 1.0}}
    assert getattr(Reporter(recorder), method)(args, state, None, **options) is None
    before, after = OTHERS.get(method, ([], []))
    assert recorder.calls == [*before, (method.removeprefix("on_"), 3), *after]
    assert getattr(Reporter(), method)(args, state, None, **options) is None


def test_the_optimizer_is_the_trainers_if_the_release_passes_none():
    recorder = Recorder()
    callback = Reporter(recorder)
    callback.trainer = SimpleNamespace(optimizer="the Trainer's")
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None)
    assert recorder.calls == [("watch_optimizer", "the Trainer's"), ("train_begin", 0)]


def test_a_run_is_observed_from_the_first_event_to_the_last(tmp_path):
    import_upstream()
    spec = RunSpec().but(
        max_steps=1, gradient_accumulation_steps=2, save_strategy="steps", save_steps=1,
        data={"eval_rows": 2}, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trace = subjects.load("hf-trainer").train(spec, tmp_path)
    assert trace.error is None
    assert trace.events == [
        "init_end",
        "train_begin",
        "epoch_begin",
        "step_begin",
        "substep_end",
        "pre_optimizer_step",
        "optimizer_step",
        "step_end",
        "log",
        "prediction_step",
        "log",
        "evaluate",
        "save",
        "epoch_end",
        "log",
        "train_end",
    ]
