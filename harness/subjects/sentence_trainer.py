"""The shipped subject `sentence-transformers`: SentenceTransformerTrainer over a model whose adapters are injected already.

The module is imported only where sentence-transformers is installed.

1. The model with its adapters is the first module of a SentenceTransformer, the mean of its last hidden states the second.
2. A row is a sentence, one word for each token. Its label is a vector that its tokens give, and the loss is MSELoss.
3. A checkpoint is a SentenceTransformer's directory, with the adapter at its top. Loading one makes a copy of the model that
   is trained and gives it the adapter of the directory: the base is on no disk.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.losses import MSELoss
from sentence_transformers.sentence_transformer.modules import Pooling

from harness.subjects.shipped import tokenizer, words


class Adapted(InputModule):  # type: ignore[misc, unused-ignore]
    """A model with adapters as the first module. Its forward pass gives the last hidden states."""

    config_keys: ClassVar[list[str]] = []
    #: The one that is trained, which `load` copies.
    trained: ClassVar[Adapted | None] = None

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model: Any = model
        self.tokenizer: Any = tokenizer()

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Return the tokens of sentences."""
        return dict(self.tokenizer(list(inputs), padding=True, return_tensors="pt"))

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Return the features with the embedding of each token."""
        given = {name: features[name] for name in ("input_ids", "attention_mask")}
        return {**features, "token_embeddings": self.model(**given, output_hidden_states=True)["hidden_states"][-1]}

    def get_embedding_dimension(self) -> int:
        """Return the size of an embedding."""
        return int(self.model.config.hidden_size)

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Write the adapter's files."""
        self.model.save_pretrained(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **options: Any) -> Adapted:
        """Return a copy of what is trained, with the adapter of a directory."""
        from safetensors.torch import load_file

        assert cls.trained is not None
        made = cls(copy.deepcopy(cls.trained.model))
        set_peft_model_state_dict(made.model, load_file(Path(model_name_or_path, SAFETENSORS_WEIGHTS_NAME)))
        return made


class AdaptedTrainer(SentenceTransformerTrainer):  # type: ignore[misc, unused-ignore]
    """SentenceTransformerTrainer for a model of the harness."""

    def __init__(self, model: Any = None, args: Any = None, **options: Any):
        first = Adapted.trained = Adapted(model)
        whole = SentenceTransformer(modules=[first, Pooling(first.get_embedding_dimension(), "mean")])
        super().__init__(model=whole, args=args, loss=MSELoss(whole), **options)


def sentences(rows: list[dict[str, Any]]) -> Dataset:
    """Return rows as sentences with a vector each."""
    return Dataset.from_list(
        [{"sentence": words(row["input_ids"]), "label": _vector(row["input_ids"])} for row in rows]
    )


#: The size of embeddings of the harness's small models.
SIZE = 64


def _vector(tokens: list[int]) -> list[float]:
    """Return a vector of numbers between 0 and 1 that tokens give."""
    return [((place + 1) * sum(tokens) % 101) / 101 for place in range(SIZE)]
