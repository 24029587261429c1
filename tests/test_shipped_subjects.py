"""The shipped subjects of other libraries, a few cases each; TRL also in the two releases before the newest.

pip install 'peft-harness[trl,sentence-transformers]'
pytest tests/test_shipped_subjects.py -m slow
"""

import os
import subprocess
import sys

import pytest

from harness import environment, subjects
from harness.subjects import shipped

#: The releases of TRL before 1.16, the newest on 2026-11-29.
OLDER = ("1.15.0", "1.14.2")

#: Subject -> a case of the base, one of a resumed run and one of the adapter's file, which hold.
CASES = {
    "trl-sft": ["FRZ-01-plain", "RES-22-plain/step-6", "LOSS-01-ragged", "CKPT-25-plain"],
    "trl-dpo": ["FRZ-01-plain", "RES-22-plain/step-6", "CKPT-25-plain"],
    "sentence-transformers": ["FRZ-01-plain", "RES-22-plain/step-6", "CKPT-25-plain"],
}

TEST = """
from harness import conformance, subjects

test_it = conformance(subjects.load({name!r}), clauses={clauses})
"""


def judged(name, directory, **variables):
    """Run the cases of a subject in a session of its own. Return what pytest printed, and its exit code."""
    clauses = sorted({"-".join(id.split("-")[:2]) for id in CASES[name]})
    (directory / "test_theirs.py").write_text(TEST.format(name=name, clauses=clauses))
    chosen = " or ".join(f"[{id}" for id in CASES[name])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-k", chosen, str(directory)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **variables}, cwd=directory
    )
    return done.stdout + done.stderr, done.returncode


def needs(package):
    if environment.version(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'peft-harness[{package}]'")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_shipped_subject_holds(name, tmp_path):
    needs(shipped.NEEDS[name])
    printed, code = judged(name, tmp_path)
    assert code == 0 and " 0 fail" in printed, printed


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("release", OLDER)
def test_an_older_trl_holds(release, tmp_path):
    needs("trl")
    target = tmp_path / "trl"
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--target", str(target)]
    done = subprocess.run([*command, "--no-deps", f"trl=={release}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "tests"
    home.mkdir()
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    printed, code = judged("trl-sft", home, PYTHONPATH=path)
    assert code == 0 and " 0 fail" in printed, printed


def test_pairs_begin_with_the_rows_own_tokens():
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'peft-harness[trl]'")
    row = {"input_ids": [7, 255, 9, 0], "attention_mask": [1, 1, 1, 0], "labels": [7, 255, 9, -100]}
    (made,) = shipped.pairs([row])
    assert made == {"prompt": "t7 ", "chosen": "<eos> t9", "rejected": "t2 t10"}


def test_a_tokenizer_gives_the_tokens_of_words_back():
    made = shipped.tokenizer("<pad>")
    assert made(shipped.words([7, 255, 9]) + "<pad>")["input_ids"] == [7, 255, 9, 0]


@pytest.mark.parametrize("name", [name for name, package in shipped.NEEDS.items() if not package])
def test_a_shipped_loop_needs_nothing_else(name):
    assert subjects.load(name).name == name
