"""The root of a case that does not hold: what it has in common with the other cases of its cause."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.verdict import UNEXPECTED_PASS, Case


@dataclass(frozen=True)
class Error:
    """An exception that ended a run or a test.

    - kind, message: its type and words. Two errors are the same if `Error.words` and the place are.
    - package, file, function: the innermost function of upstream that it passed; "" if it is not known.
    - calls: the functions of upstream on the way, outermost first.
    - run: which of the case's specs was trained; None if it is not known.
    """

    kind: str
    message: str
    package: str = ""
    file: str = ""
    function: str = ""
    calls: tuple[str, ...] = field(default=(), compare=False)
    run: int | None = field(default=None, compare=False)

    @property
    def words(self) -> tuple[str, str]:
        return (self.kind, normal(self.message))

    @property
    def place(self) -> tuple[str, str, str]:
        return (self.package, self.file, self.function)


# ---- sentences without what differs from case to case ----

_PATHS = re.compile(r"(?:[A-Za-z]:)?(?:/[\w.@+~-]+){2,}/?")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_DIGEST = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,64}\b")
_NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<=[A-Za-z_])\d+(?![A-Za-z])")
_RANK = re.compile(r"^(?:\([^)]*\) |rank \d+(?: of \d+)?: )+")
_SEVERAL = re.compile(r"(N|'[^']*')(?:, \1)+")
_LISTS = re.compile(r"(\[N\])(?:, \1)+")


def normal(text: str, scenario: str = "") -> str:
    """Return a sentence's first line without numbers, layers, paths, digests and the scenario's name."""
    line, _, rest = text.strip().partition("\n")
    if line.endswith(":") and rest:
        line += " " + rest.strip().partition("\n")[0]
    if len(scenario) > 5:
        line = re.sub(rf"(?<![\w/]){re.escape(scenario)}(?![\w/])", "SCENARIO", line)
    for pattern, word in (
        (_PATHS, "PATH"),
        (_ADDRESS, "N"),
        (_DIGEST, "N"),
        (_NUMBER, "N"),
        (_SEVERAL, r"\1"),
        (_LISTS, r"\1"),
    ):
        line = pattern.sub(word, line)
    return _RANK.sub("", " ".join(line.split()))


# ---- errors ----

_SPOKEN = re.compile(r"(?:^|[\s(:])([A-Z]\w*(?:Error|Exception|Exit|Interrupt|Refused))\b(?:: (.*))?$")
_ENDED = re.compile(
    r"^(?:the \d+ ranks had not ended|rank \d+ of \d+ (?:was killed|ended with)|.*\(killed, crashed, or ended)"
)


def recorded(case: Case) -> list[Error]:
    """Return the errors that were recorded where they were caught (`harness.raised`), in the order of the runs."""
    found = []
    for entry in case.raised:
        if isinstance(entry, Mapping):
            texts = {name: _text(entry.get(name)) for name in ("kind", "message", "package", "file", "function")}
            calls = entry.get("calls")
            run = entry.get("run")
            found.append(
                Error(
                    **texts,
                    calls=tuple(map(_text, calls)) if isinstance(calls, list) else (),
                    run=run if isinstance(run, int) and not isinstance(run, bool) else None,
                )
            )
    return found


def spoken(case: Case) -> Error | None:
    """Return the error that the case's words tell of, such as "the run ended with ValueError: no such module"."""
    for sentence in sentences(case):
        line = sentence.partition("\n")[0]
        if _ENDED.match(line):
            return Error("", line)
        if (match := _SPOKEN.search(line)) is not None:
            return Error(match[1], match[2] or "")
        # The last name of an error in the line has the others' words before it.
        if (match := re.search(r"\b([A-Z]\w*(?:Error|Exception))\b(?:: (.+))?", line)) is not None and (
            line.startswith(("raised ", "the run ended with ", match[1])) or " ended with " in line
        ):
            return Error(match[1], match[2] or "")
        # A refusal is quoted by its words alone.
        if (match := re.search(r"(?:upstream does not inject it by \w+|is refused): (.+)$", line)) is not None:
            return Error("", match[1])
    return None


def sentences(case: Case) -> list[str]:
    """Return what was found in a case, or why it was not judged."""
    seen = case.evidence.get("seen")
    return [str(one) for one in seen] if isinstance(seen, (list, tuple)) and seen else [case.reason]


def mentions(case: Case, error: Error) -> bool:
    """Return whether the case's words quote the error."""
    return any(quotes(sentence, error) for sentence in sentences(case))


def quotes(sentence: str, error: Error) -> bool:
    """Return whether a sentence quotes an error."""
    kind, message = error.words
    return message in normal(sentence) if len(message) > 3 else kind in sentence


# ---- everything else ----

_TENSOR = re.compile(
    r"(?:(?:step \d+|checkpoint-\d+|state \w+)[^:]*: )?"
    r"(?P<what>gradients?|clipped|gradient of|adapter at the end:|optimizer state of)\b.*?\s?(?P<name>[\w.]+\.[\w.]+) "
    r"differs by \S+ at most \((?P<seen>\S+), expected (?P<expected>[^\s)]+)\)"
)
_TIMES = re.compile(r"\bthe (?P<what>gradient|loss)\b.*? is (?P<factor>[\d.e+-]+) times ")
_SCALAR = re.compile(
    r"(?P<what>(?:logged |training_|eval_)?(?:loss|grad_norm))\b:? (?P<seen>[\d.e+-]+), expected (?P<expected>[\d.e+-]+)"
)
_MISSING = re.compile(
    r"\b(?:no (?:tensor for|file|gradient for|key)|lacks) (?P<a>[\w./-]+)"
    r"|(?P<b>[\w./-]+) (?:is missing|was not observed|is not in its file)"
)
#: The share by which a factor may be off: losses are logged with four digits.
_NEAR = 0.02

#: Factors by which a wrong mean or a wrong scale makes a number too large or too small.
_SIMPLE = (0.125, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.25, 4 / 3, 1.5, 2.0, 3.0, 4.0, 8.0)


def numbers(sentence: str, spec: Mapping[str, Any] | None = None) -> tuple[str, ...] | None:
    """Return which quantity differs, and by which factor or in which kind of tensor. None if the sentence has no number.

    - spec: of the case's run. A factor that is one of its numbers is named by it: runs with other numbers have others.
    """
    if (match := _TIMES.search(sentence)) is not None:
        return ("differs", match["what"], _factor(float(match["factor"]), spec) or "another factor")
    if (match := _TENSOR.search(sentence)) is not None:
        what = {"clipped": "gradient", "gradients": "gradient", "gradient of": "gradient"}.get(
            match["what"], match["what"]
        )
        factor = _ratio(match["seen"], match["expected"], spec)
        return (
            "differs",
            what.removesuffix(":").removesuffix(" of"),
            factor or ".".join(match["name"].split(".")[-2:]),
        )
    if (match := _SCALAR.search(sentence)) is not None:
        return ("differs", match["what"], _ratio(match["seen"], match["expected"], spec) or "another value")
    return None


def missing(sentence: str) -> tuple[str, ...] | None:
    """Return what a sentence says is missing, without the layer that it is missing in."""
    match = _MISSING.search(sentence)
    if match is None:
        return None
    name = (match["a"] or match["b"]).rstrip(".")
    leaf = name if "/" in name or name.count(".") < 2 else ".".join(name.split(".")[-2:])
    return ("missing", normal(leaf))


def _ratio(seen: str, expected: str, spec: Mapping[str, Any] | None) -> str:
    try:
        a, b = float(seen), float(expected)
    except ValueError:
        return ""
    return _factor(a / b, spec) if b and math.isfinite(a) and math.isfinite(b) else ""


def _factor(value: float, spec: Mapping[str, Any] | None) -> str:
    for name, number in _sizes(spec or {}):
        for words, factor in ((f"1 / {name}", 1 / number), (name, float(number))):
            if abs(value / factor - 1) < _NEAR:
                return f"{words} times"
    near = min(_SIMPLE, key=lambda simple: abs(value / simple - 1))
    if abs(value / near - 1) < _NEAR:
        return f"{near:.3g} times"
    return "0 times" if value == 0 else ""


def _sizes(spec: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the numbers of a run over which a mean may be taken wrongly, if they are more than one."""
    for part, name in (("arguments", "gradient_accumulation_steps"), ("launch", "ranks")):
        fields = spec.get(part)
        number = fields.get(name) if isinstance(fields, Mapping) else None
        if isinstance(number, int) and number > 1:
            yield name, number


def other(case: Case) -> tuple[str, ...]:
    """Return the key of a case that fails by no error."""
    if case.verdict == UNEXPECTED_PASS:
        return ("holds", case.reason)
    first = sentences(case)[0]
    if found := numbers(first, case.specs[0] if case.specs else None) or missing(first):
        return found
    words = normal(first, case.scenario)
    # "[]" and "None" say nothing of themselves.
    speaks = len(re.findall(r"[A-Za-z]{2,}", words.replace("PATH", "").replace("SCENARIO", ""))) >= 3
    return ("says", words) if speaks else ("says", words, case.clause)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
