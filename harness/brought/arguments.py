"""TrainingArguments as people have them: JSON, YAML, training_args.bin, or the directory that a run left."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import compat
from harness.brought.adapter import newest_below
from harness.brought.notes import Notes
from harness.brought.settings_files import read_object
from harness.errors import UsageError
from harness.reading import opened, shown, shown_path

PICKLE = "training_args.bin"
STATE = "trainer_state.json"

#: Bytes of a training_args.bin. The Trainer writes 6 kB.
_PICKLE_LIMIT = 2**20

#: Endings of files that torch.save writes.
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle")

_CONVERT = (
    "write it as JSON where it was made, with json.dump(torch.load('training_args.bin', weights_only=False).to_dict(), "
    "open('arguments.json', 'w')), or repeat the command with --trust-pickle if you trust the file"
)


def read_arguments(path: str | Path, notes: Notes, trust_pickle: bool = False) -> dict[str, Any]:
    """Return the fields of TrainingArguments in a file or in a run's directory, under the names of its release.

    - path: JSON of TrainingArguments.to_dict(), YAML with the same fields, training_args.bin, or a directory with
      training_args.bin or trainer_state.json (a checkpoint, or the output_dir with checkpoints in it).
    - trust_pickle: whether a pickle may be loaded. It can run any code.

    Raises UsageError for what cannot be read, and for a pickle that is not trusted.
    """
    given = Path(path)
    if given.is_dir():
        return _from_directory(given, notes, trust_pickle)
    if given.name.lower().endswith(_PICKLED):
        if not trust_pickle:
            with opened(given, _PICKLE_LIMIT):
                pass  # a file that is not there, or is a pipe, has a reason of its own
            raise UsageError(f"{shown_path(given)}: a pickle, which can run code, is not loaded; {_CONVERT}")
        return _unpickled(given)
    return read_object(given, "TrainingArguments")


def has_arguments(directory: Path) -> bool:
    """Return whether a directory has a file that arguments are read from."""
    return any((directory / name).exists() or newest_below(directory, name) for name in (PICKLE, STATE))


def _from_directory(directory: Path, notes: Notes, trust_pickle: bool) -> dict[str, Any]:
    pickle, state = (_found(directory, name) for name in (PICKLE, STATE))
    if pickle is not None and trust_pickle:
        return _unpickled(pickle)
    if state is not None:
        if pickle is not None:
            notes.leave_out(PICKLE, f"a pickle, which can run code, is not loaded; {_CONVERT}")
        return _from_state(state, notes)
    if pickle is not None:
        raise UsageError(f"{shown_path(pickle)}: a pickle, which can run code, is not loaded; {_CONVERT}")
    raise UsageError(f"{shown_path(directory)}: has neither {PICKLE} nor {STATE}; name a file with TrainingArguments")


def _found(directory: Path, name: str) -> Path | None:
    if (directory / name).exists():
        return directory / name
    below = newest_below(directory, name)
    return below / name if below else None


# ---- trainer_state.json ----

#: Field of TrainerState -> field of TrainingArguments.
_FROM_STATE = {
    "max_steps": "max_steps",
    "num_train_epochs": "num_train_epochs",
    "train_batch_size": "per_device_train_batch_size",
    "logging_steps": "logging_steps",
    "eval_steps": "eval_steps",
    "save_steps": "save_steps",
}


def _from_state(file: Path, notes: Notes) -> dict[str, Any]:
    """Return what a trainer_state.json says about its run's arguments."""
    state = read_object(file, "a TrainerState")
    if "log_history" not in state and "global_step" not in state:
        raise UsageError(f"{shown_path(file)}: no TrainerState (it has no global_step); name the run's directory")
    found = {name: state[field] for field, name in _FROM_STATE.items() if state.get(field) is not None}
    log = state.get("log_history")
    entries = [entry for entry in log if isinstance(entry, Mapping)] if isinstance(log, list) else []
    rates = [entry["learning_rate"] for entry in entries if isinstance(entry.get("learning_rate"), (int, float))]
    if rates:
        found["learning_rate"] = max(rates)
    if any("eval_loss" in entry for entry in entries):
        found["eval_strategy"] = "steps"
    notes.say(
        f"of the arguments only {', '.join(found)} are known, from {shown_path(file.name)}"
        f"{', with the largest rate that was logged' if rates else ''}; the others are at upstream's defaults"
    )
    return found


# ---- training_args.bin ----


def _unpickled(file: Path) -> dict[str, Any]:
    """Return the fields of pickled TrainingArguments, of this release or another. The file's code runs."""
    import torch

    with opened(file, _PICKLE_LIMIT) as stream:
        try:
            loaded = torch.load(stream, map_location="cpu", weights_only=False)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"{shown_path(file)}: names a class that is not installed here ({_line(error)}); install what made it, or "
                "write it as JSON where it was made, with json.dump(args.to_dict(), file)"
            ) from None
        except Exception as error:
            raise UsageError(f"{shown_path(file)}: cannot be unpickled ({_line(error)}); copy it again") from None
    fields = loaded if isinstance(loaded, Mapping) else getattr(loaded, "__dict__", None)
    known = {*compat.all_argument_names()}
    if fields is None or not known & {str(name) for name in fields}:
        raise UsageError(f"{shown_path(file)}: holds no TrainingArguments, but a {type(loaded).__name__}")
    # An instance has more than its fields: devices, plugins, and what they were made from.
    extra = getattr(type(loaded), "__dataclass_fields__", {})
    return {
        str(name): _plain(value)
        for name, value in fields.items()
        if (str(name) in known or name in extra) and _is_plain(_plain(value))
    }


def _plain(value: Any) -> Any:
    """Return a value of TrainingArguments as to_dict has it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if type(value).__name__ == "AcceleratorConfig":
        return _plain(value.to_dict())
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))


def _line(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return shown(f"{type(error).__name__}: {first}", 160)[1:-1]
