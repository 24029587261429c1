"""The rooms of harness/: imports run downwards, there is no circle, and a module's name means one thing."""

import ast
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from harness.paths import FIXTURES, PACKAGE, ROOT, SUITES

#: Module names that occur several times, and why that is no riddle: inside a room the name says all.
SHARED_NAMES = {
    "checkpoint": "laws/ and reference/: what a checkpoint must be, and how the reference writes one",
    "checkpoints": "the room that judges and saves them; in gate/, those that each side of a gate resumes from the other",
    "command": "a room's entry from the command line",
    "crash": "the room of crash states; the chapter CRASH, its clauses and its mutants",
    "group": "of ranks; in causes/, of cases",
    "evaluation": "the chapter EVAL, and the laws on evaluation",
    "judge": "whether a checkpoint is whole; in mutants/, which clauses kill a mutant",
    "kinds": "runs/ has kinds of method, model and task; reports/ has kinds of report",
    "where": "the room that finds where two runs part; in gate/, that between two stacks",
    "loss": "the chapter LOSS, the laws on the loss, and the loss of the reference",
    "best": "the chapter BEST, and the laws on the best model",
    "optimizers": "the reference's rare optimizers; in fixtures/, those that a spec hands to the Trainer",
    "pairs": "of values that a sweep covers; in throughput/, of runs that are timed in turn",
    "progress": "how far a command has come; in real/, that of a training run",
    "quantized": "fixtures/ packs base models, laws/ judges packed ones",
    "rates": "laws on learning rates; in throughput/, how fast training is",
    "reference": "the oracle, and the subject that trains by it",
    "show": "a room's output for the terminal",
    "sweep": "runs/ judges configurations, session/ is the command",
    "throughput": "how steps are timed; in gate/ and laws/, what follows from it",
    "worker": "the process that a room starts to train in",
}


def unpack(tree: Path) -> Path:
    """Copy the sources into one package as a wheel does: what reads imports does not follow a changed __path__."""
    ignored = shutil.ignore_patterns("__pycache__", "baselines", "*.md", "*.json")
    shutil.copytree(PACKAGE, tree / "harness", ignore=ignored)
    for folder in (SUITES, FIXTURES):
        shutil.copytree(folder, tree / "harness" / folder.name, ignore=ignored)
    return tree


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--no-cache",
        "--no-logo",
        str(ROOT / "pyproject.toml"),
    ]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path):
    return unpack(tmp_path)


def test_imports_run_downwards(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Imports run downwards KEPT" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("laws/best.py", "from harness.gate import compare", "harness.laws.best -> harness.gate.compare"),
        ("laws/best.py", "def late():\n    import harness.cli", "harness.laws.best -> harness.cli"),
        ("gate/bisect.py", "from harness.mutants import catalogue", "harness.gate.bisect -> harness.mutants.catalogue"),
        ("fixtures/hub.py", "from harness.suites import test_acc", "harness.fixtures.hub -> harness.suites.test_acc"),
        ("reference/loss.py", "from harness.trace import Trace", "harness.reference.loss -> harness.trace"),
        ("attic.py", "", "harness.attic"),
    ],
    ids=["upwards", "inside-a-function", "sideways", "from-fixtures", "from-the-reference", "a-room-without-a-floor"],
)
def test_an_import_that_does_not_run_downwards_is_reported(tree, file, line, words):
    with (tree / "harness" / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert words in done.stdout


# ---- circles ----


def imports_at_start(file: Path, name: str, modules: set[str]) -> set[str]:
    """Return the modules that a module names while it is being imported; not those that its functions import later."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return (found & modules) - {name}


def circles(tree: Path) -> list[list[str]]:
    """Return the circles of imports at module level, each as the modules on it."""
    files = {
        ".".join(file.relative_to(tree).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (tree / "harness").rglob("*.py")
    }
    arrows = {name: sorted(imports_at_start(file, name, set(files))) for name, file in files.items()}
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append(path[path.index(name) :])
        elif name not in done:
            for other in arrows[name]:
                walk(other, [*path, name])
            done.add(name)

    for name in sorted(arrows):
        walk(name, [])
    return found


def test_no_modules_import_each_other(tree):
    assert circles(tree) == []


def test_a_circle_is_found(tree):
    with (tree / "harness" / "verdict.py").open("a") as source:
        source.write("\nfrom harness.laws import equal\n")
    found = circles(tree)
    assert any("harness.verdict" in circle and "harness.laws.equal" in circle for circle in found)


# ---- names ----


def names(*folders: Path) -> dict[str, list[str]]:
    """Return the places of each module name that occurs several times. A package counts by its folder's name."""
    places: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            place = file.parent if file.name == "__init__.py" else file
            places[place.stem].append(str(place.relative_to(folder.parent)))
    places.pop("__main__", None)  # what `python -m PACKAGE` runs
    return {name: found for name, found in places.items() if len(found) > 1}


def test_a_name_that_occurs_twice_means_one_thing():
    shared = names(PACKAGE, SUITES, FIXTURES)
    for name, places in list(shared.items()):
        # A chapter has its clauses in contract/ and its mutants in mutants/.
        chapter = {f"harness/{room}/{name}.py" for room in ("contract", "mutants")}
        if chapter == set(places):
            del shared[name]
    assert set(shared) == set(SHARED_NAMES), shared


def test_a_second_meaning_of_a_name_is_found(tmp_path):
    for file in ("harness/runs/cache.py", "harness/register/cache.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert names(tmp_path / "harness") == {"cache": ["harness/register/cache.py", "harness/runs/cache.py"]}
