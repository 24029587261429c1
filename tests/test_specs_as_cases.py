"""Runs that are brought with --spec: as cases of the suites, and in what gate and bisect conclude from these."""

import dataclasses
import json

import jsonschema
import pytest

from harness import trust
from harness.contract import expectations
from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.gate import bisect, cell_findings, cells, clauses, compare
from harness.gate.environments import Environment
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE
from harness.gate.probe import StackResult, targets
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.laws import universal
from harness.paths import OUR_SETTINGS, PACKAGE, SUITES
from harness.runs import judging
from harness.session import case_file, report, specs
from harness.spec import RunSpec
from harness.verdict import FAIL, NOT_COMPARABLE, PASS, SKIPPED, Case, verdict
from tests.made_up_suite import verdicts
from tests.traces import made_up, with_checkpoint

pytest_plugins = ["pytester"]

MINE = {"data": {"rows": 8}, "arguments": {"max_steps": 2, "save_steps": 1, "logging_steps": 1}}


@pytest.fixture
def session(pytester, monkeypatch):
    """session(*options, mine=spec): run the suites on mine.json in this process; (exit code, output, JSON report)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*options, mine=MINE):
        (pytester.path / "mine.json").write_text(json.dumps(mine))
        words = [str(SUITES), *OUR_SETTINGS, "-p", "no:cacheprovider", "-q", "--json", "out.json"]
        done = pytester.runpytest_inprocess(*words, "--spec", "mine.json", *options)
        body = json.loads((pytester.path / "out.json").read_text())
        jsonschema.validate(body, json.loads((PACKAGE / "session" / "report_schema.json").read_text()))
        return int(done.ret), done.stdout.str() + done.stderr.str(), body

    return run


# ---- cases ----


def test_each_clause_that_applies_to_any_run_is_a_case(session):
    code, output, body = session("--journal", "journal.jsonl")
    assert code == 0, output
    assert {clause for clause, _ in verdicts(body)} == {*universal.LAWS_OF_ONE_RUN, *universal.LAWS_OF_SEVERAL_RUNS}
    assert {scenario for _, scenario in verdicts(body)} == {"mine"}
    assert verdicts(body)[("GEN-01", "mine")] == verdicts(body)[("RES-01", "mine")] == "pass"
    assert "mine: equal to the independent reference bit for bit" in output
    # What was not judged is said.
    assert verdicts(body)[("ACC-01", "mine")] == "not_comparable"
    assert "ACC-01 (nothing is accumulated)" in output.partition("not judged: ")[2]
    assert body["clauses"][0]["cases"][0]["spec"]["data"]["rows"] == 8
    # The journal has all cases of this run, and is none of another one.
    code, output, _ = session("--journal", "journal.jsonl")
    assert code == 0 and "0 training runs" in output


def test_a_journal_of_another_spec_is_left_alone(session):
    journal = ("--journal", "journal.jsonl", "--clause", "RNG-02")
    assert session(*journal)[0] == 0
    _, output, _ = session(*journal, mine={"arguments": {"max_steps": 3}})
    assert "has cases of another run" in output


def broken(trace):
    return verdict("all is well", ["nothing is well"])


def test_a_law_that_fails_can_be_repeated_from_the_spec_alone(session, pytester, monkeypatch):
    monkeypatch.setitem(universal.LAWS_OF_ONE_RUN, "LOOP-02", broken)
    code, output, body = session("--clause", "LOOP-0[24]")
    assert code == 1
    assert verdicts(body) == {("LOOP-02", "mine"): "fail", ("LOOP-04", "mine"): "pass"}
    assert "peft-harness repro .peft-harness/cases/LOOP-02-mine.json" in output
    case = case_file.load(pytester.path / ".peft-harness/cases/LOOP-02-mine.json")
    assert case.test is None and case.clause == "LOOP-02" and case.spec.data.rows == 8


def test_a_known_defect_excuses_the_runs_that_it_describes(session, monkeypatch):
    monkeypatch.setitem(universal.LAWS_OF_ONE_RUN, "LOOP-02", broken)
    one = Expectation("LOOP-02", "drawn", ("torch>=1",), "nothing is well", "known", spec={"data.rows": "8"})
    monkeypatch.setattr(expectations, "load", lambda directory: [one])
    assert session("--clause", "LOOP-02")[0] == 0
    code, _, body = session("--clause", "LOOP-02", mine=MINE | {"data": {"rows": 9}})
    assert code == 1 and verdicts(body) == {("LOOP-02", "mine"): "fail"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fp16": True, "bf16": True}, "mine.json: upstream refuses it: ValueError"),
        ({"optim": "galore_adamw"}, "mine.json: subject hf-trainer does not train such a spec"),
        ({"learning_rat": 0.1}, "mine.json: no release of transformers has the argument 'learning_rat'; did you mean"),
    ],
)
def test_a_run_that_upstream_refuses_is_said_once(session, arguments, words):
    code, output, body = session("--clause", "LOOP-0*", mine={"arguments": {"max_steps": 2, **arguments}})
    assert code == 2
    assert output.count("ERROR: ") == 1 and output.count(words) == 1, output
    assert set(verdicts(body).values()) == {"skipped"}


def test_without_a_spec_there_is_no_such_case_and_with_one_no_other(pytester):
    words = [*OUR_SETTINGS, "-p", "no:cacheprovider", "-q", "--collect-only"]
    (pytester.path / "mine.json").write_text(json.dumps(MINE))
    with_it = pytester.runpytest_inprocess(str(SUITES), *words, "--spec", "mine.json").stdout.str()
    ids = [line for line in with_it.splitlines() if "::" in line]
    assert len(ids) == len(universal.clauses_of(RunSpec()))
    assert all(line.startswith("suites/test_specs.py::test_run[mine-") for line in ids)
    files = [str(SUITES / name) for name in ("test_specs.py", "test_rng.py")]
    without = [line for line in pytester.runpytest_inprocess(*files, *words).stdout.str().splitlines() if "::" in line]
    assert without and not any("test_specs" in line for line in without)


# ---- files ----


def test_files_of_the_same_name_are_told_apart(tmp_path):
    files = [tmp_path / place / "my run[1].json" for place in ("a", "b", "c")]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps(MINE))
    assert [one.name for one in specs.load_all(files)] == ["my-run-1", "my-run-1-2", "my-run-1-3"]


def test_paths_in_a_spec_hold_elsewhere_too_and_it_reports_to_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = {"model": {"path": "model"}, "data": {"path": "rows.jsonl"}, "arguments": {"run_name": "mine"}}
    (tmp_path / "mine.json").write_text(json.dumps(body))
    spec, said = specs.load("mine.json")
    assert said == ["run_name is left out: it changes nothing that is judged"]
    assert (spec.model.path, spec.data.path) == (str(tmp_path / "model"), str(tmp_path / "rows.jsonl"))
    assert spec.arguments["report_to"] == "none"


def test_code_in_a_spec_has_to_be_trusted(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"model": {"family": "my.models:mine"}}))
    with pytest.raises(UsageError, match="--trust-code"):
        specs.load(tmp_path / "mine.json")
    assert trust.needed(specs.load(tmp_path / "mine.json", trusted=True)[0].to_json(), None, ())


# ---- what is concluded ----


def case(outcome, clause="RES-01", scenario="mine", **values):
    seen = {"seen": [f"{clause} is broken"]} if outcome == FAIL else {}
    body = [RunSpec().to_json()]
    fields = {"evidence": seen, "specs": body, "brought": True, **values}
    return Case(
        clause,
        scenario,
        f"suites/test_specs.py::test_run[{scenario}-{clause}]",
        "hf-trainer",
        verdict=outcome,
        **fields,
    )


def test_a_run_that_was_compared_with_no_other_is_undecided():
    lone = [case(NOT_COMPARABLE, clause, reason="it cannot be") for clause in universal.COMPARISONS]
    rest = [case(PASS, "FRZ-01")]
    assert report.exit_code([*lone, *rest]) == 3 and specs.uncompared([*lone, *rest]) == ["mine"]
    assert report.exit_code([*lone[1:], case(PASS, "GEN-01"), *rest]) == 0
    # If the user chose other clauses, nothing is missing.
    assert report.exit_code(rest, named=True) == 0
    reasons = {"it cannot be": [*universal.COMPARISONS]}
    assert specs.not_judged([*lone, *rest]) == {"mine": reasons}
    # Each run has to be compared.
    assert report.exit_code([*lone, *rest, case(PASS, "GEN-01", "other")]) == 3


def test_a_law_that_does_not_apply_any_more_is_lost():
    (found,) = clauses.compared([case(PASS)], [case(NOT_COMPARABLE, reason="it is not modelled")])
    assert found.means == LOST and "it is not modelled" in found.sentence


def test_what_fails_or_is_not_judged_on_both_sides_is_said():
    both = [case(FAIL, "ACC-01"), case(PASS, "FRZ-01"), case(NOT_COMPARABLE, reason="no checkpoint")]
    assert clauses.compared(both, both) == []
    fails, unjudged = clauses.unchanged(both, both)
    assert (fails.means, fails.sentence) == (NOTE, "fails on both sides (mine): ACC-01 is broken")
    assert (unjudged.means, unjudged.sentence) == (NOTE, "not judged on either side: RES-01 (no checkpoint)")


def test_a_refusal_is_one_finding_and_what_bisect_looks_for():
    refused = [case(SKIPPED, clause, reason="upstream refuses it", refused=True) for clause in ("RES-01", "ACC-01")]
    held = [case(PASS, clause) for clause in ("RES-01", "ACC-01")]
    assert clauses.compared(held, refused) == clauses.compared(refused, held) == []
    good, bad = (StackResult("x", {one.clause: one for one in cases}) for cases in (held, refused))
    assert targets(good, bad) == ["RES-01", "ACC-01"]
    assert bad.summary(["RES-01"]) == "upstream refuses it"


class FakeProber:
    """Stands for a Prober: gives each stack its cases, and records the tests that it was asked for."""

    judged = Scope(specs=(("mine", "{}"),))

    width = 2

    def __init__(self, **cases):
        self.cases = cases

    def ask(self, stacks):
        return [StackResult(stack, {one.clause: one for one in self.cases[stack[-1]]}) for stack in stacks]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"outcome": SKIPPED, "refused": True}, "mine (LOOP-04) broke in peft 2 (1 holds)"),
        ({"outcome": FAIL}, "mine (the first of RES-01, LOOP-04) broke in peft 2 (1 holds)"),
    ],
)
def test_bisect_finds_the_clauses_that_break_for_a_run_itself(monkeypatch, broken, words):
    monkeypatch.setattr(dataclasses, "replace", lambda prober, tests: prober)
    ends = [Environment(f"peft=={n}", "python", {"peft": str(n)}, "", str(n)) for n in (1, 2)]
    held = [case(PASS, clause) for clause in ("RES-01", "LOOP-04", "GEN-01")]
    breaks = [case(clause=clause, **broken) for clause in ("RES-01", "LOOP-04")]
    prober = FakeProber(**{"1": held, "2": breaks})
    monkeypatch.setattr(bisect, "between", lambda *_: ["1", "2"])
    assert str(bisect.bisect("mine", *ends, prober, lambda *_: None)) == words


@pytest.fixture
def sides(tmp_path):
    environment = Environment("peft==1", "python", {"peft": "1"}, "peft==1\n", "key")
    judged = Scope(specs=(("mine", json.dumps(RunSpec().to_json())),))
    return [Side(name, environment, tmp_path / name, judged) for name in ("baseline", "candidate")]


def trained(side, trace=None, **answer):
    side.done["cells/mine"] = {"error": None, "data": {}, **answer}
    if trace is not None:
        trace.save(side.directory / "cells/mine" / "trace")


def test_a_field_that_only_one_side_has_is_a_finding(sides):
    specs_of = {"mine": RunSpec()}
    trained(sides[0], made_up())
    trained(sides[1], data={"unsupported": "transformers 5 has no TrainingArguments.x"})
    (found,) = cell_findings.trained(*sides, specs_of)
    assert found.means == BROKEN and "transformers 5 has no TrainingArguments.x" in found.sentence
    # Nothing can be compared with a baseline that does not train it.
    mended, lost = cell_findings.trained(*reversed(sides), specs_of)
    assert (mended.means, lost.means) == (FIXED, LOST)


def test_a_run_that_no_side_trains_ends_the_gate(sides):
    for side in sides:
        trained(side, error="UsageError: no release of transformers has the argument 'x'")
    with pytest.raises(UsageError, match=r"mine: no stack can train it.*has the argument 'x'"):
        compare.require_trained(*sides, {"mine": RunSpec()})
    trained(sides[1], made_up())
    compare.require_trained(*sides, {"mine": RunSpec()})


def test_a_checkpoint_that_is_not_crossed_is_said(sides):
    for side in sides:
        trained(side, made_up())
    notes = list(cell_findings.resumed(*sides, {"mine": RunSpec()}, {}))
    assert [(note.means, note.details["way"]) for note in notes] == [(NOTE, "upgrade"), (NOTE, "roll-back")]
    assert "saved no checkpoint before its last steps" in notes[0].sentence


# ---- cells ----


@pytest.mark.parametrize(
    ("arguments", "as_it_is"),
    [
        ({"max_steps": 10, "save_strategy": "steps", "save_steps": 5}, True),
        ({"max_steps": 10, "save_strategy": "steps", "save_steps": 0.25}, True),
        ({"max_steps": 10, "save_strategy": "steps", "save_steps": 8}, False),
        ({"max_steps": 10, "save_strategy": "steps", "save_steps": 5, "save_only_model": True}, False),
        ({"max_steps": 10, "save_strategy": "no"}, False),
        ({"num_train_epochs": 2, "save_strategy": "epoch", "load_best_model_at_end": True}, False),
        ({"max_steps": 10}, False),
    ],
)
def test_a_run_without_a_checkpoint_in_its_middle_gets_one(arguments, as_it_is):
    spec = RunSpec(arguments=arguments)
    crossed = cells.crossed(spec)
    assert (crossed == spec) == as_it_is
    if not as_it_is:
        assert crossed.arguments["save_steps"] == 0.5 and crossed.arguments["save_strategy"] == "steps"
        assert not crossed.arguments.get("load_best_model_at_end") and not crossed.arguments.get("save_only_model")


def test_a_run_that_resumes_is_crossed_by_its_first_leg():
    spec = RunSpec(arguments={"max_steps": 10, "save_strategy": "steps", "save_steps": 5})
    assert cells.brought([("mine", json.dumps(spec.resumed(5).to_json()))]) == {"mine": spec}


def test_each_side_gets_the_runs_as_they_were_read(tmp_path):
    judged = Scope(specs=(("mine", json.dumps(MINE)),))
    assert judged.file_options(tmp_path) == ["--trust-code", "--spec", "mine.json"]
    assert json.loads((tmp_path / "mine.json").read_text()) == MINE
    assert Scope().file_options(tmp_path / "none") == []


# ---- runs to compare with ----


class Resumed:
    """Stands for `Runs`: the run trains, and resumed from a checkpoint it ends with an error before its first step."""

    def __init__(self, error, directory):
        saved = made_up(RunSpec())
        for step in (1, 2):
            with_checkpoint(saved, directory, step)
        self.error, self.checkpoints = error, saved.checkpoints

    def train(self, spec, subject=None, again=False):
        trace = made_up(spec)
        trace.checkpoints = self.checkpoints
        if spec.resume is not None:
            trace.steps, trace.events, trace.error = [], [], self.error
        return trace

    def on_device(self, spec):
        return spec


@pytest.mark.parametrize(
    ("error", "outcome"),
    [("RuntimeError: cannot restore the location cpu:0", FAIL), ("ValueError: nothing to resume", NOT_COMPARABLE)],
)
def test_a_run_that_does_not_load_its_own_checkpoint_is_at_fault(error, outcome, tmp_path):
    spec, runs = RunSpec(), Resumed(error, tmp_path)
    found = judging.decided(dict(judging.laws_of(spec, runs.train(spec), runs))["RES-01"])
    assert found.outcome == outcome and error in str(found.seen)
