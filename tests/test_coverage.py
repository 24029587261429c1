"""coverage: branches of a made-up source file, a real recording of it, and the table of reasons."""

import json
import subprocess
import sys

import pytest
from coverage import Coverage

from harness.coverage import command, measure, table
from harness.coverage.find import ENTERED, EVALUATED, NOT_TAKEN, TAKEN, branches
from harness.coverage.table import Reason
from harness.errors import UsageError
from harness.paths import ROOT

SOURCE = '''\
def save(model, is_peft_model, adapter=None):
    """Saves."""
    if is_peft_model:
        kind = "adapter"
    elif (
        adapter is not None
        and model
    ):
        @str
        def kind(): ...
    else:
        kind = "model"
    if kind == "nothing about it":
        return None
    while adapter:
        adapter = adapter[1:]
    return (
        kind, "peft" if adapter else "no")


class Trainer:
    def load_adapter(self):
        """Never called."""
        return 1

    def other(self):
        if self.adapter: return 2
'''


def found(**options):
    return branches(SOURCE, "toy.py", **{"words": "(?i)peft|adapter", **options})


def recorded(tmp_path, *calls):
    """Return what coverage reports for the made-up file after these calls of save()."""
    path = tmp_path / "toy.py"
    path.write_text(SOURCE)
    cover = Coverage(data_file=None, branch=True, include=[str(path)], config_file=False)
    module = {}
    cover.start()
    try:
        exec(compile(SOURCE, str(path), "exec"), module)
        for call in calls:
            module["save"](*call)
    finally:
        cover.stop()
    return measure.report(cover, {"toy.py": path})


def test_conditions_and_functions_about_adapters_are_found():
    assert [(branch.line, branch.function, branch.outcome) for branch in found()] == [
        (3, "save", TAKEN),
        (3, "save", NOT_TAKEN),
        (5, "save", TAKEN),
        (5, "save", NOT_TAKEN),
        (15, "save", TAKEN),
        (15, "save", NOT_TAKEN),
        (18, "save", EVALUATED),
        (22, "Trainer.load_adapter", ENTERED),
        (27, "Trainer.other", TAKEN),
        (27, "Trainer.other", NOT_TAKEN),
    ]
    assert found()[2].name == "toy.py:5 `if adapter is not None and model` taken"


def test_functions_can_be_chosen_and_then_every_condition_counts():
    assert {branch.function for branch in found(functions=("Trainer.*",))} == {"Trainer.load_adapter", "Trainer.other"}
    assert 13 in {branch.line for branch in found(functions=("save",), words="")}


@pytest.mark.parametrize(
    ("calls", "reached"),
    [
        ([], []),
        ([(0, True)], [(3, TAKEN), (15, NOT_TAKEN), (18, EVALUATED)]),
        ([(1, False, "a")], [(3, NOT_TAKEN), (5, TAKEN), (15, TAKEN), (15, NOT_TAKEN), (18, EVALUATED)]),
        ([(0, False, "a")], [(3, NOT_TAKEN), (5, NOT_TAKEN), (15, TAKEN), (15, NOT_TAKEN), (18, EVALUATED)]),
    ],
    ids=["nothing", "first", "several-lines", "else"],
)
def test_a_branch_is_reached_when_it_ran(calls, reached, tmp_path):
    measured = measure.judge(found(), recorded(tmp_path, *calls), [])
    assert [(branch.line, branch.outcome) for branch in measured.reached] == reached
    assert len(measured.unreached) == len(found()) - len(reached)


def test_reasons_cover_what_is_not_reached_and_no_more(tmp_path):
    never = Reason("toy.py", "mp", "nobody calls it", function="Trainer.*")
    gone = Reason("toy.py", "mp", "reached by now", function="save", condition="if is_peft_model", outcome=TAKEN)
    measured = measure.judge(found(), recorded(tmp_path, (0, True)), [never, gone])
    assert measured.stale == [gone]
    assert {branch.line for branch in measured.unexplained} == {3, 5, 15}
    assert {branch.function for branch, reason in measured.unreached if reason is never} == {
        "Trainer.load_adapter",
        "Trainer.other",
    }


def test_the_table_of_reasons_names_code_that_upstream_has():
    reasons = table.load_reasons()
    if not reasons.pinned:
        pytest.skip("the reasons are for the releases that reasons.toml names, and others are installed")
    branches_there = table.all_branches()
    assert [reason for reason in reasons.reasons if not any(reason.covers(branch) for branch in branches_there)] == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('{ file = "a", tier = "later", reason = "r" }', "entry 1: tier 'later' is none of mp, gpu, dep, hub, off"),
        ('{ file = "a", tier = "mp" }', "entry 1: .*'reason'"),
    ],
)
def test_a_reason_that_is_no_reason_is_refused(entry, words, tmp_path):
    path = tmp_path / "reasons.toml"
    path.write_text(f"open = 0\nversions = []\nunreached = [{entry}]\n")
    with pytest.raises(UsageError, match=words):
        table.load_reasons(path)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """measured(reasons, pinned): the exit code of the command on a recording of the made-up file, and what it wrote."""

    def run(reasons, pinned=True, whole=True, code=0, left=0):
        seen = recorded(tmp_path, (0, True))
        monkeypatch.setattr(command, "load_reasons", lambda: table.Reasons(pinned, left, tuple(reasons)))
        monkeypatch.setattr(command, "read", lambda data, reasons: measure.judge(found(), seen, reasons))
        out, plot = tmp_path / "coverage.json", tmp_path / "coverage.png"
        return command.coverage(lambda arguments: code, whole, out, plot), out, plot

    return run


def test_the_command_prints_writes_and_draws(measured, capsys):
    code, out, plot = measured([Reason("toy.py", "mp", "rank 1 goes there")])
    assert code == 0
    printed = capsys.readouterr().out
    assert "toy.py        10        3       30" in printed
    assert "not reached, needs several processes: 7" in printed
    assert "toy.py:22 `def load_adapter` entered: rank 1 goes there" in printed
    body = json.loads(out.read_text())
    assert body["files"] == [{"name": "toy.py", "branches": 10, "reached": 3}]
    assert {one["tier"] for one in body["unreached"]} == {"mp"}
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 1), ({"left": 6}, 1), ({"left": 7}, 0), ({"pinned": False}, 0), ({"whole": False}, 0), ({"code": 4}, 2)],
    ids=["whole", "one-more-than-open", "as-many-as-open", "another-stack", "some-clauses", "could-not-run"],
)
def test_a_branch_without_a_reason_fails_a_whole_run_on_the_pinned_stack(options, expected, measured, capsys):
    assert measured([], **options)[0] == expected
    if options == {"left": 6}:
        printed = capsys.readouterr().out
        assert "7 branches have no reason, reasons.toml says 6: reach them or add reasons" in printed
        assert "toy.py:22 `def load_adapter` entered in Trainer.load_adapter" in printed


def test_a_stale_reason_fails_too(measured, capsys):
    reasons = [Reason("toy.py", "mp", "r"), Reason("gone.py", "mp", "r")]
    assert measured(reasons)[0] == 1
    assert "gone.py * * *: every branch that it names is reached or gone; delete the entry" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_the_suites_reach_is_recorded_in_one_process_and_in_workers(workers, tmp_path):
    out = tmp_path / "coverage.json"
    words = ["coverage", "--clause", "API-11", "--json", str(out), "--", "-n", workers, "-q"]
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    unreached = {(one["function"], one["outcome"]) for one in json.loads(out.read_text())["unreached"]}
    # API-11 calls set_adapter, which refuses in its first line. No case of API-11 calls delete_adapter.
    assert ("PeftAdapterMixin.delete_adapter", "entered") in unreached
    assert ("PeftAdapterMixin.set_adapter", "entered") not in unreached


def test_bad_usage_is_one_sentence(tmp_path):
    words = ["coverage", "--clause", "NOPE-*"]
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "'NOPE-*' matches no clause" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
