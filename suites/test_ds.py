"""DS: optimizer state, gradients and parameters partitioned by DeepSpeed (ZeRO stages 1, 2 and 3)."""

from pathlib import Path
from typing import Any

import pytest

from harness.laws import checkpoint, rank_files, rates, resume, several
from harness.runs.scenarios import LAUNCHES, TOGETHER, TOGETHER_SGD, cases, continued, over, spec_for, spread
from harness.suites.test_fsdp import save_model
from harness.verdict import both, verdict

ZERO = {name: spec for name, spec in LAUNCHES.items() if spec.launch.deepspeed}
BRIEF = TOGETHER.but(max_steps=2, gradient_accumulation_steps=None, save_strategy="no")


@pytest.mark.clause("DS-01")
@cases({"from-ddp": continued(ZERO["zero2-2"], 3, every=3, launch={"strategy": "ddp"})})
def test_a_checkpoint_without_the_engines_is_refused(spec, train, judge):
    judge(resume.refused(train(spec), "ValueError", words="Can't find a valid checkpoint"))


@pytest.mark.clause("DS-02")
@over({name: ZERO[name] for name in ("zero2-2", "zero3-2")})
def test_the_engines_checkpoint_leaves_the_base_out(trace, judge):
    judge(rank_files.deepspeed_model(trace))


@pytest.mark.clause("DS-03")
@cases({f"zero{stage}-2": spread(BRIEF, f"zero{stage}") for stage in (2, 3)})
def test_save_model_leaves_a_whole_adapter(spec, afterwards, judge):
    trace = afterwards(spec, save_model)
    judge(rank_files.saved_at_the_end(trace, Path(trace.directory) / "end"))


@pytest.mark.clause("DS-04")
@over(ZERO)
def test_loss_and_learning_rate_are_logged_as_of_all_ranks(trace, judge):
    judge(both(several.logged_mean(trace), rates.logged_rates(several.whole_run(trace))))


BEST: dict[str, Any] = {
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.mark.clause("DS-05")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(spread(BRIEF.but(fsdp=True), "zero2"), "--deepspeed is not possible", id="fsdp"),
        pytest.param(spread(BRIEF.but(auto_find_batch_size=True), "zero3"), "auto_find_batch_size", id="batch-size"),
        pytest.param(
            spread(BRIEF.but(save_only_model=True, data={"eval_rows": 4}, **BEST), "zero2"),
            "save_only_model",
            id="best",
        ),
    ],
)
def test_what_cannot_be_is_refused(spec, words, train, judge):
    judge(resume.refused(train(spec), "ValueError", words=words))


def export(trainer):
    """Export the adapter without gathering it. Return which of its tensors are empty, and peft's warnings."""
    import warnings

    from peft import get_peft_model_state_dict

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tensors = get_peft_model_state_dict(trainer.accelerator.unwrap_model(trainer.model))
    empty = sorted(name for name, tensor in tensors.items() if tensor.numel() == 0)
    return {"empty": empty, "warnings": [str(warning.message) for warning in caught]}


@pytest.mark.clause("DS-06")
@cases({"zero3-2": spread(BRIEF, "zero3")})
def test_an_export_of_partitions_warns(spec, afterwards, judge):
    trace = afterwards(spec, export)
    seen = trace.distributed.get("afterwards", {"empty": [], "warnings": []})
    findings = several.incomplete_ranks(trace)
    if not seen["empty"]:
        findings.append("no tensor was empty, so there was nothing to warn of")
    if not any("ZeRO" in warning or "gather" in warning.lower() for warning in seen["warnings"]):
        findings.append(f"{len(seen['empty'])} empty tensors and no warning of it: {seen['warnings'][:2]}")
    judge(verdict("empty tensors are warned of", findings, empty=len(seen["empty"])))


@pytest.mark.clause("DS-07")
@over(ZERO)
def test_a_checkpoint_has_the_engines_optimizer(trace, judge):
    judge(rank_files.deepspeed_optimizer(trace))


NF4 = TOGETHER_SGD.but(model={"quantization": "nf4"})

#: Weights and biases are separate parameter groups, which the engine steps one after the other.
TWO_GROUPS = TOGETHER_SGD.but(
    model={"family": "gpt2"}, lora={"bias": "all", "target_modules": ["c_attn"]}, weight_decay=0.1
)


@pytest.mark.clause("DS-08")
@cases(
    ZERO
    | {f"zero{stage}-2/nf4": spread(NF4, f"zero{stage}") for stage in (2, 3)}
    | {f"zero{stage}-2/two-groups": spread(TWO_GROUPS, f"zero{stage}") for stage in (2, 3)}
    # These models compute their loss without the number of labels of all ranks.
    | {
        f"zero2-2/{family}": spread(spec_for(family).but(optim="sgd", learning_rate=0.1), "zero2")
        for family in ("bert-classifier", "t5")
    }
)
def test_partitioned_it_is_the_run_of_one_process(spec, train, judge):
    trace = train(spec)
    judge(
        both(
            several.equals_single(trace, train(several.one_process_spec(spec))),
            several.ranks_agree(trace),
            checkpoint.adapter_only(trace),
        )
    )


@pytest.mark.clause("DS-08")
@cases({name: continued(spec, 3, every=3) for name, spec in ZERO.items()})
def test_partitioned_it_resumes(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=3))
