"""`peft-harness speed --ranks`: real ranks, what is refused, and what is reported."""

import json

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.throughput import scaling
from harness.throughput.scaling import Scaled, Spread, spread_over
from harness.throughput.shapes import SHAPES


def test_efficiency_is_relative_to_one_process():
    scaled = Scaled(SHAPES["tiny"], [Spread("single", 1, [1.0, 1.0, 1.0]), Spread("ddp", 4, [1.0, 1.25, 2.0])])
    ddp = scaled.spreads[1]
    assert scaled.efficiency(ddp) == 0.8 and scaled.tokens(ddp) == 4 * 64 / 1.25
    refused = scaling.Spread("zero1", 2, refused="no deepspeed")
    launch = Scaled(SHAPES["tiny"], [scaled.spreads[0], refused]).to_json()["launches"][1]
    assert launch["efficiency"] is launch["seconds"] is None and launch["refused"] == "no deepspeed"


def test_each_rank_trains_batches_of_the_same_size_as_one_process():
    alone = SHAPES["7b"].spec("cuda")
    spec = spread_over(alone, "fsdp2", 4)
    size = "per_device_train_batch_size"
    assert spec.arguments[size] == alone.arguments[size] and spec.data.rows == 4 * alone.data.rows
    # FSDP refuses the Trainer's activation checkpointing, and has its own.
    assert spec.launch.activation_checkpointing and "activation_checkpointing" not in spec.arguments
    assert spread_over(alone, "ddp", 4).arguments["activation_checkpointing"]


@pytest.mark.slow
def test_two_processes_are_timed_and_what_they_exchange_is_counted(tmp_path):
    files = ["--json", str(tmp_path / "scaling.json"), "--plot", str(tmp_path / "scaling.png")]
    command = ["speed", "--shape", "tiny", "--ranks", "2", "--strategy", "ddp", "--strategy", "fsdp2", *files]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (shape,) = json.loads((tmp_path / "scaling.json").read_text())["shapes"]
    one, ddp, fsdp = shape["launches"]
    assert (one["ranks"], ddp["ranks"], fsdp["ranks"]) == (1, 2, 2) and len(fsdp["peak_bytes"]) == 2
    assert ddp["tokens_per_second"] == 2 * 64 / ddp["seconds"]
    # DDP sums the gradients of LoRA r=8 on q_proj and v_proj of two layers, 4 bytes each. FSDP gathers the base model, too.
    gradients = 4 * 2 * 8 * ((64 + 64) + (64 + 32))
    assert gradients <= ddp["collective_bytes"] < 1.1 * gradients
    assert fsdp["collectives"] > ddp["collectives"] and fsdp["collective_bytes"] > 10 * ddp["collective_bytes"]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "1"], "--ranks 1: expected 2 or more"),
        (["--ranks", "2", "--strategy", "single"], "--strategy single: known are ddp, fsdp1"),
        (["--ranks", "2", "--shape", "huge"], "--shape huge: known are tiny"),
    ],
)
def test_bad_input_is_one_sentence(options, message):
    from harness.errors import UsageError

    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(app, ["speed", *options], catch_exceptions=False)
