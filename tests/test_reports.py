"""harness/reports/: what CI systems get. A report may come from somebody else, so each of its texts may be anything."""

import itertools
import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from harness.errors import UsageError
from harness.reports import badge, github, gitlab, junit, kinds, pins, problems, sarif
from tests import command_line

SUBSET = json.loads(Path(__file__).with_name("sarif_subset.json").read_text())

#: What ends a value, begins a command, links, or mentions somebody, in one of the formats.
HOSTILE = "100%\r\n::error::x,y:z </failure>]]>&\"'`@team` [a](https://b) {0} \x1b[31m \x00 \ud800 ```\n## heading"

WRITERS = (junit, sarif, gitlab, badge, github)


def gate(sentence="the gradient is 0.25 times that", causes=True, verdict="unsafe", **fields):
    finding = {"about": "clause", "where": "ACC-01", "means": "broken", "sentence": sentence}
    cell = {"about": "cell", "where": "nf4", "means": "broken", "sentence": sentence, "details": {}}
    lost = {"about": "clause", "where": "DS-05", "means": "lost", "sentence": sentence, "details": {}}
    cause = {
        "sentence": sentence,
        "cases": 26,
        "clauses": ["ACC-01"],
        "packages": ["transformers"],
        "next": ["peft-harness bisect --clause ACC-01"],
    }

    def side(version):
        clauses = [{"id": id, "verdict": "pass", "cases": []} for id in ("ACC-01", "DS-05", "FRZ-01")]
        return {"versions": {"transformers": version, "peft": "0.18.1"}, "report": {"clauses": clauses}}

    return {
        "verdict": verdict,
        "findings": [{**finding, "details": {"scenarios": ["a"] * 26}}, cell, lost] if verdict != "safe" else [],
        "numbers": {"plain": {}, "nf4": {}},
        "baseline": side("5.1.0"),
        "candidate": {**side("5.3.0"), "pins": {"transformers": {"file": "pins.txt", "line": 3}}},
        **({"causes": [cause]} if causes and verdict != "safe" else {}),
        **fields,
    }


def suites(*cases):
    clauses = {}
    for clause, verdict, seen in cases:
        evidence = {"expected": "one", "seen": [seen]} if verdict in ("fail", "ambiguous") else {"reason": seen}
        case = {"scenario": f"case-{len(clauses)}", "verdict": verdict, "evidence": evidence, "spec": {"a": 1}}
        clauses.setdefault(clause, {"id": clause, "verdict": verdict, "cases": []})["cases"].append(case)
    return {"environment": {"versions": {"torch": "2.13.0"}}, "clauses": list(clauses.values())}


EACH = {
    "gate": gate,
    "gate-without-causes": lambda sentence: gate(sentence, causes=False),
    "suites": lambda sentence: suites(("ACC-01", "fail", sentence), ("ACC-02", "ambiguous", sentence)),
    "judge": lambda sentence: {
        "laws": [{"clause": "ACC-01", "verdict": "fail", "seen": [sentence], "reason": ""}],
        "spec": {},
    },
    "sweep": lambda sentence: {
        "configurations": {"holds": 3},
        "complete": True,
        "causes": [{"clauses": [{"clause": "ACC-01", "seen": sentence}], "fields": {"bf16": sentence}}],
    },
    "mutants": lambda sentence: {
        "mutants": [{"name": "one", "chapter": "acc", "status": "survived", "says": sentence}]
    },
}


@pytest.fixture(params=EACH, ids=str)
def hostile(request):
    return EACH[request.param](HOSTILE)


# ---- problems ----


def test_a_cause_is_one_problem_and_its_clauses_are_none_of_their_own():
    first, cell, lost = problems.of(gate())
    assert (first.clauses, first.cases, first.packages) == (("ACC-01",), 26, ("transformers",))
    assert (cell.rule, cell.sentence) == ("broken-by-the-upgrade", "cell nf4: the gradient is 0.25 times that")
    assert (lost.rule, lost.clauses) == ("not-judged-any-more", ("DS-05",))


def test_equal_sentences_are_one_problem_if_a_report_has_no_causes():
    same = [("ACC-01", "fail", "the same"), ("ACC-01", "fail", "the same"), ("FRZ-01", "fail", "the same")]
    found = problems.of(suites(*same, ("RES-01", "unexpected_pass", "a defect is gone"), ("RES-02", "pass", "")))
    assert [(one.rule, one.clauses, one.cases) for one in found] == [
        ("clause-fails", ("ACC-01", "FRZ-01"), 3),
        ("unexpected-pass", ("RES-01",), 1),
    ]


def test_the_same_problem_has_the_same_fingerprint_whatever_its_counts():
    ours, theirs = (problems.of(gate(causes=True))[0] for _ in range(2))
    more = problems.of(gate(causes=True) | {"causes": [{**gate()["causes"][0], "cases": 3}]})[0]
    other = problems.of(gate("another"))[0]
    assert ours.fingerprint == theirs.fingerprint == more.fingerprint != other.fingerprint


@pytest.mark.parametrize("report", [None, [], {}, {"clauses": {}}, "text", {"schema_version": 1}], ids=repr)
def test_what_is_no_report_is_refused_in_one_sentence(report):
    for writer in WRITERS:
        with pytest.raises(UsageError, match="is no report of peft-harness"):
            writer.write(report)


#: What a field may hold that should have another type.
ODD = (None, 1, "text", [], [1, "a", None], {}, {"a": 1}, [{}], [[[]]], True, -1.5)


@pytest.mark.parametrize("name", EACH)
def test_a_field_of_another_type_breaks_nothing(name):
    """Each field of a report, and each field of what it lists, is replaced in turn."""
    report = EACH[name]("sentence")
    values = itertools.cycle(ODD)
    for changed in (*replaced(report, values), *({**report, "pins": value, "candidate": value} for value in ODD)):
        try:
            kinds.kind(changed)
        except UsageError:
            continue
        for writer in WRITERS:
            assert isinstance(writer.write(changed), str)
        github.summary(changed)


def replaced(report, values):
    """Yield copies of a report, each with one field replaced, at any depth."""
    for name in report if isinstance(report, dict) else range(len(report)):
        copy = report.copy()
        copy[name] = next(values)
        yield copy
        if isinstance(report[name], (dict, list)):
            for inner in replaced(report[name], values):
                copy = report.copy()
                copy[name] = inner
                yield copy


# ---- pins ----

FILES = {
    "requirements.txt": """-r other.txt
# transformers==1.0
Transformers[torch] == 5.1.0 ; python_version > '3'
peft>=0.18
""",
    "pyproject.toml": """[project]
keywords = ["transformers", "peft"]
dependencies = [
    "transformers>=5",
    "peft~=0.18"]
""",
    "uv.lock": """[[package]]
name = "accelerate"
dependencies = [{ name = "peft" }]
[[package]]
name = "peft"
""",
    "environment.yml": """dependencies:
  - pip
  - pip:
    - transformers==5.1.0
    - peft
""",
}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("requirements.txt", {"transformers": 3, "peft": 4}),
        ("pyproject.toml", {"transformers": 4, "peft": 5}),
        ("uv.lock", {"peft": 5}),
        ("environment.yml", {"transformers": 4, "peft": 5}),
    ],
)
def test_the_line_of_a_pin_is_found_in_any_format(tmp_path, name, lines):
    (tmp_path / name).write_text(FILES[name])
    found = pins.find([tmp_path / name], ["transformers", "peft", "torch"], tmp_path)
    assert {package: place.line for package, place in found.items()} == lines
    assert {place.file for place in found.values()} == {name}


def test_a_pin_is_preferred_to_a_limit_in_another_file(tmp_path):
    (tmp_path / "requirements.in").write_text("transformers\npeft\n")
    (tmp_path / "constraints.txt").write_text("transformers==5.1.0\n")
    files = [tmp_path / "requirements.in", tmp_path / "constraints.txt"]
    found = pins.find(files, ["transformers", "peft"], tmp_path)
    assert (found["transformers"].file, found["peft"].file) == ("constraints.txt", "requirements.in")


def test_a_file_outside_of_the_repository_has_no_line(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "pins.txt").write_text("peft==1\n")
    (tmp_path / "in/link.txt").symlink_to("../pins.txt")
    assert pins.find([tmp_path / "pins.txt", tmp_path / "in/link.txt"], ["peft"], tmp_path / "in") == {}


@pytest.mark.parametrize("file", ["/etc/passwd", "../../secret", "https://a/b", "a\\b", "", None, 3])
def test_a_report_cannot_point_out_of_the_repository(file):
    report = gate(pins={"transformers": {"file": file, "line": 1}})
    assert pins.of(report) == {}


@pytest.mark.parametrize("line", [0, -1, True, "1", 1.5, 10**9, None])
def test_a_line_is_a_line(line):
    assert pins.of(gate(pins={"transformers": {"file": "a.txt", "line": line}})) == {}


def test_without_a_package_to_blame_the_one_that_moved_is_shown():
    report = gate(causes=False)
    report["candidate"]["pins"]["peft"] = {"file": "pins.txt", "line": 4}
    assert {one.place.line for one in problems.of(report)} == {3}
    report["baseline"]["versions"] = {"transformers": "5.3.0", "peft": "0.17.0"}
    assert {one.place.line for one in problems.of(report)} == {4}


# ---- formats ----


def test_sarif_is_what_the_standard_allows(hostile):
    log = json.loads(sarif.write(hostile))
    jsonschema.Draft202012Validator(SUBSET).validate(log)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert run["results"] and all(rules[one["ruleIndex"]] == one["ruleId"] for one in run["results"])
    for message in (one["message"]["text"] for one in run["results"]):
        # A link needs an open bracket, a placeholder a single brace.
        assert not re.search(r"(?<!\\)\[|(?<!\{)\{(?!\{)", message)


def test_sarif_shows_a_problem_at_the_line_of_the_pin():
    (run,) = json.loads(sarif.write(gate()))["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "pins.txt" and place["region"] == {"startLine": 3}


def test_a_subset_that_lacks_what_sarif_asks_for_is_noticed():
    log = json.loads(sarif.write(gate()))
    log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"] = 0
    assert not jsonschema.Draft202012Validator(SUBSET).is_valid(log)


@pytest.mark.network
def test_the_makers_of_sarif_find_nothing(tmp_path):
    """Validates by the multitool and the whole schema of SARIF 2.1.0, both from npm."""
    package = "@microsoft/sarif-multitool-linux@5.7.0"
    npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(tmp_path), package]
    subprocess.run(npm, check=True, capture_output=True)
    (tool,) = tmp_path.rglob("Sarif.Multitool")
    tool.chmod(0o755)
    schema = tool.with_name("sarif-2.1.0.json")
    for name, make in EACH.items():
        file = tmp_path / f"{name}.sarif"
        file.write_text(sarif.write(make(HOSTILE)))
        whole = json.loads(schema.read_text(encoding="utf-8-sig"))
        jsonschema.validators.validator_for(whole)(whole).validate(json.loads(file.read_text()))
        words = [
            "validate",
            str(file),
            "--json-schema",
            str(schema),
            "--rule-kind",
            "Sarif;Ghas",
            "--level",
            "Error;Warning",
        ]
        environment = {"DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1", "HOME": str(tmp_path)}
        done = subprocess.run([str(tool), *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and "error" not in done.stdout.lower().replace("errors", ""), done.stdout


def test_junit_counts_what_it_has_and_any_text_is_xml(hostile):
    (suite,) = ElementTree.fromstring(junit.write(hostile))
    cases = list(suite)
    assert int(suite.get("tests")) == len(cases) > 0
    for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(count)) == sum(case.find(tag) is not None for case in cases)
    assert int(suite.get("failures")) > 0


def test_junit_has_the_case_as_properties():
    report = suites(("ACC-01", "fail", "seen"), ("ACC-02", "known_defect", "why"), ("ACC-03", "pass", ""))
    report["causes"] = [{"sentence": "a cause", "members": [{"clause": "ACC-01", "scenario": "case-0"}]}]
    (suite,) = ElementTree.fromstring(junit.write(report))
    failed, known, held = suite
    assert {one.get("name"): one.get("value") for one in failed.iter("property")} == {
        "clause": "ACC-01",
        "scenario": "case-0",
        "verdict": "fail",
        "cause": "a cause",
        "spec": '{"a": 1}',
    }
    assert failed.find("failure").text == "expected: one\nseen: seen"
    assert known.find("skipped").get("type") == "known_defect" and len(held) == 1


def test_of_a_gate_junit_has_what_holds_too():
    (suite,) = ElementTree.fromstring(junit.write(gate()))
    found = {(case.get("classname"), case.get("name")): [child.tag for child in case][1:] for case in suite}
    assert found == {
        ("gate.clause", "ACC-01"): ["failure"],
        ("gate.clause", "DS-05"): ["error"],
        ("gate.clause", "FRZ-01"): [],
        ("gate.numbers", "plain"): [],
        ("gate.numbers", "nf4"): [],
        ("gate.cell", "nf4"): ["failure"],
    }


#: A workflow command with its properties, as GitHub's runner reads it: a comma parts properties, a colon ends none.
COMMAND = re.compile(r"::(error|warning) ((?:[a-z]+=[^,:\r\n]*,?)+)::([^\r\n]*)")


def test_no_text_begins_a_workflow_command(hostile):
    lines = github.write(hostile).split("\n")
    assert lines.pop() == "" and lines
    for line in lines:
        _, properties, message = COMMAND.fullmatch(line).groups()
        assert set(re.findall(r"([a-z]+)=", properties)) <= {"title", "file", "line"}
        assert "%25" in message and not re.search(r"%(?!25|0D|0A|3A|2C)", message)


def test_ten_annotations_of_a_level_are_shown_and_the_rest_is_counted():
    report = suites(*((f"ACC-0{n % 9 + 1}", "fail", f"sentence {n}") for n in range(14)))
    lines = github.write(report).splitlines()
    assert len(lines) == github.MOST and lines[-1].endswith("::and 5 more problems in the report")


def test_an_annotation_names_the_line_and_the_next_command():
    first = github.write(gate()).splitlines()[0]
    assert first.startswith("::error title=broken by the upgrade,file=pins.txt,line=3::the gradient is 0.25 times that")
    assert first.endswith("Next: peft-harness bisect --clause ACC-01")


def test_in_the_summary_a_text_is_code(hostile):
    for line in github.summary(hostile).splitlines():
        if "@team" in line:
            assert line.startswith("- `") and line.count("`") == 2 and line.endswith("`")


def test_gitlab_gets_what_it_asks_for(hostile):
    found = json.loads(gitlab.write(hostile))
    assert found and len({one["fingerprint"] for one in found}) == len(found)
    for one in found:
        assert set(one) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert one["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert one["location"]["path"] in ("pins.txt", gitlab.NO_FILE) and one["location"]["lines"]["begin"] in (1, 3)


@pytest.mark.parametrize(
    ("report", "message", "colour"),
    [
        (gate(), "unsafe: 2 causes", "red"),
        (gate(verdict="safe"), "safe", "brightgreen"),
        (gate(verdict="inconclusive"), "inconclusive", "yellow"),
        (gate(verdict="<script>"), "no verdict", "lightgrey"),
        (suites(("ACC-01", "fail", "x"), ("ACC-02", "fail", "y")), "2 clauses fail", "red"),
        (suites(("ACC-01", "pass", ""), ("ACC-02", "known_defect", "")), "2 clauses hold", "brightgreen"),
        (suites(("ACC-01", "ambiguous", "x")), "undecided", "yellow"),
        (suites(("ACC-01", "pass", "")) | {"complete": False}, "undecided", "yellow"),
        (suites(("ACC-01", "skipped", "no GPU")), "nothing judged", "lightgrey"),
        (suites(), "nothing judged", "lightgrey"),
        (EACH["mutants"]("x"), "0 of 1 fault caught", "red"),
        (EACH["sweep"]("x"), "1 clause fails", "red"),
    ],
)
def test_a_badge_says_what_came_out(report, message, colour):
    found = json.loads(badge.write(report))
    assert (found["schemaVersion"], found["message"], found["color"]) == (1, message, colour)


# ---- the command ----


def test_the_command_writes_what_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("report.json").write_text(json.dumps(gate()))
    Path("other.txt").write_text("\n\n\n\ntransformers==5.3.0\n")
    words = [
        "--junit",
        "j.xml",
        "--sarif",
        "s.sarif",
        "--code-quality",
        "q.json",
        "--badge",
        "b.json",
        "--markdown",
        "page.md",
        "--annotate",
    ]
    code, out, err = command_line.run("report", "report.json", *words, "--pins", "other.txt")
    assert (code, err) == (0, "") and out.startswith("::error title=broken by the upgrade,file=other.txt,line=5::")
    assert Path("page.md").read_text().startswith("## Upgrade gate: UNSAFE\n")
    assert json.loads(Path("q.json").read_text())[0]["location"] == {"path": "other.txt", "lines": {"begin": 5}}
    assert (
        ElementTree.parse("j.xml")
        and json.loads(Path("s.sarif").read_text())
        and json.loads(Path("b.json").read_text())
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report.json"], "nothing to write; name an output"),
        (["none.json", "--annotate"], "none.json: no such file"),
        (["other.json", "--annotate"], "other.json: is no report of peft-harness"),
        (["report.json", "--annotate", "--pins", "none.txt"], "--pins none.txt: no such file"),
        (["report.json", "--badge", "report.json"], "names the same file"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("report.json").write_text(json.dumps(gate()))
    Path("other.json").write_text("[]")
    code, out, err = command_line.run("report", *words)
    assert (code, out) == (2, "") and said in err
