"""`peft-harness train` as a whole on a tiny model, and on the real one (marker `real`)."""

import json
import subprocess
import sys

import pytest

from harness import lacking
from harness.errors import UsageError
from harness.fixtures import smollm2
from harness.paths import ROOT
from harness.real.command import train
from harness.spec import RunSpec
from tests.tiny import jsonl, save_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny") / "model")


ROWS = [{"question": f"What is {n}?", "answer": f"It is {n} and no more."} for n in range(12)]


def run_tiny(tiny, target, **options):
    data = jsonl(target.parent / "rows.jsonl", *ROWS)
    code = train(model=tiny, data=data, output=target, steps=4, batch_size=2, length=48, threads=1, **options)
    return code, json.loads((target / "result.json").read_text())


def test_a_users_model_and_data(tiny, tmp_path, capsys):
    target = tmp_path / "out"
    code, result = run_tiny(tiny, target)
    assert code == 0, capsys.readouterr().out
    assert {check["verdict"] for check in result["checks"]} == {"pass"}
    assert len(result["checks"]) == 10
    assert result["schema_version"] == 1
    assert result["bit_equal"] is True
    assert result["subjects"] == ["hf-trainer", "reference"]
    assert [row["step"] for row in result["steps"]] == [1, 2, 3, 4]
    assert all(row["difference"] == 0 and row["grad_norm"]["reference"] > 0 for row in result["steps"])
    assert result["environment"]["versions"]["torch"]
    assert result["rows"]["rows"] == 8
    assert (target / "loss-curves.png").read_bytes().startswith(b"\x89PNG")
    spec = RunSpec.load(target / "spec.json")
    assert spec.data.path == str(target / "rows.jsonl")
    assert spec.arguments["save_steps"] == 2
    assert {"r": 16, "lora_alpha": 32}.items() <= spec.adapter.config.items()
    sizes = {check["check"]: check["detail"] for check in result["checks"]}
    # Numbers: r * (in + out) for q_proj (64, 64) and v_proj (64, 32), in two layers. Each has four bytes.
    assert f"4 x {2 * 16 * (128 + 96):,} trained numbers" in sizes["adapter size: hf-trainer"]


def test_qlora_packs_the_users_base(tiny, tmp_path, capsys):
    if reason := lacking.quantization():
        pytest.skip(reason)
    code, result = run_tiny(tiny, tmp_path / "out", qlora=True)
    assert code == 0, capsys.readouterr().out
    assert {check["verdict"] for check in result["checks"]} == {"pass"} and result["bit_equal"] is True
    spec = RunSpec.load(tmp_path / "out" / "spec.json")
    assert spec.model.quantization == "nf4" and spec.model.prepare_for_kbit
    assert spec.arguments["activation_checkpointing"] is True
    assert {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05}.items() <= spec.adapter.config.items()
    # Each packed weight adds six tensors of quantization state to the base.
    (frozen,) = [check["detail"] for check in result["checks"] if check["check"] == "base frozen: hf-trainer"]
    assert int(frozen.split()[0]) > 6 * 14 and "NF4 computing in float32" in capsys.readouterr().out


def test_a_trainer_that_differs_fails(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "scaled_trainer.py").write_text(
        "from transformers import Trainer\n"
        "from harness.subjects.hf_trainer import HFTrainer\n"
        "class Scaled(Trainer):\n"
        "    def compute_loss(self, *args, **kwargs):\n"
        "        return super().compute_loss(*args, **kwargs) * 1.001\n"
        "def subject():\n"
        "    return HFTrainer(Scaled)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, result = run_tiny(tiny, tmp_path / "out", subject=["scaled_trainer:subject", "hf-trainer"])
    verdicts = {check["check"]: check["verdict"] for check in result["checks"]}
    assert code == 1
    assert verdicts.pop("bit-equal") == "fail"
    assert set(verdicts.values()) == {"pass"}
    assert result["bit_equal"] is False
    assert "9 of 10 checks hold, 1 fail" in capsys.readouterr().out


def test_a_run_that_raises_fails(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "raising_trainer.py").write_text(
        "from transformers import Trainer\n"
        "from harness.subjects.hf_trainer import HFTrainer\n"
        "class Raising(Trainer):\n"
        "    def compute_loss(self, *args, **kwargs):\n"
        "        raise RuntimeError('out of luck')\n"
        "def subject():\n"
        "    return HFTrainer(Raising)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, result = run_tiny(tiny, tmp_path / "out", subject=["raising_trainer:subject", "hf-trainer"])
    assert code == 1
    assert result["errors"] == {"Raising": "RuntimeError: out of luck"}
    assert "out of luck" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_no_result(tiny, tmp_path, monkeypatch):
    (tmp_path / "full_trainer.py").write_text(
        "import errno\n"
        "from transformers import Trainer\n"
        "from harness.subjects.hf_trainer import HFTrainer\n"
        "class Full(Trainer):\n"
        "    def _save_checkpoint(self, *args, **kwargs):\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "def subject():\n"
        "    return HFTrainer(Full)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="no space left on"):
        run_tiny(tiny, tmp_path / "out", subject=["full_trainer:subject", "hf-trainer"])
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_adapter_file_in_half_precision_fails_the_size(tmp_path):
    import torch
    from safetensors.torch import save_file

    from harness.real.checks import _size
    from harness.subjects.observer import inspect_checkpoint
    from harness.trace import Trace

    def size_check(dtype):
        path = tmp_path / str(dtype) / "checkpoint-1"
        path.mkdir(parents=True)
        save_file(
            {"base_model.model.a.lora_A.weight": torch.ones(4, 8, dtype=dtype)}, path / "adapter_model.safetensors"
        )
        trace = Trace(RunSpec(), "made up", {}, output={"global_step": 1})
        trace.adapter_before = {"a.lora_A.weight": torch.ones(4, 8)}
        trace.checkpoints = [inspect_checkpoint(path, "default")]
        return _size(trace)

    verdict, detail = size_check(torch.float32)
    assert verdict.holds
    assert "= 4 x 32 trained numbers + " in detail
    verdict, _ = size_check(torch.float16)
    assert verdict.seen == ("64 bytes of tensors in it, expected 4 x 32 = 128",)


def test_on_a_gpu_the_distance_is_reported_and_not_judged():
    import torch

    from harness.real.checks import judge
    from harness.verdict import FAIL, NOT_COMPARABLE, PASS
    from tests.traces import A, made_up

    def outcome(change=lambda trace: None, device="cuda"):
        spec = RunSpec().but(max_steps=4, per_device_train_batch_size=2, launch={"device": device})
        first, second = made_up(spec), made_up(spec)
        change(first)
        check = judge({"mine": first, "reference": second}, None)[0]
        return check.verdict.outcome, check.detail

    def rounded(trace):
        trace.adapter[A] = trace.adapter[A] * torch.tensor(1 + 1e-6)

    def other_rows(trace):
        trace.steps[1].batches[0].rows = [0, 1]

    assert outcome()[0] == PASS
    assert outcome(rounded, "cpu")[0] == FAIL
    judged, detail = outcome(rounded)
    assert judged == NOT_COMPARABLE
    assert detail.startswith("not judged bit-equal on cuda")
    assert "adapter_difference" in detail
    assert outcome(other_rows)[0] == FAIL


def judged(change=lambda trace: None, device="cpu", both=True):
    """Return the checks on two made-up runs, of which the first or both are changed."""
    from harness.real.checks import judge
    from tests.traces import made_up

    spec = RunSpec().but(max_steps=4, per_device_train_batch_size=2, launch={"device": device})
    first, second = made_up(spec), made_up(spec)
    for trace in (first, second)[: 2 if both else 1]:
        change(trace)
    # No checkpoint was written. What is checked of those is left out here.
    checks = judge({"mine": first, "reference": second}, None)
    return [check for check in checks if check.name == "bit-equal" or check.name.startswith("trained")]


def all_nan(trace):
    from tests.test_nothing_finite import fill

    for step in trace.steps:
        fill(step.gradients, float("nan"))
        fill(step.clipped, float("nan"))
    for tensors in (trace.adapter, *trace.optimizer_state.values()):
        fill(tensors, float("nan"))
    for entry in trace.log_history:
        entry.update(loss=float("nan"), grad_norm=float("nan"))


def still(trace):
    trace.adapter = {name: tensor.clone() for name, tensor in trace.adapter_before.items()}


@pytest.mark.parametrize(
    ("change", "both", "device", "code", "verdicts"),
    [
        (lambda trace: None, True, "cpu", 0, {"pass"}),
        (all_nan, True, "cpu", 3, {"not_comparable"}),
        (all_nan, False, "cpu", 1, {"fail", "not_comparable", "pass"}),
        (all_nan, True, "cuda", 3, {"not_comparable"}),
        (all_nan, False, "cuda", 1, {"fail", "not_comparable", "pass"}),
        (still, True, "cpu", 1, {"pass", "fail"}),
    ],
)
def test_the_exit_code_says_what_was_not_judged(change, both, device, code, verdicts):
    from harness.real.checks import exit_code

    checks = judged(change, device, both)
    assert {check.verdict.outcome for check in checks} == verdicts, checks
    assert exit_code(checks) == code
    assert all(check.detail and check.verdict.seen for check in checks if not check.verdict.holds)


def test_equality_on_a_gpu_is_not_judged_by_design_and_nothing_at_all_is_no_success():
    from harness.real.checks import exit_code
    from tests.traces import A

    def rounded(trace):
        trace.adapter[A] = trace.adapter[A] * (1 + 1e-6)

    checks = judged(rounded, "cuda", both=False)
    assert [check.by_design for check in checks] == [True, False, False]
    assert exit_code(checks) == 0 and exit_code([]) == 3


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_end_to_end(tmp_path):
    """Train SmolLM2-135M-Instruct as a user would: two steps by the Trainer and by the reference, and one resumed run."""
    missing = smollm2.missing()
    if missing is not None:
        pytest.skip(missing)
    call = "train(output=sys.argv[1], steps=2, batch_size=1, length=64)"
    code = f"import sys; from harness.real.command import train; sys.exit({call})"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["trained_numbers"] == 921_600
    assert result["bit_equal"] is True
    assert "4 x 921,600 trained numbers" in json.dumps(result["checks"])
