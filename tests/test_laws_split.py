"""Laws on layers that are split over ranks, on made-up traces."""

import copy

import pytest
import torch

from harness.laws import several, split
from harness.spec import RunSpec
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE

Q, O = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"  # noqa: E741
SPEC = RunSpec().but(launch={"strategy": "tp", "ranks": 2})
SHAPES = {
    f"{Q}.weight": [8, 8], f"{Q}.lora_A.weight": [2, 8], f"{Q}.lora_B.weight": [8, 2], f"{O}.lora_A.weight": [2, 8],
    f"{O}.lora_B.weight": [8, 2], "model.norm.weight": [8],
}  # fmt: skip
WHOLE = {f"{Q}.lora_A.weight": 16, f"{O}.lora_B.weight": 16, "model.norm.weight": 8}


def made_up():
    trace = Trace(SPEC, "made up", {})
    trace.events = ["train_begin", "train_end"]
    trace.output = {"global_step": SPEC.arguments["max_steps"], "training_loss": 1.0, "metrics": {}}
    trace.parameters = {name: ["float32", shape] for name, shape in SHAPES.items()}
    trace.trainable = [name for name in SHAPES if "lora_" in name]
    halves = {name: torch.Size(shape).numel() // 2 for name, shape in SHAPES.items()}
    trace.distributed = {"local": halves | WHOLE, "afterwards": {"apart": 1e-7, "effect": 0.1}}
    trace.adapter_before = {
        name: torch.linspace(-0.3, 0.3, 16).reshape(2, 8) for name in SHAPES if name.endswith("lora_A.weight")
    }
    other = copy.deepcopy(trace)
    trace.ranks = [other]
    return trace


def findings(law, trace, monkeypatch):
    monkeypatch.setattr(split, "incomplete_ranks", lambda trace: [])
    return law(trace)


def whole_b(trace):
    for rank in (trace, *trace.ranks):
        rank.distributed["local"][f"{Q}.lora_B.weight"] = 16


def no_norm(trace):
    trace.ranks[0].distributed["local"]["model.norm.weight"] = 4


def copies(trace):
    trace.adapter_before[f"{O}.lora_A.weight"] = torch.linspace(-0.3, 0.3, 8).reshape(2, 4).repeat(1, 2)


def too_large(trace):
    trace.adapter_before[f"{Q}.lora_A.weight"][0, 0] = 0.5


def not_merged(trace):
    trace.ranks[0].distributed["afterwards"] = {"apart": 0.1, "effect": 0.1}


@pytest.mark.parametrize("law", [split.in_parts, split.drawn_whole, split.merges])
def test_a_law_holds(law, monkeypatch):
    assert findings(law, made_up(), monkeypatch).holds


@pytest.mark.parametrize(
    ("law", "damage", "words"),
    [
        (split.in_parts, whole_b, "q_proj.lora_B.weight: [16, 16] of its 16 elements"),
        (split.in_parts, no_norm, "model.norm.weight: [8, 4] of its 8 elements"),
        (split.drawn_whole, copies, "o_proj.lora_A.weight: each of its 2 parts has the same numbers"),
        (split.drawn_whole, too_large, "its largest number is 0.5000, a whole matrix has at most 0.3536"),
        (split.merges, not_merged, "rank 1: merged logits are 0.1 away"),
    ],
)
def test_a_law_fails_for_what_it_is_there_to_see(law, damage, words, monkeypatch):
    trace = made_up()
    damage(trace)
    seen = findings(law, trace, monkeypatch)
    assert not seen.holds
    assert any(words in sentence for sentence in seen.seen), seen.seen


def test_an_adapter_that_does_nothing_proves_no_merging(monkeypatch):
    trace = made_up()
    for rank in (trace, *trace.ranks):
        rank.distributed["afterwards"] = {"apart": 0.0, "effect": 0.0}
    assert findings(split.merges, trace, monkeypatch).outcome == NOT_COMPARABLE


def test_ranks_that_split_layers_train_the_same_rows():
    assert SPEC.launch.row_ranks == 1
    four = SPEC.but(launch={"ranks": 4, "options": {"fsdp_size": 2}})
    assert four.launch.row_ranks == 2
    assert list(range(4))[four.launch.leaders] == [0, 2]
    one = several.one_process_spec(four)
    assert one.arguments["per_device_train_batch_size"] == 2 * four.arguments["per_device_train_batch_size"]
    assert one.launch.strategy == "single"
