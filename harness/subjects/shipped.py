"""Subjects that the harness ships beside its own two: `--subject trl-sft`, `accelerate` and `torch`.

They are examples, too: a maintainer writes the same in a test file of their own (harness/subjects/README.md). Their known
defects are in suites/expectations/, with `subjects`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.subjects import Subject

#: The largest token id of the rows (`DataSpec.vocab_size` is 256).
LAST = 255

#: Subject -> the package that it needs, which is also the name of the extra; empty: none.
NEEDS = {
    "trl-sft": "trl",
    "accelerate": "",
    "torch": "",
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
    )


def tokenizer() -> Any:
    """Return a tokenizer of the rows' vocabulary: each token is one word. Trainers ask it for its padding only."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from harness.fixtures.data import PAD

    words = {"<pad>": PAD, "<eos>": LAST, **{f"t{token}": token for token in range(PAD + 1, LAST)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


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
    "accelerate": _accelerate,
    "torch": _torch,
}
