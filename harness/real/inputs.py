"""What `peft-harness train` is given, looked at before anything slow happens: model, rows, output directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.fixtures.data import IGNORED
from harness.real import instructions
from harness.real.instructions import Encoded, Example
from harness.spec import ARGUMENTS, AdapterSpec, DataSpec, LaunchSpec, ModelSpec, RunSpec

DEFAULT_OUTPUT = "peft-harness-train"

#: A question that no built-in row asks, because the first paragraph of os.path.join's docstring is a long one.
HELD_OUT = ("What does os.path.join do?", "Join two or more pathname components, inserting '/' as needed.")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Rows:
    """Rows to train on. encoded: input_ids and labels of each. examples: the same rows before tokenising.

    held_out: examples not trained on. left_out: how many rows had no room for an answer. source: where they are from.
    """

    encoded: list[Encoded]
    examples: list[Example]
    held_out: list[Example]
    left_out: int
    source: str

    @property
    def answer_tokens(self) -> int:
        return sum(label != IGNORED for _, labels in self.encoded for label in labels[1:])


def model_directory(path: str | Path) -> Path:
    """A user's model directory. UsageError where there is none, or it lacks config.json or a tokenizer."""
    directory = Path(path).expanduser().resolve()
    if not directory.is_dir():
        raise UsageError(f"--model {path}: no such directory; name one that save_pretrained wrote")
    if not (directory / "config.json").is_file():
        raise UsageError(f"--model {path}: no config.json in it; name a directory that save_pretrained wrote")
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise UsageError(f"--model {path}: no tokenizer in it; write one there with tokenizer.save_pretrained")
    return directory


def tokenizer_of(directory: Path) -> Any:
    """The tokenizer in a model directory; UsageError where transformers cannot load it."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise whatever they ran into
        raise UsageError(f"{directory}: transformers cannot load its tokenizer ({_first_line(error)})") from None


def require_layers(directory: Path, names: Sequence[str]) -> None:
    """UsageError where transformers has no causal model for the config, or the model no layer of one of these names."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            skeleton = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise UsageError(f"{directory}: transformers cannot make a causal model of it ({_first_line(error)})") from None
    present = {name.rpartition(".")[2] for name, _ in skeleton.named_modules()}
    lacking = [name for name in names if name not in present]
    if lacking:
        raise UsageError(
            f"{directory}: no layer of this model is named {' or '.join(lacking)}, which is where LoRA goes"
        )


def rows(data: str | Path | None, tokenizer: Any, length: int, at_most: int) -> Rows:
    """Tokenised rows of a user's JSONL, or of the standard library's docstrings where `data` is None.

    UsageError where a row is malformed, and where none leaves room for an answer in `length` tokens.
    """
    if data is None:
        from harness.fixtures import docstrings

        source = "docstrings of the standard library"
        read = instructions.from_pairs([p for p in docstrings.questions() if p[0] != HELD_OUT[0]], tokenizer)
        held_out = instructions.from_pairs([HELD_OUT], tokenizer)
        # There are more than are wanted, so none need be cut.
        read = [one for one in read if not instructions.is_cut(one, tokenizer, length)][:at_most]
    else:
        source, held_out = str(data), []
        read = instructions.read(Path(data).expanduser(), tokenizer, at_most)
    pairs = [(example, instructions.encode(example, tokenizer, length)) for example in read]
    kept = [(example, encoded) for example, encoded in pairs if encoded is not None]
    if not kept:
        raise UsageError(f"{source}: no row leaves room for an answer in {length} tokens; give a larger --length")
    return Rows([row for _, row in kept], [example for example, _ in kept], held_out, len(read) - len(kept), source)


def write_rows(encoded: Sequence[Encoded], path: Path) -> None:
    """Tokenised rows as the JSONL that DataSpec.path names."""
    lines = [json.dumps({"input_ids": tokens, "labels": labels}) for tokens, labels in encoded]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_spec(
    model: Path, path: Path, encoded: Sequence[Encoded], lora: Mapping[str, Any], launch: LaunchSpec, **arguments: Any
) -> RunSpec:
    """The run on `encoded`, which lies at `path`: every step logged, one checkpoint in the middle and one at the end.

    arguments: TrainingArguments; `max_steps` and `seed` among them.
    """
    return RunSpec(
        model=ModelSpec(path=str(model)),
        adapter=AdapterSpec(config=lora, seed=arguments["seed"]),
        data=DataSpec(path=str(path), rows=len(encoded), length=max(len(tokens) for tokens, _ in encoded)),
        arguments={**ARGUMENTS, "save_strategy": "steps", "save_steps": arguments["max_steps"] // 2, **arguments},
        launch=launch,
    )


def output_directory(output: str | Path | None) -> Path:
    """A directory to write to that is new or empty; it is not made yet.

    None is ./peft-harness-train, or the first of ./peft-harness-train-2, -3, ... that is. UsageError where one was
    named that holds something already.
    """
    if output is None:
        path, number = Path(DEFAULT_OUTPUT), 1
        while not _is_free(path):
            number += 1
            path = Path(f"{DEFAULT_OUTPUT}-{number}")
        return path.resolve()
    path = Path(output).expanduser()
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {output}: there is a file of that name; name a new or an empty directory")
    if not _is_free(path):
        raise UsageError(f"--output {output}: the directory holds something already; name a new or an empty one")
    return path.resolve()


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
