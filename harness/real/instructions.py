"""Instructions to train on: read from JSONL, and tokenised the way the model was taught to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.fixtures.data import IGNORED, read_jsonl

#: What a row of a user's file may hold, each with strings but `messages`, which is a list of {"role", "content"}.
FORMATS = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))


#: input_ids and labels of one row, of one length.
Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Example:
    """One row before tokenising.

    question: for people. prompt: text that the model is given, without loss; "" where all is trained on. answer: text
    that it is to give, its end included. special: whether the tokenizer adds its own beginning to the prompt, which
    a chat template has written already.
    """

    question: str
    prompt: str
    answer: str
    special: bool = False


def read(path: Path, tokenizer: Any, at_most: int) -> list[Example]:
    """The first `at_most` rows of a JSONL file. UsageError names the file and the line that is none of `FORMATS`."""
    return [_example(row, tokenizer, f"{path}, line {line}") for line, row in read_jsonl(path)[:at_most]]


def from_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> list[Example]:
    """Questions and answers, as the model's chat template puts them."""
    return [_asked(question, answer, tokenizer, question) for question, answer in pairs]


def encode(example: Example, tokenizer: Any, length: int) -> Encoded | None:
    """input_ids and labels of an example, cut at `length` tokens; labels are -100 on the prompt.

    None where no token of the answer is left to learn: a causal model predicts none for the first position.
    """
    tokens, labels = (part[:length] for part in _whole(example, tokenizer))
    return (tokens, labels) if any(label != IGNORED for label in labels[1:]) else None


def is_cut(example: Example, tokenizer: Any, length: int) -> bool:
    """Whether an example is longer than `length` tokens."""
    return len(_whole(example, tokenizer)[0]) > length


def _whole(example: Example, tokenizer: Any) -> Encoded:
    # The answer is tokenised by itself: a token that spans the seam would never be seen at generation.
    prompt = tokenizer(example.prompt, add_special_tokens=example.special)["input_ids"] if example.prompt else []
    answer = tokenizer(example.answer, add_special_tokens=example.special and not prompt)["input_ids"]
    return [*prompt, *answer], [*[IGNORED] * len(prompt), *answer]


def _example(row: dict[str, Any], tokenizer: Any, where: str) -> Example:
    keys = next((keys for keys in FORMATS if all(key in row for key in keys)), None)
    if keys is None:
        known = ", ".join("+".join(keys) for keys in FORMATS)
        raise UsageError(f"{where}: expected the keys {known}; found {', '.join(map(repr, row)) or 'none'}")
    if keys == ("messages",):
        return _conversation(row["messages"], tokenizer, where)
    for key in keys:
        if not isinstance(row[key], str) or not row[key].strip():
            raise UsageError(f"{where}: {key!r} must be text that is not empty, found {_short(row[key])}")
    end = tokenizer.eos_token or ""
    if keys == ("question", "answer"):
        return _asked(row["question"], row["answer"], tokenizer, where)
    if keys == ("prompt", "completion"):
        return Example(row["prompt"], row["prompt"], row["completion"] + end, special=True)
    return Example(_beginning(row["text"]), "", row["text"] + end, special=True)


def _asked(question: str, answer: str, tokenizer: Any, where: str) -> Example:
    if tokenizer.chat_template is None:
        return Example(question, f"{question}\n", answer + (tokenizer.eos_token or ""), special=True)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _templated(turns, tokenizer, where)


def _conversation(messages: Any, tokenizer: Any, where: str) -> Example:
    right = isinstance(messages, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    )
    if not right or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UsageError(
            f"{where}: 'messages' must be a list of two or more {{'role', 'content'}}, the last one of the assistant; "
            f"found {_short(messages)}"
        )
    if tokenizer.chat_template is None:
        raise UsageError(
            f"{where}: 'messages' need a chat template and this model's tokenizer has none; use prompt+completion"
        )
    return _templated(messages, tokenizer, where)


def _templated(turns: list[dict[str, str]], tokenizer: Any, where: str) -> Example:
    from jinja2 import TemplateError

    try:
        prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        raise UsageError(f"{where}: the model's chat template refuses this conversation ({error})") from None
    # A template may write an assistant's turn otherwise than it opens one (a "thinking" block, say).
    answer = whole[len(prompt) :] if whole.startswith(prompt) else turns[-1]["content"] + (tokenizer.eos_token or "")
    return Example(turns[-2]["content"], prompt, answer)


def _beginning(text: str, words: int = 8) -> str:
    return " ".join(text.split()[:words])


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
