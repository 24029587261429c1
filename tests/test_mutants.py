"""Run `peft-harness mutants` as a user does, on a module of the user's own, and check the list of mutants."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest

from harness import contract
from harness.errors import UsageError
from harness.mutants import catalogue, in_parts
from harness.paths import PACKAGE, ROOT
from harness.processes import engine
from harness.progress import Progress
from harness.verdict import Case
from tests import forked

OWN = """
import os, signal
from harness.mutants import Mutant, replace

TRAINER = "transformers.trainer:Trainer"

def same(original, *args, **options):
    return original(*args, **options)

def half(original, layer, *args, **options):
    return 0.5 * original(layer, *args, **options)

def unrelated(original, *args, **options):
    raise RuntimeError("no memory is left")

def dying(original, *args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

MUTANTS = [
    Mutant("nothing-at-all", "Nothing.", replace(TRAINER, "training_step", same), cells=("LOSS-01/ragged",)),
    Mutant("half", "Half.", replace("peft.tuners.lora.layer:Linear", "forward", half), cells=("API-04/alpha-16-r-8",)),
    Mutant("raising", "An error.", replace(TRAINER, "training_step", unrelated), cells=("LOSS-01/ragged",)),
    Mutant("dying", "Death.", replace(TRAINER, "training_step", dying), cells=("LOSS-01/ragged",)),
]
"""


#: An issue or a pull request.
THREAD = r"https://github\.com/[\w-]+/[\w-]+/(issues|pull)/\d+"


def harness(*words, run=forked.run):
    done = run([sys.executable, "-m", "harness.cli", *map(str, words)], cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Run a user's module once. Return the exit code, the output, and the report of each mutant by name."""
    directory = tmp_path_factory.mktemp("own")
    (directory / "own_mutants.py").write_text(OWN)
    report = directory / "report.json"
    new = functools.partial(subprocess.run, capture_output=True, text=True)
    code, output = harness("mutants", "--module", directory / "own_mutants.py", "--json", report, run=new)
    body = json.loads(report.read_text())
    jsonschema.validate(body, json.loads((PACKAGE / "mutants" / "report_schema.json").read_text()))
    return code, output, {mutant["name"]: mutant for mutant in body["mutants"]}


def test_a_mutant_is_killed_by_the_clause_that_it_breaks(own):
    _, _, mutants = own
    assert mutants["half"]["status"] == "killed"
    assert "API-04" in mutants["half"]["killed_by"]
    assert any("output differs by" in case["sentence"] for case in mutants["half"]["cases"])


def test_a_mutant_that_changes_nothing_is_proved_equivalent(own):
    _, output, mutants = own
    assert mutants["nothing-at-all"]["status"] == "equivalent"
    assert "every run of its cells and of the scenario table is bit-equal" in output


def test_an_error_is_no_kill_and_ends_with_1(own):
    code, output, mutants = own
    assert code == 1
    assert mutants["raising"]["status"] == "survived"
    assert {case["outcome"] for case in mutants["raising"]["cases"]} == {"error"}
    assert output.index("raising") < output.index("half ")  # Survivors come first.
    assert all(mutants["raising"]["usual"].values())


def test_a_process_that_dies_is_told_with_the_case_that_it_was_in(own):
    _, _, mutants = own
    assert mutants["dying"]["status"] == "crashed"
    assert re.search(r"was killed by SIGKILL in test_\w+\.py::test_", mutants["dying"]["why"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("x = 1", "needs a list MUTANTS of harness.mutants.Mutant"),
        ("import no_such_module", "cannot be imported (ModuleNotFoundError"),
        ("MUTANTS = [Mutant('Bad Name', '', nothing, ('LOSS-01',))]", "needs a name in kebab-case"),
        ("MUTANTS = [Mutant('good', '', nothing, ('XYZ-01',))]", "cell 'XYZ-01' of mutant good names no clause"),
        ("MUTANTS = [Mutant('good', '', nothing, ())]", "mutant good names no cells"),
        ("MUTANTS = [Mutant(3, '', nothing, ('LOSS-01',))]", "name of a mutant is 3; expected a text"),
        ("MUTANTS = [Mutant('good', '', nothing, 'LOSS-01')]", "cells of mutant good are 'LOSS-01'"),
        ("MUTANTS = [Mutant('good', '', 1, ('LOSS-01',))]", "mutant good needs a function `put`"),
        ("MUTANTS = 2 * [Mutant('good', '', nothing, ('LOSS-01',))]", "two mutants are named good"),
        ("MUTANTS = 3", "needs a list MUTANTS of harness.mutants.Mutant"),
        ("import sys; sys.exit(0)", "mine.py: cannot be imported (it calls sys.exit(0), at "),
        ("import os; os._exit(0)", "mine.py: cannot be imported (it calls os._exit(0), at "),
    ],
)
def test_a_module_that_is_wrong_is_told_in_a_sentence(text, words, tmp_path):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(f"from harness.mutants import Mutant, nothing\n{text}\n")
    with pytest.raises(UsageError, match=re.escape(words)):
        catalogue.load(file)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--mutant", "rows-not-shufled"], "names no mutant; near it are rows-not-shuffled"),
        (["--module", "no-such-file.py"], "--module no-such-file.py: no such file"),
        (["--module", "harness"], "--module harness: is a directory; name a file"),
        (["--json", "harness"], "--json harness: is a directory; name a file"),
    ],
)
def test_wrong_arguments_end_with_2(words, answer):
    code, output = harness("mutants", *words)
    assert code == 2
    assert answer in output and "Traceback" not in output


def test_a_mutant_can_be_preloaded():
    code = "import harness.mutants.preload, importlib; importlib.import_module('harness.mutants.preload.{}')"
    script = code.format("alpha-for-alpha-over-r") + "\nfrom peft.tuners.lora.layer import LoraLayer as L"
    script += "\nassert L.update_layer.__name__ == 'update_layer' and L.update_layer.__closure__, 'not put in'"
    put_in = forked.run([sys.executable, "-c", script], cwd=ROOT)
    assert put_in.returncode == 0, put_in.stderr
    missing = forked.run([sys.executable, "-c", code.format("no-such")], cwd=ROOT)
    assert "ModuleNotFoundError: No module named 'harness.mutants.preload.no-such'" in missing.stderr


# ---- the list of mutants ----


def test_the_register_is_over_every_chapter_and_well_formed():
    mutants = catalogue.mutants()
    assert len(mutants) >= 80
    chapters = {mutant.chapter for mutant in mutants.values()}
    # Cells of GEN are run on every mutant (`harness.mutants.catalogue.COMMON`).
    assert {chapter.id for chapter in contract.chapters()} - chapters <= {"GEN", "PERF"}
    for name, mutant in mutants.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert re.fullmatch(r"\S.*\S\.", mutant.says) and mutant.cells
        assert not mutant.thread or re.fullmatch(THREAD, mutant.thread)


@pytest.mark.parametrize(
    ("glob", "cell", "named"),
    [
        ("LOSS-01", "LOSS-01/ragged", True),
        ("LOSS-01/rag*", "LOSS-01/ragged/add_adapter", True),
        ("LOSS-01/ragged", "LOSS-01/ragged/add_adapter", False),
        ("LOSS-0", "LOSS-01/ragged", False),
    ],
)
def test_cells_are_named_by_globs(glob, cell, named):
    assert catalogue.matches(glob, cell) is named


def test_an_engine_measures_parts_that_become_one_matrix(monkeypatch, tmp_path):
    chosen = list(catalogue.mutants().values())[:5]
    unfit = dataclasses.asdict(Case("ACC-01", "one", "suites/test_acc.py::one", "hf-trainer"))

    def part(module, names):
        outcomes = [
            {"mutant": name, "cases": [{"clause": "ACC-01", "scenario": "one", "outcome": "killed", "sentence": "x"}],
             "fate": "", "usual": {}, "equivalent": None, "differs": "", "seconds": 1.0}
            for name in names
        ]  # fmt: skip
        return {"outcomes": outcomes, "cases": 3, "unfit": [unfit], "workers": 2}

    monkeypatch.setattr(in_parts, "part", part)
    with ThreadPoolExecutor(2) as pool, Progress() as progress:
        at = engine.Engine(pool, 1, tmp_path / "lease", "me", "")
        matrix = in_parts.measured(chosen, None, at, progress)
    assert [one.mutant for one in matrix.outcomes] == chosen
    assert {one.status for one in matrix.outcomes} == {"killed"}
    assert (matrix.cases, len(matrix.unfit), matrix.workers) == (6, 1, 2)


def test_a_part_that_cannot_be_measured_is_one_sentence(tmp_path):
    (tmp_path / "mine.py").write_text("1/0")
    with pytest.raises(UsageError, match=r"mutants one: peft-harness: .*mine\.py"):
        in_parts.part(str(tmp_path / "mine.py"), ["one"])
