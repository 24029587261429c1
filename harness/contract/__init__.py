"""The contract as data, a file per chapter. To add a clause: a row in its chapter here, a test in suites/."""

from __future__ import annotations

import importlib
from fnmatch import fnmatchcase

from harness.contract.clause import Chapter, Clause
from harness.errors import UsageError

#: In the order of the summary table. A new chapter is a module here and a line in this list.
CHAPTERS = (
    "api",
    "frz",
    "loss",
    "acc",
    "loop",
    "ckpt",
    "emb",
    "io",
    "res",
    "best",
    "evaluation",
    "amp",
    "dist",
    "fsdp",
    "ds",
    "qlora",
    "cb",
    "log",
    "hpo",
    "mem",
    "perf",
    "rng",
    "gen",
)


def chapters() -> list[Chapter]:
    return [importlib.import_module(f"harness.contract.{name}").CHAPTER for name in CHAPTERS]


def clauses() -> dict[str, Clause]:
    """Every clause by id. ValueError for an id that stands twice or in a chapter of another name."""
    found: dict[str, Clause] = {}
    for chapter in chapters():
        for clause in chapter.clauses:
            if clause.id in found or clause.chapter != chapter.id:
                raise ValueError(f"clause {clause.id} in chapter {chapter.id} is a duplicate or misplaced")
            found[clause.id] = clause
    return found


def select(globs: list[str]) -> dict[str, Clause]:
    """The clauses whose id matches any of the globs; all of them for no glob. UsageError for one that matches none."""
    known = clauses()
    if not globs:
        return known
    chosen: dict[str, Clause] = {}
    for glob in globs:
        matching = {id: clause for id, clause in known.items() if fnmatchcase(id, glob)}
        if not matching:
            ids = ", ".join(f"{chapter.id}-*" for chapter in chapters())
            raise UsageError(f"--clause {glob!r} matches no clause; chapters are {ids} (see `peft-harness clauses`)")
        chosen.update(matching)
    return chosen
