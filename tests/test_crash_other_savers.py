"""Other savers than the Trainer, explored in a few lines each. harness/crash/README.md has the numbers."""

import pytest

from harness import crash
from harness.crash.outcomes import EQUAL, REFUSED, SILENT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torch():
    from harness.processes.imports import import_upstream

    import_upstream()
    import torch

    return torch


def shown(found):
    print(found)
    return found.outcomes["load"]


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "beside"])
def test_accelerate_goes_on_in_silence_where_the_random_state_is_torn(torch, earlier):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(model(torch.randn(4, 8)).sum())
    optimizer.step()

    def load(directory):
        last = max(directory.iterdir(), key=lambda path: path.name)
        torch.manual_seed(1)
        accelerator.load_state(str(last))
        return [model.state_dict(), optimizer.state_dict(), torch.get_rng_state()]

    before = (lambda directory: accelerator.save_state(str(directory / "1"))) if earlier else None
    found = crash.explore(
        lambda directory: accelerator.save_state(str(directory / "2")), load, before, name="accelerate"
    )
    outcomes = shown(found)
    assert outcomes[SILENT] > 5
    assert any("random_states_0.pkl" in one.how for one in found.found if one.outcome == SILENT)


@pytest.mark.parametrize("where", ["first", "over", "beside"])
def test_torch_distributed_checkpoint_is_never_silent(torch, where):
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    def state(seed):
        torch.manual_seed(seed)
        return {"weight": torch.randn(64, 64), "step": torch.tensor(seed)}

    def load(directory):
        found = {name: torch.zeros_like(tensor) for name, tensor in state(0).items()}
        dcp_load(found, checkpoint_id=str(max(directory.iterdir(), key=lambda path: path.name)))
        return found

    def older(directory):
        dcp_save(state(1), checkpoint_id=str(directory / ("2" if where == "over" else "1")))

    found = crash.explore(
        lambda directory: dcp_save(state(2), checkpoint_id=str(directory / "2")),
        load,
        None if where == "first" else older,
        name=f"torch.distributed.checkpoint, {where}",
    )
    outcomes = shown(found)
    assert outcomes.get(SILENT, 0) == 0
    assert outcomes[EQUAL] >= 1


def test_shards_of_save_pretrained(torch):
    from transformers import AutoModelForCausalLM

    from harness.fixtures import models
    from harness.spec import ModelSpec

    model = models.build(ModelSpec())
    found = crash.explore(
        lambda directory: model.save_pretrained(directory, max_shard_size="150KB"),
        lambda directory: AutoModelForCausalLM.from_pretrained(str(directory)).state_dict(),
        name="save_pretrained, shards",
        at_most=60,
    )
    assert shown(found)[REFUSED] > 5
