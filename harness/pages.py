"""What every page of HTML is made with: templates that escape, figures inside the page, its policy."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def templates(folder: Path) -> jinja2.Environment:
    """Return jinja2's environment for the templates of a folder. It escapes texts, and a name that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(folder),
    )


def figure_address(figure: Any, **options: Any) -> str:
    """Return a figure as an address that holds it, for an <img>. As text it would run the scripts that a title could name.

    - figure: of matplotlib.
    - options: of its savefig.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy of a page: it loads nothing, and this style and this script alone count."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
