"""What the model says to a question, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.real.instructions import Example
from harness.spec import ModelSpec

#: Tokens of an answer: enough to see its manner.
TOKENS = 40


@dataclass(frozen=True)
class Asked:
    """A question. prompt: the text that the model is given. special: the tokenizer adds its own beginning to it."""

    question: str
    prompt: str
    special: bool
    trained_on: bool


def questions(examples: Sequence[Example], held_out: Sequence[Example]) -> list[Asked]:
    """The first row trained on and the first that is not, if there is one; the beginning of a row without a prompt."""
    chosen = [(example, True) for example in examples[:1]] + [(example, False) for example in held_out[:1]]
    return [Asked(one.question, one.prompt or one.question, one.special, trained) for one, trained in chosen]


def answer(spec: ModelSpec, adapter: Path | None, tokenizer: Any, asked: Sequence[Asked]) -> list[str]:
    """The model's greedy continuation of each prompt, at most 40 tokens, on the CPU.

    adapter: a directory with adapter_config.json to put on the base, None for the base alone. Raises what peft raises
    for a directory that holds no adapter.
    """
    import torch

    from harness.fixtures import models

    model: Any = models.build(spec)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    told = []
    for one in asked:
        given = tokenizer(one.prompt, add_special_tokens=one.special, return_tensors="pt")
        with torch.no_grad():
            said = model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                max_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        told.append(tokenizer.decode(said[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return told
