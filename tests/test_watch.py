"""Watch: it sees faults while a run goes on, says what it did not judge, changes nothing, and never ends a run itself."""

import json
import random
import shutil
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

import harness
from harness.errors import UsageError
from harness.mutants import catalogue
from harness.mutants.digest import digest
from harness.paths import PACKAGE
from harness.processes.imports import import_upstream
from harness.reports import web_page
from harness.spec import ADD, RunSpec
from harness.subjects.hf_trainer import HFTrainer, inject
from harness.watch import certificate
from harness.watch import healthy as drawing
from harness.watch.base_watch import FrozenBase
from harness.watch.book import CHECKS
from harness.watch.run import Run

import_upstream(threads=1)

#: Ragged rows, two micro-batches a step, two epochs, three saves.
SPEC = RunSpec().but(
    data={"rows": 16, "min_length": 6, "ignored": 0.2},
    max_steps=6,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    warmup_steps=2,
    weight_decay=0.1,
    max_grad_norm=0.1,
    logging_steps=1,
    save_strategy="steps",
    save_steps=2,
)


class Watching(HFTrainer):
    """The Trainer with Watch, as a subject."""

    def build(self, *args, **options):
        trainer = super().build(*args, **options)
        trainer.add_callback(harness.Watch(every=1, quiet=True))
        return trainer


def watch(spec, directory, trainer_class=Trainer, callbacks=(), resume=None, **options):
    """Train a spec with Watch, and return it."""
    watching = harness.Watch(**{"every": 1, "quiet": True, **options})
    trainer = HFTrainer(trainer_class).build(spec, directory)
    for callback in (*callbacks, watching):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return watching


def check(watching, name):
    return next(one for one in watching.certificates[-1]["checks"] if one["check"] == name)


def reasons(watching, name):
    return [one["reason"] for one in check(watching, name)["not_judged"]]


def test_a_healthy_run_holds(tmp_path, capsys):
    file = tmp_path / "certificates" / "run.json"
    watching = watch(SPEC, tmp_path / "run", quiet=False, json=file)
    assert watching.findings == []
    made = json.loads(file.read_text())
    jsonschema.validate(made, json.loads((PACKAGE / "watch" / "certificate_schema.json").read_text()))
    assert made["watch"] == "holds" and [one["check"] for one in made["checks"]] == list(CHECKS)
    held = {one["check"] for one in made["checks"] if one["verdict"] == "holds"}
    assert held >= {
        "frozen-base",
        "loss",
        "rows",
        "clipping",
        "learning-rate",
        "optimizer-step",
        "checkpoint-adapter",
        "logs",
    }
    printed = capsys.readouterr().out
    assert "Watch: HOLDS. 6 steps, 6 of them sampled" in printed
    assert len(certificate.text(made).splitlines()) <= 10
    page = web_page.write(made)
    assert "Watch: " in page and "frozen-base" in page


def test_a_run_is_the_same_with_watch(tmp_path):
    spec = SPEC.but(data={"eval_rows": 4}, eval_strategy="steps", eval_steps=3, lora={"lora_dropout": 0.1})
    states = []
    traces = []
    for subject in (HFTrainer(), Watching(name="hf-trainer")):
        random.seed(0)
        np.random.seed(0)
        traces.append(digest(subject.train(spec, tmp_path / str(len(traces)))))
        states.append((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()))
    assert traces[0] == traces[1]
    assert states[0] == states[1]


#: Mutant -> what is trained with it, the check that must see it, the step, and words of what it says.
FAULTS = {
    "base-drifts-by-an-ulp": ({}, "frozen-base", 1, "norm.weight of the frozen base has changed"),
    "norm-trained-too": ({}, "trained-tensors", 0, "of the base, requires gradients"),
    "parameter-left-out-of-the-optimizer": ({}, "optimizer-holds", 0, "requires gradients but is in no group"),
    "accumulation-divided-twice": ({}, "loss", 1, "the step's gradient is 0.5 times what it must be"),
    "padding-counted": ({}, "token-count", 1, "labels"),
    "mean-of-means": ({}, "token-count", 1, "was given none"),
    "smoothing-by-twice-the-factor": ({"label_smoothing_factor": 0.1}, "loss", 1, "the gradient at the logits is off"),
    "scaling-left-out": ({}, "adapter-effect", 2, "times the adapter is added"),
    "not-clipped": ({}, "clipping", 1, "max_grad_norm is 0.1"),
    "rows-not-shuffled": ({}, "rows", 1, "as the seed gives them"),
    "adapter-of-the-checkpoint-before": ({}, "checkpoint-adapter", 4, "checkpoint-4"),
    "saving-draws-a-number": ({}, "random-numbers", 2, "the save drew random numbers"),
}


#: Further faults for a check that another one is for.
SLOW = ("smoothing-by-twice-the-factor", "mean-of-means")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAULTS]
)
def test_a_fault_is_seen_within_a_step(tmp_path, monkeypatch, name):
    changes, expected, step, words = FAULTS[name]
    catalogue.mutants()[name].put(monkeypatch)
    watching = watch(SPEC.but(**changes), tmp_path)
    found = check(watching, expected)["findings"]
    assert found and found[0]["step"] <= step + 1, watching.findings
    assert any(words in one["sentence"] for one in found), found


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run's directory, after training it and resuming it without a fault."""
    directory = tmp_path_factory.mktemp("healthy")
    first = watch(SPEC, directory)
    again = watch(SPEC, directory, resume=str(directory / "checkpoint-2"))
    assert first.findings == [] and again.findings == []
    return directory


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("moments-not-restored", "was not restored: it is empty"),
        ("generators-not-restored", "not in the state that was saved"),
        ("adapter-not-restored", "after loading checkpoint-2"),
        ("log-forgotten", "log_history"),
    ],
)
def test_a_fault_of_resuming_is_seen_before_the_first_step(healthy, tmp_path, monkeypatch, name, words):
    run = shutil.copytree(healthy, tmp_path / "run")
    catalogue.mutants()[name].put(monkeypatch)
    found = check(watch(SPEC, run, resume=str(run / "checkpoint-2")), "resume")["findings"]
    assert found and found[0]["step"] <= 3 and any(words in one["sentence"] for one in found), found


class Damage(TrainerCallback):
    """Changes the base after the second step, as no callback may."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            with torch.no_grad():
                model.get_base_model().model.norm.weight.mul_(2)


def test_stop_ends_the_run_within_a_step(tmp_path):
    watching = watch(SPEC, tmp_path, callbacks=[Damage()], on_violation="stop")
    assert watching.certificates[-1]["steps"]["last"] in (2, 3)
    assert watching.findings[0].check == "frozen-base"


def test_raise_raises_a_violation(tmp_path):
    with pytest.raises(harness.Violation, match=r"step 2: frozen-base: model\.norm\.weight") as caught:
        watch(SPEC, tmp_path, callbacks=[Damage()], on_violation="raise")
    assert [finding.check for finding in caught.value.findings] == ["frozen-base"]


def test_an_error_of_its_own_does_not_reach_the_run(tmp_path, monkeypatch):
    def fail(check):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(FrozenBase, "begin", fail)
    watching = watch(SPEC, tmp_path)
    assert watching.certificates[-1]["steps"]["made"] == 6
    assert reasons(watching, "frozen-base") == ["Watch failed with ZeroDivisionError: no such thing"]
    assert check(watching, "loss")["verdict"] == "holds"


def test_an_error_outside_of_all_checks_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("harness.watch.as_spec.spec_of", lambda seen: 1 / 0)
    monkeypatch.setattr("harness.watch.seen.Seen.look_at_model", lambda seen: [][0])
    watching = watch(SPEC, tmp_path)
    said = capsys.readouterr().err
    assert said.count("not judged: Watch failed with IndexError: list index out of range") == 1
    assert watching.certificates == []


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = 3 * outputs["loss"]
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_the_users_own_is_not_accused(tmp_path):
    watching = watch(SPEC, tmp_path, OwnLoss, callbacks=[type("Mine", (TrainerCallback,), {})()])
    assert watching.findings == []
    assert any("OwnLoss.compute_loss is the user's own" in reason for reason in reasons(watching, "loss"))
    assert reasons(watching, "random-numbers") == ["callback Mine may draw numbers"]


def test_a_model_without_an_adapter_is_said(tmp_path):
    import copy

    model = HFTrainer().build(SPEC, tmp_path / "other").model.unload()
    model.requires_grad_(True)
    trainer = HFTrainer().build(SPEC, tmp_path, model=copy.deepcopy(model))
    watching = harness.Watch(every=1, quiet=True)
    trainer.add_callback(watching)
    trainer.train()
    assert watching.findings == []
    assert reasons(watching, "trained-tensors") == ["the model has no adapter"]
    assert check(watching, "loss")["verdict"] == "holds"


def test_by_default_the_first_steps_are_sampled(tmp_path):
    watching = watch(SPEC.but(adapter={"route": ADD}), tmp_path, every=None)
    assert watching.findings == []
    assert watching.certificates[-1]["steps"] == {"made": 6, "last": 6, "sampled": 3, "every": None}
    assert check(watching, "learning-rate")["steps"] == 6  # it costs nothing, so every step is judged


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_violation": "shout"},
        {"every": 0},
        {"every": True},
        {"every": 1.5},
        {"json": 3},
        {"json": "/dev/null/x.json"},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(UsageError, match="Watch: "):
        harness.Watch(**wrong)


def test_what_is_no_model_or_no_optimizer_is_refused():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="WatchLoop: 3 is no model"):
        harness.WatchLoop(3, torch.optim.SGD(module.parameters()))
    with pytest.raises(UsageError, match="is no optimizer"):
        harness.WatchLoop(module, module)
    with pytest.raises(UsageError, match=r"accumulation=1\.5; expected a whole number"):
        harness.WatchLoop(module, torch.optim.SGD(module.parameters()), accumulation=1.5)


def test_a_loop_goes_on_after_an_error_of_watchs_own_and_has_a_certificate(tmp_path, monkeypatch, capsys):
    def broken(run):
        raise RuntimeError("made up")

    monkeypatch.setattr(Run, "begin", broken)
    model, optimizer = made()
    with harness.WatchLoop(model, optimizer, json=tmp_path / "run.json") as watching:
        assert loop(watching, model, optimizer) == 3
        watching.saved(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["failure"] == "Watch failed with RuntimeError: made up"
    assert "made up" in capsys.readouterr().out


def test_healthy_runs_differ_and_an_alarm_is_printed_with_its_run():
    specs = drawing.drawn(6, seed=0)
    assert len({spec.hash for spec in specs}) == 6
    halves = [drawing._on(SPEC.but(bf16=True), number, "cuda").arguments for number in (0, 1)]
    assert halves[0]["bf16"] and halves[1]["fp16"] and "bf16" not in halves[1]
    good = drawing.Seen(runs=2, judged=Counter({"loss": 4}))
    bad = drawing.Seen(runs=1, alarms=[("the run", "loss", 3, "is off")], aside="")
    told = drawing.lines([(specs[0], good), (specs[1], bad)], 5.0)
    assert told[0] == "false alarm: the run, step 3: loss: is off" and str(specs[1].to_json()) in told[1]
    assert told[2] == "3 runs of 2 drawn were watched in 5 s: 1 false alarm, 0 failures of Watch's own"


def loop(watching, model, optimizer, *, damage=False, clip=0.1):
    """Train three steps of two micro-batches each in a loop."""
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        for _ in range(2):
            tokens = torch.randint(1, 256, (2, 8), generator=generator)
            (model(input_ids=tokens, labels=tokens).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        if damage and step == 0:
            with torch.no_grad():
                next(p for p in model.parameters() if not p.requires_grad).add_(1)
        if watching.stopped:
            return step + 1
    return 3


def made():
    from harness.fixtures import models

    model = inject(models.build(SPEC.model), SPEC.adapter).train()
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def test_a_loop_is_judged(tmp_path):
    model, optimizer = made()
    options = {"accumulation": 2, "max_grad_norm": 0.1, "every": 1, "quiet": True}
    with harness.WatchLoop(model, optimizer, **options) as watching:
        loop(watching, model, optimizer)
        model.save_pretrained(tmp_path)
        watching.saved(tmp_path)
    assert watching.findings == []
    held = {one["check"] for one in watching.certificate()["checks"] if one["verdict"] == "holds"}
    assert held >= {"frozen-base", "loss", "windows", "clipping", "optimizer-step", "checkpoint-adapter", "gradients"}
    with harness.WatchLoop(model, optimizer, on_violation="stop", **options) as watching:
        assert loop(watching, model, optimizer, damage=True) == 2
    assert [finding.check for finding in watching.findings] == ["frozen-base"]
    model.save_pretrained(tmp_path)
    with harness.WatchLoop(model, optimizer, on_violation="raise", **options) as watching:
        with pytest.raises(harness.Violation):
            loop(watching, model, optimizer, clip=0.01)


def test_sampled_steps_alone_count_for_how_often_one_is_sampled():
    """What each step pays does not: where it is 0.8 %, no step after the third would be sampled any more."""
    made: Any = Run.__new__(Run)
    made.seen, made._strict, made._waits = SimpleNamespace(begun=100, every=100, world=1), False, False
    made._began, made.own_seconds, made._sampled_seconds = time.perf_counter() - 100, 1.0, 0.1
    assert made._is_sampled()
    made._sampled_seconds = 0.3
    made.seen.begun = 200
    assert not made._is_sampled()
    # It waits, and is sampled as soon as there is time for it.
    made._began -= 100
    made.seen.begun = 201
    assert made._is_sampled()
    made.seen.begun = 202
    assert not made._is_sampled()
