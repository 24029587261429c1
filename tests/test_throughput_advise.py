"""`speed --advise`, `--kernels` and runs of one's own: what is tried, what a report says, and what is refused."""

import functools
import json
import subprocess
import sys

import pytest

from harness.cli import app
from harness.errors import UsageError
from harness.runs.scenarios import PLAIN
from harness.throughput import advise, kernels, pairs, shapes, speed
from harness.throughput.advise import CHANGES, Change
from harness.throughput.ceiling import Ceiling
from harness.throughput.kernels import Kernel, by_kind

#: A fake worker. With torch_compile a step takes half as long, with eager attention it cannot be timed.
FAKE = """
import json, sys
task = json.loads(sys.stdin.readline())
spec = task["spec"]
seconds = 0.01 * (0.5 if spec["arguments"].get("torch_compile") else 1)
if spec["model"]["config"].get("attn_implementation") == "eager":
    print(json.dumps({"refused": "no memory left"}), flush=True)
    sys.exit()
loss = 2.0 + 0.002 * bool(spec["arguments"].get("bf16"))
print(json.dumps({"loss": loss, "huge_pages": True, "host": 1.0}), flush=True)
for line in sys.stdin:
    steps = json.loads(line)["steps"]
    print(json.dumps({"wall": [seconds] * steps, "cpu": [seconds] * steps, "peak_bytes": 7}), flush=True)
"""


def start(*arguments, **options):
    return subprocess.Popen([sys.executable, "-c", FAKE], text=True, **options)


@pytest.fixture
def advice(monkeypatch):
    monkeypatch.setattr(advise, "Entrant", functools.partial(pairs.Entrant, start=start))
    shape = shapes.own(PLAIN.but(model={"config": {"attn_implementation": "sdpa"}}), "run.json")
    *_, made = advise.advise(shape, "cpu", "hf-trainer", 0.5)
    return made


def test_what_makes_a_run_faster_is_named(advice):
    assert [one.words for one in advice.best] == ["torch_compile=True"]
    compiled = next(one for one in advice.tried if one.words == "torch_compile=True")
    assert compiled.gain.estimate == pytest.approx(1.0, rel=0.2)
    assert compiled.apart == 0


def test_another_loss_is_said(advice):
    lower = next(one for one in advice.tried if one.words == "bf16=True")
    assert lower.apart == pytest.approx(1e-3)
    assert not lower.helps


def test_what_is_not_tried_says_why(advice):
    said = {one.words: one.refused for one in advice.tried if one.refused}
    assert said['attn_implementation="eager"'] == "no memory left"
    assert said['attn_implementation="sdpa"'] == "the run has it already"
    assert said["one batch instead of accumulation"] == "nothing is accumulated"
    assert {one.words for one in advice.tried} == {one.words for one in CHANGES}
    report = advise.to_report([advice], "cpu", "hf-trainer")
    assert json.loads(json.dumps(report))["runs"][0]["best"] == ["torch_compile=True"]


def test_a_run_that_cannot_be_timed_is_refused(monkeypatch):
    monkeypatch.setattr(advise, "Entrant", functools.partial(pairs.Entrant, start=start))
    shape = shapes.own(PLAIN.but(model={"config": {"attn_implementation": "eager"}}), "run.json")
    with pytest.raises(UsageError, match="no memory left"):
        list(advise.advise(shape, "cpu", "hf-trainer", 0.5, changes=(Change("x", lambda spec: spec.but(seed=1)),)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_320x128_64x3_1x2_h_bz_coopB_TNT", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma", "attention"),
        ("kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "unpacking 4 or 8 bits"),
        ("triton_poi_fused_add_mul_silu_view_2", kernels.OTHER),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_view_7", kernels.OTHER),
        ("triton_red_fused__log_softmax__to_copy_view_1", "loss"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("aten::addmm", "matrix products"),
    ],
)
def test_a_kernel_has_a_kind(name, kind):
    assert Kernel(name, 1.0, 1.0).kind == kind


def test_the_kinds_together_are_all_kernels():
    made = [Kernel(f"aten::mul_{number}", 1e-3 * (30 - number), 2.0) for number in range(30)]
    report = kernels.to_json(made)
    assert len(report["kernels"]) == kernels.SHOWN
    named = sum(one["seconds"] for one in report["kernels"])
    assert named + report["seconds_of_others"] == pytest.approx(sum(by_kind(made).values()))


@pytest.mark.slow
def test_a_process_says_which_kernels_its_steps_ran():
    with pairs.standing(
        pairs.Runner(pairs.Entrant("trainer", "hf-trainer", shapes.SHAPES["tiny"].spec("cpu")))
    ) as side:
        found = side.kernels(2)
        # The process goes on to be timed.
        assert len(side.block(2)["wall"]) == 2
    products = [one for one in found if one.name == "aten::mm"]
    # Two adapted layers in each of two blocks, with two products each; forward, and backward once or twice.
    assert products[0].calls >= 8
    assert found == sorted(found, key=lambda one: -one.seconds)


def test_an_own_run_has_no_end_and_saves_nothing():
    own = shapes.own(PLAIN.but(num_train_epochs=3, gradient_accumulation_steps=2, save_strategy="epoch"), "run.json")
    spec = own.spec("cpu")
    assert spec.arguments["max_steps"] == 1_000_000
    assert "num_train_epochs" not in spec.arguments
    assert (spec.arguments["save_strategy"], spec.arguments["eval_strategy"]) == ("no", "no")
    assert own.rows == 2 * PLAIN.arguments["per_device_train_batch_size"]
    assert spec.data.rows >= 16 * own.rows
    assert own.tokens == own.rows * PLAIN.data.length


def test_an_own_run_of_several_ranks_is_refused():
    with pytest.raises(UsageError, match=r"run.json: it has 2 ranks"):
        shapes.own(PLAIN.but(launch={"strategy": "ddp", "ranks": 2}), "run.json")


def test_the_published_settings_adapt_all_projections():
    for name in ("1b-2x4096", "7b-2x4096", "8b", "8b-nf4"):
        shape = shapes.SHAPES[name]
        spec = shape.spec("cuda")
        assert shape.tokens == 8192
        assert spec.adapter.config["target_modules"] == shapes.ALL_PROJECTIONS
        assert not spec.arguments.get("activation_checkpointing")
        # They are timed only if they are named.
        assert shape not in shapes.chosen([], "cuda")


def test_kernels_are_in_the_report():
    row = speed.Row("trainer", seconds=0.1, kernels=[Kernel("aten::mm", 0.05, 4.0)])
    measured = speed.Measured(shapes.SHAPES["tiny"], [row], ceiling=Ceiling("float32", 1e9, 1e9))
    assert measured.to_json()["rows"][0]["step"]["seconds_by_kind"] == {"matrix products": 0.05}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--spec", "no.json"], "no.json"),
        (["--spec", "no.json", "--shape", "tiny"], "--spec: does not go with --shape"),
        (["--arguments", "a.json", "--rates"], "--arguments: does not go with --rates"),
        (["--advise", "--kernels"], "--kernels: does not go with --advise"),
        (["--advise", "--ranks", "2"], "--advise: does not go with --ranks"),
    ],
)
def test_wrong_options(words, sentence):
    from typer.testing import CliRunner

    with pytest.raises(UsageError, match=sentence):
        CliRunner().invoke(app, ["speed", *words], catch_exceptions=False)
