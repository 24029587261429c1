"""The inputs of `peft-harness train`: model, rows and output directory, checked before anything slow happens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import check_writable_directory
from harness.fixtures import pretrained
from harness.fixtures.data import IGNORED, read_jsonl
from harness.reading import shown_path
from harness.real import instructions
from harness.real.instructions import Encoded, Example
from harness.spec import ARGUMENTS, AdapterSpec, DataSpec, LaunchSpec, ModelSpec, RunSpec

DEFAULT_OUTPUT = "peft-harness-train"

#: A question that no built-in row asks, because the first paragraph of os.path.join's docstring is a long one.
HELD_OUT = ("What does os.path.join do?", "Join two or more pathname components, inserting '/' as needed.")

#: Endings of files that hold rows in another form.
_OTHER_FORMATS = (".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".gz", ".zst", ".zip")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Rows:
    """Rows to train on.

    - encoded: input_ids and labels of each row
    - examples: the same rows before tokenising
    - held_out: examples that are not trained on
    - left_out: how many rows had no room for an answer
    - source: where the rows come from
    """

    encoded: list[Encoded]
    examples: list[Example]
    held_out: list[Example]
    left_out: int
    source: str

    @property
    def answer_tokens(self) -> int:
        """How many tokens have a label that is trained on."""
        return sum(label != IGNORED for _, labels in self.encoded for label in labels[1:])


def named(option: str, path: str | Path) -> Path:
    """Return the absolute path that an option names, without ~ and links. UsageError if it can be none."""
    try:
        found = Path(path).expanduser().resolve()
        found.exists()  # raises OSError for a name that is too long
        return found
    except (OSError, RuntimeError, ValueError) as error:  # a user that is unknown, a loop of links, a NUL
        raise UsageError(f"{option} {shown_path(path)}: no path ({pretrained.first_line(error)})") from None


def model_directory(path: str | Path) -> Path:
    """Return a user's model directory, after `harness.fixtures.pretrained.check`. UsageError if it lacks a tokenizer, too."""
    directory = named("--model", path)
    if not directory.is_dir():
        kind = "is no directory" if directory.exists() else "no such directory"
        raise UsageError(f"--model {shown_path(path)}: {kind}; name one that save_pretrained wrote")
    try:
        if not (directory / pretrained.CONFIG).exists() and not any(directory.glob("*.gguf")):
            raise UsageError(
                f"--model {shown_path(path)}: no config.json in it; name a directory that save_pretrained wrote"
            )
        if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
            raise UsageError(
                f"--model {shown_path(path)}: no tokenizer in it; write one there with tokenizer.save_pretrained"
            )
        pretrained.check(directory)
    except OSError as error:
        raise UsageError(f"--model {shown_path(path)}: cannot be read ({pretrained.first_line(error)})") from None
    return directory


def data_file(path: str | Path) -> Path:
    """Return the path of a JSONL file, after a look at its first row. UsageError if it is none."""
    file = named("--data", path)
    if not file.exists():
        raise UsageError(f"--data {shown_path(path)}: no such file")
    if file.suffix.lower() in _OTHER_FORMATS:
        raise UsageError(f"--data {shown_path(path)}: expected JSONL, one object a line; write the rows in that form")
    read_jsonl(file, 1)
    return file


def tokenizer_of(directory: Path) -> Any:
    """Return the tokenizer of a model directory. UsageError if transformers cannot load it."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(directory, **pretrained.NO_CODE)
    except BaseException as error:  # transformers and tokenizers raise errors of many types
        # A panic of tokenizers' Rust code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = pretrained.first_line(error)
        raise UsageError(f"{directory}: transformers cannot load its tokenizer ({why})") from None


def require_layers(directory: Path, names: Sequence[str]) -> None:
    """Raise UsageError if transformers makes no causal model of a directory's config, or if a name is no layer of it."""
    present = {name.rpartition(".")[2] for name, _ in pretrained.skeleton(directory).named_modules()}
    missing = [name for name in names if name not in present]
    if missing:
        raise UsageError(
            f"{directory}: no layer of this model is named {' or '.join(missing)}, which is where LoRA goes"
        )


def rows(data: str | Path | None, tokenizer: Any, length: int, at_most: int) -> Rows:
    """Return tokenised rows.

    - data: a JSONL file; None: docstrings of the standard library
    - length: the most tokens of a row
    - at_most: how many rows to read

    Raises UsageError if a row is malformed, or if none leaves room for an answer in `length` tokens.
    """
    if data is None:
        from harness.fixtures import docstrings

        source = "docstrings of the standard library"
        read = instructions.from_pairs([p for p in docstrings.questions() if p[0] != HELD_OUT[0]], tokenizer)
        held_out = instructions.from_pairs([HELD_OUT], tokenizer)
        # There are more docstrings than are needed, so those that would have to be cut are left out.
        read = [example for example in read if not instructions.is_cut(example, tokenizer, length)][:at_most]
    else:
        source, held_out = shown_path(data), []
        read = instructions.read(named("--data", data), tokenizer, at_most)
    pairs = [(example, instructions.encode(example, tokenizer, length)) for example in read]
    fitting = [(example, encoded) for example, encoded in pairs if encoded is not None]
    if not fitting:
        raise UsageError(f"{source}: no row leaves room for an answer in {length} tokens; give a larger --length")
    return Rows(
        encoded=[encoded for _, encoded in fitting],
        examples=[example for example, _ in fitting],
        held_out=held_out,
        left_out=len(read) - len(fitting),
        source=source,
    )


def require_room(model: Any, encoded: Sequence[Encoded], where: str) -> None:
    """Raise UsageError if a row has a token that the model does not know, or more tokens than it has positions.

    - where: the model's directory, for messages
    """
    known = model.get_input_embeddings().weight.shape[0]
    largest = max(max(tokens) for tokens, _ in encoded)
    if largest >= known:
        raise UsageError(
            f"{where}: its tokenizer makes token {largest}, but the model knows {known}, from 0 on; the two do not belong "
            "together"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = max(len(tokens) for tokens, _ in encoded)
    if isinstance(positions, int) and longest > positions:
        raise UsageError(f"--length: a row has {longest} tokens, and the model has {positions} positions; give less")


def write_rows(encoded: Sequence[Encoded], path: Path) -> None:
    """Write tokenised rows as the JSONL that DataSpec.path names."""
    lines = [json.dumps({"input_ids": tokens, "labels": labels}) for tokens, labels in encoded]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_spec(
    model: Path, path: Path, encoded: Sequence[Encoded], lora: Mapping[str, Any], launch: LaunchSpec, **arguments: Any
) -> RunSpec:
    """Return the spec of a run that logs every step and saves a checkpoint in the middle and one at the end.

    - model: a model directory
    - path: where the rows lie
    - encoded: those rows
    - lora: fields of LoraConfig
    - launch: device and threads
    - arguments: TrainingArguments; `max_steps` and `seed` must be among them
    """
    return RunSpec(
        model=ModelSpec(path=str(model)),
        adapter=AdapterSpec(config=lora, seed=arguments["seed"]),
        data=DataSpec(path=str(path), rows=len(encoded), length=max(len(tokens) for tokens, _ in encoded)),
        arguments={**ARGUMENTS, "save_strategy": "steps", "save_steps": arguments["max_steps"] // 2, **arguments},
        launch=launch,
    )


def output_directory(output: str | Path | None) -> Path:
    """Return a directory to write to that is new or empty. It is not created here.

    - output: the directory; None: the first of ./peft-harness-train, ./peft-harness-train-2, -3, ... that is free

    Raises UsageError if `output` is a file or holds something already.
    """
    if output is None:
        path, number = Path(DEFAULT_OUTPUT), 1
        while not _is_free(path):
            number += 1
            path = Path(f"{DEFAULT_OUTPUT}-{number}")
        check_writable_directory("--output", path)
        return path.resolve()
    path = named("--output", output)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {output}: there is a file of that name; name a new or an empty directory")
    check_writable_directory("--output", path)
    if not _is_free(path):
        raise UsageError(f"--output {output}: the directory holds something already; name a new or an empty one")
    return path


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))
