"""The gate, a bisection and past faults of upstream, on real releases. Each takes minutes: run with -m network."""

import json
import subprocess
import sys

import pytest

from harness.gate import history
from harness.gate.scope import Scope

pytestmark = pytest.mark.network

GOOD = "transformers==5.1.0 accelerate==1.13.0 peft==0.18.1"
BAD = "transformers==5.3.0 accelerate==1.13.0 peft==0.18.1"


def harness(*words, cwd):
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("release", history.chosen([]), ids=lambda release: f"{release.id}-{release.clause}")
def test_a_past_fault_is_caught(release):
    result = history.judge(release, Scope())
    assert result.caught > 0, result.seen


def test_a_gate_names_the_gradient_that_was_divided_twice(tmp_path):
    code, said = harness("gate", "--baseline", GOOD, "--candidate", BAD, "--json", "r.json", cwd=tmp_path)
    assert code == 1, said
    report = json.loads((tmp_path / "r.json").read_text())
    broken = {finding["where"]: finding for finding in report["findings"] if finding["means"] == "broken"}
    assert "0.25 times that of the large batch" in broken["ACC-01"]["sentence"]
    assert broken["accumulation-of-4"]["details"]["ratio"] == pytest.approx(0.25, rel=1e-3)
    assert (tmp_path / report["candidate"]["lock"]).is_file()


def test_a_gate_names_the_adapter_file_that_is_empty(tmp_path):
    code, said = harness(
        "gate", "--baseline", "peft==0.20.0", "--candidate", "peft==0.21.2", "--json", "r.json", cwd=tmp_path
    )
    assert code == 1, said
    report = json.loads((tmp_path / "r.json").read_text())
    assert "CKPT-25" in {finding["where"] for finding in report["findings"] if finding["means"] == "broken"}


def test_a_bisection_names_the_release(tmp_path):
    words = ["bisect", "--clause", "ACC-01", "--good", GOOD, "--bad", BAD, "--json", "b.json"]
    code, said = harness(*words, cwd=tmp_path)
    assert code == 0, said
    assert json.loads((tmp_path / "b.json").read_text())["answer"] == "ACC-01 broke in transformers 5.2.0 (5.1.0 holds)"
