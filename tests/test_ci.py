"""ci/: workflows match their schemas, run the scripts that a person runs, and keep tokens away from judged packages."""

import os
import subprocess
import sys

import pytest
import torch
from ruamel.yaml import YAML

from harness.paths import ROOT

GITHUB = sorted((ROOT / "ci" / "github").glob("*.yml"))
GITLAB = sorted((ROOT / "ci" / "gitlab").glob("*.yml"))

#: Workflows with a job that posts the result.
POSTING = ("gate.yml", "nightly.yml")


def script(name, *words, cwd=None, env=None):
    done = subprocess.run(["bash", str(ROOT / "ci" / name), *words], capture_output=True, text=True, cwd=cwd, env=env)
    return done.returncode, done.stderr


@pytest.mark.parametrize("file", GITHUB + GITLAB, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_workflow_matches_its_schema(file):
    schema = ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"] if file in GITLAB else ["vendor.github-workflows"]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", GITHUB, ids=lambda file: file.name)
def test_a_job_that_can_write_installs_and_checks_out_nothing(file):
    body = YAML(typ="safe").load(file)
    assert body["permissions"] == {"contents": "read"}
    writers = [job for job in body["jobs"].values() if "write" in (job.get("permissions") or {}).values()]
    judges = [job for job in body["jobs"].values() if job not in writers]
    assert judges and bool(writers) == (file.name in POSTING)
    for job in writers:
        steps = str(job["steps"])
        assert "checkout" not in steps and "ci/" not in steps and "pip" not in steps
    for job in judges:
        for step in job["steps"]:
            if "checkout" in str(step.get("uses")):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", ["gate", "gpu-suites", "lock", "newest", "setup", "suites", "tests", "types"])
def test_a_script_has_no_syntax_error(name):
    assert subprocess.run(["bash", "-n", str(ROOT / "ci" / name)]).returncode == 0


@pytest.mark.parametrize("name", ["gate", "newest", "gpu-suites"])
def test_github_and_gitlab_run_the_same_script(name):
    assert all(any(f"ci/{name}" in file.read_text() for file in files) for files in (GITHUB, GITLAB))


def test_the_gate_script_prints_its_usage():
    code, said = script("gate", "only-one")
    assert code == 2 and "bash ci/gate --since REF FILE" in said


def test_a_file_that_is_not_in_git_is_named(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    code, said = script("gate", "--since", "HEAD", "pins.txt", cwd=tmp_path)
    assert code == 2 and "pins.txt is not in git at HEAD" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so the suites would run")
def test_without_cuda_the_gpu_suites_end_with_one_sentence():
    code, said = script("gpu-suites", env={**os.environ, "PYTHON": sys.executable})
    assert code == 2
    assert said.splitlines() == [
        f"ci/gpu-suites: {sys.executable} has no torch that finds a CUDA device; set PYTHON to an interpreter that has one"
    ]


def test_the_container_runs_the_scripts_of_a_runner():
    words = (ROOT / "ci" / "Dockerfile.gpu").read_text()
    assert "bash ci/setup" in words and 'ENTRYPOINT ["bash", "ci/gpu-suites"]' in words
