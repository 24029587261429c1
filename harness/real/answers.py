"""What the model answers to a question, before and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.real.instructions import Example

#: The most tokens of an answer: enough to see its style.
TOKENS = 40


@dataclass(frozen=True)
class Question:
    """A question for the model.

    - text: the question as people read it
    - prompt: the text that the model gets
    - special: whether the tokenizer adds its own beginning to the prompt
    - trained_on: whether the training rows contain it
    """

    text: str
    prompt: str
    special: bool
    trained_on: bool


def questions(examples: Sequence[Example], held_out: Sequence[Example]) -> list[Question]:
    """Return the first row trained on, and the first held-out row if there is one.

    A row without a prompt has the beginning of its text as the question.
    """
    chosen = [(example, True) for example in examples[:1]] + [(example, False) for example in held_out[:1]]
    return [
        Question(example.question, example.prompt or example.question, example.special, trained_on)
        for example, trained_on in chosen
    ]


def answer(model: Any, adapter: Path | None, tokenizer: Any, asked: Sequence[Question]) -> list[str | None]:
    """Return the model's greedy continuation of each prompt, on the CPU and at most `TOKENS` tokens long.

    - model: the base model
    - adapter: a directory with adapter_config.json, which peft puts on the base; None: the base alone

    The answer is None if the model has no positions left for one. Raises what peft raises if the directory holds no adapter.
    """
    import torch

    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    answers: list[str | None] = []
    for question in asked:
        prompt = tokenizer(question.prompt, add_special_tokens=question.special, return_tensors="pt")
        room = min(TOKENS, positions - prompt["input_ids"].shape[1])
        if room < 1 or prompt["input_ids"].shape[1] == 0:
            answers.append(None)
            continue
        with torch.no_grad():
            output = model.generate(
                input_ids=prompt["input_ids"],
                attention_mask=prompt["attention_mask"],
                max_new_tokens=int(room),
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        new_tokens = output[0, prompt["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new_tokens, skip_special_tokens=True).strip())
    return answers
