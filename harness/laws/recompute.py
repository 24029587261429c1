"""The oracle of the laws on the loss: a window's loss and gradient in float64, recomputed from the spec and the rows.

1. `Recomputed` builds the model in float64 from the spec's seed, and takes the adapter's values from the trace.
2. `Recomputed.window` computes the loss of a window of micro-batches and its gradients.
The loss is written out here. No loss function of transformers is called.

A method that keeps something in float32 cannot compute in float64. Its runs are not judged: `Recomputed.window` raises
NotModelled.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from harness import compat
from harness.fixtures import data, models
from harness.laws.loading import NotModelled
from harness.spec import GET, AdapterSpec, RunSpec
from harness.tensors import names
from harness.trace import MicroBatch, Tensors

#: How a window's loss is normalised.
#: - TOKENS: by the labels of all its micro-batches.
#: - BATCHES: each micro-batch by its own labels; the window's loss is the mean over micro-batches.
#: - GIVEN: by the num_items_in_batch that the model was given, whether it is right or wrong.
TOKENS = "tokens"
BATCHES = "micro-batches"
GIVEN = "num_items_in_batch"

#: Returns what each position of a row must predict, -100 where it predicts nothing.
Targets = Callable[[data.Row], list[int]]


def next_tokens(row: data.Row) -> list[int]:
    """Return the targets of a causal model: each position predicts the next position's label."""
    return [*row["labels"][1:], data.IGNORED]


def the_label(row: data.Row) -> list[int]:
    """Return the target of a classifier: the row's label."""
    return [row["labels"]]


def the_labels(row: data.Row) -> list[int]:
    """Return the targets of an encoder-decoder. Its decoder is fed the labels one position later."""
    labels: list[int] = row["labels"]
    return labels


def the_answer(row: data.Row) -> list[int]:
    """Return the targets of a model that answers questions: the first and the last place of the answer."""
    return [row["start_positions"], row["end_positions"]]


#: Task -> what its rows must predict.
_TARGETS: dict[str, Targets] = {
    models.CAUSAL: next_tokens,
    models.CLASSIFICATION: the_label,
    models.SEQ2SEQ: the_labels,
    models.TOKENS: the_labels,
    models.ANSWERS: the_answer,
    models.MASKED: the_labels,
    models.IMAGES: the_label,
    models.SPEECH: the_labels,
    models.IMAGE_TEXT: next_tokens,
}

#: Tasks whose decoder is fed the labels, one position later.
_DECODES = (models.SEQ2SEQ, models.SPEECH)


def logits_of(output: Any) -> torch.Tensor:
    """Return the logits of a model's output. Of an answer they are (rows, 2, places): of its start and of its end."""
    if "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=1)
    logits: torch.Tensor = output["logits"]
    return logits


#: peft type whose layers draw random numbers in training, as dropout does -> what it draws.
DRAWS = {
    "PVERA": "it draws the adapted output from a distribution, with random numbers that are not recorded",
    # peft/tuners/lily/layer.py:LilyLayer.forward takes the mean over all tokens of the batch.
    "LILY": "it mixes its shared matrices by the mean over a whole batch, so what a row computes depends on the others",
}

#: peft type -> why the loss and the gradients of its runs cannot be recomputed, beside those of DRAWS.
_OWN_LOSS = {
    "CPT": "its loss weights the tokens of the prompt by a decay of its own",
    # peft/tuners/shadow/model.py:ShadowModel.forward
    "SHADOW": "it adds the loss of its shadow model",
}


#: How torch says that two tensors have different dtypes.
_OTHER_DTYPE = re.compile(r"\bdtypes?\b|expected scalar type")


def obstacles(spec: RunSpec) -> list[str]:
    """Return why the gradients of such a run cannot be recomputed. Return an empty list if they can be."""
    found = []
    if any(
        "drop" in name and value
        for name, value in (*spec.adapter.config.items(), *models.config_of(spec.model).items())
    ):
        found.append("dropout draws random numbers that are not recorded")
    half = spec.model.dtype in ("bfloat16", "float16") or spec.arguments.get("bf16") or spec.arguments.get("fp16")
    if spec.model.quantization or half:
        found.append("the base is quantized or computes in half precision")
    if spec.data.augment:
        found.append("augmented rows differ at every access")
    adapter = spec.adapter
    if reason := _OWN_LOSS.get(adapter.peft_type):
        found.append(f"adapter.peft_type = {adapter.peft_type!r}: {reason}")
    elif reason := drawn_by(adapter):
        found.append(reason)
    if adapter.peft_type == "ADALORA" and spec.arguments.get("label_smoothing_factor"):
        found.append("AdaLoRA's regularizer is not modelled together with label_smoothing_factor")
    return found


def drawn_by(adapter: AdapterSpec) -> str | None:
    """Return why what an adapter computes in training depends on more than its rows; None if it does not."""
    if reason := DRAWS.get(adapter.peft_type):
        return f"adapter.peft_type = {adapter.peft_type!r}: {reason}"
    if adapter.config.get("monteclora_config") is not None:
        return "adapter.config.monteclora_config: it draws noise that is not recorded, and adds a loss"
    return None


def _regularizer(adapter: AdapterSpec) -> float:
    """Return the weight of the regularizer that a method adds to the window's loss, once, 0.0 if it adds none.

    AdaLoRA's is added by peft's wrapper of the model (peft/tuners/adalora/model.py:AdaLoraModel.forward), which add_adapter
    does not make.
    """
    if adapter.peft_type != "ADALORA" or adapter.route != GET:
        return 0.0
    return float(adapter.config.get("orth_reg_weight", 0.5))


class Recomputed:
    """The model of a spec in float64.

    - adapter: the adapter's values, as canonical name -> tensor.
    """

    def __init__(self, spec: RunSpec, adapter: Tensors):
        from harness.subjects.hf_trainer import inject

        # Some methods decompose the base's weights when they are injected, and do so in float32 only (PiSSA, PSOFT).
        precise = spec.model if spec.model.dtype == "float32" else dataclasses.replace(spec.model, dtype="float64")
        self.model = inject(models.build(precise), spec.adapter).double().eval()
        compat.compute_experts_eagerly(self.model)
        self.method = spec.adapter.peft_type
        self.regularizer = _regularizer(spec.adapter)
        self.rows = data.rows(spec.data)[0]
        self.data, self.task = spec.data, spec.data.task
        # Prefix tuning has no virtual tokens in this sense: its prefixes are keys and values, which have no logits.
        prompt = self.task == models.CAUSAL and spec.adapter.peft_type in ("PROMPT_TUNING", "P_TUNING")
        self.virtual_tokens = spec.adapter.config["num_virtual_tokens"] if prompt else 0
        self.parameters = {
            names.canonical(name, spec.adapter.name): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(adapter[name])

    def window(
        self,
        batches: Sequence[MicroBatch],
        mean: str = TOKENS,
        smoothing: float = 0.0,
        targets: Targets | None = None,
    ) -> tuple[float, Tensors]:
        """Return the loss of a window of micro-batches, and its gradients by canonical name.

        - batches: the micro-batches. Only their rows are used, and for GIVEN their num_items.
        - mean: TOKENS, BATCHES or GIVEN.
        - smoothing: the label smoothing factor.
        - targets: what each position of a row predicts; None for what the task says.

        Raises NotModelled if the adapter's method does not compute in float64.
        """
        self.model.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            count: float = self.tokens(batches, targets)
            if mean == BATCHES:
                count = self.tokens([batch], targets) * len(batches)
            elif mean == GIVEN and batch.num_items is not None:
                count = batch.num_items
            loss = loss + self._sum(batch.rows, smoothing, targets) / count
        if self.regularizer:
            loss = loss + self.regularizer * self._apart_from_orthogonal()
        loss.backward()
        return float(loss.detach()), {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}

    def _apart_from_orthogonal(self) -> torch.Tensor:
        """Return AdaLoRA's regularizer (arXiv:2303.10512, equation 4): how far P and Q are from orthogonal.

        It is the mean over all lora_A and lora_B of the Frobenius norm of A A^T - I or B^T B - I.
        """
        norms = []
        for name, parameter in self.parameters.items():
            if "lora_A" in name or "lora_B" in name:
                gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype)))
        return torch.stack(norms).mean()

    def tokens(self, batches: Sequence[MicroBatch], targets: Targets | None = None) -> int:
        """Return how many targets the rows of these micro-batches have."""
        rows = (self._targets(self.rows[row], targets) for batch in batches for row in batch.rows)
        return sum(target != data.IGNORED for row in rows for target in row)

    def _targets(self, row: data.Row, targets: Targets | None) -> list[int]:
        # Prompt tuning puts virtual tokens before the row. The last of them predicts the row's first label.
        before = [data.IGNORED] * (self.virtual_tokens - 1) + row["labels"][:1] if self.virtual_tokens else []
        return before + (targets or _TARGETS[self.task])(row)

    def _logits(self, chosen: list[data.Row]) -> torch.Tensor:
        try:
            return self._computed(chosen)
        except RuntimeError as error:
            first = next(iter(str(error).splitlines()), "")
            if not _OTHER_DTYPE.search(first):
                raise
            raise NotModelled(f"{self.method} does not compute in float64 ({first})") from error

    def _computed(self, chosen: list[data.Row]) -> torch.Tensor:
        # Without an attention mask if padding is on the right of all that is predicted: no token with a label attends to it.
        left = (
            "labels",
            "start_positions",
            "end_positions",
            *(["attention_mask"] if self.task == models.CAUSAL else []),
        )
        given = [name for name in data.columns(self.data) if name not in left]
        inputs = {name: torch.tensor([row[name] for row in chosen]) for name in given}
        inputs = {name: each.double() if each.is_floating_point() else each for name, each in inputs.items()}
        if self.task in _DECODES:
            config = self.model.config
            fed = torch.tensor([[config.decoder_start_token_id, *row["labels"][:-1]] for row in chosen])
            inputs["decoder_input_ids"] = fed.masked_fill(fed == data.IGNORED, config.pad_token_id)
        logits = logits_of(self.model(**inputs))
        return logits.unsqueeze(1) if logits.dim() == 2 else logits

    def _sum(self, rows: Sequence[int], smoothing: float, targets: Targets | None) -> torch.Tensor:
        chosen = [self.rows[row] for row in rows]
        expected = torch.tensor([self._targets(row, targets) for row in chosen])
        negative = -torch.log_softmax(self._logits(chosen).double(), dim=-1)
        nll = negative.gather(-1, expected.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        each = (1 - smoothing) * nll + smoothing * negative.mean(-1)
        return each[expected != data.IGNORED].sum()
