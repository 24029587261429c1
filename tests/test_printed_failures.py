"""What a session of suites/ prints: failures, the table, progress; and what it writes for JUnit."""

import io
import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from harness import contract
from harness.session import report
from harness.verdict import Case
from tests.made_up_suite import HOLDS, in_new_process

pytest_plugins = ["pytester", "tests.made_up_suite"]

TEN = """
import pytest
from harness.verdict import verdict

@pytest.mark.clause("XYZ-01")
@pytest.mark.parametrize("number", range(10))
def test_a_name_that_takes_most_of_the_eighty_columns_which_a_terminal_has(judge, number):
    judge(verdict("the number is right", [f"step {number}: it is not the number that was expected at this step", "more"]))

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one-process", "two-workers"])
def test_failures_of_one_clause_state_it_once_and_have_their_first_finding_in_the_summary(suite, pytester, options):
    suite(TEN)
    done = in_new_process(pytester, *options, COLUMNS="80")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("clause    One MUST be one.") == done.stdout.count("upstream  nowhere:1") == 1
    for number in range(10):
        assert f"XYZ-01 does not hold: scenario {number}, subject hf-trainer, cpu" in done.stdout
        finding = f"XYZ-01: step {number}: it is not the number that was expected at this step"
        assert f"which_a_terminal_has[{number}] - {finding}\n" in done.stdout
    assert done.stdout.count("\nFAILED ") == 10
    assert "\x1b" not in done.stdout


def test_junit_has_the_finding_and_the_case_as_json(suite, pytester):
    suite(TEN, "--junit-xml", "junit.xml")
    tests = ElementTree.parse(pytester.path / "junit.xml").findall(".//testcase")
    finding = "XYZ-01: step 3: it is not the number that was expected at this step"
    assert [test.find("failure").get("message") for test in tests[3:4]] == [finding]
    case = json.loads(tests[3].find(".//property[@name='peft_harness_case']").get("value"))
    assert (case["clause"], case["scenario"], case["verdict"]) == ("XYZ-01", "3", "fail")
    properties = {one.get("name"): one.get("value") for one in tests[3].iter("property")}
    del properties["peft_harness_case"]
    assert properties.pop("cause", finding)
    assert properties == {"clause": "XYZ-01", "scenario": "3", "verdict": "fail"}
    assert all("One MUST be one." in test.find("failure").text for test in tests[:10])


def test_a_run_in_a_pipe_prints_how_far_it_is(suite, monkeypatch):
    monkeypatch.setattr("harness.progress.INTERVAL", 0.0)
    _, output, _ = suite(HOLDS.format(second=2))
    assert "2 of 3 tests, 1 failed (0 s)" in output.splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_its_width_with_whole_headings(width):
    words = ["pass", "fail", "known_defect", "ambiguous", "skipped"]
    ids = enumerate(contract.clauses())
    cases = [Case(id, str(number), "", "hf-trainer", verdict=words[number % 5]) for number, id in ids]
    stream = io.StringIO()
    report.summary(Console(file=stream, width=width), cases, report.Effort())
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    (all_clauses,) = [line for line in lines if line.startswith("all ")]
    assert max(map(len, lines)) <= width
    total = len(cases)
    assert all_clauses.split() == ["all", str(total), *(str(len(range(n, total, 5))) for n in range(5)), str(total)]
    headings = next(line for line in lines if line.startswith("chapter")).split()
    assert headings == [
        *["chapter", "clauses", "held", "failed"],
        *["known"] * (width > 80),
        *["defect", "undecided", "skipped", "cases"],
    ]


@pytest.mark.parametrize(("count", "words"), [(1, "skipped 1 case: no GPU"), (2, "skipped 2 cases: no GPU")])
def test_numbers_and_nouns_agree(count, words):
    stream = io.StringIO()
    cases = [
        Case("ACC-01", str(number), "", "hf-trainer", verdict="skipped", reason="no GPU") for number in range(count)
    ]
    report.summary(Console(file=stream, width=200), cases, report.Effort(runs=1))
    assert words in stream.getvalue().splitlines()
    assert "1 training run in" in stream.getvalue()


PRINTS = """
import pytest
from harness.verdict import same

@pytest.mark.clause("XYZ-01")
def test_one(judge):
    print("the Trainer's log")
    judge(same("the number", 2, 1))

@pytest.mark.clause("XYZ-02")
def test_two():
    pass
"""


@pytest.mark.parametrize("ending", ["", "    raise RuntimeError('upstream')\n"])
def test_what_upstream_printed_is_shown_only_if_a_test_crashed(suite, ending):
    head, tail = PRINTS.split('\n@pytest.mark.clause("XYZ-02")')
    code, output, _ = suite(f'{head}{ending}\n@pytest.mark.clause("XYZ-02")' + tail)
    assert code == 1 and "the number: 1" in output
    assert ("the Trainer's log" in output) == bool(ending)
