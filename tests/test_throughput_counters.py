"""Counters: what they count, that they repeat, and how laws judge them."""

import dataclasses
import json
import subprocess
import warnings

import pytest

from harness import subjects
from harness.errors import UsageError
from harness.laws import throughput
from harness.runs.scenarios import PLAIN
from harness.throughput import baselines, counters
from harness.throughput.counters import Counters
from harness.throughput.memory_probe import BEGIN, STEP

COSTS = Counters(
    {"operations": [100, 100], "reads": [2, 2], "flops": [1000, 1000], "saved_bytes": [64, 64]}, {"aten.mm": 10}
)


def but(name, values):
    return dataclasses.replace(COSTS, values={**COSTS.values, name: values})


def test_each_counter_and_operation_is_compared_with_what_is_recorded():
    assert throughput.as_recorded(COSTS, COSTS).holds
    assert (
        "reads: [3, 3] in the counted steps, recorded [2, 2]"
        in throughput.as_recorded(but("reads", [3, 3]), COSTS).seen[0]
    )
    calls = but("python_calls", [1, 1]), but("python_calls", [2, 2])
    assert throughput.as_recorded(*calls).holds
    other = dataclasses.replace(COSTS, by_operation={"aten.mm": 9, "aten.bmm": 1})
    assert throughput.as_recorded(other, COSTS).seen == (
        "aten.bmm 1 times, recorded 0",
        "aten.mm 9 times, recorded 10",
    )


def test_equal_steps_must_cost_the_same():
    assert throughput.steady(COSTS, COSTS).holds
    assert "in another run [2, 2]" in throughput.steady(but("reads", [2, 3]), COSTS).seen[0]
    grows = but("saved_bytes", [64, 72])
    assert throughput.steady(grows, grows).seen == (
        f"saved_bytes: [64, 72] in steps alike ({counters.UNITS['saved_bytes']})",
    )
    assert throughput.steady(Counters({}), Counters({})).seen == ("nothing was counted",)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("flops", [1001, 1001], "flops: 1001 a step, expected 1000 at most, the reference has 1000"),
        ("flops", [900, 900], "flops: 900 a step, fewer than the reference's 1000"),
        ("saved_bytes", [65, 65], "saved_bytes: 65 a step, expected 64 at most"),
        ("reads", [5, 5], "reads: 5 a step, expected 4 at most"),
        ("operations", [117, 117], "operations: 117 a step, expected 116 at most"),
    ],
)
def test_costs_above_the_reference_are_found(name, values, words):
    assert throughput.no_more_than_reference(COSTS, COSTS, 1).holds
    (seen,) = throughput.no_more_than_reference(but(name, values), COSTS, 1).seen
    assert seen.startswith(words)


def test_bytes_written_or_read_twice_are_found():
    assert throughput.written_once(100, {"a": 60, "b": 40}, 10).holds
    assert throughput.written_once(160, {"a": 60, "b": 40}, 10).seen[0].startswith("160 bytes written for files of 100")
    assert not throughput.written_once(0, {}, 10).holds
    assert throughput.read_once(120, {"a": 60, "b": 40}, 10).holds
    assert throughput.read_once(121, {"a": 60, "b": 40}, 10).seen == (
        "121 bytes read of files of 100 bytes, expected 20 more at most",
    )
    assert not throughput.read_once(0, {"a": 60}, 10).holds and not throughput.read_once(10, {}, 10).holds


def test_launches_between_two_marks_are_counted():
    def event(name, ts, cat="cuda_runtime", dur=0):
        return {"name": name, "ts": ts, "cat": cat, "dur": dur}

    events = [
        event(BEGIN, 0, "user_annotation", 2),
        event("cudaDeviceSynchronize", 1),  # of the mark itself
        event("cudaLaunchKernel", 3),
        event("cudaLaunchKernelExC", 4),
        event("cudaMemcpyAsync", 5),
        event("cudaStreamSynchronize", 6),
        event(STEP, 10, "user_annotation", 2),
        event("cuLaunchKernel", 13, "cuda_driver"),
        event(STEP, 20, "user_annotation", 2),
        event("cudaLaunchKernel", 30),
    ]
    assert counters.launched(events) == {"kernels": [2, 1], "transfers": [1, 0], "synchronizations": [1, 0]}


def test_a_step_is_counted(runs, tmp_path):
    seen = counters.count(runs.subject, PLAIN.but(max_steps=99, logging_steps=500), tmp_path)
    step = seen.step
    assert {len(values) for values in seen.values.values()} == {counters.STEPS}
    assert sum(seen.by_operation.values()) == step["operations"]
    # Products of a forward and a backward pass: at least four for each token and parameter of a linear layer.
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 256
    assert step["flops"] >= 4 * linear * 64
    assert step["peak_bytes"] > step["held_bytes"] > 0 and step["python_calls"] > 1000


@pytest.mark.parametrize(
    "changes", [{}, {"model": {"quantization": "nf4", "dtype": "bfloat16"}, "bf16": True}], ids=["plain", "nf4"]
)
def test_the_reference_costs_no_more_than_the_trainer(changes, runs, tmp_path):
    """The reference stands for the Trainer without its loop, so it must not be slower. If steps wait for the host, as at 7B
    in NF4, the clock is too noisy to show that. Counters show it."""
    checkpointed = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    spec = PLAIN.but(logging_steps=500, data={"rows": 160}, **checkpointed, **changes)
    trainer, reference = (
        counters.count(subjects.load(name), spec, tmp_path / name).step for name in ("hf-trainer", "reference")
    )
    for name in ("operations", "reads", "copies", "flops", "peak_bytes"):
        assert reference[name] <= trainer[name], name
    assert reference["python_calls"] < 0.8 * trainer["python_calls"]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_products_with_packed_weights_are_counted_like_others(runs, tmp_path, quantization):
    if reason := runs.subject.unsupported(PLAIN.but(model={"quantization": quantization})):
        pytest.skip(reason)
    brief = PLAIN.but(max_steps=99, logging_steps=500)
    packed = brief.but(model={"quantization": quantization})
    expected, seen = (
        counters.count(runs.subject, spec, tmp_path / spec.hash).step["flops"] for spec in (brief, packed)
    )
    assert seen == expected


# ---- baselines ----


def counted(calls):
    return {"values": {"operations": [calls, calls]}, "by_operation": {"aten.add": calls}}


def ratio(value):
    return {"ratio": value, "low": value - 0.01, "high": value + 0.01}


@pytest.fixture
def here(monkeypatch):
    at = {"torch": "2.13.0", "transformers": "5.23.0", "device": "cpu"}
    monkeypatch.setattr(baselines, "components", lambda device: at)
    return at


def written(directory, file="a.json", **changes):
    body = {
        "schema_version": 1,
        "kind": "baseline",
        "components": {"torch": "2.13.0", "transformers": "5.23.0", "device": "cpu"},
    }
    (directory / file).write_text(json.dumps({**body, "commit": "c", "counters": {"plain": counted(1)}, **changes}))


def test_the_baseline_of_this_environment_is_found(here, tmp_path):
    written(tmp_path)
    (tmp_path / "speed.json").write_text('{"schema_version": 1, "kind": "speed"}')
    found, _ = baselines.matching("cpu", tmp_path)
    assert found.counters == {"plain": counted(1)}


def test_a_baseline_of_another_environment_is_not_comparable_and_the_reason_is_given(here, tmp_path):
    written(tmp_path)
    here["transformers"] = "5.2.0"
    assert baselines.matching("cpu", tmp_path) == (
        None,
        "not comparable with what is recorded: transformers 5.2.0, not 5.23.0",
    )
    assert baselines.matching("cpu", tmp_path / "none")[1].endswith("holds no baseline")


def test_the_cpus_kernels_matter_only_for_bfloat16(here, tmp_path):
    # A CPU with AMX needed 862,620 bytes at the peak of a bfloat16 step. 862,572 were recorded on one without.
    recorded = {"torch": "2.13.0", "transformers": "5.23.0", "device": "cpu", baselines.BFLOAT16: "avx2"}
    written(tmp_path, components=recorded)
    here[baselines.BFLOAT16] = "amx_bf16"
    assert baselines.matching("cpu", tmp_path, bf16=False)[0].counters == {"plain": counted(1)}
    assert baselines.matching("cpu", tmp_path, bf16=True) == (
        None,
        "not comparable with what is recorded: bfloat16 by amx_bf16, not avx2",
    )


def test_of_several_matching_baselines_the_one_with_the_figure_is_taken(here, tmp_path):
    components = {"torch": "2.13.0", "transformers": "5.23.0", "device": "cpu"}
    written(tmp_path, "a.json", components=components | {baselines.BFLOAT16: "amx_bf16"})
    ratios = {"plain": ratio(1.2)}
    written(tmp_path, "b.json", components=components | {baselines.BFLOAT16: "avx2"}, ratios=ratios, unpatched=True)
    here[baselines.BFLOAT16] = "avx512_bf16"
    found, _ = baselines.matching("cpu", tmp_path, bf16=False, kind="ratios", name="plain")
    assert found.ratios == {"plain": ratio(1.2)}
    assert baselines.matching("cpu", tmp_path, kind="ratios", name="plain")[0] is None


def test_ratios_that_were_timed_with_a_patch_are_not_comparable(here, tmp_path):
    """A patch made a step of the Trainer 2.6 % shorter. A ratio from that time would fail an equal Trainer."""
    written(tmp_path, "a.json", ratios={"plain": ratio(1.2)})
    found, reason = baselines.matching("cpu", tmp_path, kind="ratios", name="plain")
    assert found is None and "timed with a patch of upstream" in reason
    assert baselines.matching("cpu", tmp_path)[0].counters == {"plain": counted(1)}
    written(tmp_path, "b.json", ratios={"plain": ratio(1.23)}, unpatched=True)
    assert baselines.matching("cpu", tmp_path, kind="ratios", name="plain")[0].ratios == {"plain": ratio(1.23)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("", "it is empty"),
        ("[1]", "no object"),
        ("[" * 5000, "nested too deep"),
        (b"\x00\xff", "UTF-8"),
        ({"schema_version": 2, "kind": "baseline"}, "schema_version 2, expected 1"),
        ({"schema_version": 1, "kind": "baseline"}, "components"),
        ({"components": []}, "components, counters or ratios"),
        ({"components": {"torch": 2}}, "components, counters or ratios"),
        ({"counters": {"plain": 1}}, "components, counters or ratios"),
        ({"counters": {"plain": {"values": {"operations": []}, "by_operation": {}}}}, "components, counters or ratios"),
        ({"counters": {"plain": {"values": {"operations": ["1"]}, "by_operation": {}}}}, "components, counters"),
        ({"ratios": {"plain": {"ratio": 1.2}}}, "components, counters or ratios"),
        ({"ratios": {"plain": {"ratio": 0, "low": 0, "high": 0}}}, "components, counters or ratios"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_damaged_file_is_not_used_and_that_is_said_once(here, tmp_path, text, words):
    written(tmp_path, "good.json")
    bad = tmp_path / "bad.json"
    if isinstance(text, dict) and "kind" not in text:
        written(tmp_path, "bad.json", **text)
    else:
        body = json.dumps(text) if isinstance(text, dict) else text
        bad.write_bytes(body if isinstance(body, bytes) else body.encode())
    with pytest.warns(UserWarning, match=f"bad.json.*{words}.*is not used"):
        found, _ = baselines.matching("cpu", tmp_path)
    assert found.counters == {"plain": counted(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baselines.matching("cpu", tmp_path)


def test_nothing_is_recorded_in_a_tree_with_changes(tmp_path):
    with pytest.raises(UsageError, match="is no git checkout"):
        baselines.clean_commit(tmp_path)
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert len(baselines.clean_commit(tmp_path)) == 40
    (tmp_path / "file").write_text("x")
    subprocess.run(["git", "add", "file"], cwd=tmp_path, check=True)
    with pytest.raises(UsageError, match=r"uncommitted changes \(file\)"):
        baselines.clean_commit(tmp_path)


def test_figures_recorded_one_by_one_are_in_one_file(here, tmp_path):
    # The first figure is a change of the tree by the time that the second is recorded.
    here |= {**dict.fromkeys(baselines.PACKAGES, "1.0"), "python": "3.12"}
    for figures, ratios in (
        ({"plain": counted(1)}, {}),
        ({"nf4": counted(2)}, {}),
        ({"plain": counted(3)}, {"plain": ratio(1.2)}),
    ):
        baselines.record("cpu", "0123", figures, ratios, tmp_path)
    (found,) = baselines.load(tmp_path)
    assert (found.counters, found.ratios) == ({"plain": counted(3), "nf4": counted(2)}, {"plain": ratio(1.2)})
    assert found.commit == "0123" and found.unpatched


def test_a_recorded_ratio_replaces_those_that_were_timed_with_a_patch(here, tmp_path):
    here |= {**dict.fromkeys(baselines.PACKAGES, "1.0"), "python": "3.12"}
    written(tmp_path, "1.0_1.0_1.0_1.0_3.12_cpu.json", components=dict(here), ratios={"old": ratio(1.2)})
    baselines.record("cpu", "0123", {"nf4": counted(2)}, {}, tmp_path)
    (found,) = baselines.load(tmp_path)
    assert found.ratios == {"old": ratio(1.2)} and not found.unpatched
    baselines.record("cpu", "0123", {}, {"plain": ratio(1.23)}, tmp_path)
    (found,) = baselines.load(tmp_path)
    assert found.ratios == {"plain": ratio(1.23)} and found.unpatched
