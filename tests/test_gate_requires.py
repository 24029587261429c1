"""A stack whose packages want other releases of each other than it has, read from what is installed."""

import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from harness.errors import UsageError
from harness.gate import index, requires
from harness.gate.environments import Environment

#: What transformers 5.24.0 has in these files.
TRANSFORMERS = {
    "integrations/peft.py": 'import torch\n\nMIN_PEFT_VERSION = "0.22.0"\n',
    "utils/import_utils.py": 'ACCELERATE_MIN_VERSION = "1.1.0"\nBITSANDBYTES_MIN_VERSION = "0.46.1"\n',
    "dependency_versions_table.py": 'deps = {"tokenizers": "tokenizers>=0.23.1,<0.24.0", "torch": "torch>=2.6", '
    '"peft": "peft>=0.22.0", "python": "python>=99", "diffusers": "diffusers==0.35.2"}\n',
    "dependency_versions_check.py": 'pkgs_to_check_at_runtime = [\n    "python",\n    "tokenizers",\n]\n',
}

WHOLE = {"transformers": "5.24.0", "peft": "0.22.0", "accelerate": "1.15.0", "torch": "2.13.0+cpu", "tokenizers": "0.23.2",
         "diffusers": "0.1"}  # fmt: skip


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Return a function that installs made-up packages, and returns what contradicts what."""
    asked = []

    def releases(package):
        asked.append(package)
        return ("0.20.0", "0.21.2", "0.23.1")

    monkeypatch.setattr(index, "releases", releases)

    def make(versions, needs=None, files=None):
        packages = tmp_path / "lib" / "python3.11" / "site-packages"
        for name, version in versions.items():
            (packages / f"{name}-{version}.dist-info").mkdir(parents=True)
            lines = [
                f"Name: {name}",
                f"Version: {version}",
                *(f"Requires-Dist: {need}" for need in (needs or {}).get(name, ())),
            ]
            (packages / f"{name}-{version}.dist-info" / "METADATA").write_text("\n".join(lines) + "\n")
        for name, text in {**TRANSFORMERS, **(files or {})}.items():
            (packages / "transformers" / name).parent.mkdir(parents=True, exist_ok=True)
            (packages / "transformers" / name).write_text(text)
        environment = Environment("made", str(tmp_path / "bin" / "python"), versions, "", "key")
        found = requires.of_sides({"baseline": environment, "candidate": environment})
        return [(one["sides"], one["sentence"]) for one in found], asked

    return make


BOTH = ["baseline", "candidate"]


def test_a_whole_stack_has_none_and_the_index_is_not_asked(stack):
    assert stack(WHOLE, {"peft": ["torch>=1.13", "accelerate>=0.21"]}) == ([], [])


def test_what_is_checked_at_run_time_is_named_once(stack):
    found, asked = stack(WHOLE | {"peft": "0.21.2"})
    assert found == [
        (BOTH, "transformers 5.24.0 wants peft >= 0.22.0, the stack has 0.21.2"),
    ]
    assert set(asked) == {"peft"}


def test_that_no_release_fits_is_said(stack):
    files = {"integrations/peft.py": 'MIN_PEFT_VERSION = "0.24.0"\n'}
    found, _ = stack(WHOLE, files=files)
    sentence = "transformers 5.24.0 wants peft >= 0.24.0, the stack has 0.22.0; no such release is on the index"
    assert found == [(BOTH, sentence)]


def test_an_index_that_cannot_be_read_is_said(stack, monkeypatch):
    def unreadable(package):
        raise UsageError("the package index cannot be read")

    monkeypatch.setattr(index, "releases", unreadable)
    found, _ = stack(WHOLE | {"tokenizers": "0.24.0"})
    sentence = (
        "transformers 5.24.0 wants tokenizers < 0.24.0, >= 0.23.1, the stack has 0.24.0; the index could not be read"
    )
    assert [found[0][1]] == [sentence]


@pytest.mark.parametrize(
    ("needs", "sentences"),
    [
        ({"peft": ["accelerate>=2"]}, ["peft 0.22.0 wants accelerate >= 2, the stack has 1.15.0"]),
        ({"peft": ["torch<2"]}, ["peft 0.22.0 wants torch < 2, the stack has 2.13.0+cpu"]),
        ({"peft": ["psutil"]}, ["peft 0.22.0 wants psutil, the stack has none"]),
        ({"tokenizers": ["diffusers>1"], "transformers": ["tokenizers"]}, ["tokenizers 0.23.2 wants diffusers > 1"]),
        ({"diffusers": ["peft>=9"]}, []),  # nothing of the stack needs it
        ({"peft": ['accelerate>=2; extra == "test"', 'torch<2; python_version < "3"']}, []),
        ({"peft": ["no requirement at all >>"]}, []),
    ],
)
def test_metadata_is_followed_from_the_stack_on(stack, needs, sentences):
    found, _ = stack(WHOLE, needs)
    assert len(found) == len(sentences)
    assert all(said.startswith(sentence) for (_, said), sentence in zip(found, sentences, strict=True))


@pytest.mark.parametrize("text", ["MIN_PEFT_VERSION = 1 +\n", "MIN_PEFT_VERSION = 0.22\n", "(" * 300, "\x00", ""])
def test_source_that_cannot_be_read_asks_for_nothing(stack, text):
    assert stack(WHOLE, files=dict.fromkeys(TRANSFORMERS, text)) == ([], [])


def test_the_installed_transformers_still_has_what_is_read_from_it():
    found = next(one for one in importlib.metadata.distributions() if one.metadata["Name"] == "transformers")
    wanted = list(requires._checked_at_run_time(found.locate_file("transformers")))
    oldest = {one.name: min(Version(limit.version) for limit in one.specifier) for one in wanted if one.specifier}
    assert {"peft", "accelerate", "bitsandbytes", "torch"} <= oldest.keys()
    assert oldest["peft"] > Version("0.10") and oldest["accelerate"] >= Version("0.26")
    assert any(isinstance(one, Requirement) and one.name == "huggingface-hub" for one in wanted)
