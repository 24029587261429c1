"""Rows that somebody trains on, from a JSONL file: tokens as they are, or text by a tokenizer of one token a byte.

The names on the hub are not looked up, and no tokenizer is loaded: what a text says has no part in a verdict. What counts is
that rows differ, that they have different lengths, and that some of their labels are -100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.brought.notes import Notes
from harness.errors import UsageError
from harness.fixtures.data import IGNORED, read_jsonl
from harness.reading import read_json_lines, shown, shown_path
from harness.words import counted

#: Tokens that are kept of a row that is made small. Short ones still differ, and a step takes 3 ms.
LENGTH = 32

#: Lines of the file that are looked at for rows that differ.
_LINES = 2_000

#: What a conversation's entries are called: (list, speaker, text), of TRL and of ShareGPT.
_CONVERSATIONS = (("messages", "role", "content"), ("conversations", "from", "value"))
_ASSISTANT = ("assistant", "gpt", "model")

#: A field of text before which nothing counts, and the field that is learned.
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("query", "response"), ("prompt", "response"))


def read_rows(
    path: str | Path, wanted: int, vocabulary: int, notes: Notes, length: int | None = LENGTH
) -> list[dict[str, list[int]]]:
    """Return up to `wanted` rows of a JSONL file, each with "input_ids" and "labels". No two are the same.

    - vocabulary: token ids are below it. Others are taken modulo.
    - length: tokens that are kept of each row; None for all.

    Raises UsageError with the line for a row that has neither tokens nor text, and for a file without two rows.
    """
    made: list[dict[str, list[int]]] = []
    seen: set[tuple[int, ...]] = set()
    said: set[str] = set()
    same = 0
    for line, value in _objects(path):
        tokens, labels, how = _row(value, f"{shown_path(path)}, line {line}")
        said.add(how)
        tokens, labels = _cut(tokens, labels, length)
        small = [_below(token, vocabulary) for token in tokens]
        labels = [label if label == IGNORED else _below(label, vocabulary) for label in labels]
        if tuple(small) in seen:
            same += 1
        else:
            seen.add(tuple(small))
            made.append({"input_ids": small, "labels": labels})
        if len(made) == wanted or line >= _LINES:
            break
    if len(made) < 2:
        raise UsageError(f"{shown_path(path)}: fewer than two rows that differ; a run needs two")
    for how in sorted(said):
        notes.say(f"data: {how}")
    cut = "" if length is None else f" with at most {length} tokens each"
    notes.say(f"data: the first {len(made)} rows{cut}; token ids are taken modulo {vocabulary}")
    if same:
        notes.say(f"data: left out, because an earlier row has the same tokens: {counted(same, 'row')}")
    return made


def _objects(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    read_jsonl(Path(path), at_most=1)  # says what an empty file lacks
    for line, value in read_json_lines(path):
        if not isinstance(value, dict):
            raise UsageError(
                f"{shown_path(path)}, line {line}: expected a JSON object, found {type(value).__name__}; write one row a line"
            )
        yield line, value


def _row(value: Mapping[str, Any], where: str) -> tuple[list[int], list[int], str]:
    """Return tokens, labels, and how they were found."""
    if "input_ids" in value:
        return (*_tokenized(value, where), "token ids as they are in the file")
    by_bytes = "its text is split by a tokenizer of the harness, one token for each byte"
    for field, speaker, text in _CONVERSATIONS:
        if isinstance(value.get(field), list):
            return (
                *_joined(_turns(value[field], speaker, text, where)),
                f"{by_bytes}; what the assistant says is learned",
            )
    if "instruction" in value:
        question = f"{_text(value, 'instruction', where)}\n{value.get('input') or ''}\n"
        pair = [(question, False), (_text(value, "output", where), True)]
        return (*_joined(pair), f"{by_bytes}; the output is learned")
    for question, answer in _PAIRS:
        if question in value and answer in value:
            pair = [(_plain(value[question], where), False), (_plain(value[answer], where), True)]
            return (*_joined(pair), f"{by_bytes}; the {answer} is learned")
    for field in ("text", "content", "sentence"):
        if field in value:
            return (*_joined([(_text(value, field, where), True)]), f"{by_bytes}; all of it is learned")
    raise UsageError(
        f"{where}: has no tokens and no text that is known ({', '.join(map(shown, list(value)[:8]))}); expected input_ids, "
        "text, messages, prompt and completion, or instruction and output"
    )


def _tokenized(value: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
    tokens, labels = value["input_ids"], value.get("labels", value["input_ids"])
    if isinstance(labels, int):
        labels = tokens  # the class of a row, which the data makes by rule
    for name, numbers in (("input_ids", tokens), ("labels", labels)):
        if not (isinstance(numbers, list) and numbers and all(type(number) is int for number in numbers)):
            raise UsageError(f"{where}: {name} is {shown(numbers)}; expected a list of ints")
    if len(tokens) != len(labels):
        raise UsageError(f"{where}: {len(tokens)} input_ids and {len(labels)} labels; expected as many")
    if min(tokens) < 0 or any(label < 0 and label != IGNORED for label in labels):
        raise UsageError(f"{where}: a token below 0; expected token ids, and {IGNORED} for a label that is left out")
    mask = value.get("attention_mask")
    if isinstance(mask, list) and len(mask) == len(tokens) and 0 in mask and 1 in mask:
        tokens, labels = (
            [item for item, counts in zip(each, mask, strict=True) if counts] for each in (tokens, labels)
        )
    return tokens, labels


def _turns(turns: list[Any], speaker: str, text: str, where: str) -> list[tuple[str, bool]]:
    made = []
    for turn in turns:
        if not isinstance(turn, Mapping) or text not in turn:
            raise UsageError(f"{where}: an entry of a conversation is {shown(turn)}; expected {speaker} and {text}")
        who = str(turn.get(speaker, ""))
        made.append((f"{who}: ", False))
        made.append((f"{_plain(turn[text], where)}\n", who in _ASSISTANT))
    return made


def _plain(value: Any, where: str) -> str:
    """Return a text, or the texts of a conversation."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(str(part.get("content", part.get("text", ""))) for part in value if isinstance(part, Mapping))
    raise UsageError(f"{where}: expected a text, found {shown(value)}")


def _text(value: Mapping[str, Any], field: str, where: str) -> str:
    if not isinstance(value.get(field), str):
        raise UsageError(f"{where}: {field} is {shown(value.get(field))}; expected a text")
    return str(value[field])


def _joined(parts: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """Return the tokens of texts, one for each byte, and labels for those that are learned."""
    tokens: list[int] = []
    labels: list[int] = []
    for text, learned in parts:
        # A row that is cut needs no more of a long text than this.
        own = [1 + byte for byte in text[: 2**16].encode(errors="replace")]
        tokens += own
        labels += own if learned else [IGNORED] * len(own)
    if not tokens:
        tokens, labels = [1], [1]
    return tokens, labels


def _cut(tokens: list[int], labels: list[int], length: int | None) -> tuple[list[int], list[int]]:
    """Return a part of a row that has something to learn: the beginning, or what comes with the first label."""
    if length is None or len(tokens) <= length:
        start, end = 0, len(tokens)
    else:
        # The loss of a token is that of the label after it, so two labels are wanted.
        first = next((at for at, label in enumerate(labels) if label != IGNORED), 0)
        start = 0 if first < length - 2 else min(first - length // 2, len(tokens) - length)
        end = start + length
    return tokens[start:end], labels[start:end]


def _below(token: int, vocabulary: int) -> int:
    """Return a token that the vocabulary has. 0 is the padding, so it stays apart."""
    return token if 0 <= token < vocabulary else 1 + token % (vocabulary - 1)
