"""Subjects that the harness ships beside its own two: `--subject trl-sft`, `trl-dpo`, `accelerate` and `torch`.

They are examples, too: a maintainer writes the same in a test file of their own (harness/subjects/README.md). Their known
defects are in suites/expectations/, with `subjects`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.spec import RunSpec
    from harness.subjects import Subject

#: The largest token id of the rows (`DataSpec.vocab_size` is 256).
LAST = 255

#: The token of padding (`harness.fixtures.data.PAD`, whose import takes seconds).
PAD = 0

#: Subject -> the package that it needs, which is also the name of the extra; empty: none.
NEEDS = {
    "trl-sft": "trl",
    "trl-dpo": "trl",
    "sentence-transformers": "sentence-transformers",
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
        not_for={
            "API-06": "SFTTrainer names the columns that it takes, and computes the loss itself",
            "LOSS-05": "SFTTrainer computes the loss itself, whatever the model takes",
            "CKPT-03/without_an_adapter*": _TOKENIZER,
            "CKPT-19": _TOKENIZER,
            "EVAL-05": "SFTTrainer pads each batch to its own longest row, so predictions have other shapes",
            "EVAL-06/each_of_several*": "SFTTrainer takes no other evaluation sets than those of datasets",
            "GEN-01/nf4*": "SFTTrainer trains adapters of quantized models in bfloat16, and Trainer in float32",
        },
        allow=_trl_adds("entropy", "num_tokens", "mean_token_accuracy"),
        lacks=_trl_lacks,
        padded=False,
    )


_TOKENIZER = "the tokenizer is saved, too"


def _trl_adds(*metrics: str) -> dict[str, list[str]]:
    """Return what TRL adds on purpose: metrics to its log and evaluations, and the tokenizer to its checkpoints."""
    # In a resumed run num_tokens begins at 0 again, which RES-10 is about.
    logged = [*metrics, *(f"eval_{name}" for name in metrics)]
    return {**dict.fromkeys(("LOG-*", "EVAL-*", "CB-*", "BEST-*"), logged), "CKPT-*": ["tokenizer*", "chat_template*"]}


def _trl_lacks(spec: RunSpec) -> str | None:
    """Return what TRL's trainers do not train of a spec, None if they do."""
    from harness.fixtures.models import CAUSAL

    config = spec.adapter.config
    if spec.data.task != CAUSAL or "classifier" in spec.model.family:
        return "TRL trains causal language models"
    if "lm_head" in (config.get("target_modules") or ()) or config.get("ensure_weight_tying"):
        return "TRL refuses adapters on lm_head"
    if spec.adapter.options.get("mixed"):
        return "TRL takes PeftModels, and no PeftMixedModel"
    return None


def _trl_dpo() -> Subject:
    from trl import DPOConfig, DPOTrainer

    from harness.subjects.trainer_subject import TrainerSubject

    return TrainerSubject(
        DPOTrainer,
        config=DPOConfig,
        # The clauses are about runs with the adapter's own dropout, and DPOConfig would switch it off.
        defaults={"max_length": None, "disable_dropout": False},
        dataset=pairs,
        # It adds the last token to each text itself. As padding, it leaves the rows as they are.
        extra={"processing_class": functools.partial(tokenizer, "<pad>")},
        name="trl-dpo",
        not_for=_NOT_FOR_PAIRS,
        # A copy of the adapter is what the trained one is compared with.
        allow={
            **_trl_adds(*_OF_PAIRS),
            "FRZ-*": ["*.ref.*"],
            "RES-*": ["*.ref.*"],
            "CKPT-*": ["tokenizer*", "chat_template*", "ref/*", "*.ref.*"],
        },
        lacks=_trl_lacks,
        padded=False,
        sequences=2,
    )


_OF_PAIRS = ("rewards/*", "logps/*", "logits/*", "entropy", "mean_token_accuracy", "num_tokens")

_ITS_LOSS = "DPO's loss is that of pairs"

_NOT_FOR_PAIRS = {
    "LOSS-*": _ITS_LOSS,
    "GEN-01": _ITS_LOSS,
    "AMP-01": _ITS_LOSS,
    "ACC-02": _ITS_LOSS,
    "EVAL-*": "an evaluation of pairs passes the rows through the model twice, with and without the adapter",
    "API-06": "DPOTrainer names the columns that it takes",
    "CKPT-03/without_an_adapter*": _TOKENIZER,
    "CKPT-19": _TOKENIZER,
}


def _sentence_transformers() -> Subject:
    from sentence_transformers import SentenceTransformerTrainingArguments

    from harness.subjects.sentence_trainer import AdaptedTrainer, sentences
    from harness.subjects.trainer_subject import TrainerSubject

    return TrainerSubject(
        AdaptedTrainer,
        config=SentenceTransformerTrainingArguments,
        dataset=sentences,
        name="sentence-transformers",
        not_for=dict.fromkeys(("LOSS-*", "ACC-02"), "its loss is that of sentences' embeddings"),
        allow={"CKPT-*": _SENTENCE_FILES},
        lacks=_sentence_lacks,
        # Its model is a SentenceTransformer, with other inputs, names and columns than transformers' models have.
        profile="checkpoint",
        padded=False,
    )


#: What a SentenceTransformer's directory has beside an adapter.
_SENTENCE_FILES = ["modules.json", "config_sentence_transformers.json", "1_Pooling/*"]


def _sentence_lacks(spec: RunSpec) -> str | None:
    """Return what the subject does not train of a spec, None if it does."""
    from harness.fixtures.models import CAUSAL
    from harness.spec import GET

    if spec.data.task != CAUSAL or "llama" not in spec.model.family or spec.model.config.get("hidden_size", 64) != 64:
        return "the subject makes embeddings of Llamas of size 64"
    adapter = spec.adapter
    if adapter.route != GET or adapter.others or adapter.options.get("mixed") or adapter.name != "default":
        return "the subject saves and loads one adapter of a PeftModel, named default"
    if "lm_head" in (adapter.config.get("target_modules") or ()) or adapter.config.get("modules_to_save"):
        return "embeddings do not pass through lm_head"
    if spec.arguments.get("neftune_noise_alpha"):
        return "a SentenceTransformer has no input embeddings for NEFTune"
    return None


def pairs(rows: list[dict[str, Any]]) -> Any:
    """Return rows as the dataset of DPO: the first token is the prompt, the others are chosen, and other tokens rejected."""
    from datasets import Dataset

    made = []
    for row in rows:
        first, *others = [token for token, shown in zip(row["input_ids"], row["attention_mask"], strict=True) if shown]
        rejected = words([token % (LAST - 1) + 1 for token in others])
        made.append({"prompt": f"{_word(first)} ", "chosen": words(others), "rejected": rejected})
    return Dataset.from_list(made)


def tokenizer(ends: str = "<eos>") -> Any:
    """Return a tokenizer of the rows' vocabulary: each token is one word.

    - ends: the word that ends a text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({_word(token): token for token in range(LAST + 1)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token=ends)


def words(tokens: list[int]) -> str:
    """Return tokens as a text that `tokenizer` turns into them."""
    return " ".join(_word(token) for token in tokens)


def _word(token: int) -> str:
    return {PAD: "<pad>", LAST: "<eos>"}.get(token, f"t{token}")


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
    "sentence-transformers": _sentence_transformers,
    "accelerate": _accelerate,
    "torch": _torch,
}
