"""What a gate, a check or a soak judges: subject, device, clauses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.session.concerns import Concerns


@dataclass(frozen=True)
class Scope:
    """Who is judged, on which device, and by which clauses.

    - subject: "hf-trainer", "reference" or "module:factory".
    - device: "cpu" or "cuda".
    - clauses: globs; empty for all clauses.
    - preloads: modules that are imported before upstream is used.
    - added: environment variables for the judged stacks, as (name, value) (--env).
    - build: packages that may be built from source (--build).
    - specs: the runs of --spec, as (name, RunSpec as JSON text); only these are judged, if there are any. It is not their
      files, which may change while the stacks are judged. What they name was checked (`harness.session.specs.load`).
    - concerns: the routes, methods and launches whose cases and cells are judged.
    - defects: files of the user's own known defects, as (name, text).
    - file: the scope's file (--scope); empty if there is none. With one, `clauses` do not leave out the cells.
    - slower, larger: the shares by which a step may get slower, and its memory grow; None for the gate's own.
    - left_out: optional packages that a gate leaves out on both sides, each with the reason (`harness.gate.extras`).
    """

    subject: str = "hf-trainer"
    device: str = "cpu"
    clauses: tuple[str, ...] = ()
    preloads: tuple[str, ...] = ()
    added: tuple[tuple[str, str], ...] = ()
    build: tuple[str, ...] = ()
    specs: tuple[tuple[str, str], ...] = ()
    concerns: Concerns = field(default_factory=Concerns)
    defects: tuple[tuple[str, str], ...] = ()
    file: str = ""
    slower: float | None = None
    larger: float | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    def options(self) -> list[str]:
        """Return these as options of `pytest suites/`, but for those that name files (`file_options`)."""
        words = ["--subject", self.subject, "--device", self.device]
        for name, values in (("--clause", self.clauses), ("--preload", self.preloads)):
            for value in values:
                words += [name, value]
        return words + self.concerns.options()

    def file_options(self, directory: Path) -> list[str]:
        """Write the runs of --spec and the known defects into a directory.

        Returns them as options of a `pytest suites/` that runs there.
        """
        words = ["--trust-code"] if self.specs else []
        for name, text in self.specs:
            (directory / f"{name}.json").write_text(text, encoding="utf-8")
            words += ["--spec", f"{name}.json"]
        for name, text in self.defects:
            (directory / name).write_text(text, encoding="utf-8")
            words += ["--known-defects", name]
        return words
