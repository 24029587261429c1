"""Lines of JSON that a later process reads again, each with its checksum. One that was cut off or edited is not believed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

#: Changed when the meaning of what is stored changes: what an older or newer release wrote is not read.
_SCHEMA = "1"


def line(body: Any) -> str:
    """Return a value as a line of a file."""
    text = json.dumps(body)
    return f"{_checksum(text)} {text}\n"


def read(line: str) -> Any:
    """Return the value of a line. None if the line is damaged."""
    checksum, _, text = line.partition(" ")
    if checksum != _checksum(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _checksum(text: str) -> str:
    return f"{_SCHEMA}:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:32]}"
