"""Why uv could not make a stack, in one sentence: which line, which package, and what to do."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.gate.asked import Asked
from harness.paths import cache_directory

#: Builds of torch by their label: what they are for.
_BUILDS = {"cu": "CUDA", "rocm": "ROCm", "cpu": "the CPU", "xpu": "Intel's GPUs"}

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:\[[^\]]*\])?"


def sentence(error: str, given: Asked | None = None, hidden: Mapping[str, str] | None = None) -> str:
    """Return uv's error as one sentence.

    - given: what was asked for; its lines are named.
    - hidden: paths of temporary files and folders, with what messages call them instead.
    """
    for path, words in sorted((hidden or {}).items(), key=lambda one: -len(one[0])):
        error = error.replace(path, words)
    text = _without_places(_plain(error))
    for pattern, said in _SENTENCES:
        if match := re.search(pattern, text):
            return said(match, text, given or Asked())
    return text


def _plain(error: str) -> str:
    """Return uv's error in one line: without its drawing characters, passwords and labels such as "cause:"."""
    text = re.sub(r"[×╰─▶│├└]", " ", error)
    text = _without_passwords(text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^error: |(?<=[a-z]) cause: (?=Because)", lambda match: ": " if "cause" in match[0] else "", text)
    text = re.sub(r"\s+cause: ", ": ", text)
    return text or "uv gave no reason"


def _without_passwords(text: str) -> str:
    return re.sub(r"(\w://)[^/\s@'`]*@", r"\1", text)


def _without_places(text: str) -> str:
    """Take paths of caches and temporary folders out of a text."""
    folders = {tempfile.gettempdir(), str(cache_directory()), os.environ.get("UV_CACHE_DIR", "")}
    folders |= {str(Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache")))}
    for folder in sorted(filter(None, folders), key=len, reverse=True):
        text = re.sub(rf"(?:file://)?{re.escape(folder)}(?:/[^\s'`:,;)]*)?", "a temporary folder", text)
    return re.sub(r"(?:file://)?/\S*/\.tmp\w+[^\s'`:,;)]*", "a temporary folder", text)


def _lines(given: Asked, *names: str) -> str:
    """Return the places of the lines about some packages, such as "pins.txt, line 3 (peft==99)"; "" if none is known."""
    places = [
        # Words of the command line have no place; the message begins with them.
        line if place.startswith("requirements ") else f"{place} ({line})"
        for name in names
        for place, line in given.places.get(_key(name), [])
    ]
    return " and ".join(map(_without_passwords, dict.fromkeys(places[:6])))


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def at(given: Asked, name: str) -> str:
    """Return how a message about a package of the user's begins: with the lines of a file that name it, or "" for none."""
    in_a_file = any(not place.startswith("requirements ") for place, _ in given.places.get(_key(name), []))
    lines = _lines(given, name) if in_a_file else ""
    return f"{lines}: " if lines else ""


# ---- what uv says, and what is said instead ----


def _no_version(match: re.Match[str], text: str, given: Asked) -> str:
    name, version = match[1], match[2].rstrip(",.")
    local = version.partition("+")[2]
    if local and "==" in match[0]:
        kind = next((words for start, words in _BUILDS.items() if local.startswith(start)), "")
        index = f"--extra-index-url https://download.pytorch.org/whl/{local}"
        what = f", a build for {kind}," if kind else ""
        return (
            f"{at(given, name)}{name}=={version}{what} is on none of the package indexes that are asked; add the line "
            f"{index} to have that build, or write {name}=={version.partition('+')[0]} for the build that this machine gets"
        )
    wanted = re.search(rf"there (?:is no version|are no versions) of {re.escape(name)}[^,;]*?(?= and |,|$)", text)
    return (
        f"{at(given, name)}{wanted[0] if wanted else match[0]} on the package index; name a release that exists"
        f"{_because(text, name)}"
    )


def _because(text: str, name: str) -> str:
    """Return which other package asks for one that the user did not name, as uv says it."""
    asking = re.search(rf"({_NAME}(?:[=<>!~]=?\S+)?) depends on {re.escape(name)}", text)
    return f" ({asking[1]} depends on it)" if asking else ""


def _not_found(match: re.Match[str], text: str, given: Asked) -> str:
    name = match[1]
    because = _because(text, name)
    return (
        f"{at(given, name)}there is no package {name} on the package index{because}; check its spelling, or name the index "
        "that has it (--extra-index-url in the file)"
    )


def _no_wheel(match: re.Match[str], text: str, given: Asked) -> str:
    release = match[1].rstrip(",.")
    name = re.split(r"[=<>!~]", release)[0]
    tag = re.search(r"no wheels with a matching ([^,;(]+?)(?: \(|,| and|$)", text)
    why = f"has no wheel with a matching {tag[1].strip()}" if tag else "has no usable wheels"
    there = re.search(r"on the following platforms: (.+)$", text)
    why += f" (there are wheels for {there[1].replace('`', '')} only)" if there else ""
    return (
        f"{at(given, name)}{release} {why}{_because(text, name)}; name a release that has one for this "
        "machine and Python; only wheels are installed: --build NAME lets a package's own code build it"
    )


def _python(match: re.Match[str], text: str, given: Asked) -> str:
    needs = re.search(rf"({_NAME}(?:[=<>!~]=?[\w.+*]+)?) (?:depends on|requires) Python\s*([<>=!~,.\d*]+)", text)
    name = re.split(r"[=<>!~]", needs[1])[0] if needs else ""
    what = f"{needs[1]} needs Python {needs[2].rstrip(',')}" if needs else "the requirements need another Python"
    advice = "name another release, or run the harness with such a Python"
    return f"{at(given, name)}{what}, and this is Python {match[1]}; {advice}"


def _on_another_index(match: re.Match[str], text: str, given: Asked) -> str:
    name, index, wanted = match[1], match[2], match[3]
    return (
        f"{at(given, name)}{wanted} is not on {index}, the first index that has {name}; uv looks no further: set "
        "UV_INDEX_STRATEGY=unsafe-best-match to take releases from every index, or give the package an index of its own"
    )


def _conflict(match: re.Match[str], text: str, given: Asked) -> str:
    chain = re.sub(r"^.*?(?=Because )", "", text).partition(" hint:")[0]
    named = [name for name in dict.fromkeys(re.findall(_NAME, chain)) if _key(name) in given.places]
    lines = _lines(given, *named)
    # Packages that the harness adds are no lines of the user's.
    return chain.rstrip(".") + (f"; change one of these lines: {lines}" if lines else "")


def _unreachable(match: re.Match[str], text: str, given: Asked) -> str:
    url = match[1].rstrip("`:,.")
    reasons = {
        r"\b401\b|\b403\b|nauthori[sz]ed|orbidden": "it wants other credentials; check user and password",
        r"\b404\b|not found": "there is no such file or page; check the address",
        r"dns error|resolving|lookup": "its host name cannot be resolved; check the address and the network",
        r"certificate|tls|ssl": "its certificate is not trusted; set SSL_CERT_FILE, or pip's `cert`",
        r"refused": "nothing listens there; check the address",
        r"\b50\d\b": "the index itself has an error; try again later",
        r"timed? ?out": "it does not answer in time; try again",
    }
    why = next((words for pattern, words in reasons.items() if re.search(pattern, text, re.IGNORECASE)), "")
    package = next((name for name, lines in given.places.items() if any(url in line for _, line in lines)), "")
    return (
        f"{at(given, package)}{url} cannot be read: {why or 'the connection failed; check the address and the network'}"
    )


def _git(match: re.Match[str], text: str, given: Asked) -> str:
    name = match[1]
    branch = re.search(r"failed to (?:fetch|find|resolve) (?:branch or tag|branch|tag|commit|rev)\S* `([^`]+)`", text)
    fatal = re.search(r"fatal: (.+?)(?= hint:|$)", text)
    said = fatal[1].strip() if fatal else text.partition("Git operation failed")[2].strip(": ")
    what = f"{branch[1]} of the repository cannot be fetched" if branch else "the repository cannot be fetched"
    return f"{at(given, name)}{name}: {what} ({said}); check the address, the branch and your access to it"


def _build_failed(match: re.Match[str], text: str, given: Asked) -> str:
    name = re.split(r"[=<>!~ @]", match[1])[0]
    last = re.search(r"(\w*(?:Error|Exception): .{1,200}?)(?= hint:|$)", text)
    why = f" ({last[1].strip()})" if last else ""
    advice = "name a release or a wheel of it instead"
    if "No module named 'torch'" in why:
        advice = "its build imports torch, which is not there while it is built; name a wheel of it instead"
    return f"{at(given, name)}{match[1]} cannot be built here{why}; {advice}"


#: What uv says, and what makes a sentence of it. The first one that is found counts.
_SENTENCES: list[tuple[str, Callable[[re.Match[str], str, Asked], str]]] = [
    (r"An index(?: URL)? \((\w+://[^\s)]+)\) (?:could not be queried|returned)", _unreachable),
    (rf"`({_NAME})` was found on (\S+), but not at the requested version \(([^)]+)\)", _on_another_index),
    (rf"Failed to (?:download and build|fetch|resolve|clone)[^`]*`({_NAME})[^`]*`.*Git operation failed", _git),
    (r"Failed to (?:build|download and build|generate package metadata for) `([^`]+)`", _build_failed),
    (
        r"(?:Failed to fetch:|error sending request for url|Failed to (?:query|read)[^`]*)\W*(\w+://[^\s)`]+)",
        _unreachable,
    ),
    (r"the (?:current|requested) Python version \(([\d.]+)\) does not satisfy", _python),
    (rf"({_NAME}(?:[=<>!~]=?[\w.+*!,]+)?) (?:has|have) no (?:usable wheels|wheels with a matching)", _no_wheel),
    (rf"there (?:is|are) no versions? of ({_NAME})[=<>!~]+(\S+)", _no_version),
    (rf"({_NAME}) was not found in the (?:package registry|provided package locations|cache)", _not_found),
    (r"Because .*(?:unsatisfiable|incompatible|cannot be used)", _conflict),
]
