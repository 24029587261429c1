"""The model card (README.md) of an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.trace import Trace
from harness.verdict import Verdict, both, verdict

#: Where a card should be -> its text, "" if there is no card.
Cards = Mapping[str, str]


def cards(trace: Trace) -> dict[str, str]:
    """Read the card of each checkpoint of a run from disk."""
    return {
        f"checkpoint-{checkpoint.step}/README.md": read(Path(checkpoint.path) / "README.md")
        for checkpoint in trace.checkpoints
    }


def read(path: Path) -> str:
    """Return the text of a card, "" if there is no such file."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def names_peft(found: Cards, version: str | None) -> Verdict:
    """Check that each card has library_name peft, and the version of peft below "Framework versions"."""
    findings = _missing(found)
    for where, text in _written(found).items():
        library = _front_matter(text).get("library_name")
        if library != "peft":
            findings.append(f"{where}: library_name is {library!r}, expected 'peft'")
        frameworks = text.partition("### Framework versions")[2]
        if f"- PEFT {version}" not in frameworks.splitlines():
            findings.append(f"{where}: no line '- PEFT {version}' below 'Framework versions'")
    return verdict(f"each model card is of library peft, version {version}", findings)


def tagged(found: Cards, tags: Iterable[str], pipeline: str) -> Verdict:
    """Check that each card has these tags, and this pipeline_tag."""
    findings = []
    for where, text in _written(found).items():
        seen = _front_matter(text).get("pipeline_tag")
        if seen != pipeline:
            findings.append(f"{where}: pipeline_tag is {seen!r}, expected {pipeline!r}")
    return both(has_tags(found, tags), verdict(f"the pipeline_tag of each model card is {pipeline}", findings))


def has_tags(found: Cards, tags: Iterable[str]) -> Verdict:
    """Check that each card has these tags. It may have others."""
    expected = set(tags)
    findings = _missing(found)
    for where, text in _written(found).items():
        seen = _front_matter(text).get("tags") or []
        findings += [f"{where}: no tag {tag!r} among {seen}" for tag in sorted(expected - set(seen))]
    return verdict(f"each model card is tagged {', '.join(sorted(expected))}", findings)


def names_quantization(found: Cards, settings: Mapping[str, Any]) -> Verdict:
    """Check that each card lists these settings of the base's quantization, as "- name: value"."""
    findings = _missing(found)
    for where, text in _written(found).items():
        lines = text.splitlines()
        findings += [
            f"{where}: no line '- {name}: {value}' of the quantization config"
            for name, value in settings.items()
            if f"- {name}: {value}" not in lines
        ]
    return verdict("each model card lists the quantization config", findings)


def absent(found: Cards) -> Verdict:
    """Check that no checkpoint has a card."""
    findings = [] if found else ["no checkpoint was written"]
    return verdict("no model card is written", findings + [f"{where} is there" for where in _written(found)])


def _missing(found: Cards) -> list[str]:
    return [f"{where} is missing" for where, text in found.items() if not text] if found else ["no checkpoint"]


def _written(found: Cards) -> dict[str, str]:
    return {where: text for where, text in found.items() if text}


def _front_matter(text: str) -> dict[str, Any]:
    """Return the YAML between the first two lines of three dashes; {} if there is none."""
    import yaml

    if not text.startswith("---\n"):
        return {}
    front, ended, _ = text[4:].partition("\n---")
    read = yaml.safe_load(front) if ended else None
    return read if isinstance(read, dict) else {}
