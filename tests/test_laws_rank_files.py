"""Tests of harness/laws/rank_files.py on made-up traces and files: each law holds, and each fault is found and named."""

import torch

from harness.laws import rank_files
from harness.trace import Checkpoint
from tests.traces import BASE, A, B, two_ranks


def test_restored_means_no_value_of_the_start():
    whole, again = two_ranks(), two_ranks()
    for one in (again, *again.ranks):
        one.adapter_resumed = {name: value + 1 for name, value in one.adapter_before.items()}
    assert rank_files.adapter_restored(again, whole).holds
    again.adapter_resumed[A] = whole.adapter_before[A]
    assert "1 of 2 adapter tensors are restored" in "\n".join(rank_files.adapter_restored(again, whole).seen)


def with_files(*files, step=2):
    trace = two_ranks()
    trace.checkpoints = [Checkpoint(step, "", dict.fromkeys(files, 10), {}, {}, {}, [step])]
    return trace


def test_a_checkpoint_has_exactly_the_files():
    trace = with_files("scheduler.pt", "optimizer_0/__0_0.distcp")
    assert rank_files.exactly(trace, ["scheduler.pt", "optimizer_0/"]).holds
    seen = "\n".join(rank_files.exactly(trace, ["scheduler.pt", "model.bin"]).seen)
    assert "checkpoint-2 has optimizer_0/, unexpected" in seen and "checkpoint-2 has no model.bin" in seen
    assert "no checkpoint was written" in rank_files.exactly(two_ranks(), []).seen


def test_the_models_file_holds_the_adapter_alone(tmp_path):
    trace = with_files("pytorch_model_fsdp.bin")
    trace.checkpoints[0].path = str(tmp_path)
    file = tmp_path / "pytorch_model_fsdp.bin"
    raw = {
        f"base_model.model.{name.replace('.weight', '.default.weight')}": value for name, value in trace.adapter.items()
    }
    torch.save(raw, file)
    assert rank_files.fsdp_model(trace).holds
    torch.save({**raw, f"base_model.model.{BASE}": torch.zeros(4, 4)}, file)
    assert BASE in "\n".join(rank_files.fsdp_model(trace).seen)
    torch.save({}, file)
    assert f"{A} is missing" in "\n".join(rank_files.fsdp_model(trace).seen)
    assert "no checkpoint has a pytorch_model_fsdp.bin" in rank_files.fsdp_model(two_ranks()).seen


def test_save_model_must_have_written_the_adapter(tmp_path):
    from safetensors.torch import save_file

    trace = two_ranks()
    assert "save_model() wrote no adapter: nothing" in rank_files.saved_at_the_end(trace, tmp_path).seen[0]
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{name}": value for name, value in trace.adapter.items()}, file)
    assert rank_files.saved_at_the_end(trace, tmp_path).holds
    save_file({f"base_model.model.{A}": trace.adapter[A]}, file)
    assert f"{B} is missing" in "\n".join(rank_files.saved_at_the_end(trace, tmp_path).seen)


def test_the_engines_files():
    states = [f"global_step2/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    model = "global_step2/mp_rank_00_model_states.pt"
    trace = with_files(*states, model, "scheduler.pt")
    assert rank_files.deepspeed_optimizer(trace).holds and rank_files.deepspeed_model(trace).holds
    trace.checkpoints[0].files[model] = 64
    assert "has 64 bytes, the frozen parameters 64" in rank_files.deepspeed_model(trace).seen[0]
    seen = "\n".join(rank_files.deepspeed_optimizer(with_files(states[0], "optimizer.pt")).seen)
    for words in ("1 files of optimizer state for 2 ranks", "has optimizer.pt", "has no scheduler.pt"):
        assert words in seen
    assert "no checkpoint has a file of the engine's model" in rank_files.deepspeed_model(two_ranks()).seen
