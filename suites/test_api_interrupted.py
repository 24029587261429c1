"""API-27: what evaluate(), predict() and a train() that an exception or Ctrl-C has ended leave behind in the model."""

import copy

import pytest
import torch

from harness.fixtures import models
from harness.laws import left_behind
from harness.runs.scenarios import PLAIN, by_route, cases
from harness.spec import ADD
from harness.subjects.hf_trainer import inject, recorded_warnings
from harness.suites.test_res_terminated import at_event
from harness.tensors import names
from harness.verdict import verdict

RUN = PLAIN.but(
    data={"rows": 8, "eval_rows": 4},
    max_steps=2,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    eval_strategy="steps",
    eval_steps=1,
)
KINDS = by_route({"plain": RUN, "bf16": RUN.but(bf16=True)}) | {
    "checkpointing": RUN.but(activation_checkpointing=True),
    "modules-to-save": RUN.but(lora={"modules_to_save": ["lm_head"]}),
    "dora": RUN.but(lora={"use_dora": True}),
    "nf4": RUN.but(model={"quantization": "nf4"}),
}


@pytest.mark.clause("API-27")
@cases(KINDS)
def test_evaluate_and_predict_only_evaluate(spec, upstream, tmp_path, judge):
    trainer = upstream.build(spec, tmp_path)
    model, findings = trainer.model, []
    with recorded_warnings([]):
        for when in ("before", "after"):
            for name, call in {
                "evaluate()": trainer.evaluate,
                "predict()": lambda: trainer.predict(trainer.eval_dataset),
            }.items():
                before, tensors = left_behind.state_of(model), copy.deepcopy(dict(model.state_dict()))
                call()
                findings += left_behind.only_evaluated(model, before, tensors, f"{name} {when} train():")
            if when == "before" and not findings:
                trainer.train()
    judge(verdict("evaluate() and predict() leave all but the mode as it was", findings))


@pytest.mark.clause("API-27")
@cases(KINDS)
def test_a_step_after_an_evaluation_is_in_training_mode(spec, upstream, tmp_path, judge):
    trainer = upstream.build(spec, tmp_path)
    model, findings = trainer.model, []
    trainer.evaluate()
    for event in ("substep_end", "pre_optimizer_step"):
        for done in (0, 1):
            look = _looks(model, findings, f"{event} of step {done + 1}:")
            trainer.add_callback(at_event(event, done, look))
    with recorded_warnings([]):
        trainer.train()
    judge(verdict("each step is made in training mode", findings))


def _looks(model, findings, when):
    return lambda: findings.extend(left_behind.one_mode(model, True, when))


#: Where and by what a run is ended. After substep_end there is a gradient of half a window.
ENDS = {
    "exception/substep_end": (RUN, "substep_end", RuntimeError),
    "exception/evaluate": (RUN, "evaluate", RuntimeError),
    "interrupt/substep_end": (RUN, "substep_end", KeyboardInterrupt),
    "interrupt/pre_optimizer_step": (RUN, "pre_optimizer_step", KeyboardInterrupt),
    "interrupt/prediction_step": (RUN, "prediction_step", KeyboardInterrupt),
    "interrupt/substep_end/add_adapter": (RUN.but(adapter={"route": ADD}), "substep_end", KeyboardInterrupt),
    "interrupt/substep_end/bf16": (RUN.but(bf16=True), "substep_end", KeyboardInterrupt),
    "interrupt/substep_end/checkpointing": (RUN.but(activation_checkpointing=True), "substep_end", KeyboardInterrupt),
    "interrupt/substep_end/neftune": (RUN.but(neftune_noise_alpha=5.0), "substep_end", KeyboardInterrupt),
}


@pytest.mark.clause("API-27")
@pytest.mark.parametrize(("spec", "event", "error"), [pytest.param(*row, id=name) for name, row in ENDS.items()])
def test_an_interrupted_train_leaves_nothing_behind(spec, event, error, upstream, tmp_path, judge):
    def end():
        raise error("the end")

    model = inject(models.build(spec.model), spec.adapter)
    trainer = upstream.build(spec, tmp_path / "ended", model=model)
    trainer.add_callback(at_event(event, 1, end))
    with recorded_warnings([]), pytest.raises(error, match="the end"):
        trainer.train()
    fresh = inject(models.build(spec.model), spec.adapter)
    _copy(model, fresh)
    whole = upstream.train(spec, tmp_path / "fresh", model=fresh)
    left = left_behind.changed(model, left_behind.state_of(fresh), "after train():")
    judge(left_behind.trains_as_new(upstream.train(spec, tmp_path / "again", model=model), whole, left))


def _copy(model, into):
    held = {names.canonical(name): one for name, one in model.named_parameters() if one.requires_grad}
    with torch.no_grad():
        for name, one in into.named_parameters():
            if one.requires_grad:
                one.copy_(held[names.canonical(name)])
