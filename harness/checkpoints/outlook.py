"""Which releases wrote a checkpoint, and what resuming from it will do under the installed ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.brought.settings_files import read_object
from harness.checkpoints.adapter_directory import Adapter
from harness.checkpoints.found import Checkpoint
from harness.contract import expectations
from harness.environment import version
from harness.errors import UsageError
from harness.paths import SUITES
from harness.reading import read_text

#: Property of a checkpoint -> the known defects that reach it: (clause, scenario of the expectation).
REACHED: dict[str, tuple[tuple[str, str], ...]] = {
    "save_only_model": (("RES-26", "save-only-model"),),
    "adapter in bfloat16": (("RES-16", "bf16-adapter/*"),),
    "several adapters": (("RES-17", "default-and-second"),),
    "P_TUNING": (("RES-01", "llama*/p-tuning"),),
    "prefix_projection": (("RES-01", "llama*/prefix-projection"),),
    "ADALORA": (("RES-01", "adalora-allocating"),),
    "no README.md": (("RES-02", "add_adapter/*"),),
    "last step of an epoch": (("RES-01", "evaluated-at-each-epoch/step-4"),),
    "ended": (("RES-07", "ended-inside-*"),),
}

#: Properties of which the checkpoint alone does not tell whether they are the run's -> when the defect reaches it.
_IF = {
    "no README.md": "if the adapter was added by add_adapter",
    "last step of an epoch": "if it evaluates at the end of each epoch",
    "ended": "if the run's last epoch was not at its end",
}


def note_adapters(found: Checkpoint, adapters: list[Adapter]) -> None:
    """Note the properties of adapters that known defects are about."""
    for adapter in adapters:
        found.about.add(adapter.peft_type)
        if adapter.config.get("prefix_projection"):
            found.about.add("prefix_projection")
        if any(entry.dtype == "BF16" for entry in adapter.tensors.values()):
            found.about.add("adapter in bfloat16")
        if isinstance(released := adapter.config.get("peft_version"), str):
            found.wrote["peft"] = released[:40]


def note_releases(found: Checkpoint, names: set[str]) -> None:
    """Note the releases that wrote a checkpoint, as its files name them."""
    try:
        if "config.json" in names:
            released = read_object(found.path / "config.json", "a model's config").get("transformers_version")
            if isinstance(released, str):
                found.wrote["transformers"] = released[:40]
        if "README.md" in names and "peft" not in found.wrote:
            named = re.search(r"^- PEFT (\S{1,40})$", read_text(found.path / "README.md"), re.MULTILINE)
            if named:
                found.wrote["peft"] = named[1]
    except UsageError:
        pass  # what is wrong with the file is noted where it is judged
    if found.state:
        _note_state(found, found.state, names)


def _note_state(found: Checkpoint, state: Mapping[str, Any], names: set[str]) -> None:
    if "transformers" not in found.wrote:
        # transformers/trainer_callback.py:TrainerState has it since 4.50.
        found.wrote["transformers"] = "4.50 or newer" if "best_global_step" in state else "before 4.50"
    epoch, last = state.get("epoch"), state.get("max_steps")
    if "README.md" not in names and "adapter_model.safetensors" in names:
        found.about.add("no README.md")
    if isinstance(epoch, (int, float)) and epoch > 0 and float(epoch).is_integer() and state.get("eval_steps"):
        found.about.add("last step of an epoch")
    if isinstance(epoch, float) and not epoch.is_integer() and found.step is not None and found.step == last:
        found.about.add("ended")


def defects(found: Checkpoint) -> list[dict[str, str]]:
    """Return what is known to go wrong as this checkpoint is resumed under the installed releases."""
    known = expectations.load(SUITES / "expectations")
    reached = []
    for about in sorted(found.about & set(REACHED)):
        for clause, scenario in REACHED[about]:
            for one in known:
                if (one.clause, one.scenario) == (clause, scenario) and one.applies(
                    clause, _named(scenario), "hf-trainer"
                ):
                    reached.append(
                        {
                            "clause": clause,
                            "about": about,
                            "if": _IF.get(about, ""),
                            "reason": one.reason,
                            "link": one.link,
                        }
                    )
    return reached


def _named(scenario: str) -> str:
    return scenario.replace("*", "x")


def releases() -> dict[str, str]:
    """Return the installed releases, by package."""
    found = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    return {name: released for name, released in found.items() if released}
