"""What was found in one checkpoint's directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.checkpoints.adapter_directory import FOREIGN, TORN, WHOLE, File

MISSING, NOT_READ = "missing", "not read"

#: Bytes of trainer_state.json. The log of 150,000 entries has 20 MB, and takes 250 MB of memory.
STATE_LIMIT = 24 * 2**20

STATE = "trainer_state.json"


@dataclass
class Checkpoint:
    """A checkpoint's directory.

    - path: the directory. kind: what saved it, in a few words.
    - step: its global step; None if nothing names one.
    - ranks: how many processes saved it; None if nothing says so.
    - files: what was looked at, by path in the directory.
    - notes: what else is to be known. not_judged: what was not looked at, and why. One sentence each.
    - wrote: which releases wrote it, such as {"peft": "0.21.2"}.
    - foreign: why this is no checkpoint, or none that can be read; "" if it is one.
    - state: the fields of trainer_state.json.
    - about: properties by which known defects are found (`harness.checkpoints.outlook`).
    """

    path: Path
    kind: str = ""
    step: int | None = None
    ranks: int | None = None
    files: list[File] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_judged: list[str] = field(default_factory=list)
    wrote: dict[str, str] = field(default_factory=dict)
    foreign: str = ""
    about: set[str] = field(default_factory=set)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if any(one.state in (TORN, MISSING) for one in self.files):
            return TORN
        if self.foreign or any(one.state == NOT_READ for one in self.files):
            return FOREIGN
        return WHOLE

    @property
    def why(self) -> str:
        """The first thing that is wrong, as a sentence's part; "" if nothing is."""
        for state in (MISSING, TORN, NOT_READ):
            for one in self.files:
                if one.state == state:
                    return f"{one.file} is missing" if state == MISSING else f"{one.file} {one.why}"
        return self.foreign

    def say(self, file: str, state: str, why: str = "") -> None:
        """Note a file's state. A whole file stays torn if it was; further reasons are added."""
        for one in self.files:
            if one.file == file:
                if state != WHOLE:
                    one.why = f"{one.why}; {why}" if one.why else why
                    one.state = state
                return
        self.files.append(File(file, state, why))

    def torn(self, file: str, why: str) -> None:
        self.say(file, TORN, why)

    def missing(self, file: str, why: str) -> None:
        if not any(one.file == file for one in self.files):  # else it is a link, which was not followed
            self.say(file, MISSING, why)

    def to_json(self) -> dict[str, Any]:
        return {
            "directory": str(self.path),
            "verdict": self.verdict,
            "kind": self.kind,
            "step": self.step,
            "ranks": self.ranks,
            "files": [vars(one) for one in self.files],
            "notes": self.notes + ([self.foreign] if self.foreign else []),
            "not_judged": self.not_judged,
            "wrote": self.wrote,
        }
