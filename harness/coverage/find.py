"""Find the branches of a source file that are about adapters, and decide whether a recorded run reached them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

TAKEN = "taken"
NOT_TAKEN = "not taken"
EVALUATED = "evaluated"
ENTERED = "entered"


@dataclass(frozen=True)
class Branch:
    """One outcome of a condition, or the entry of a function.

    - file: such as "transformers/trainer.py".
    - line: the line of the condition.
    - function: the qualified name of the function that holds it; "" at module level.
    - condition: its source. For the entry of a function: "def" and the name.
    - outcome: TAKEN or NOT_TAKEN for an `if`, an `elif` or a `while`; ENTERED for a function; EVALUATED for a
      conditional expression, because lines do not show which side ran.
    - body: first and last line of what runs if the branch is TAKEN or ENTERED. For EVALUATED the line of the statement.
    """

    file: str
    line: int
    function: str
    condition: str
    outcome: str
    body: tuple[int, int]

    def reached(self, lines: Set[int], arcs: Set[tuple[int, int]]) -> bool:
        """Return whether a run reached this branch.

        - lines: the lines that were executed.
        - arcs: (from, to) lines of executed branches, as coverage reports them.
        """
        first, last = self.body
        if self.outcome in (EVALUATED, ENTERED):
            return any(first <= line <= last for line in lines)
        return any(start == self.line and (first <= end <= last) is (self.outcome == TAKEN) for start, end in arcs)

    @property
    def name(self) -> str:
        """Return a name for people, such as: transformers/trainer.py:3671 `if is_peft_available()` taken."""
        return f"{self.file}:{self.line} `{self.condition}` {self.outcome}"


def branches(source: str, file: str, functions: tuple[str, ...] = ("*",), words: str = "") -> list[Branch]:
    """Return the branches of a file, by line.

    - source, file: the file's text and name.
    - functions: globs over qualified names such as "Trainer.train". Only conditions inside these functions count.
    - words: a regular expression that a condition or a function's name must contain. With "" every condition counts and
      no function does.
    """
    found = _within(ast.parse(source), file, "", functions, words)
    return sorted(found, key=lambda branch: (branch.line, branch.outcome != TAKEN))


def _within(
    node: ast.AST, file: str, scope: str, functions: tuple[str, ...], words: str, line: int = 0
) -> Iterator[Branch]:
    # line: the first line of the statement that `node` is part of. coverage reports statements by their first line.
    for child in ast.iter_child_nodes(node):
        inside, begins = scope, child.lineno if isinstance(child, ast.stmt) else line
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inside = f"{scope}.{child.name}".lstrip(".")
        if any(fnmatchcase(inside, glob) for glob in functions):
            yield from _of(child, file, inside, words, begins)
        yield from _within(child, file, inside, functions, words, begins)


def _of(node: ast.AST, file: str, scope: str, words: str, begins: int) -> Iterator[Branch]:
    if isinstance(node, ast.FunctionDef):
        overload = any(ast.unparse(each).endswith("overload") for each in node.decorator_list)
        if re.search(words or "$^", node.name) and not overload:
            body = [statement for statement in node.body if not _is_docstring(statement)] or node.body
            yield Branch(file, node.lineno, scope, f"def {node.name}", ENTERED, _lines(body))
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        test = ast.unparse(node.test)
        if not re.search(words, test) or test in ("TYPE_CHECKING", "True"):
            return
        if isinstance(node, ast.IfExp):
            yield Branch(file, node.lineno, scope, f"... if {test}", EVALUATED, (begins, begins))
            return
        word = "while" if isinstance(node, ast.While) else "if"
        for outcome in (TAKEN, NOT_TAKEN):
            yield Branch(file, node.lineno, scope, f"{word} {test}", outcome, _lines(node.body))


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _lines(body: list[ast.stmt]) -> tuple[int, int]:
    first = body[0]
    # A decorated definition starts at its first decorator.
    decorators = getattr(first, "decorator_list", [])
    return min([first.lineno, *(each.lineno for each in decorators)]), body[-1].end_lineno or body[-1].lineno
