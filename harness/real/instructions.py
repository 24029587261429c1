"""Instructions to train on: read from JSONL and tokenised in the form in which the model expects questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.alarm import TimeIsUp, limited
from harness.errors import UsageError
from harness.fixtures.data import IGNORED, read_jsonl
from harness.fixtures.pretrained import first_line
from harness.reading import shown, shown_path

#: The keys that a row of a user's file may have. Values are strings; messages is a list of {"role", "content"}.
FORMATS = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))

#: input_ids and labels of one row. Both lists have the same length.
Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Example:
    """One row before tokenising.

    - question: shown to people
    - prompt: text that the model gets and is not trained on; "" if the whole row is trained on
    - answer: text that it is trained to give, with the token that ends it
    - special: whether the tokenizer adds its own beginning to the prompt; a chat template has written it already
    """

    question: str
    prompt: str
    answer: str
    special: bool = False


def read(path: Path, tokenizer: Any, at_most: int) -> list[Example]:
    """Return the first `at_most` rows of a JSONL file. UsageError names a line that has none of `FORMATS`."""
    name = shown_path(path)
    return [_example(row, tokenizer, f"{name}, line {line}") for line, row in read_jsonl(path, at_most)]


def from_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> list[Example]:
    """Return questions and answers in the form of the model's chat template, if it has one."""
    return [_question(question, answer, tokenizer, question) for question, answer in pairs]


def encode(example: Example, tokenizer: Any, length: int) -> Encoded | None:
    """Return input_ids and labels of an example, cut at `length` tokens. Labels are -100 on the prompt.

    None if no token of the answer is left to train on. Position 0 does not count: a causal model does not predict it.
    """
    tokens, labels = (part[:length] for part in _whole(example, tokenizer))
    return (tokens, labels) if any(label != IGNORED for label in labels[1:]) else None


def is_cut(example: Example, tokenizer: Any, length: int) -> bool:
    """Return whether an example is longer than `length` tokens."""
    return len(_whole(example, tokenizer)[0]) > length


def _whole(example: Example, tokenizer: Any) -> Encoded:
    # The answer is tokenised by itself. A token across the border of prompt and answer never occurs at generation.
    prompt = tokenizer(example.prompt, add_special_tokens=example.special)["input_ids"] if example.prompt else []
    answer = tokenizer(example.answer, add_special_tokens=example.special and not prompt)["input_ids"]
    return [*prompt, *answer], [*[IGNORED] * len(prompt), *answer]


def _example(row: dict[str, Any], tokenizer: Any, where: str) -> Example:
    keys = next((keys for keys in FORMATS if all(key in row for key in keys)), None)
    if keys is None:
        formats = ", ".join("+".join(keys) for keys in FORMATS)
        raise UsageError(
            f"{where}: expected the keys {formats}; found {', '.join(map(shown, list(row)[:8])) or 'none'}"
        )
    if keys == ("messages",):
        return _conversation(row["messages"], tokenizer, where)
    for key in keys:
        if not isinstance(row[key], str) or not row[key].strip():
            raise UsageError(f"{where}: {key!r} must be text that is not empty, found {shown(row[key])}")
    end = tokenizer.eos_token or ""
    if keys == ("question", "answer"):
        return _question(row["question"], row["answer"], tokenizer, where)
    if keys == ("prompt", "completion"):
        return Example(row["prompt"], row["prompt"], row["completion"] + end, special=True)
    return Example(_beginning(row["text"]), "", row["text"] + end, special=True)


def _question(question: str, answer: str, tokenizer: Any, where: str) -> Example:
    if tokenizer.chat_template is None:
        return Example(question, f"{question}\n", answer + (tokenizer.eos_token or ""), special=True)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _templated(turns, tokenizer, where)


def _conversation(messages: Any, tokenizer: Any, where: str) -> Example:
    well_formed = isinstance(messages, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    )
    if not well_formed or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UsageError(
            f"{where}: 'messages' must be a list of two or more {{'role', 'content'}}, the last one of the assistant; "
            f"found {shown(messages)}"
        )
    if tokenizer.chat_template is None:
        raise UsageError(
            f"{where}: 'messages' need a chat template and this model's tokenizer has none; use prompt+completion"
        )
    return _templated(messages, tokenizer, where)


def _templated(turns: list[dict[str, str]], tokenizer: Any, where: str) -> Example:
    try:
        with limited(_TEMPLATE_SECONDS):
            prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except TimeIsUp:
        raise UsageError(
            f"{where}: the model's chat template has not ended after {_TEMPLATE_SECONDS:g} s; use prompt+completion"
        ) from None
    except Exception as error:  # a template is a program
        raise UsageError(
            f"{where}: the model's chat template refuses this conversation ({first_line(error)})"
        ) from None
    # A template may write a finished turn of the assistant in another way than it opens one, such as with a "thinking" block.
    answer = whole[len(prompt) :] if whole.startswith(prompt) else turns[-1]["content"] + (tokenizer.eos_token or "")
    return Example(turns[-2]["content"], prompt, answer)


#: Seconds that a chat template may take for one row. The longest of known models take a thousandth of that.
_TEMPLATE_SECONDS = 1.0


def _beginning(text: str, words: int = 8) -> str:
    return " ".join(text.split()[:words])
