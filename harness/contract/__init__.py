"""The contract as data, one file per chapter. To add a clause, add a row to its chapter here and a test in suites/."""

from __future__ import annotations

import importlib
from fnmatch import fnmatchcase

from harness.contract.clause import PROFILES, Chapter, Clause
from harness.errors import UsageError

#: In the order of the summary table. To add a chapter, add a module here and a line to this list.
CHAPTERS = (
    "api",
    "frz",
    "loss",
    "acc",
    "loop",
    "ckpt",
    "emb",
    "io",
    "serve",
    "res",
    "best",
    "evaluation",
    "amp",
    "dist",
    "fsdp",
    "tp",
    "ds",
    "qlora",
    "cb",
    "log",
    "hpo",
    "mem",
    "perf",
    "rng",
    "gen",
    "crash",
)


def chapters() -> list[Chapter]:
    return [importlib.import_module(f"harness.contract.{name}").CHAPTER for name in CHAPTERS]


def clauses() -> dict[str, Clause]:
    """Return every clause by id. ValueError if an id is there twice, or in a chapter of another name."""
    found: dict[str, Clause] = {}
    for chapter in chapters():
        for clause in chapter.clauses:
            if clause.id in found or clause.chapter != chapter.id:
                raise ValueError(f"clause {clause.id} in chapter {chapter.id} is a duplicate or misplaced")
            found[clause.id] = clause
    return found


def in_profile(name: str) -> dict[str, Clause]:
    """Return the clauses of a profile by id, those of smaller profiles included. UsageError for an unknown profile."""
    if name not in PROFILES:
        raise UsageError(f"profile {name!r} is none of {', '.join(PROFILES)}")
    of_it = PROFILES[: PROFILES.index(name) + 1]
    return {id: clause for id, clause in clauses().items() if clause.profile in of_it}


def select(globs: list[str]) -> dict[str, Clause]:
    """Return the clauses whose id matches any glob; all if there is no glob. UsageError if a glob matches none."""
    all_clauses = clauses()
    if not globs:
        return all_clauses
    chosen: dict[str, Clause] = {}
    for glob in globs:
        matching = {id: clause for id, clause in all_clauses.items() if fnmatchcase(id, glob)}
        if not matching:
            ids = ", ".join(f"{chapter.id}-*" for chapter in chapters())
            raise UsageError(f"--clause {glob!r} matches no clause; chapters are {ids} (see `peft-harness clauses`)")
        chosen.update(matching)
    return chosen
