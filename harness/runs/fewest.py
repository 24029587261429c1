"""The fewest fields that matter: of a failure, and of what upstream refuses.

A row that fails has dozens of fields that differ from the default run. `fewest` takes away as many as it can while the row
still fails in the same way. That is Zeller's ddmin: halves first, then smaller parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.runs.pairs import Row


def fewest(changed: Mapping[str, str], same: Callable[[Row], bool], groups: Iterable[Sequence[str]] = ()) -> Row:
    """Return a smallest part of some fields for which `same` still holds: without any one of them it does not.

    - changed: the fields that differ from the default run. `same` holds for all of them together.
    - same: whether the default run with these fields fails in the same way.
    - groups: fields that are about the same thing. Most causes lie in one of them, so each is tried first.
    """
    if same({}):
        return {}
    parts_of = ({name: value for name, value in changed.items() if name in group} for group in groups)
    smaller = next((part for part in parts_of if 0 < len(part) < len(changed) and same(part)), changed)
    left = list(smaller.items())
    parts = 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        chunks = [left[start : start + size] for start in range(0, len(left), size)]
        rests = [[item for item in left if item not in chunk] for chunk in chunks] if len(chunks) > 2 else []
        kept = next((part for part in [*chunks, *rests] if same(dict(part))), None)
        if kept is not None:
            parts = 2 if kept in chunks else max(len(chunks) - 1, 2)
            left = kept
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(left))
    return dict(left)


def with_defaults(
    refused: Row,
    accepted: Callable[[Row], bool],
    fields: Mapping[str, Sequence[str]],
    groups: Iterable[Sequence[str]],
) -> Row:
    """Return fields that are refused together, with the defaults of other fields that have a part in it.

    load_best_model_at_end=True is refused in the default run, because that evaluates nothing: what is refused is the pair
    of it and eval_strategy=no, which is a default.

    - refused: what `fewest` has found.
    - accepted: whether the default run with these fields is trained.
    - fields: field -> the names of its values, the default first.
    - groups: fields that are about the same thing. Only those in a group with all refused fields are tried.
    """
    found = dict(refused)
    near = dict.fromkeys(name for group in groups if refused.keys() <= set(group) for name in group)
    for name in near:
        if name in found:
            continue
        default, *others = fields[name]
        if any(accepted({**refused, name: value}) for value in others[:_TRIED]):
            found[name] = default
    return found


#: Values of a field that `with_defaults` tries. Each costs a training run, or a refusal.
_TRIED = 3

#: What differs between two sentences about the same cause.
_PATH = re.compile(r"(/[\w.@+-]+)+/")
_DOTTED = re.compile(r"\b[\w-]+(\.[\w-]+){2,}")
_HEX = re.compile(r"\b0x[0-9a-f]+\b")
_NUMBER = re.compile(r"[-+]?\b\d+(\.\d+)?(e[-+]?\d+)?\b|\bnan\b|\binf\b")
_LIST = re.compile(r"\[[\[\]#, ]*\]")


def cause(sentence: str) -> str:
    """Return a sentence without what differs from run to run: numbers, names of tensors, directories."""
    for pattern, word in ((_PATH, ""), (_HEX, "#"), (_DOTTED, "NAME"), (_NUMBER, "#"), (_LIST, "[#]")):
        sentence = pattern.sub(word, sentence)
    return sentence
