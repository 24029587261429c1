"""Subjects of other libraries that the harness ships: `--subject trl-sft`, `trl-dpo`, `accelerate`, `torch`, `sentence-transformers`.

They are examples, too: what is written here, a maintainer writes in a test file of their own (harness/subjects/README.md). Their
known defects are in suites/expectations/, with `subjects`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.fixtures.data import IGNORED, PAD

if TYPE_CHECKING:
    from harness.subjects import Subject

#: What a trainer that brings a tokenizer does otherwise.
TOKENIZER: dict[str, str] = {}
#: What a trainer with another loss than cross entropy says nothing of.
OTHER_LOSS: dict[str, str] = {}

#: Subject -> the package that it needs, which is also the name of the extra; empty: none.
NEEDS = {
    "trl-sft": "trl",
    "trl-dpo": "trl",
    "accelerate": "",
    "torch": "",
    "sentence-transformers": "sentence-transformers",
}


def load(name: str) -> Subject:
    """Return a shipped subject. UsageError if the package that it needs is not installed."""
    from harness.environment import version

    package = NEEDS[name]
    if package and version(package) is None:
        raise UsageError(f"subject {name!r} needs {package}: pip install 'peft-harness[{package}]'")
    return _MAKE[name]()


def _trl_sft() -> Subject:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from harness.subjects.trainer_subject import TrainerSubject

    return TrainerSubject(
        SFTTrainer,
        config=SFTConfig,
        # The rows are token ids already.
        defaults={"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}},
        dataset=Dataset.from_list,
        extra={"processing_class": tokenizer},
        name="trl-sft",
        not_for=TOKENIZER,
    )


def _trl_dpo() -> Subject:
    from trl import DPOConfig, DPOTrainer

    from harness.subjects.trainer_subject import TrainerSubject

    return TrainerSubject(
        DPOTrainer,
        config=DPOConfig,
        defaults={"max_length": None},
        dataset=preferences,
        extra={"processing_class": tokenizer},
        name="trl-dpo",
        not_for=OTHER_LOSS | TOKENIZER,
    )


def _sentence_transformers() -> Subject:
    from harness.subjects.sentence_pairs import subject

    return subject()


def _accelerate() -> Subject:
    from harness.subjects.loop_subject import LoopSubject
    from harness.subjects.loops import accelerate_loop

    return LoopSubject(accelerate_loop, name="accelerate")


def _torch() -> Subject:
    from harness.subjects.loop_subject import LoopSubject
    from harness.subjects.loops import torch_loop

    return LoopSubject(torch_loop, name="torch")


_MAKE: dict[str, Callable[[], Subject]] = {
    "trl-sft": _trl_sft,
    "trl-dpo": _trl_dpo,
    "accelerate": _accelerate,
    "torch": _torch,
    "sentence-transformers": _sentence_transformers,
}
