"""One bad input: what a user hands to a command, and how the command must answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """A bad input and its answer.

    - command: the command that gets it; rows are counted by it.
    - name: what is wrong with the input.
    - words: the command line after `peft-harness`. "{}" stands for the row's own directory.
    - answer: words that the sentence on stderr must have, whatever their case.
    - files: name -> content. Text and bytes are written as they are, everything else as JSON.
    - before: makes what is no plain file (a link, a pipe), in the row's directory.
    - code: the exit code.
    - codes: the exit codes of which one is right; empty: `code` alone.
    - variables: environment variables that are set.
    - says: how the sentence begins.
    - forked: whether the row runs in a process of its own.
    - own_child: whether the pytest that the command starts is a process of its own too. That takes its imports.
    """

    command: str
    name: str
    words: tuple[str, ...]
    answer: str
    files: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Path], object] | None = None
    code: int = 2
    codes: tuple[int, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    says: str = "peft-harness: "
    forked: bool = False
    own_child: bool = False

    @property
    def id(self) -> str:
        return f"{self.command}: {self.name}"

    def prepare(self, directory: Path) -> list[str]:
        """Write the files of the row in a directory. Return the command line."""
        for name, content in self.files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        if self.before is not None:
            self.before(directory)
        return [word.replace("{}", str(directory)) for word in self.words]
