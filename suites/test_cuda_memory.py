"""Memory, as far as only a GPU shows it: peaks of the allocator, paged optimizer state, pinned batches."""

from typing import Any

import pytest

from harness.laws import memory, quantized, resume
from harness.laws.equal import equal_runs
from harness.runs.scenarios import PLAIN, by_route, cases, continued
from harness.session.state import skip_if
from harness.throughput.memory_probe import measure
from harness.verdict import both

pytestmark = [pytest.mark.usefixtures("cuda")]

# ---- the allocator ----

#: So large that the 512 bytes to which CUDA's allocator rounds do not matter, and that a copy or a gradient of the base
#: (20 MB) shows.
LARGE = PLAIN.but(
    max_steps=6,
    per_device_train_batch_size=1,
    data={"rows": 2, "length": 32},
    lora={"r": 32},
    model={
        "config": {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
    },
)


@pytest.mark.clause("MEM-02")
@cases(by_route({"large": LARGE, "large/accumulation": LARGE.but(gradient_accumulation_steps=2)}))
def test_a_step_holds_the_adapters_states_and_one_micro_batch(spec, upstream, runs, tmp_path, judge):
    spec = runs.on_device(spec)
    seen = measure(upstream, spec, tmp_path)
    judge(
        both(memory.within_bound(seen, spec), memory.held_between_steps(seen, spec), memory.does_not_grow(seen, spec))
    )


# ---- paged optimizers ----

#: A of q_proj and v_proj and B of q_proj have 131,072 numbers; B of v_proj has 65,536, and is not paged.
WIDE = PLAIN.but(
    model={
        "config": {
            "hidden_size": 2048,
            "intermediate_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
        }
    },
    lora={"r": 64},
    max_steps=4,
    optim="paged_adamw_32bit",
)
PAGED = {optim: WIDE.but(optim=optim) for optim in ("paged_adamw_32bit", "paged_adamw_8bit")}


def moments(trainer):
    """Return each trained parameter's number of elements, and whether each of its moments is in paged memory."""
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return {
        name: [p.numel(), *(bool(getattr(optimizer.state[p][one], "is_paged", False)) for one in ("state1", "state2"))]
        for name, p in trainer.model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.clause("QLORA-13")
@cases(PAGED)
def test_moments_of_large_tensors_are_paged(spec, upstream, tmp_path, judge):
    skip_if(upstream.unsupported(spec))
    trainer = upstream.build(spec, tmp_path)
    trainer.train()
    judge(quantized.paged(moments(trainer)))


@pytest.mark.clause("QLORA-13")
@cases({"paged_adamw_8bit/as-not-paged": PAGED["paged_adamw_8bit"]})
def test_a_paged_optimizer_trains_as_one_that_is_not(spec, train, judge):
    judge(equal_runs(train(spec), train(spec.but(optim="adamw_bnb_8bit"))))


@pytest.mark.clause("QLORA-13")
@cases({f"{optim}/step-2": continued(spec, 2) for optim, spec in PAGED.items()})
def test_a_run_with_paged_state_resumes(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=2))


# ---- pinned memory ----

SHORT = PLAIN.but(data={"rows": 16}, max_steps=8)
LOADERS: dict[str, dict[str, Any]] = {
    "pinned": {"dataloader_pin_memory": True},
    "pinned/2-workers": {"dataloader_pin_memory": True, "dataloader_num_workers": 2},
}


@pytest.mark.clause("RNG-04")
@cases({name: SHORT.but(**loader) for name, loader in LOADERS.items()})
def test_pinned_memory_does_not_change_a_run(spec, train, judge):
    judge(equal_runs(train(spec), train(SHORT.but(dataloader_pin_memory=False))))


@pytest.mark.clause("RNG-04")
@cases({f"{name}/step-2": continued(SHORT.but(**loader), 2) for name, loader in LOADERS.items()})
def test_pinned_memory_does_not_change_how_a_run_resumes(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=2))
