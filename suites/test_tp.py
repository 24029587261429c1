"""TP: layers that from_pretrained(distributed_config=DistributedConfig(tp_size=...)) splits over ranks, with adapters.

Without a GPU these runs need the shims of harness/processes/shims.py, and their scenarios end in "/shimmed".
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.laws import rank_files, resume, several, split
from harness.processes import launch
from harness.runs.scenarios import LAUNCHES, TOGETHER, cases, continued, over, spread
from harness.suites.test_fsdp import NO_DEVICE, save_model
from harness.verdict import verdict

TP = {name: LAUNCHES[name] for name in ("tp-2", "tp-2-add_adapter")}
SPLIT = LAUNCHES["tp-2"]
BRIEF: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "save_only_model": None}


@pytest.mark.clause("TP-01")
@over(TP)
def test_layers_and_adapters_lie_in_parts(trace, judge):
    judge(split.in_parts(trace))


def parts_of_adapter(spec, directory: Path) -> None:
    """Write how many rows of each lora_B lie on this rank, and how many are there in all. Called in each rank."""
    import torch

    from harness.subjects import hf_trainer

    launch.settle(spec.launch)
    backend = "nccl" if spec.launch.device == "cuda" else "gloo"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend)
    model = hf_trainer.inject(hf_trainer._base(spec, directory), spec.adapter)
    found = {
        name: [parameter.to_local().shape[0], parameter.shape[0], parameter.device_mesh.size()]
        for name, parameter in model.named_parameters()
        if "lora_B" in name and hasattr(parameter, "to_local")
    }
    (directory / f"parts-{os.environ['RANK']}.json").write_text(json.dumps(found))


@pytest.mark.clause("TP-01")
@cases({"tp-4-fsdp2": spread(TOGETHER.but(**BRIEF), "tp", 4, options={"fsdp_size": 2}, limit=30.0)})
def test_parts_that_fsdp_shards_have_an_adapter_of_their_size(spec, runs, upstream, tmp_path, judge):
    spec = spec.on_device(runs.device)
    if reason := upstream.unsupported(spec):
        pytest.skip(reason)
    launch.run(functools.partial(parts_of_adapter, spec, tmp_path), spec.launch, tmp_path / "ranks")
    seen = {file.stem: json.loads(file.read_text()) for file in sorted(tmp_path.glob("parts-*.json"))}
    findings = [
        f"{where}: {name} has {here} rows of {rows} in {parts} parts"
        for where, found in seen.items()
        for name, (here, rows, parts) in found.items()
        if here * parts != rows
    ]
    findings += [] if len(seen) == 4 and all(seen.values()) else [f"split adapters were found by {list(seen)}"]
    judge(verdict("each rank holds its part of the adapter", findings[:4], ranks=len(seen)))


def start_from_one_process() -> None:
    """Give each rank its part of the adapter that one process draws from the same seed. Called in each rank.

    peft draws other numbers beside split layers (TP-07); with them, no run could be compared with one process's.
    """
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    from harness.fixtures import models
    from harness.subjects import hf_trainer

    load, inject, specs = hf_trainer._base, hf_trainer.inject, []

    def remember(spec, directory):
        specs.append(spec.model)
        return load(spec, directory)

    def same_start(base, adapter):
        split_model = inject(base, adapter)
        whole = dict(inject(models.build(specs.pop()), adapter).named_parameters())
        with torch.no_grad():
            for name, parameter in split_model.named_parameters():
                if "lora_" not in name:
                    continue
                part, value = parameter, whole[name].to(parameter.device)
                if isinstance(parameter, DTensor):
                    part = parameter.to_local()
                    value = distribute_tensor(value, parameter.device_mesh, parameter.placements).to_local()
                part.copy_(value)
        return split_model

    hf_trainer._base, hf_trainer.inject = remember, same_start


ROWS = ["o_proj", "down_proj"]


@pytest.mark.clause("TP-02")
@cases(
    TP
    | {
        "tp-2/columns": SPLIT.but(lora={"target_modules": list(split.COLUMNWISE)}, **BRIEF),
        "tp-2/rows": SPLIT.but(lora={"target_modules": ROWS}, **BRIEF),
        "tp-2/clipped": SPLIT.but(max_grad_norm=0.1, **BRIEF),
        "tp-2/embeddings": SPLIT.but(
            lora={"target_modules": ["embed_tokens"]}, optim="sgd", learning_rate=1.0, **BRIEF
        ),
        "tp-2/modules-to-save": SPLIT.but(lora={"modules_to_save": ["lm_head"]}, **BRIEF),
    }
)
def test_it_trains_as_one_process(spec, train, upstream, judge):
    trace = train(spec, subject=upstream.in_ranks("one-start", start_from_one_process))
    judge(several.equals_single(trace, train(several.one_process_spec(spec))))


@pytest.mark.clause("TP-03")
@over({"tp-2": SPLIT})
def test_a_checkpoint_has_the_whole_adapter(trace, judge):
    last = trace.checkpoints[-1:] if trace.error is None else []
    judge(rank_files.saved_at_the_end(trace, Path(last[0].path) if last else Path(trace.directory)))


@pytest.mark.clause("TP-03")
@cases({name: spec.but(**BRIEF) for name, spec in TP.items()})
def test_save_model_leaves_a_whole_adapter(spec, afterwards, judge):
    trace = afterwards(spec, save_model)
    judge(rank_files.saved_at_the_end(trace, Path(trace.directory) / "end"))


@pytest.mark.clause("TP-04")
@cases(
    {
        "tp-2": continued(SPLIT, 3, every=3),
        "tp-2-to-1": continued(
            several.one_process_spec(SPLIT), 3, every=3, launch={"strategy": "tp", "ranks": 2, "limit": 20.0}
        ),
        "1-to-tp-2": continued(SPLIT, 3, every=3, launch={"strategy": "single", "ranks": 1}),
    }
)
def test_it_resumes_with_the_checkpoints_adapter(spec, train, judge):
    judge(split.restored(train(spec), train(spec.first_leg()), 3))


def merge(trainer) -> dict[str, float]:
    """Return how far logits are apart with the adapter merged, and without it: {"apart": A, "effect": E}."""
    import torch

    model = trainer.model.eval()
    tokens = torch.arange(1, 17, device=trainer.args.device).reshape(2, 8)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        with model.disable_adapter():
            without = model(input_ids=tokens).logits
        merged = model.merge_and_unload()(input_ids=tokens).logits
    return {"apart": float((merged - logits).abs().max()), "effect": float((without - logits).abs().max())}


@pytest.mark.clause("TP-05")
@cases({"tp-2": SPLIT.but(**BRIEF)})
def test_a_merged_adapter_computes_the_same(spec, afterwards, judge):
    judge(split.merges(afterwards(spec, merge)))


def unshimmed() -> None:
    """Undo the shim, so that accelerate checks the ranks as it does for a user. Called in each rank."""
    from accelerate import ParallelismConfig

    check = ParallelismConfig._validate_accelerator
    ParallelismConfig._validate_accelerator = getattr(check, "__wrapped__", check)


@pytest.mark.clause("TP-06")
@cases({"ranks-on-cpus": SPLIT.but(**BRIEF)})
def test_without_a_gpu_it_is_split_or_refused(spec, train, upstream, runs, judge):
    if runs.device == "cuda":
        pytest.skip("there is a GPU")
    trace = train(spec, subject=upstream.in_ranks("unshimmed", unshimmed))
    words = ("DistributedType", *NO_DEVICE)
    judge(resume.refused(trace, "ValueError", words=words) if trace.error else split.in_parts(trace))


@pytest.mark.clause("TP-06")
@cases({"tp-2": SPLIT.but(max_steps=2, save_only_model=None)})
def test_a_checkpoint_with_an_optimizer_is_refused(spec, train, judge):
    judge(resume.refused(train(spec), "ValueError", words="save_only_model=True"))


@pytest.mark.clause("TP-07")
@cases({"columns": SPLIT, "rows": SPLIT.but(lora={"target_modules": ROWS}, **BRIEF)})
def test_split_matrices_are_drawn_as_whole_ones(spec, train, judge):
    judge(split.drawn_whole(train(spec)))
