"""A repository with packages named fixtures, suites and tests, and folders named like installed packages: neither side
hides the other's modules."""

import json
import sys

import pytest

from tests.installed import installed

__all__ = ["installed"]

FILES = {
    "fixtures/__init__.py": "",
    "fixtures/data.py": "MINE = 'of this repository'",
    "suites/__init__.py": "MINE = 'of this repository'",
    "tests/__init__.py": "",
    "my_trainer.py": """
import transformers
import fixtures.data
import suites
from harness.subjects.hf_trainer import HFTrainer

assert fixtures.data.MINE == suites.MINE == "of this repository"

class MyTrainer(transformers.Trainer):
    pass

def subject():
    return HFTrainer(MyTrainer)
""",
    "my_patch.py": """
import os
from pathlib import Path
import fixtures.data

assert fixtures.data.MINE == "of this repository"
with (Path(__file__).parent / "seen.txt").open("a") as file:
    file.write(f"{os.environ.get('RANK', 'none')}\\n")
""",
    # Settings for this repository's own tests. Commands of the harness must not read them.
    "pyproject.toml": """
[tool.pytest.ini_options]
addopts = "--an-option-of-my-plugin"
filterwarnings = ["error"]
""",
}

#: python -P keeps the current directory from hiding these.
if sys.version_info >= (3, 11):
    FILES |= {
        f"{name}/__init__.py": "raise RuntimeError('not the installed package')" for name in ("accelerate", "harness")
    }


@pytest.fixture
def repository(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def case_file(repository, test):
    """A failure's case file, which `repro` runs through the same pytest as `check`, but collects one file only."""
    file = repository / "case.json"
    body = {"test": test, "subject": "my_trainer:subject", "device": "cpu", "preload": ["my_patch"]}
    file.write_text(json.dumps(body))
    return file


def test_check_judges_the_repositorys_own_trainer(installed, repository):
    words = ["check", "--subject", "my_trainer:subject", "--clause", "RNG-01", "--preload", "my_patch", "--", "-n", "0"]
    done = installed.run("peft-harness", *words, cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "judged: my_trainer:subject" in done.stdout and "4 passed" in done.stdout


@pytest.mark.slow
def test_ranks_find_the_modules_of_the_repository(installed, repository):
    test = "test_launches.py::test_ranks_together_obey_the_laws_of_one_process[ddp-2/LOSS-01]"
    done = installed.run("peft-harness", "repro", case_file(repository, test), "--trust-code", cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert (repository / "seen.txt").read_text()


@pytest.mark.slow
def test_a_wrong_module_is_named(installed, repository):
    done = installed.run("peft-harness", "check", "--subject", "no_trainer:subject", cwd=repository)
    assert done.returncode == 2
    assert "module 'no_trainer' cannot be imported" in done.stdout + done.stderr


def test_pytest_of_the_repository_runs_the_suites(installed, repository):
    (repository / "pyproject.toml").unlink()
    suites = ["--pyargs", "harness.suites.test_rng", "--subject", "my_trainer:subject", "-q"]
    done = installed.run("pytest", *suites, cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_gate_finds_the_modules_of_the_repository(installed, repository):
    words = ["--subject", "my_trainer:subject", "--preload", "my_patch", "--clause", "RNG-01"]
    done = installed.run(
        "peft-harness", "gate", "--baseline", "current", "--candidate", "current", *words, cwd=repository
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "safe: what held" in done.stdout
