"""BEST: the best checkpoint, loaded at the end of training."""

from typing import Any

import pytest

from harness.laws import best
from harness.laws.equal import same_adapter
from harness.runs.scenarios import PLAIN, cases, over
from harness.session.state import skip_if
from harness.spec import ADD, ResumeSpec
from harness.subjects.hf_trainer import inject, recorded_warnings
from harness.subjects.observer import digest
from harness.tensors import names
from harness.verdict import both, raises, same, verdict

#: Four rows are trained on repeatedly. Of steps 2, 4, 6 and 8, the loss of other rows is lowest at step 2, by 1e-2.
#: No dropout: its masks differ between devices, and another step would be the best.
LOWEST = PLAIN.but(
    data={"rows": 4, "eval_rows": 8, "seed": 7},
    lora={"lora_dropout": 0.0},
    learning_rate=2e-2,
    max_steps=8,
    lr_scheduler_type="constant",
    eval_strategy="steps",
    eval_steps=2,
    save_strategy="steps",
    save_steps=2,
    load_best_model_at_end=True,
)
#: Here the highest loss counts as best. It is at step 4, and in no variant at the end.
HIGHEST = LOWEST.but(
    data={"rows": 4, "eval_rows": 8, "seed": 1},
    learning_rate=3e-2,
    greater_is_better=True,
    metric_for_best_model="eval_loss",
)
BF16_ADAPTER: dict[str, Any] = {
    "model": {"dtype": "bfloat16"},
    "adapter": {"options": {"autocast_adapter_dtype": False}},
}


def prompt_learning(peft_type, **config):
    """Return HIGHEST with a prompt of four virtual tokens instead of LoRA."""
    config = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM", **config}
    return HIGHEST.but(adapter={"peft_type": peft_type, "config": config}, learning_rate=0.1)


# ---- the best adapter is loaded ----


@pytest.mark.clause("BEST-01")
@over(
    {
        "lowest-loss": LOWEST,
        "highest-loss": HIGHEST,
        # Every evaluation counts the same rows. Of equal metrics, the first checkpoint stays the best.
        "equal-metrics": LOWEST.but(
            trainer={"compute_metrics": "harness.fixtures.metrics:counts"}, metric_for_best_model="rows"
        ),
        "each-epoch": LOWEST.but(
            data={"rows": 8}, eval_strategy="epoch", save_strategy="epoch", greater_is_better=True
        ),
        "saved-when-best": LOWEST.but(save_strategy="best", greater_is_better=True),
        "rotated": LOWEST.but(save_total_limit=1),
        "saved-at-every-second-evaluation": HIGHEST.but(save_steps=4),
        # Checkpoints are at steps 4, 8 and 10. The loss of these rows is higher at 2 than at 4, and highest at 6.
        "best-between-two-saves": HIGHEST.but(data={"seed": 0}, save_steps=4, max_steps=10),
        "bf16": LOWEST.but(bf16=True),
        "bf16-adapter": LOWEST.but(**BF16_ADAPTER),
        "dora": LOWEST.but(lora={"use_dora": True}),
        "modules-to-save": LOWEST.but(lora={"modules_to_save": ["lm_head"]}),
        "two-adapters": LOWEST.but(adapter={"others": {"second": {}}}),
        "nf4": LOWEST.but(model={"quantization": "nf4"}),
    }
)
def test_training_ends_with_the_best_adapter(trace, judge):
    judge(best.best_loaded(trace))


@pytest.mark.clause("BEST-01")
@cases({"lowest-loss": LOWEST, "bf16": LOWEST.but(bf16=True), "prompt-tuning": prompt_learning("PROMPT_TUNING")})
def test_an_evaluation_afterwards_returns_the_best_metric(spec, upstream, tmp_path, judge):
    judge(evaluated_again(spec, upstream, tmp_path))


@pytest.mark.clause("BEST-01")
def test_a_best_checkpoint_from_before_an_interruption_is_loaded(train, judge):
    # Interrupted after step 6, when checkpoint-4 was the best.
    spec = HIGHEST.but(resume=ResumeSpec(True, damage=("newest remove",)))
    resumed, whole = train(spec), train(HIGHEST)
    judge(
        both(
            same("first step after resuming", resumed.steps[0].number if resumed.steps else resumed.error, 7),
            same("best_metric", resumed.best["metric"], whole.best["metric"]),
            same_adapter(resumed.adapter, whole.checkpoint(4).adapter),
        )
    )


@pytest.mark.clause("BEST-02")
@over({ADD: LOWEST.but(adapter={"route": ADD})})
def test_a_run_through_add_adapter_ends_with_the_best_adapter(trace, judge):
    judge(best.best_loaded(trace))


@pytest.mark.clause("BEST-03")
@over({"foo": LOWEST.but(adapter={"name": "foo"})})
def test_an_adapter_of_another_name_ends_as_the_best(trace, judge):
    judge(best.best_loaded(trace))


def evaluated_again(spec, upstream, directory):
    """Judge a Trainer that evaluates once more after train()."""
    trainer = upstream.build(spec, directory)
    trainer.train()
    evaluations = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    return best.evaluates_to_best(trainer.evaluate()["eval_loss"], trainer.state.best_metric, evaluations)


# ---- a checkpoint that does not fit ----


@pytest.mark.clause("BEST-07")
@pytest.mark.parametrize("damage", ["another-rank", "truncated"])
def test_a_best_checkpoint_that_does_not_fit_is_an_error(damage, upstream, tmp_path, judge):
    from transformers import TrainerCallback

    from harness.fixtures import models

    class Damage(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step < state.max_steps:
                return
            best = tmp_path / f"checkpoint-{state.best_global_step}"
            if damage == "truncated":
                (best / "adapter_model.safetensors").write_bytes(b"0" * 100)
            else:
                inject(models.build(HIGHEST.model), HIGHEST.but(lora={"r": 2}).adapter).save_pretrained(best)

    trainer = upstream.build(HIGHEST, tmp_path)
    trainer.add_callback(Damage())
    kind, words = {"another-rank": (RuntimeError, "size mismatch"), "truncated": (Exception, "header")}[damage]
    judge(raises("train()", kind, words, trainer.train))


# ---- the state in which the model is left ----


@pytest.mark.clause("BEST-04")
@cases(
    {
        "plain": LOWEST,
        "modules-to-save": HIGHEST.but(lora={"modules_to_save": ["lm_head"]}),
        "two-adapters": LOWEST.but(adapter={"others": {"second": {}}}),
        "bf16-adapter": LOWEST.but(**BF16_ADAPTER),
    }
)
def test_the_model_is_left_ready_for_inference(spec, upstream, tmp_path, judge):
    trainer = upstream.build(spec, tmp_path)
    before = requiring_gradients(trainer.model)
    trainer.train()
    training = [name for name, module in trainer.model.named_modules() if module.training]
    judge(best.ready_for_inference(training, before, requiring_gradients(trainer.model)))


def requiring_gradients(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# ---- several active adapters, and prompts ----


@pytest.mark.clause("BEST-05")
def test_of_two_active_adapters_the_first_is_loaded_and_that_is_said(upstream, tmp_path, judge):
    from harness.fixtures import models

    spec, told = LOWEST.but(adapter={"others": {"second": {}}}), []
    model = inject(models.build(spec.model), spec.adapter)
    model.base_model.set_adapter(["default", "second"])
    with recorded_warnings(told):
        trainer = upstream.build(spec, tmp_path, model=model)
        trainer.train()
    saved = trainer.state.best_model_checkpoint, trainer.state.best_global_step
    ended = {step: directory_of(model, tmp_path / f"checkpoint-{step}") for step in (saved[1], 8)}
    judge(
        both(
            same("adapters that end as in the best checkpoint", ended[saved[1]], ["default"]),
            same("adapters that end as they were trained last", ended[8], ["second"]),
            verdict("a warning says so", [] if warned(told, "multiple active adapters") else ["no warning names them"]),
        )
    )


def directory_of(model, checkpoint):
    """Return the names of adapters that equal their tensors in the checkpoint. The second has a directory of its own."""
    from safetensors.torch import load_file

    found = []
    for name, directory in (("default", checkpoint), ("second", checkpoint / "second")):
        saved = load_file(directory / "adapter_model.safetensors")
        wanted = {names.canonical(key, name): digest(tensor) for key, tensor in saved.items()}
        held = {names.canonical(key, name): digest(tensor) for key, tensor in model.state_dict().items()}
        if wanted and all(held.get(key) == value for key, value in wanted.items()):
            found.append(name)
    return found


def warned(told, words):
    return [one for one in told if words in one]


@pytest.mark.clause("BEST-05")
@cases(
    {
        "prefix-tuning": prompt_learning("PREFIX_TUNING"),
        "prefix-tuning-with-projection": prompt_learning(
            "PREFIX_TUNING", prefix_projection=True, encoder_hidden_size=16
        ),
        "p-tuning": prompt_learning("P_TUNING", encoder_hidden_size=16),
    }
)
def test_a_prompt_encoder_is_loaded_whole_or_refused_with_an_explanation(spec, upstream, tmp_path, judge):
    try:
        judged = evaluated_again(spec, upstream, tmp_path)
    except RuntimeError as error:
        explained = "load the model manually" in str(error)
        judged = verdict("the error says how to load it", [] if explained else [f"RuntimeError: {error}"])
    judge(judged)


# ---- arguments ----


@pytest.mark.clause("BEST-06")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(LOWEST.but(save_strategy="epoch"), "save and eval strategy to match", id="saved-each-epoch"),
        pytest.param(LOWEST.but(eval_strategy="epoch"), "save and eval strategy to match", id="evaluated-each-epoch"),
        pytest.param(LOWEST.but(eval_strategy="no"), "save and eval strategy to match", id="never-evaluated"),
        pytest.param(LOWEST.but(save_strategy="no"), "save and eval strategy to match", id="never-saved"),
        pytest.param(LOWEST.but(save_steps=3), "a round multiple of the evaluation steps", id="no-multiple"),
        pytest.param(LOWEST.but(save_steps=0.5), "mixing ratio and absolute steps", id="share-and-steps"),
        pytest.param(LOWEST.but(save_steps=0.5, eval_steps=0.3), "a multiple of the evaluation steps", id="shares"),
    ],
)
def test_a_checkpoint_that_is_not_evaluated_is_refused(spec, words, upstream, tmp_path, judge):
    judge(raises("TrainingArguments", ValueError, words, lambda: upstream.arguments(spec, tmp_path)))


@pytest.mark.clause("BEST-06")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, ("loss", False), id="default"),
        pytest.param({"metric_for_best_model": "eval_loss"}, ("eval_loss", False), id="eval_loss"),
        pytest.param({"metric_for_best_model": "eval_long_loss"}, ("eval_long_loss", False), id="eval_long_loss"),
        pytest.param({"metric_for_best_model": "rouge"}, ("rouge", True), id="rouge"),
        pytest.param({"metric_for_best_model": "losses"}, ("losses", True), id="losses"),
        pytest.param({"greater_is_better": True}, ("loss", True), id="said"),
        pytest.param({"save_steps": 0.5, "eval_steps": 0.25}, ("loss", False), id="shares"),
        pytest.param({"save_strategy": "best"}, ("loss", False), id="saved-when-best"),
    ],
)
def test_the_metric_is_the_loss_and_less_of_it_is_better(changes, expected, upstream, tmp_path, judge):
    spec = LOWEST.but(**changes)
    skip_if(upstream.unsupported(spec))
    arguments = upstream.arguments(spec, tmp_path)
    seen = arguments.metric_for_best_model, arguments.greater_is_better
    judge(same("metric_for_best_model, greater_is_better", seen, expected))
