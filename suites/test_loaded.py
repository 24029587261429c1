"""FSDP: a base that from_pretrained(distributed_config=...) sharded while loading it, and adapters added afterwards.

transformers keeps these adapters equal on all ranks. accelerate wraps nothing.
"""

from pathlib import Path
from typing import Any

import pytest

from harness.laws import frozen, rank_files, resume, several, sharding
from harness.runs.scenarios import LAUNCHES, cases, over, spec_for, spread
from harness.spec import ADD
from harness.suites.test_dist import start_from_own_adapter
from harness.suites.test_fsdp import generate, save_model
from harness.verdict import both

LOADED = LAUNCHES["loaded-2"]
BY_ADD = LOADED.but(adapter={"route": ADD}, save_strategy="no", save_only_model=None)
BRIEF: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "save_only_model": None}
BOTH = {"loaded-2": LOADED, "loaded-2/add_adapter": BY_ADD}


@pytest.mark.clause("FSDP-20")
@over(BOTH)
def test_adapters_are_whole_on_each_rank_and_the_base_in_shards(trace, judge):
    judge(both(sharding.base_sharded_adapter_whole(trace), several.ranks_agree(trace), frozen.base_frozen(trace)))


@pytest.mark.clause("FSDP-20")
@cases({f"{name}/own-adapters": spec for name, spec in BOTH.items()})
def test_the_first_ranks_adapter_is_trained(spec, train, upstream, judge):
    single = train(several.one_process_spec(spec))
    started = train(spec, subject=upstream.in_ranks("own-adapters", start_from_own_adapter))
    judge(several.first_rank_wins(started, single))


def of(method):
    """Return the sharded run of a row of METHODS."""
    return spread(spec_for("llama", method), "loaded", limit=LOADED.launch.limit)


@pytest.mark.clause("FSDP-17")
@cases(
    BOTH
    | {
        "loaded-2/unaccumulated": LOADED.but(gradient_accumulation_steps=None, **BRIEF),
        "loaded-2/clipped": LOADED.but(max_grad_norm=0.1, **BRIEF),
        "loaded-2/label-smoothing": LOADED.but(label_smoothing_factor=0.1, **BRIEF),
        "loaded-2/checkpointing": LOADED.but(
            activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}, **BRIEF
        ),
        # Biases of the base are trained as DTensors, beside the adapter's plain tensors. The gradients of key biases are only
        # rounding errors; AdamW would turn those into whole steps.
        "loaded-2/bias-all": LOADED.but(
            model={"family": "gpt2"},
            lora={"bias": "all", "target_modules": ["c_attn"]},
            optim="sgd",
            learning_rate=1.0,
            **BRIEF,
        ),
        "loaded-2/modules-to-save": LOADED.but(lora={"modules_to_save": ["lm_head"]}, **BRIEF),
        "loaded-2/trainable-tokens": LOADED.but(lora={"trainable_token_indices": [1, 2, 3]}, **BRIEF),
        "loaded-2/pissa": LOADED.but(lora={"init_lora_weights": "pissa"}, **BRIEF),
        "loaded-2/embeddings": LOADED.but(
            lora={"target_modules": ["embed_tokens", "lm_head"]}, optim="sgd", learning_rate=1.0, **BRIEF
        ),
        **{f"loaded-2/{method}": of(method) for method in ("dora", "ia3", "oft", "prompt-tuning", "prefix-tuning")},
    }
)
def test_it_trains_as_one_process(spec, train, judge):
    judge(several.trains_as_one_process(train, spec))


@pytest.mark.clause("FSDP-12")
@cases({name: spec.but(**BRIEF) for name, spec in BOTH.items()})
def test_generate_runs(spec, afterwards, judge):
    trace = afterwards(spec, generate)
    judge(sharding.same_tokens(trace))


#: Seconds. This run takes one second; ranks that wait for each other in vain need not do so for a minute.
SOON = 10.0


@pytest.mark.clause("FSDP-15")
@cases({name: spec.but(launch={"limit": SOON}, **BRIEF) for name, spec in BOTH.items()})
def test_save_model_leaves_a_whole_adapter(spec, afterwards, judge):
    trace = afterwards(spec, save_model)
    judge(rank_files.saved_at_the_end(trace, Path(trace.directory) / "end"))


@pytest.mark.clause("FSDP-09")
@cases({"loaded-2": LOADED.but(max_steps=2, save_only_model=None)})
def test_a_checkpoint_with_an_optimizer_is_refused(spec, train, judge):
    judge(resume.refused(train(spec), "ValueError", words="save_only_model=True"))
