"""What a reader says about the input that it read, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.reading import shown, shown_path


@dataclass
class Notes:
    """What was done to an input, and what was left out of it.

    - sentences: what was done or changed, one sentence each.
    - not_looked_at: field -> why the run does not have it.
    """

    sentences: list[str] = field(default_factory=list)
    not_looked_at: dict[str, str] = field(default_factory=dict)

    def say(self, sentence: str) -> None:
        """Add a sentence. One that was said already is not repeated."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    def leave_out(self, field: Any, why: str) -> None:
        """Note a field that the run does not have. The first reason counts."""
        self.not_looked_at.setdefault(shown_path(str(field))[:200], why)

    def changed(self, field: str, old: Any, new: Any, why: str = "") -> None:
        """Say that a field's value was changed, unless it was not."""
        if old != new or type(old) is not type(new):
            self.say(f"{shown_path(field)}: {shown(old)} became {shown(new)}{f' ({why})' if why else ''}")


def listed(names: Any, limit: int = 12) -> str:
    """Return names in one line, the first dozen of them."""
    texts = [shown_path(str(name))[:80] for name in names]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
