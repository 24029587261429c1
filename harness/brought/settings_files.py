"""Read a JSON object or a YAML mapping that somebody else wrote. Each function raises UsageError with one sentence."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.reading import DEPTH, DIGITS, read_json, read_text, shown, shown_path

#: Bytes of a file of settings. A config.json with its label names has 100 kB; TrainingArguments have 6 kB.
LIMIT = 2 * 2**20

#: Bytes of YAML. The longest example of axolotl has 4 kB. libyaml's parser needs 0.1 s for so much, Python's own 1 s.
YAML_LIMIT = 2**17

#: Values that a YAML file stands for, when each alias counts as much as what it refers to.
_VALUES = 20_000

YAML = (".yaml", ".yml")


def read_object(path: str | Path, what: str) -> dict[str, Any]:
    """Return the object in a file: YAML by its suffix, else JSON. what: such as "TrainingArguments", for messages."""
    text = str(path).lower()
    value = read_yaml(path) if text.endswith(YAML) else read_json(path, LIMIT)
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise UsageError(f"{shown_path(path)}: expected an object with the fields of {what}, found {kind}")
    return value


def read_yaml(path: str | Path) -> Any:
    """Return the value in a YAML file, as JSON would have it.

    Numbers are read as YAML 1.2 has them (1e-4 is a float, which it is not to PyYAML), and dates stay strings. Refused, as
    in JSON: a key that occurs twice, too many levels, NaN and Infinity. Refused as well: tags of Python objects, and
    aliases that stand for a great many values.
    """
    return parse_yaml(read_text(path, YAML_LIMIT), shown_path(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text. Otherwise as `read_yaml`."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(yaml, loader, text, where)
        node = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML ({_problem(error)})") from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{where}: not YAML ({type(error).__name__})") from None
    if node is None:
        raise UsageError(f"{where}: empty; expected a mapping, one `field: value` a line")
    _check_size(yaml, node, where)
    return _value(yaml, node, where)


def _problem(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    words = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{shown_path(str(words))[:120]}{place}"


def _check_depth(yaml: Any, loader: Any, text: str, where: str) -> None:
    # Events come one by one, so that this goes into no depth itself.
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH:
                line = event.start_mark.line + 1
                raise UsageError(f"{where}: YAML nested too deep, in more than {DEPTH} levels (line {line})")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_size(yaml: Any, node: Any, where: str) -> None:
    """Refuse aliases that contain themselves, and those that stand for too many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        key = id(node)
        if key in open_nodes:
            raise UsageError(
                f"{where}: an alias contains itself (line {node.start_mark.line + 1}); write its value out"
            )
        if key not in sizes:
            open_nodes.add(key)
            inner = _children(yaml, node)
            sizes[key] = min(_VALUES + 1, 1 + sum(size(child) for child in inner))
            open_nodes.discard(key)
        return sizes[key]

    if size(node) > _VALUES:
        raise UsageError(f"{where}: stands for more than {_VALUES:,} values; write out what its aliases (*name) repeat")


def _children(yaml: Any, node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def _value(yaml: Any, node: Any, where: str) -> Any:
    place = f"{where}, line {node.start_mark.line + 1}"
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    if tag.startswith("python") or node.tag.startswith("!"):
        raise UsageError(f"{place}: the tag {shown(tag)} names an object of a program; write a plain value")
    if isinstance(node, yaml.MappingNode):
        return _mapping(yaml, node, where)
    if isinstance(node, yaml.SequenceNode):
        return [_value(yaml, item, where) for item in node.value]
    text = node.value
    if node.style in ("'", '"', "|", ">") or tag == "binary":
        return text
    word = text.lower()
    if word in ("", "~", "null"):
        return None
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    if word.lstrip("+-") in (".nan", ".inf"):
        raise UsageError(f"{place}: {text} is no number that can be trained with; write a finite one")
    if _HEX.fullmatch(text) or _INT.fullmatch(text):
        if len(text) > DIGITS:
            raise UsageError(f"{place}: an integer of {len(text)} digits; {DIGITS} are allowed")
        return int(text.replace("_", ""), 16 if _HEX.fullmatch(text) else 10)
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise UsageError(f"{place}: {shown(text)} is too large for a float")
        return number
    return text


def _mapping(yaml: Any, node: Any, where: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{where}, line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{place}: a key is no text; write `field: value`")
        value = _value(yaml, value_node, where)
        if key_node.value == "<<" and not key_node.style:  # libyaml says "", PyYAML None
            for part in value if isinstance(value, list) else [value]:
                if not isinstance(part, dict):
                    raise UsageError(f"{place}: `<<` merges mappings, and this is none")
                merged = {**part, **merged}
            continue
        if key_node.value in made:
            raise UsageError(f"{place}: an object has the key {shown(key_node.value)} twice; keep one of them")
        made[key_node.value] = value
    return {**merged, **made}
