"""Traces survive storage, observation changes nothing, and one tensor has one name."""

import json
import math

import pytest
import torch

from harness.errors import UsageError
from harness.laws.equal import equal_runs
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from harness.spec import ADD
from harness.subjects.hf_trainer import HFTrainer
from harness.subjects.observer import digest
from harness.tensors.names import canonical
from harness.trace import Trace
from tests.traces import made_up, with_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    import_upstream()
    return Runs(HFTrainer(), tmp_path_factory.mktemp("runs"))


def test_a_trace_is_the_same_after_a_round_trip_through_files(tmp_path):
    trace = with_checkpoint(made_up(), tmp_path, 4)
    trace.log_history[1]["grad_norm"] = float("nan")
    trace.output["training_loss"] = float("inf")
    trace.save(tmp_path / "trace")
    again = Trace.load(tmp_path / "trace")
    assert equal_runs(again, trace).holds
    assert again.spec == trace.spec
    assert again.steps[0].batches == trace.steps[0].batches
    assert again.groups == trace.groups
    assert again.checkpoints[0].files == trace.checkpoints[0].files
    assert again.checkpoints[0].adapter.keys() == trace.checkpoints[0].adapter.keys()
    assert math.isnan(again.grad_norms[2])
    assert again.output["training_loss"] == float("inf")


def test_the_trace_of_a_real_run_survives_storage(runs, tmp_path):
    trace = runs.train(PLAIN.but(save_strategy="steps", save_steps=4))
    trace.save(tmp_path)
    again = Trace.load(tmp_path)
    assert equal_runs(again, trace).holds
    assert [c.files for c in again.checkpoints] == [c.files for c in trace.checkpoints]


def test_a_trace_of_a_newer_schema_is_refused_in_one_sentence(tmp_path):
    made_up().save(tmp_path)
    body = (tmp_path / "trace.json").read_text().replace('"schema_version": 1\n}', '"schema_version": 2\n}')
    (tmp_path / "trace.json").write_text(body)
    with pytest.raises(UsageError, match="trace: schema_version 2 is newer than 1"):
        Trace.load(tmp_path)


def test_observation_changes_nothing(runs, tmp_path):
    """Check that the same run without the observer ends with the same adapter, bit for bit."""
    watched = runs.train(PLAIN)
    trainer = HFTrainer().build(PLAIN, tmp_path)
    trainer.train()
    alone = {canonical(n): p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(alone) == set(watched.adapter)
    assert all(torch.equal(alone[name], watched.adapter[name]) for name in alone)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: [], "expected a JSON object, found"),
        (lambda body: {**body, "schema_version": True}, "schema_version True is none"),
        (lambda body: {**body, "losses": []}, "Trace has no field 'losses'"),
        (lambda body: {k: v for k, v in body.items() if k != "subject"}, "Trace lacks its field 'subject'"),
        (lambda body: {**body, "steps": {}}, "steps: expected list[Step], found {}"),
        (lambda body: {**body, "steps": [3]}, "steps: expected a JSON object, found 3"),
        (lambda body: {**body, "steps": [{**body["steps"][0], "number": "1"}]}, "number: expected int, found '1'"),
        (lambda body: {**body, "steps": [{**body["steps"][0], "batches": [{}]}]}, "MicroBatch lacks its field 'rows'"),
        (lambda body: {**body, "seconds": True}, "seconds: expected float, found True"),
        (lambda body: {**body, "adapter": {"a": 1}}, "adapter: expected Tensors, found {'a': 1}"),
        (lambda body: {**body, "adapter": {"a": {"$tensor": "gone"}}}, "trace.safetensors lacks 'gone'"),
        (lambda body: {**body, "adapter": {"a": {"$tensor": []}}}, "trace.safetensors lacks []"),
        (lambda body: {**body, "seconds": {"$number": "many"}}, "'many' is no number of a trace"),
        (lambda body: {**body, "spec": None}, "spec: a run spec is a JSON object"),
        (lambda body: {**body, "ranks": [{}]}, "ranks: Trace lacks its field 'spec'"),
    ],
)
def test_the_message_about_a_wrong_trace_is_one_sentence(tmp_path, change, words):
    made_up().save(tmp_path)
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(UsageError) as caught:
        Trace.load(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_trace_whose_tensors_are_cut_short_is_refused(tmp_path, keep):
    made_up().save(tmp_path)
    file = tmp_path / "trace.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"trace\.safetensors: no whole safetensors file"):
        Trace.load(tmp_path)
    file.unlink()
    with pytest.raises(UsageError, match=r"trace\.safetensors: no such file"):
        Trace.load(tmp_path)


def test_the_parts_of_a_trace_agree(runs):
    trace = runs.train(PLAIN.but(gradient_accumulation_steps=2, max_steps=5))
    assert [step.number for step in trace.steps] == [1, 2, 3, 4, 5]
    assert all(len(step.batches) == 2 for step in trace.steps)
    assert sorted(row for step in trace.rows for row in step) == list(range(40))
    assert trace.steps[0].batches[0].num_items == sum(batch.tokens for batch in trace.steps[0].batches)
    assert sum(batch.loss for batch in trace.steps[0].batches) == pytest.approx(trace.losses[1], abs=1e-6)
    norm = torch.cat([g.flatten() for g in trace.steps[0].gradients.values()]).norm()
    assert float(norm) == pytest.approx(trace.grad_norms[1], rel=1e-6)
    assert len(trace.trainable) == 8


def test_traces_of_both_routes_have_the_same_names(runs):
    assert equal_runs(runs.train(PLAIN.but(adapter={"route": ADD})), runs.train(PLAIN)).holds


@pytest.mark.parametrize(
    ("raw", "adapter", "name"),
    [
        (
            "base_model.model.model.layers.0.q_proj.lora_A.default.weight",
            "default",
            "model.layers.0.q_proj.lora_A.weight",
        ),
        ("model.layers.0.q_proj.lora_A.foo.weight", "foo", "model.layers.0.q_proj.lora_A.weight"),
        ("model.layers.0.q_proj.lora_A.foobar.weight", "foo", "model.layers.0.q_proj.lora_A.foobar.weight"),
        ("base_model.model.model.layers.0.q_proj.lora_A.weight", "default", "model.layers.0.q_proj.lora_A.weight"),
        ("base_model.model.model.layers.0.q_proj.base_layer.weight", "default", "model.layers.0.q_proj.weight"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "default", "lm_head.weight"),
        ("base_model.model.lm_head.original_module.weight", "default", "lm_head.original_module.weight"),
        (
            "model.layers.0.q_proj.lora_magnitude_vector.default.weight",
            "default",
            "model.layers.0.q_proj.lora_magnitude_vector",
        ),
        ("module.base_model.model.a._orig_mod.b.weight", "default", "a.b.weight"),
        ("model.default.weight", "default", "model.default.weight"),
        # Two parameters of one module are adapted: the inner wrapper is the outer one's base layer.
        ("base_model.model.m.experts.lora_A.default.weight", "default", "m.experts.lora_A.weight"),
        ("m.experts.base_layer.lora_A.default.weight", "default", "m.experts.base_layer.lora_A.weight"),
        ("base_model.model.m.experts.base_layer.lora_A.weight", "default", "m.experts.base_layer.lora_A.weight"),
        ("m.experts.base_layer.base_layer.down_proj", "default", "m.experts.down_proj"),
    ],
)
def test_one_tensor_has_one_name(raw, adapter, name):
    assert canonical(raw, adapter) == name


def test_a_digest_depends_on_the_last_bit_the_dtype_and_the_shape():
    tensor = torch.zeros(4)
    other = tensor.clone()
    other[3] = -0.0
    digests = {
        digest(t) for t in (tensor, other, tensor.double(), tensor.view(2, 2), tensor.bfloat16(), torch.zeros(0))
    }
    assert len(digests) == 6
    assert digest(tensor) == digest(torch.zeros(8)[::2])
