"""A gate's findings by cause: every case in exactly one, a screen of 30 lines, commands that can be pasted."""

import io
import json
import shlex
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from harness.gate import case_files, clauses, next_steps, show
from harness.gate.by_cause import by_cause, changed_packages
from harness.gate.compare import Outcome
from harness.gate.environments import Environment
from harness.gate.findings import BROKEN, LOST, Finding, in_order, verdict
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.paths import PACKAGE
from harness.session import case_file
from harness.spec import RunSpec
from harness.verdict import Case

#: Cases of a gate from transformers 5.23.0 to 5.24.0: what fails or cannot be judged now, one of each kind in each clause.
REPORT = Path(__file__).parent / "reports_of_gates" / "transformers_5_24.jsonl"

OLD = "ValueError: the version of PEFT you are using is not compatible"


def case(clause, scenario, verdict="pass", seen="", test="test_base_is_bit_identical", **values):
    evidence = {"seen": [seen]} if seen else {}
    return Case(clause, scenario, f"suites/test_frz.py::{test}[{scenario}]", "hf-trainer", verdict=verdict,
                evidence=evidence, **values)  # fmt: skip


def held(cases):
    return [case(one.clause, one.scenario, test=one.nodeid.partition("::")[2].partition("[")[0]) for one in cases]


def caused(after, besides=(), before=None, packages=("transformers",), specs=None):
    """Return (causes, findings) for the candidate's cases, of which all held before."""
    changes = clauses.changes(held(after) if before is None else before, after)
    findings = in_order([*clauses.findings(changes), *besides])
    return by_cause(findings, changes, after, packages, specs or {}), findings


BIG = [case(clause, f"{number}/add_adapter", "fail", OLD) for clause in ("FRZ-01", "API-02") for number in range(30)]
SMALL = case("CKPT-28", "bert/prefix-tuning", "fail", "the run ended with ValueError: no past key values")
CELL = Finding("cell", "plain/add_adapter", BROKEN, "trained before", {"seen": [f"the run ended with {OLD}"]})


def test_a_cause_reaches_over_clauses_and_runs_and_hides_no_small_one():
    causes, findings = caused([*BIG, SMALL], [CELL])
    assert [(len(one.cause.members), one.elsewhere, one.cause.packages) for one in causes] == [
        (60, (("cell", "plain/add_adapter"),), ("transformers",)),
        (1, (), ("transformers",)),
    ]
    assert causes[1].cause.sentence == "ValueError: no past key values"
    assert causes[1].cause.example == "CKPT-28 [bert/prefix-tuning]: the run ended with ValueError: no past key values"
    numbers = {(finding.about, finding.where): finding.details["causes"] for finding in findings}
    assert numbers == {("clause", "FRZ-01"): [1], ("clause", "API-02"): [1], ("clause", "CKPT-28"): [2],
                       ("cell", "plain/add_adapter"): [1]}  # fmt: skip


def test_every_case_that_fails_now_is_in_exactly_one_cause():
    twice = [case("CKPT-04", "plain", "fail", OLD, "test_b"), case("CKPT-04", "plain", "fail", "other words", "test_c")]
    after = [*BIG, SMALL, *twice, case("CKPT-04", "plain", test="test_d"), case("RES-01", "x", "known_defect", "odd")]
    causes, _ = caused(after)
    names = sorted(name for one in causes for name in one.cause.members)
    assert names == sorted((one.clause, one.scenario) for one in after if one.verdict != "pass")


def test_what_failed_before_is_no_cause():
    assert caused([*BIG], before=BIG) == ([], [])


def test_what_cannot_be_judged_for_a_cause_follows_from_it():
    follower = case("RES-01", "plain", "not_comparable", f"the uninterrupted run ended with {OLD}")
    missing = case("DS-08", "zero1-2", "skipped", reason="needs deepspeed")
    late = case("API-15", "drawn-life", "fail", OLD)
    before = [*held([*BIG, follower, missing]), case("API-15", "drawn-life", "skipped")]
    causes, findings = caused([*BIG, follower, missing, late], before=before)
    assert [(one.means, len(one.cause.members), one.follows) for one in causes] == [
        (BROKEN, 60, (("RES-01", "plain"), ("API-15", "drawn-life"))),
        (LOST, 1, ()),
    ]
    assert causes[1].cause.sentence == "needs deepspeed"
    assert verdict(findings) == "unsafe"


def test_numbers_memory_and_time_are_grouped_by_what_differs():
    besides = [
        Finding("numbers", "a", BROKEN, "the gradient is 0.25 times what it was; first", {"what": "gradient of x"}),
        Finding("numbers", "b", BROKEN, "first differs at step 1", {"what": "gradient of a.lora_A.weight"}),
        Finding("numbers", "c", BROKEN, "first differs at step 2", {"what": "gradient of b.lora_B.weight"}),
        Finding("throughput", "step", BROKEN, "larger: saved_bytes", {"counters": {"saved_bytes": [1, 2]}}),
        Finding("throughput", "step/accumulation", BROKEN, "larger", {"counters": {"saved_bytes": [1, 2]}}),
        Finding("throughput", "time", BROKEN, "a step is 5 % slower", {"seconds": 1}),
        Finding("throughput", "time/long", LOST, "the machine is too noisy", {"seconds": 1}),
    ]
    quarter = case("ACC-01", "full-rows", "fail", "step 1: the gradient is 0.25 times that of the large batch")
    causes, _ = caused([quarter], besides, packages=["peft", "transformers"])
    assert [(one.means, len(one.cause.members), sorted(where for _, where in one.elsewhere)) for one in causes] == [
        (BROKEN, 1, ["a"]),
        (BROKEN, 0, ["b", "c"]),
        (BROKEN, 0, ["step", "step/accumulation"]),
        (BROKEN, 0, ["time"]),
        (LOST, 0, ["time/long"]),
    ]
    assert causes[0].cause.packages == ()
    assert causes[1].cause.sentence.startswith("the numbers of a run differ, first in the gradient")


def test_packages_that_only_one_stack_has_are_not_to_blame():
    assert changed_packages({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}) == ["b"]


def test_the_gate_of_a_release_that_nobody_had_seen_has_two_causes():
    """A cut of a gate: transformers 5.24.0 wants a peft that does not exist, and renamed an argument that peft looks for."""
    lines = [json.loads(line) for line in REPORT.read_text().splitlines()]
    numbered = [(number, line) for number, line in enumerate(lines) if "clause" in line]
    before, after = ([made_from(*one, field) for one in numbered] for field in ("before", "verdict"))
    cells = [Finding(**line["finding"]) for line in lines if "finding" in line]
    changes = clauses.changes(before, after)
    findings = in_order([*clauses.findings(changes), *cells])
    dead, prefix = by_cause(findings, changes, after, ["transformers"], {})
    assert dead.cause.sentence == (
        "check_peft_version of transformers (transformers/utils/peft_utils.py) raises ValueError: The version of PEFT you "
        "are using is not compatible, please use a version >= 0.22.0"
    )
    assert prefix.cause.sentence == (
        "_prefix_tuning_forward of peft (peft/peft_model.py) raises ValueError: Model does not support past key values which "
        "are required for prefix tuning."
    )
    failing = sorted(
        (new.clause, new.scenario)
        for old, new in zip(before, after, strict=True)
        if old.verdict == "pass" and new.verdict in ("fail", "known_defect")
    )
    assert sorted([*dead.cause.members, *prefix.cause.members]) == failing
    assert len(prefix.cause.members) == 10 and len(prefix.follows) == 2
    assert {where for _, where in dead.elsewhere} == {finding.where for finding in cells} and len(cells) == 14
    assert not [
        finding for finding in findings if finding.means in (BROKEN, LOST) and not finding.details.get("causes")
    ]


def made_from(number, line, verdict):
    evidence = line["evidence"] if verdict == "verdict" else {}
    return Case(line["clause"], line["scenario"], f"suites/x.py::test_{number}", "hf-trainer", verdict=line[verdict],
                evidence=evidence, reason=evidence.get("reason", ""), raised=line.get("raised", []))  # fmt: skip


# ---- the screen ----


@pytest.fixture
def sides(tmp_path):
    environments = [
        Environment(asked, "python", {"transformers": version}, "x==1\n", "key")
        for asked, version in (("current", "1"), ("transformers==2", "2"))
    ]
    return [
        Side(name, environment, tmp_path / name, Scope())
        for name, environment in zip(("baseline", "candidate"), environments, strict=True)
    ]


def outcome(after, besides=(), **values):
    causes, findings = caused(after, besides)
    cases = {"baseline": held(after), "candidate": after}
    return Outcome(verdict(findings), findings, {}, cases, 1.0, causes=causes, **values)


def printed(sides, outcome, full=False, width=160):
    stream = io.StringIO()
    show.screen(Console(file=stream, width=width), show.to_report(sides, outcome), ["gate.json"], full)
    return stream.getvalue().splitlines()


REQUIRED = {"sides": ["candidate"], "sentence": "transformers 2 wants peft >= 3, the stack has 1", "package": "transformers",
            "version": "2", "wants": "peft >= 3", "has": "1", "available": False}  # fmt: skip


def other(number):
    return case(f"FRZ-{number + 1:02}", "plain", "fail", f"the file {'abcdefghijklmnop'[number]}.json is empty or odd")


@pytest.mark.parametrize("number", [0, 1, 2, 5, 12])
def test_the_screen_answers_first_and_names_causes_in_ten_lines_of_thirty(sides, number):
    notes = [Finding("interface", f"LoraConfig.{name}", means, "1 became 2") for name in "abcdefghij"
             for means in ("note", "mended")]  # fmt: skip
    lost = [case("DS-08", f"zero{part}", "skipped", reason=f"no reason {'xyzuvw'[part]}") for part in range(6)]
    after = [*BIG, *map(other, range(number)), *lost]
    made = outcome(after, [CELL, *notes], requires=[REQUIRED] * 3)
    made.causes = next_steps.with_next(made.causes, "current", "transformers==2", Scope(), {})
    lines = printed(sides, made, width=200)
    assert len(lines) <= 30
    assert lines[0] == (
        f"UNSAFE: {number + 1} cause{'s' * (number > 0)}; {60 + number} cases of {2 + max(number - 1, 0)} clauses held "
        "before and now fail; 1 run is no longer trained as before"
    )
    assert lines[1] == "requires: candidate: transformers 2 wants peft >= 3, the stack has 1"
    top = "\n".join(lines[:10])
    assert "1. ValueError: the version of PEFT" in top and "60 cases of 2 clauses; 1 run is no longer trained" in top
    for index in range(min(number, 5)):
        assert f"the file {'abcdefghijklmnop'[index]}.json" in top
    if number > 6:
        assert f"and {number - 5} smaller causes (--full): FRZ-06" in top
    full = printed(sides, made, full=True, width=200)
    assert all(f"the file {'abcdefghijklmnop'[index]}.json" in "\n".join(full) for index in range(number))
    assert sum(line.startswith("  interface LoraConfig.") for line in full) == 20


def test_a_safe_gate_is_short(sides):
    lines = printed(sides, outcome([case("FRZ-01", "plain")]))
    assert lines[0] == "SAFE: what held on the baseline holds on the candidate"
    assert len(lines) == 6


def test_an_inconclusive_gate_says_for_which_reason(sides):
    lost = [case("DS-08", f"zero{part}", "skipped", reason="needs deepspeed") for part in range(3)]
    lines = printed(sides, outcome(lost))
    assert (
        lines[0] == "INCONCLUSIVE: nothing is broken, and 3 cases of 1 clause cannot be judged any more, for 1 reason"
    )
    assert "  needs deepspeed (3 cases of 1 clause)" in lines


def test_the_report_with_causes_is_as_its_schema_says(sides, tmp_path):
    made = outcome([*BIG, SMALL], [CELL], requires=[REQUIRED])
    show.write_report(tmp_path / "report.json", sides, show.to_report(sides, made))
    body = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(body, json.loads((PACKAGE / "gate" / "report_schema.json").read_text()))
    assert sum(cause["cases"] for cause in body["causes"]) == len(BIG) + 1
    assert body["requires"][0]["wants"] == "peft >= 3"


# ---- commands and case files ----


def next_of(after, judged, besides=(), candidate="transformers==2 peft", files=None, specs=None):
    causes, _ = caused(after, besides, specs=specs)
    found = next_steps.with_next(causes, "pins v1.txt", candidate, judged, files or {})
    return [shlex.split(command) for command in found[0].cause.next]


def test_the_next_commands_name_both_stacks_the_clauses_and_the_file(tmp_path):
    files = {("CKPT-28", "bert/prefix-tuning"): tmp_path / "a b.json"}
    judged = Scope(preloads=("mine",), device="cuda", added=(("TOKEN", "secret"),))
    options = ["--device", "cuda", "--preload", "mine", "--env", "TOKEN"]
    ends = ["--good", "pins v1.txt", "--bad", "transformers==2 peft"]
    assert next_of([SMALL], judged, files=files) == [
        ["peft-harness", "bisect", "--clause", "CKPT-28", *ends, *options],
        ["peft-harness", "check", "--with", "transformers==2 peft", "--clause", "CKPT-28", *options],
        ["peft-harness", "repro", "--with", "transformers==2 peft", str(tmp_path / "a b.json"), "--trust-code"],
    ]


def test_the_installed_stack_needs_no_other_environment(tmp_path):
    files = {("CKPT-28", "bert/prefix-tuning"): tmp_path / "case.json"}
    commands = next_of([SMALL], Scope(), candidate="current", files=files)
    assert commands[1:] == [
        ["peft-harness", "check", "--clause", "CKPT-28"],
        ["peft-harness", "repro", str(tmp_path / "case.json")],
    ]


def test_a_cause_of_runs_alone_is_bisected_by_its_spec(tmp_path):
    files = {("cell", "plain/add_adapter"): tmp_path / "plain.json"}
    first, second = next_of([case("FRZ-01", "x")], Scope(), [CELL], files=files)
    assert first[:4] == ["peft-harness", "bisect", "--spec", str(tmp_path / "plain.json")]
    assert second == ["peft-harness", "repro", "--with", "transformers==2 peft", str(tmp_path / "plain.json")]


def test_runs_of_the_users_are_named_by_their_files(tmp_path):
    judged = Scope(specs=(("mine", json.dumps(RunSpec().to_json())),))
    files = {("cell", "mine"): tmp_path / "mine.json"}
    commands = next_of([case("FRZ-01", "mine", "fail", "drifts")], judged, files=files)
    assert [command[1:4] for command in commands] == [
        ["bisect", "--spec", str(tmp_path / "mine.json")],
        ["check", "--with", "transformers==2 peft"],
    ]


def test_case_files_lie_beside_the_report_and_can_be_repeated(tmp_path):
    spec = RunSpec().to_json()
    cases = [case("FRZ-01", "a/b", "fail", specs=[spec]), case("FRZ-01", "a-b", "fail", drawn=1, specs=[spec])]
    place = case_files.directory(tmp_path / "gate.json")
    files = case_files.write(place, cases, ["mine"], {"plain": json.dumps(spec)})
    assert [path.relative_to(tmp_path).as_posix() for path in files.values()] == [
        "gate.cases/FRZ-01-a-b.json", "gate.cases/FRZ-01-a-b-1.json", "gate.cases/cell-plain.json",
    ]  # fmt: skip
    first, second, cell = (case_file.load(path) for path in files.values())
    assert (first.clause, first.test, first.preload) == (
        "FRZ-01",
        "test_frz.py::test_base_is_bit_identical[a/b]",
        ("mine",),
    )
    assert second.spec == cell.spec == RunSpec()


def test_tests_of_the_same_clause_and_scenario_have_a_file_each(tmp_path):
    twice = [case("FRZ-01", "a", "fail"), case("FRZ-01", "a", "fail", test="test_the_base_gets_no_gradient")]
    files = case_files.write(tmp_path / "gate.cases", twice, [], {})
    assert files == {("FRZ-01", "a"): tmp_path / "gate.cases" / "FRZ-01-a.json"}
    tests = [case_file.load(path).test for path in sorted((tmp_path / "gate.cases").glob("FRZ*"), reverse=True)]
    assert tests == ["test_frz.py::test_base_is_bit_identical[a]", "test_frz.py::test_the_base_gets_no_gradient[a]"]


def test_another_gate_replaces_its_own_case_files_only(tmp_path):
    report = tmp_path / "gate.json"
    case_files.write(case_files.directory(report), [case("FRZ-01", "a", "fail")], [], {})
    (tmp_path / "gate.cases" / "note.txt").write_text("mine")
    case_files.write(case_files.directory(report), [case("FRZ-02", "b", "fail")], [], {})
    assert sorted(path.name for path in (tmp_path / "gate.cases").iterdir()) == [
        "FRZ-02-b.json", "made-by-peft-harness.json", "note.txt",
    ]  # fmt: skip


def test_a_directory_of_the_users_is_left_alone(tmp_path):
    (tmp_path / "gate.cases").mkdir()
    (tmp_path / "gate.cases" / "FRZ-01-a.json").write_text("mine")
    (tmp_path / "gate-1.cases").symlink_to(tmp_path)
    place = case_files.directory(tmp_path / "gate.json")
    assert place == tmp_path / "gate-2.cases"
    case_files.write(place, [case("FRZ-01", "a", "fail")], [], {})
    assert (tmp_path / "gate.cases" / "FRZ-01-a.json").read_text() == "mine"


@pytest.mark.parametrize("listed", ['["../outside.json"]', "[1]", "{}", "no JSON"])
def test_a_changed_list_removes_nothing_elsewhere(tmp_path, listed):
    (tmp_path / "outside.json").write_text("mine")
    (tmp_path / "gate.cases").mkdir()
    (tmp_path / "gate.cases" / "made-by-peft-harness.json").write_text(listed)
    case_files.write(case_files.directory(tmp_path / "gate.json"), [case("FRZ-01", "a", "fail")], [], {})
    assert (tmp_path / "outside.json").read_text() == "mine"
