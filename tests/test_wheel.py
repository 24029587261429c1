"""A wheel carries suites and fixtures, and works where there is no checkout."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from harness.paths import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(names in the wheel, run): run(*words) is the command line of the unpacked wheel, far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder / "site")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
        command = [sys.executable, "-m", "harness.cli", *words]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    return names, run


def test_it_keeps_to_one_top_level_name(installed):
    names, _ = installed
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"harness"}
    assert {"harness/bundled/suites/conftest.py", "harness/bundled/fixtures/models.py"} <= set(names)
    assert {"harness/bundled/suites/CONTRACT.md", "harness/contract/proofs.json"} <= set(names)


def test_its_command_line_judges_a_clause(installed):
    _, run = installed
    done = run("check", "--clause", "FRZ-10", "--", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FRZ what is trained" in done.stdout


def test_it_repeats_a_case_of_its_own_suites(installed, tmp_path):
    _, run = installed
    case = tmp_path / "case.json"
    test = "test_frz.py::test_base_is_bit_identical[plain]"
    case.write_text(json.dumps({"test": test, "subject": "hf-trainer", "device": "cpu", "preload": []}))
    done = run("repro", str(case))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_it_explains_a_clause_and_leaves_the_register_as_it_is(installed):
    _, run = installed
    done = run("clauses", "RES-22")
    assert done.returncode == 0, done.stderr
    assert "tests/test_faults_res.py" in done.stdout and "accelerate==1.13.0" in done.stdout
    done = run("clauses", "--write")
    assert done.returncode == 2
    assert done.stderr.startswith("peft-harness: clauses --write is for a checkout")
