"""Tests of harness/laws/checkpoint.py on made-up checkpoints: a good one holds, and each damage is named with its file."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.laws import checkpoint
from harness.spec import ADD, RunSpec
from harness.subjects.observer import digest, inspect_checkpoint
from tests.checkpoints import STEP, rewrite, saved_run, says
from tests.traces import BASE, A, B, made_up, with_checkpoint


@pytest.fixture
def saved(tmp_path):
    return saved_run(tmp_path)


def adapter_file(trace):
    return load_file(Path(trace.checkpoints[0].path) / checkpoint.ADAPTER_FILE)


LAWS = {
    "adapter_only": checkpoint.adapter_only,
    "nothing_twice": checkpoint.nothing_twice,
    "trained_values_saved": checkpoint.trained_values_saved,
    "clean_keys": checkpoint.clean_keys,
    "dtype_on_disk": checkpoint.dtype_on_disk,
    "every_adapter_saved": checkpoint.every_adapter_saved,
    "last_is_current": checkpoint.last_is_current,
    "size_law": checkpoint.size_law,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_whole_checkpoint_holds(law, saved):
    assert LAWS[law](saved).holds, LAWS[law](saved).seen


@pytest.mark.parametrize("law", LAWS)
def test_a_crashed_run_is_no_evidence(law, saved):
    saved.error = "ValueError: no"
    says(LAWS[law](saved), "the run ended with ValueError: no")


@pytest.mark.parametrize("law", LAWS)
def test_a_run_without_checkpoints_does_not_hold(law, saved):
    saved.checkpoints = []
    assert not LAWS[law](saved).holds


# ---- the adapter file ----


def _empty(keys):
    keys.clear()


def _again(keys):
    keys[f"base_model.model.{A}_for_another_layer"] = keys[f"base_model.model.{A}"].clone()


def _one_less(keys):
    del keys[f"base_model.model.{B}"]


def _of_the_base(keys):
    keys[f"base_model.model.{BASE}"] = torch.zeros(4, 4)


def _no_elements(keys):
    keys[f"base_model.model.{A}"] = torch.zeros(0, 4)


def _zero(keys):
    keys[f"base_model.model.{B}"].zero_()


def _compiled(keys):
    keys["base_model.model.model.layers.0._orig_mod.q_proj.lora_A.weight"] = keys.pop(f"base_model.model.{A}")


def _with_name(keys):
    name = f"base_model.model.{A}"
    keys[name.replace("lora_A", "lora_A.foo")] = keys[name].clone()


def _half(keys):
    keys[f"base_model.model.{A}"] = keys[f"base_model.model.{A}"].bfloat16()


def _last_bit(keys):
    value = keys[f"base_model.model.{B}"]
    value[0, 0] = torch.nextafter(value[0, 0], torch.tensor(9.0))


@pytest.mark.parametrize(
    ("law", "change", "words"),
    [
        ("adapter_only", _empty, f"checkpoint-4: no tensor for {A}"),
        ("adapter_only", _one_less, f"checkpoint-4: no tensor for {B}"),
        ("adapter_only", _of_the_base, f"checkpoint-4: {BASE} is saved, but was not trained"),
        ("adapter_only", _no_elements, f"checkpoint-4: {A} is empty"),
        ("nothing_twice", _again, f"checkpoint-4: {A}_for_another_layer is {A} once more"),
        ("trained_values_saved", _zero, "checkpoint-4: all 1 lora_B tensors are zero, as if untrained"),
        ("clean_keys", _compiled, "has '_orig_mod' in it"),
        ("clean_keys", _with_name, "has 'foo' in it"),
        ("dtype_on_disk", _half, f"checkpoint-4: {A} is ['bfloat16', [2, 4]], the parameter ['float32', [2, 4]]"),
        ("dtype_on_disk", _of_the_base, f"{BASE} is"),
        ("every_adapter_saved", _one_less, f"checkpoint-4: adapter 'default': {B} is not in its file"),
        ("every_adapter_saved", _with_name, "lora_A.foo.weight, which is not its own"),
        ("every_adapter_saved", _last_bit, f"adapter 'default': {B} is not saved as it is in memory"),
        ("last_is_current", _last_bit, f"checkpoint-4: {B} differs by"),
    ],
)
def test_a_wrong_adapter_file_is_named(law, change, words, saved):
    if change is _of_the_base:
        saved.parameters[BASE] = ["float16", [4, 4]]
    keys = adapter_file(saved)
    change(keys)
    rewrite(saved, checkpoint.ADAPTER_FILE, keys)
    says(LAWS[law](saved), words)


def test_a_tensor_may_be_empty_if_its_parameter_is(saved):
    keys = adapter_file(saved)
    _no_elements(keys)
    rewrite(saved, checkpoint.ADAPTER_FILE, keys)
    says(checkpoint.adapter_only(saved), f"checkpoint-4: {A} is empty")
    saved.adapter[A] = torch.zeros(0, 4)
    assert checkpoint.adapter_only(saved).holds


def test_a_file_of_the_base_is_named(saved):
    rewrite(saved, "model.safetensors", {BASE: torch.zeros(4, 4)})
    says(checkpoint.adapter_only(saved), "checkpoint-4: model.safetensors is there")


def test_an_untrained_lora_b_may_be_zero(saved):
    keys = adapter_file(saved)
    _zero(keys)
    rewrite(saved, checkpoint.ADAPTER_FILE, keys)
    for step in saved.steps:
        step.learning_rates = [0.0, 0.0]
    assert checkpoint.trained_values_saved(saved).holds


def test_a_byte_too_many_is_seen(saved):
    saved.checkpoints[0].files[checkpoint.ADAPTER_FILE] += 1
    says(checkpoint.size_law(saved), "checkpoint-4/adapter_model.safetensors: ")


def test_the_size_of_a_file_is_eight_bytes_its_header_and_its_tensors(saved):
    path = Path(saved.checkpoints[0].path) / checkpoint.ADAPTER_FILE
    assert path.stat().st_size == 8 + checkpoint.header(path)[0] + 4 * (2 * 4 + 4 * 2)


# ---- several adapters ----


@pytest.fixture
def two(tmp_path):
    """Return a made-up get_peft_model run that trained "default" beside a frozen "foo", and saved both."""
    trace = made_up(RunSpec().but(max_steps=STEP, adapter={"others": {"foo": {}}}))
    other = {name: torch.full_like(value, 3.0) for name, value in trace.adapter.items()}
    trace.base |= {name.replace(".weight", ".foo.weight"): digest(value) for name, value in other.items()}
    trace = with_checkpoint(trace, tmp_path, STEP)
    rewrite(trace, f"foo/{checkpoint.ADAPTER_FILE}", {f"base_model.model.{n}": value for n, value in other.items()})
    return trace


def test_two_adapters_in_their_places_hold(two):
    assert checkpoint.every_adapter_saved(two).holds, checkpoint.every_adapter_saved(two).seen


def test_an_adapter_that_is_not_saved_is_named(two):
    rewrite(two, f"foo/{checkpoint.ADAPTER_FILE}", None)
    two.checkpoints[0] = inspect_checkpoint(Path(two.checkpoints[0].path), "default")
    says(checkpoint.every_adapter_saved(two), "adapter 'foo' has no file foo/adapter_model.safetensors")


def test_an_adapter_saved_with_the_values_of_another_is_named(two):
    rewrite(two, f"foo/{checkpoint.ADAPTER_FILE}", adapter_file(two))
    says(checkpoint.every_adapter_saved(two), f"adapter 'foo': {A} is not saved as it is in memory")


def test_an_adapter_that_lies_nowhere_is_named(two):
    two.spec = two.spec.but(adapter={"route": ADD})
    assert checkpoint.every_adapter_saved(two).holds
    rewrite(two, f"foo/{checkpoint.ADAPTER_FILE}", None)
    two.checkpoints[0] = inspect_checkpoint(Path(two.checkpoints[0].path), "default")
    says(checkpoint.every_adapter_saved(two), "adapter 'foo' is in no adapter file")


# ---- pushes ----


def test_a_push_is_the_adapter_of_its_checkpoint(tmp_path):
    trace = with_checkpoint(made_up(), tmp_path, 4)
    files = {name: (tmp_path / "checkpoint-4" / name).read_bytes() for name in trace.checkpoints[0].files}
    weights = checkpoint.ADAPTER_FILE
    assert checkpoint.pushed(trace, [files]).holds
    assert checkpoint.pushed(trace, [{f"foo/{name}": content for name, content in files.items()}]).holds
    for pushes, words in (
        ([], "0 pushes for 1 checkpoints"),
        ([{**files, weights: b"other"}], f"no file is {weights} of the checkpoint"),
        ([{name: files[name] for name in files if name != weights}], f"no file is {weights} of the checkpoint"),
        ([{**files, "model.safetensors": b""}], "push of checkpoint-4: model.safetensors is there"),
    ):
        verdict = checkpoint.pushed(trace, pushes)
        assert not verdict.holds
        assert words in "\n".join(verdict.seen)


def test_checkpoints_that_were_deleted_are_left_out(saved):
    here = saved.checkpoints[0]
    gone = dataclasses.replace(here, step=here.step - 1, path=f"{here.path}-gone")
    both = dataclasses.replace(saved, checkpoints=[gone, here])
    assert checkpoint.there(both).checkpoints == [here]
    assert checkpoint.there(dataclasses.replace(saved, checkpoints=[gone])).checkpoints == [gone]
