"""FSDP: parameters sharded over ranks, by FullyShardedDataParallel (version 1) or fully_shard (version 2).

Without a GPU these runs need the shims of harness/processes/shims.py, and their scenarios end in "/shimmed".
"""

from pathlib import Path
from typing import Any

import pytest

from harness.fixtures import models, tensor_shapes
from harness.laws import checkpoint, frozen, rank_files, resume, several, sharding
from harness.laws.equal import equal_runs
from harness.runs.scenarios import LAUNCHES, PLAIN, TOGETHER, cases, continued, over, spread
from harness.session.state import skip_if
from harness.spec import ADD, GET, AdapterSpec, ModelSpec
from harness.subjects.hf_trainer import inject
from harness.verdict import both, same, verdict

FSDP = {name: spec for name, spec in LAUNCHES.items() if spec.launch.strategy.startswith("fsdp")}
V1, V2 = FSDP["fsdp1-2"], FSDP["fsdp2-2"]
SHARDED = {name: FSDP[name] for name in ("fsdp2-2-sharded", "fsdp1-2-sharded")}
FULL = {name: spec for name, spec in FSDP.items() if name not in SHARDED}
BRIEF: dict[str, Any] = {"max_steps": 2, "gradient_accumulation_steps": None, "save_strategy": "no"}


# ---- what it is set up with ----


def plugin(trainer):
    """Return the FSDP version and the type of state dict that accelerate was given."""
    given = trainer.accelerator.state.fsdp_plugin
    return {"version": given.fsdp_version, "state_dict_type": str(given.state_dict_type).rpartition(".")[2]}


DEFAULTS = spread(TOGETHER.but(**BRIEF), "fsdp2")


@pytest.mark.clause("FSDP-01")
@cases({"defaults": DEFAULTS.but(launch={"strategy": "ddp"}, fsdp=True, fsdp_config={"min_num_params": 0})})
def test_defaults_are_version_2_and_full(spec, afterwards, judge):
    trace = afterwards(spec.but(launch={"strategy": "fsdp2"}, fsdp_config={"min_num_params": 0}), plugin)
    expected = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
    judge(same("the plugin", trace.distributed.get("afterwards", trace.error), expected))


@pytest.mark.clause("FSDP-01")
@over({"version-1": V1})
def test_version_1_is_warned_of(trace, judge):
    told = [warning for warning in trace.warnings if "FSDP1" in warning and "deprecated" in warning]
    judge(verdict("a warning says that version 1 is deprecated", [] if told else [f"warnings: {trace.warnings[:3]}"]))


LAYERS = [f"model.layers.{layer}" for layer in range(2)]
LORA = [
    f"{layer}.self_attn.{projection}.{part}"
    for layer in LAYERS
    for projection in ("q_proj", "v_proj")
    for part in ("lora_A", "lora_B")
]
BY_ADD = spread(TOGETHER.but(adapter={"route": ADD}, **BRIEF), "fsdp1")


@pytest.mark.clause("FSDP-02")
@over({"fsdp1-2": V1, "fsdp1-1": FSDP["fsdp1-1"]})
def test_version_1_wraps_layers_and_adapters(trace, judge):
    judge(sharding.units(trace, ["", *LAYERS, *LORA]))


class Accelerator:
    """The part of an Accelerator that update_fsdp_plugin_peft reads."""

    def __init__(self):
        self.mixed_precision = None
        self.state = self.fsdp_plugin = self

    def set_mixed_precision(self, dtype, override=False):
        self.mixed_precision = (str(dtype).removeprefix("torch."), override)


def updated(model):
    """Return the plugin after update_fsdp_plugin_peft, for this model."""
    try:
        from transformers.distributed.fsdp import update_fsdp_plugin_peft
    except ImportError:
        from transformers.integrations.fsdp import update_fsdp_plugin_peft

    accelerator = Accelerator()
    update_fsdp_plugin_peft(model, accelerator)
    return accelerator


@pytest.mark.clause("FSDP-03")
@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        pytest.param("bfloat16", ("bfloat16", True), id="bfloat16"),
        pytest.param("float32", ("float32", True), id="float32"),
        pytest.param("uint8", None, id="uint8"),
    ],
)
def test_version_1_computes_in_the_storage_dtype(storage, expected, upstream, judge):
    import torch

    skip_if(upstream.unsupported(PLAIN.but(model={"quantization": "nf4"})))
    model = inject(models.build(ModelSpec(quantization="nf4")), AdapterSpec())
    model.hf_quantizer.quantization_config.bnb_4bit_quant_storage = getattr(torch, storage)
    judge(same("mixed precision", updated(model).mixed_precision, expected))


@pytest.mark.clause("FSDP-04")
@over({"fsdp2-2": V2, "fsdp2-1": FSDP["fsdp2-1"], "fsdp2-2-sharded": FSDP["fsdp2-2-sharded"]})
def test_version_2_wraps_layers_embeddings_and_output(trace, judge):
    judge(sharding.units(trace, ["", *LAYERS, "model.embed_tokens", "lm_head"]))


NF4 = spread(TOGETHER.but(model={"quantization": "nf4"}, **BRIEF), "fsdp2")


@pytest.mark.clause("FSDP-04")
@over({"nf4": NF4})
def test_packed_weights_are_left_out_with_a_warning(trace, judge):
    kinds = trace.distributed.get("kinds", {})
    packed = [f"{path}.weight" for path in tensor_shapes.linears()]
    findings = several.incomplete_ranks(trace) + [
        f"{name} is sharded" for name in packed if kinds.get(name) == "DTensor"
    ]
    findings += [f"{name} is not sharded" for name in trace.trainable if kinds.get(name) != "DTensor"]
    judge(both(verdict("adapters are sharded, packed weights are not", findings), frozen.base_frozen(trace)))


@pytest.mark.clause("FSDP-05")
@cases({"fsdp1-2/add_adapter": BY_ADD})
def test_version_1_with_add_adapter_wraps_layers_alone(spec, train, judge):
    trace = train(spec)
    judge(
        both(sharding.units(trace, ["", *LAYERS]), several.equals_single(trace, train(several.one_process_spec(spec))))
    )


@pytest.mark.clause("FSDP-05")
@pytest.mark.parametrize("mixed", [True], ids=["mixed"])
def test_a_mixed_model_gets_a_policy(mixed, upstream, judge):
    model = inject(models.build(ModelSpec()), AdapterSpec(options={"mixed": mixed}))
    seen: bool | str
    try:
        seen = hasattr(updated(model), "auto_wrap_policy")
    except AttributeError as error:
        seen = f"AttributeError: {error}"
    judge(same("a policy is made", seen, True))


# ---- sharded ----


#: A 4-bit base whose packed weights are stored in a floating dtype, so that they can be sharded.
AUTOCASTS: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {"bf16": True}}
PACKED = {
    f"{version}-2/nf4-{dtype}": spread(
        TOGETHER.but(model={"quantization": "nf4", "quant_storage": dtype, "dtype": dtype}, **autocast), version
    )
    for version in ("fsdp2", "fsdp1")
    for dtype, autocast in AUTOCASTS.items()
}


@pytest.mark.clause("FSDP-13")
@over(FSDP | PACKED | {"nothing-saved": DEFAULTS})
def test_what_asked_for_fsdp_is_sharded(trace, judge):
    judge(sharding.sharded(trace))


#: What a user writes: the arguments of FSDP, in two processes on a CPU, without our shim.
UNSHIMMED = spread(TOGETHER.but(fsdp=True, **BRIEF), "ddp")


#: Words of accelerate if there is no GPU for FSDP.
NO_DEVICE = ("no available devices", "GPU", "accelerator")


@pytest.mark.clause("FSDP-10")
@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        pytest.param(UNSHIMMED.but(fsdp_config={"version": 2}), "fsdp2", id="version-2"),
        pytest.param(UNSHIMMED.but(fsdp_config={"version": 1}), "fsdp1", id="version-1"),
    ],
)
def test_without_a_gpu_it_is_sharded_or_refused(spec, strategy, train, runs, judge):
    if runs.device == "cuda":
        pytest.skip("there is a GPU")
    trace = train(spec)
    judge(resume.refused(trace, words=NO_DEVICE) if trace.error else sharding.sharded(trace, strategy))


BF16: dict[str, Any] = {"model": {"dtype": "bfloat16"}, "adapter": {"options": {"autocast_adapter_dtype": False}}}


@pytest.mark.clause("FSDP-11")
@over({"bf16": spread(TOGETHER.but(**BF16, bf16=True, **BRIEF), "fsdp2")})
def test_a_half_precision_adapter_trains_in_float32(trace, judge):
    dtypes = {name: trace.distributed.get("dtypes", {}).get(name) for name in trace.trainable}
    judge(
        both(
            verdict("all ranks are there", several.incomplete_ranks(trace)),
            same("dtypes of the adapter", dtypes, dict.fromkeys(trace.trainable, "float32")),
        )
    )


@pytest.mark.clause("FSDP-16")
@over(
    {
        "float32": V2,
        "bfloat16": spread(TOGETHER.but(model={"dtype": "bfloat16"}, **BRIEF), "fsdp2"),
        "bfloat16/mixed-precision": spread(TOGETHER.but(model={"dtype": "bfloat16"}, bf16=True, **BRIEF), "fsdp2"),
    }
)
def test_the_base_keeps_its_dtype(trace, judge):
    judge(both(sharding.dtypes_kept(trace), frozen.base_frozen(trace)))


@pytest.mark.clause("FSDP-16")
@over(PACKED)
def test_a_packed_base_keeps_its_bits(trace, judge):
    judge(both(sharding.dtypes_kept(trace), frozen.parameters_frozen(trace), several.ranks_agree(trace)))


@pytest.mark.clause("FSDP-17")
@cases(
    FSDP
    # SGD, as in TOGETHER_SGD. In bfloat16, FSDP rounds values that autocast in one process does not round.
    | {
        name: spec.but(optim="sgd", learning_rate=1.0, save_strategy="no")
        for name, spec in PACKED.items()
        if spec.model.dtype == "float32"
    }
    | {
        "fsdp2-2-offload/default-backend": FSDP["fsdp2-2-offload"].but(ddp_backend=None),
        # The Trainer shifts labels only for a causal model, which it recognises by the name of the model's class.
        **{
            f"{name}/label-smoothing": FSDP[name].but(label_smoothing_factor=0.1, max_steps=2, save_strategy="no")
            for name in ("fsdp2-2", "fsdp2-2-add_adapter", "fsdp1-2")
        },
    }
)
def test_a_sharded_run_is_that_of_one_process(spec, train, judge):
    judge(several.trains_as_one_process(train, spec))


#: Two windows of two micro-batches. Within a window, nothing makes the ranks wait for each other.
UNHURRIED: dict[str, Any] = {"max_steps": 2, "save_strategy": "no"}


def late(spec, rank):
    """Return the run with one late rank."""
    return spec.but(trainer={"callbacks": [["harness.fixtures.late_rank:LateRank", {"rank": rank}]]}, **UNHURRIED)


@pytest.mark.clause("FSDP-19")
@cases({f"{name}/rank-{rank}-late": late(FSDP[name], rank) for name in ("fsdp2-2", "fsdp1-2") for rank in range(2)})
def test_a_late_rank_changes_nothing(spec, train, judge):
    trace, on_time = train(spec), spec.but(trainer={"callbacks": []})
    judge(
        both(
            several.equals_single(trace, train(several.one_process_spec(on_time))),
            several.ranks_agree(trace),
            equal_runs(trace, train(on_time)),
        )
    )


def generate(trainer):
    """Generate eight tokens after the first four of the first row."""
    import torch

    trainer.model.eval()
    start = torch.tensor([trainer.train_dataset[0]["input_ids"][:4].tolist()], device=trainer.args.device)
    with torch.no_grad():
        tokens = trainer.model.generate(input_ids=start, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return tokens[0].tolist()


@pytest.mark.clause("FSDP-12")
@cases({"fsdp2-2": DEFAULTS})
def test_generate_runs_on_the_sharded_model(spec, afterwards, judge):
    judge(sharding.same_tokens(afterwards(spec, generate)))


# ---- checkpoints ----

ALWAYS = ["README.md", "scheduler.pt", "trainer_state.json", "training_args.bin"]
GENERATORS = ["rng_state_0.pth", "rng_state_1.pth"]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.clause("FSDP-06")
@over({"fsdp2-2": V2, "fsdp1-2": V1})
def test_a_full_checkpoint_has_the_files(trace, judge):
    files = [*ALWAYS, *GENERATORS, *ADAPTER, "pytorch_model_fsdp.bin", "optimizer.bin"]
    judge(rank_files.exactly(trace, files))


@pytest.mark.clause("FSDP-06")
@over({"fsdp2-2/model-file": V2, "fsdp1-2/model-file": V1})
def test_its_model_file_holds_the_adapter_alone(trace, judge):
    judge(rank_files.fsdp_model(trace))


@pytest.mark.clause("FSDP-07")
@over(SHARDED)
def test_a_sharded_checkpoint_has_a_file_of_each_rank(trace, judge):
    directories = ["pytorch_model_fsdp_0/", "optimizer_0/"]
    missing = [
        f"checkpoint-{saved.step} has no {directory}__{rank}_0.distcp"
        for saved in trace.checkpoints
        for directory in directories
        for rank in range(2)
        if not saved.files.get(f"{directory}__{rank}_0.distcp")
    ]
    files = [name for name in ALWAYS if name not in ("README.md", "training_args.bin")]
    judge(both(rank_files.exactly(trace, [*files, *GENERATORS, *directories]), verdict("a file of each rank", missing)))


@pytest.mark.clause("FSDP-14")
@over(FULL | PACKED | {"fsdp1-1": spread(TOGETHER, "fsdp1", 1)})
def test_a_full_checkpoint_has_all_shards(trace, judge):
    # With add_adapter, the file from which a run resumes holds the base, too.
    resumed_from = [rank_files.fsdp_model(trace)] if trace.spec.adapter.route == GET else []
    judge(both(checkpoint.adapter_only(trace), checkpoint.last_is_current(trace), *resumed_from))


def save_model(trainer):
    """Call save_model() as a user does at the end."""
    trainer.save_model(str(Path(trainer.args.output_dir) / "end"))


@pytest.mark.clause("FSDP-15")
@cases({"fsdp2-2-full": DEFAULTS, "fsdp2-2-sharded": DEFAULTS.but(launch={"state_dict_type": "SHARDED_STATE_DICT"})})
def test_save_model_leaves_a_whole_adapter(spec, afterwards, judge):
    trace = afterwards(spec, save_model)
    judge(rank_files.saved_at_the_end(trace, Path(trace.directory) / "end"))


# ---- resuming ----

#: One saves nothing. In the other, FSDP1 loads the shards of a checkpoint that has none (FSDP-07). On a CPU that ended a
#: rank by SIGBUS in several runs of the whole suites, and in none of twelve runs on its own.
CANNOT_RESUME = ("fsdp1-1", "fsdp1-2-sharded")


@pytest.mark.clause("FSDP-18")
@cases({name: continued(spec, 3, every=3) for name, spec in (FSDP | PACKED).items() if name not in CANNOT_RESUME})
def test_a_sharded_run_resumes(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=3))


#: 8192 elements a tensor, 4096 on each rank. From there on, bitsandbytes keeps optimizer state in 8 bits.
BITSANDBYTES: dict[str, Any] = {
    f"{optim}/{strategy}-2": continued(
        spread(PLAIN.but(lora={"r": 128}, optim=optim, max_steps=3), strategy), 2, every=2
    )
    for strategy, optim in (
        ("fsdp1", "adamw_bnb_8bit"),
        ("fsdp2", "adamw_bnb_8bit"),
        ("fsdp2", "paged_adamw_32bit"),
    )
}


@pytest.mark.clause("FSDP-18")
@cases(BITSANDBYTES)
def test_a_sharded_run_with_an_optimizer_of_bitsandbytes_resumes(spec, train, judge):
    whole = train(spec.first_leg())
    judge(several.completes(whole) if whole.error else resume.continues(train(spec), whole, after=2))


def resharded(ranks, before):
    """Return a run on `after` ranks that resumes a run on `before` ranks, with the same rows in each step."""
    spec = spread(TOGETHER, "fsdp2", ranks)
    there = spread(TOGETHER, "fsdp2", before)
    size = {"per_device_train_batch_size": there.arguments["per_device_train_batch_size"]}
    return continued(spec, 3, every=3, launch={"ranks": before}, **size)


@pytest.mark.clause("FSDP-18")
@cases({"fsdp2-2-to-1": resharded(1, 2), "fsdp2-1-to-2": resharded(2, 1)})
def test_a_sharded_run_resumes_on_another_number_of_ranks(spec, train, judge):
    judge(several.continues_with_other_ranks(train(spec), train(spec.first_leg()), after=3))


@pytest.mark.clause("FSDP-08")
@cases(
    {
        f"{name}-to-one-process": continued(
            several.one_process_spec(V2),
            3,
            every=3,
            per_device_train_batch_size=2,
            launch={"strategy": "fsdp2", "ranks": 2, **kind},
        )
        for name, kind in {"full": {}, "sharded": {"state_dict_type": "SHARDED_STATE_DICT"}}.items()
    }
)
def test_without_fsdp_its_checkpoint_is_refused(spec, train, judge):
    judge(resume.refused(train(spec), "ValueError", words="only supported when using PyTorch FSDP"))


REFUSED = spread(TOGETHER.but(**BRIEF), "fsdp2")
BEST: dict[str, Any] = {
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.mark.clause("FSDP-09")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(REFUSED.but(save_only_model=True, **BEST, data={"eval_rows": 4}), "save_only_model", id="best"),
        pytest.param(
            REFUSED.but(save_only_model=True, launch={"state_dict_type": "SHARDED_STATE_DICT"}),
            "SHARDED_STATE_DICT",
            id="sharded",
        ),
        pytest.param(
            REFUSED.but(activation_checkpointing=True, launch={"activation_checkpointing": True}),
            "activation_checkpointing",
            id="both-kinds-of-checkpointing",
        ),
        pytest.param(several.one_process_spec(REFUSED).but(fsdp=True), "distributed", id="one-process"),
    ],
)
def test_what_cannot_be_is_refused(spec, words, train, judge):
    judge(resume.refused(train(spec), "ValueError", words=words))


# ---- clauses of other chapters, sharded ----


@pytest.mark.clause("RES-21")
@cases({name: continued(FSDP[name], 3, every=3) for name in ("fsdp2-2", "fsdp2-2-sharded", "fsdp1-2")})
def test_every_adapter_tensor_is_restored(spec, train, judge):
    judge(rank_files.adapter_restored(train(spec), train(spec.first_leg())))


@pytest.mark.clause("RES-26")
@cases(
    {
        f"rank-1-without-{what}": continued(
            FSDP["fsdp2-2-sharded"], 3, every=3, damage=(f"delete {name}_0/__1_0.distcp",)
        )
        for what, name in {"model-shard": "pytorch_model_fsdp", "optimizer-shard": "optimizer"}.items()
    }
)
def test_a_ranks_missing_shard_is_not_passed_over(spec, train, judge):
    judge(resume.loud(train(spec), spec.resume.damage[0].replace("delete", "no"), ("shard", "distcp")))
