"""The laws that every run obeys, over the tables of base models and adapter methods, by both routes."""

import pytest

from harness import subjects
from harness.environment import REPACKS, repacks
from harness.fixtures import models
from harness.fixtures.methods import METHODS, misfit
from harness.fixtures.models import FAMILIES
from harness.laws import (
    checkpoint,
    comparisons,
    equal,
    frozen,
    loss,
    optimizer_file,
    process,
    rebuilt,
    resume,
    universal,
)
from harness.runs.scenarios import cases, over, saving, spec_for, two_steps
from harness.session.state import skip_if
from harness.spec import ADD, GET, ResumeSpec
from harness.subjects.hf_trainer import inject
from harness.suites.test_api_layers import injected

#: Each base model with LoRA, each method on the default model, and pairs that interact: Conv1D (a transposed weight), a
#: head that is trained whole, a separate decoder, tied embeddings.
PAIRS = [
    *((family, "lora") for family in FAMILIES),
    *(("llama", method) for method in METHODS if method != "lora"),
    ("gpt2", "dora"),
    ("gpt2", "ia3"),
    ("gpt2", "vera"),
    ("bert-classifier", "ia3"),
    ("bert-classifier", "prefix-tuning"),
    ("llama-classifier", "prompt-tuning"),
    ("t5", "ia3"),
    ("t5", "prompt-tuning"),
    ("llama-tied", "dora"),
]
#: Each method that supports packed weights, on the default base in NF4.
_NF4 = "-nf4"
PACKED = [(f"llama{_NF4}", name) for name, method in METHODS.items() if method.packed]


def table(route, pairs=(*PAIRS, *PACKED)):
    """Return name -> a run of two steps with a checkpoint after each, for the pairs that a route supports."""
    return {
        # Scenario names are published; they leave out where the package lies.
        family.removeprefix("harness.") + f"/{method}" + (f"/{route}" if route == ADD else ""): two_steps(
            spec_for(family.removesuffix(_NF4), method, route).but(
                model={"quantization": "nf4"} if family.endswith(_NF4) else None
            )
        )
        for family, method in pairs
        if misfit(family.removesuffix(_NF4), method, add_adapter=route == ADD) is None
    }


def experts(route):
    """Return a LoRA of the weights of all experts of a layer: two parameters of one module, one wrapper in the other."""
    (spec,) = table(route, [("qwen3-moe", "lora")]).values()
    adapted = spec.but(lora={"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]})
    return {"qwen3-moe/lora/experts" + (f"/{route}" if route == ADD else ""): adapted}


def method_of(name):
    return METHODS[name.split("/")[1]]


def normalises(spec):
    return models.family(spec.model).normalises


GOTTEN = table(GET) | experts(GET)
#: API-05 says that these runs equal those of GOTTEN bit for bit. So laws about their numbers judge GOTTEN only.
ADDED = table(ADD) | experts(ADD)
#: If the base is in bfloat16, AdaLoRA's count of ranks is one more trained tensor.
COUNTED = {"llama-bf16/adalora": GOTTEN["llama/adalora"].but(model={"dtype": "bfloat16"})}


def redrawn(spec):
    """Return the run continued from step 1 with an adapter drawn from another seed, which loading must replace."""
    seed = spec.adapter.seed
    resumed = ResumeSpec(1, first_leg={"adapter": {"seed": seed}, "save_strategy": "steps"})
    return spec.but(adapter={"seed": seed + 1}, save_strategy="no", resume=resumed)


# ---- what is trained ----


@pytest.mark.clause("FRZ-01")
@over(GOTTEN | ADDED)
def test_the_base_is_bit_identical(trace, judge):
    judge(frozen.base_frozen(trace))


@pytest.mark.clause("FRZ-02")
@over(GOTTEN)
def test_the_optimizer_holds_what_requires_gradients(trace, judge):
    judge(frozen.optimizer_holds_trainables(trace))


@pytest.mark.clause("FRZ-03")
@over(GOTTEN | ADDED)
def test_the_base_gets_no_gradient(trace, judge):
    judge(frozen.base_without_gradients(trace))


@pytest.mark.clause("FRZ-13")
@over(GOTTEN)
def test_two_steps_move_every_tensor(trace, judge):
    judge(frozen.adapter_moved(trace))


# ---- the loss ----

#: If the model returns the mean of its own batch: a window of one micro-batch with rows of unequal lengths.
ONE_BATCH = {
    name: spec.but(data={"min_length": 6}, gradient_accumulation_steps=1, save_strategy="no")
    for name, spec in GOTTEN.items()
    if not normalises(spec)
}


@pytest.mark.clause("LOSS-01")
@over({name: spec for name, spec in (GOTTEN | ONE_BATCH).items() if not spec.model.quantization})
def test_a_step_is_the_mean_over_the_labels_of_its_window(trace, judge):
    judge(loss.window_mean(trace))


#: The base model decides how its loss is divided. What virtual tokens do to the labels depends on the method.
DIVIDED = table(GET, [pair for pair in PAIRS if pair[1] in ("lora", "prompt-tuning", "adalora")])


@pytest.mark.clause("ACC-01")
@cases({name: spec.but(data={"min_length": 6} if normalises(spec) else None) for name, spec in DIVIDED.items()})
def test_accumulated_micro_batches_train_as_the_large_batch(spec, train, judge):
    judge(comparisons.splits(train, spec))


# ---- checkpoints ----


@pytest.mark.clause("CKPT-04")
@over(GOTTEN | ADDED)
def test_an_adapter_file_is_its_tensors_and_a_header(trace, judge):
    judge(checkpoint.size_law(trace))


@pytest.mark.clause("CKPT-07")
@over(GOTTEN)
def test_optimizer_pt_holds_the_state_of_the_trained_tensors(trace, judge):
    judge(optimizer_file.holds_the_trained_tensors(trace))


@pytest.mark.clause("CKPT-21")
@over(GOTTEN | ADDED)
def test_an_adapter_that_is_loaded_is_the_trained_one(trace, judge):
    judge(rebuilt.reloads(trace, "from_pretrained" if trace.spec.adapter.route == GET else "load_adapter"))


@pytest.mark.clause("CKPT-25")
@over(GOTTEN | ADDED | COUNTED)
def test_a_checkpoint_holds_exactly_the_trained_tensors(trace, judge):
    judge(checkpoint.adapter_only(trace))


@pytest.mark.clause("CKPT-28")
@over(GOTTEN | ADDED)
def test_an_adapter_file_holds_each_tensor_once(trace, judge):
    judge(checkpoint.nothing_twice(trace))


@pytest.mark.clause("RES-01")
@cases(GOTTEN)
def test_a_resumed_run_is_the_run_that_was_interrupted(spec, train, judge):
    judge(resume.continues(train(redrawn(spec)), train(spec), after=1))


#: AdaLoRA that cuts ranks at each step.
ALLOCATING = saving(
    spec_for("llama", "adalora").but(
        lora={"target_r": 2, "tinit": 1, "tfinal": 2, "total_step": 8},
        trainer={"callbacks": ["harness.fixtures.rank_allocation:AllocateRanks"]},
        max_steps=8,
    ),
    every=4,
)


@pytest.mark.clause("RES-01")
@cases({"adalora-allocating": ALLOCATING})
def test_a_resumed_run_goes_on_allocating_ranks(spec, train, judge):
    judge(comparisons.resumes(train, spec))


@pytest.mark.clause("RES-21")
@cases({name: spec for name, spec in GOTTEN.items() if not method_of(name).saves})
def test_every_tensor_is_restored_before_the_first_step(spec, train, judge):
    whole = train(spec)
    judge(resume.restored(train(redrawn(spec)), whole, 1, len(whole.trainable)))


# ---- the two routes, the reference ----


#: DoRA reads the weights themselves, so it meets repacked ones.
READS = f"llama{_NF4}/dora"


@pytest.mark.clause("API-02")
@pytest.mark.parametrize("repacked", [pytest.param(False, id=READS), pytest.param(True, id=f"{READS}/avx512-bf16")])
def test_a_fresh_dora_on_a_packed_base_is_an_identity(repacked, upstream, runs, judge):
    if repacked != repacks(runs.device):
        pytest.skip(REPACKS)
    test_a_fresh_adapter_is_an_identity(GOTTEN[READS], upstream, judge)


@pytest.mark.clause("API-02")
@cases(
    {name: spec for name, spec in (GOTTEN | ADDED).items() if method_of(name).identity and not name.startswith(READS)}
)
def test_a_fresh_adapter_is_an_identity(spec, upstream, judge):
    fresh, base = (rebuilt.logits(model, spec) for model in (injected(upstream, spec), models.build(spec.model)))
    judge(equal.same_adapter(fresh, base))


@pytest.fixture
def uncompiled(monkeypatch):
    """Make every compilation of an extension fail, as on a machine without nvcc."""

    def load(*args, **options):
        raise RuntimeError("no extension is compiled here")

    monkeypatch.setattr("torch.utils.cpp_extension.load", load)
    # peft caches an extension that an earlier case compiled.
    monkeypatch.setattr("peft.tuners.boft.layer._FBD_CUDA", None, raising=False)


@pytest.mark.clause("API-22")
@cases(GOTTEN | ADDED)
def test_injection_leaves_the_process_as_it_was(spec, upstream, uncompiled, judge):
    skip_if(upstream.unsupported(spec))
    base = models.build(spec.model)
    with process.without_compilers():
        before = process.settings()
        inject(base, spec.adapter)
        judge(process.left_alone(before, process.settings()))


def of_type(family, peft_type, **config):
    """Return a run of a method that has no row of METHODS."""
    adapter = {"peft_type": peft_type, "config": {"task_type": "CAUSAL_LM", **config}}
    return saving(spec_for(family).but(adapter=adapter, max_steps=2), every=1)


#: Methods whose layers share a trained tensor.
SHARING = {
    "llama-tied/trainable-tokens": of_type("llama-tied", "TRAINABLE_TOKENS", token_indices=[3, 5]),
    "llama/lily": of_type("llama", "LILY", r=4, target_modules=["q_proj"]),
}


@pytest.mark.clause("API-05")
@cases({name: spec for name, spec in GOTTEN.items() if method_of(name).add_adapter} | SHARING)
def test_both_routes_train_the_same_run(spec, train, judge):
    judge(universal.both_routes(train, spec))


@pytest.mark.clause("GEN-01")
@cases({name: spec for name, spec in (GOTTEN | ADDED).items() if subjects.load("reference").unsupported(spec) is None})
def test_a_run_is_the_references(spec, train, runs, judge):
    train(spec)
    judge(comparisons.as_reference(runs.train, spec))
