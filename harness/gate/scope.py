"""What a gate, a check or a soak judges: subject, device, clauses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """Who is judged, on which device, and by which clauses.

    - subject: "hf-trainer", "reference" or "module:factory".
    - device: "cpu" or "cuda".
    - clauses: globs; empty for all clauses.
    - preloads: modules that are imported before upstream is used.
    - added: environment variables for the judged stacks, as (name, value) (--env).
    - build: packages that may be built from source (--build).
    """

    subject: str = "hf-trainer"
    device: str = "cpu"
    clauses: tuple[str, ...] = ()
    preloads: tuple[str, ...] = ()
    added: tuple[tuple[str, str], ...] = ()
    build: tuple[str, ...] = ()

    def options(self) -> list[str]:
        """Return these as options of `pytest suites/`."""
        words = ["--subject", self.subject, "--device", self.device]
        for name, values in (("--clause", self.clauses), ("--preload", self.preloads)):
            for value in values:
                words += [name, value]
        return words
