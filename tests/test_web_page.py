"""Reports as pages: what they show, how large they are, and that no text of a report becomes markup or a script."""

import base64
import contextlib
import copy
import hashlib
import html.parser
import itertools
import json
import re
import time

import pytest

from harness.errors import UsageError
from harness.laws.curves import MOST_STEPS, curves
from harness.laws.equal import equal_runs, largest_gap
from harness.reports import web_page
from harness.reports.web_model import LACKS, changed
from tests import command_line, made_up_reports
from tests.traces import A, B, made_up

KINDS = ("failing", "gate", "sweep", "mutants", "judge")


class Parser(html.parser.HTMLParser):
    """Collects the elements of a page, the texts of scripts and styles, and all other text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.inside, self.raw, self.text = [], "", [], []
        self.feed(page)
        self.close()
        self.data = json.loads(self.raw[1])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = tag
            self.raw.append("")

    def handle_endtag(self, tag):
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside:
            self.raw[-1] += data
        else:
            self.text.append(data)


def parsed(report):
    return Parser(web_page.write(report))


def rows(report):
    """Return the rows of a page: (id, scenario, verdicts, cause)."""
    return [(row[0], row[1], row[2], row[5]) for row in parsed(report).data["rows"]]


# ---- texts of a report stay texts ----


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_report_becomes_an_element(kind):
    def poisoned(value):
        if isinstance(value, dict):
            return {name: one if name == "kind" else poisoned(one) for name, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        return value + "".join(made_up_reports.HOSTILE) if isinstance(value, str) else value

    report = getattr(made_up_reports, kind)()
    plain, odd = (Parser(web_page.write(one)) for one in (report, poisoned(report)))
    assert [tag for tag, _ in odd.elements].count("script") == 2
    assert {tag for tag, _ in odd.elements} <= {tag for tag, _ in plain.elements} | {"p", "span", "code"}
    for tag, attributes in odd.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style" or name == "src"], tag
        assert attributes.get("href", "#").startswith("#")
    # The script and its policy are the same, whatever the report says.
    assert plain.raw[0] == odd.raw[0] and plain.raw[2] == odd.raw[2]


def test_the_policy_allows_the_script_and_the_style_of_the_page_alone():
    page = parsed(made_up_reports.failing())
    (policy,) = [one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy"]
    style, _, script = (
        "sha256-" + base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in page.raw
    )
    assert policy.startswith(f"default-src 'none'; style-src '{style}'; script-src '{script}'; base-uri 'none'")
    assert "unsafe" not in policy and "http" not in policy


def test_json_in_a_page_cannot_end_its_block():
    text = web_page.embedded(list(made_up_reports.HOSTILE))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == list(made_up_reports.HOSTILE)


# ---- what a page shows ----


def test_a_page_begins_with_the_answer_and_the_causes():
    page = parsed(made_up_reports.failing())
    text = " ".join(" ".join(page.text).split())
    assert text.index("fails: 2 clauses do not hold") < text.index("Causes (2)") < text.index("the gradient is a third")
    assert "To blame: transformers." in text and "peft-harness check --clause LOSS-01" in text
    assert [row for row in rows(made_up_reports.failing()) if row[0] == "LOSS-01"] == [
        ("LOSS-01", "plain/add_adapter", ["fail"], 1),
        ("LOSS-01", "n37", ["pass"], 0),
    ]
    assert page.data["about"]["LOSS-01"]["statement"].startswith("The training loss")
    assert next(one for one in page.data["values"] if "curves" in one)["curves"] == made_up_reports.CURVES


def test_a_report_without_causes_names_its_clauses():
    report = made_up_reports.failing()
    del report["causes"]
    text = " ".join(" ".join(parsed(report).text).split())
    assert "Clauses that do not hold (2)" in text and "an older release of peft-harness wrote it" in text
    assert "step 1: differs" in text


def test_a_case_may_name_its_cause_and_its_command():
    report = made_up_reports.failing()
    report["clauses"][0]["cases"][1] |= {"cause": 1, "repeat": "peft-harness repro x.json"}
    assert parsed(report).data["rows"][1][5:] == [2, "peft-harness repro x.json"]


def test_a_case_that_could_not_be_judged_because_of_a_cause_belongs_to_it():
    report = made_up_reports.failing()
    report["causes"][0]["follows"] = [{"clause": "ACC-01", "scenario": "plain"}]
    page = parsed(report)
    assert [row[5] for row in page.data["rows"] if row[0] == "ACC-01"] == [1]
    assert "every run; 1 case could not be judged because of it" in " ".join(page.text)


def test_a_gate_has_both_sides():
    report = made_up_reports.gate()
    page = parsed(report)
    assert [(row[1], row[2]) for row in page.data["rows"]] == [("plain", ["pass", "fail"]), ("n37", ["pass", "pass"])]
    assert page.data["check"] == "peft-harness check --with transformers==5.24.0"
    assert page.data["curves"][0]["of"] == ["baseline", "candidate"]
    text = " ".join(" ".join(page.text).split())
    for words in (
        "unsafe: 1 broken", "Versions (1 of 2 changed)", "LoraConfig.x", "+1.00% (-1.00% to +3.00%)", "1 run bit-equal",
        "transformers 5.24.0 wants peft >= 0.22.0", "Outside of the scope mine.toml: 2 clauses, 3 cases.",
        "Left out on both sides: deepspeed (no wheel).",
        "upgrade: the candidate reads the baseline's 2 1",
    ):  # fmt: skip
        assert words in text


def test_cases_of_a_gate_that_share_a_name_are_all_there():
    report = made_up_reports.gate()
    for side in ("baseline", "candidate"):
        report[side]["report"]["clauses"][0]["cases"] *= 2
    assert len(rows(report)) == 4


def test_a_sweep_has_its_causes_and_its_pairs():
    page = parsed(made_up_reports.sweep())
    text = " ".join(" ".join(page.text).split())
    assert "6 of 8 pairs of values that are not refused are covered (75.0%); 2 are refused." in text
    assert "fails: arguments.optim=sgd" in text and "peft-harness repro '.peft-harness/sweep/a b.json'" in text
    assert [row[0] for row in page.data["rows"]] == ["LOSS-01", "process", "ACC-01", "upstream"]


def test_a_matrix_has_the_sentence_of_each_mutant():
    page = parsed(made_up_reports.mutants())
    text = " ".join(" ".join(page.text).split())
    assert "2 mutants: 1 survived, 1 killed" in text and "lives Lives." in text and "twice Twice. 1" in text
    assert [(row[0], row[2]) for row in page.data["rows"]] == [("lives", ["survived"]), ("twice", ["killed"])]


def test_what_was_not_judged_is_said():
    report = made_up_reports.suites(("LOSS-01", [made_up_reports.case("a")]), complete=False, not_judged=3)
    page = web_page.page_of(report)
    assert (page.answer, page.tone) == ("not complete: not all was judged that was asked for", "unsure")
    assert "3 tests that were asked for has no verdict." not in page.said
    assert "3 tests that were asked for have no verdict." in page.said
    none = made_up_reports.suites(("LOSS-01", [made_up_reports.case("a", "skipped")]))
    none["clauses"][0]["verdict"] = "skipped"
    assert web_page.page_of(none).answer == "undecided: no clause was judged"


# ---- size ----


def test_a_page_of_4000_cases_is_small_and_soon_made():
    report = made_up_reports.large()
    began = time.process_time()
    page = web_page.write(report)
    assert time.process_time() - began < 3
    assert len(page.encode()) < 3_000_000
    # Rows are made by the script, as they are shown.
    assert page.count("<tr") < 200


def test_long_texts_are_cut_until_the_page_is_small():
    report = made_up_reports.large(200)
    for clause in report["clauses"]:
        for at, case in enumerate(clause["cases"]):
            case["evidence"]["seen"] = [f"{clause['id']} {at} {number} " + "x" * 3000 for number in range(10)]
    page = web_page.write(report)
    assert len(page) < 3_000_000
    assert "Long texts are cut" in page and "more characters)" in page


def test_a_spec_is_stored_as_what_it_has_otherwise():
    usual = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert changed(usual, usual) == {}
    assert changed(usual, {"a": {"b": 2, "c": [1, 2]}}) == {"a": {"b": 2}, LACKS: ["d"]}


# ---- reports that cannot be shown ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "was written by a newer release of peft-harness (schema_version 2, this one reads 1)"),
        ({"schema_version": "1"}, "is damaged (schema_version is missing or no number)"),
        ({"schema_version": None}, "is damaged (schema_version is missing or no number)"),
        ({"environment": []}, "is damaged (environment is missing or of a wrong type)"),
        ({"clauses": [3]}, "is damaged (clauses, entry 1, is no object)"),
        ({"clauses": {}}, "is no report of peft-harness"),
    ],
)
def test_a_report_that_cannot_be_shown_is_one_sentence(tmp_path, change, words):
    (tmp_path / "r.json").write_text(json.dumps(made_up_reports.failing() | change))
    code, output, errors = command_line.run("report", tmp_path / "r.json", "--html", tmp_path / "page.html")
    assert (code, output) == (2, "") and words in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '{"clauses": 1}'])
def test_what_is_no_report_is_one_sentence(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    code, _, errors = command_line.run("report", tmp_path / "r.json", "--html", tmp_path / "page.html")
    assert code == 2 and len(errors.splitlines()) == 1


def test_a_report_of_any_shape_makes_a_page_or_one_sentence():
    """Replace each value of a report in turn by one of another type."""

    def places(value, at=()):
        yield at
        for name, one in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
            yield from places(one, (*at, name))

    for kind in KINDS:
        whole = getattr(made_up_reports, kind)()
        others = itertools.cycle((None, [], {}, "x", -1, [None], 1e400))
        for at, other in zip(places(whole), others, strict=False):
            report = copy.deepcopy(whole)
            inner = report
            for name in at[:-1]:
                inner = inner[name]
            if at:
                inner[at[-1]] = other
            with contextlib.suppress(UsageError):
                web_page.page_of(report if at else other)


def test_the_command_writes_the_page_and_asks_for_an_output(tmp_path):
    report = tmp_path / "r.json"
    report.write_text(json.dumps(made_up_reports.gate()))
    assert command_line.run("report", report, "--html", tmp_path / "page.html") == (0, "", "")
    assert (tmp_path / "page.html").read_text() == web_page.write(made_up_reports.gate())
    code, _, errors = command_line.run("report", report)
    assert code == 2 and "--html FILE" in errors
    code, _, errors = command_line.run("report", report, "--html", report)
    assert code == 2 and "names the same file" in errors


# ---- numbers by step ----


def test_runs_that_differ_leave_their_numbers_by_step():
    expected, seen = made_up(), made_up()
    seen.steps[2].gradients[A] += 0.25
    seen.log_history[2]["loss"] = float("nan")
    verdict = equal_runs(seen, expected)
    found = verdict.measured["curves"]
    assert (found["of"], found["steps"]) == (["seen", "expected"], [1, 2, 3, 4])
    assert found["loss"][0][2] is None and found["loss"][1][2] == pytest.approx(5.2)
    assert found["tensors"] == {A: [0.0, 0.0, 0.25, 0.0]} and B not in found["tensors"]
    assert found["grad_norm"][0] == pytest.approx(list(seen.grad_norms.values()), rel=1e-5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "curves" not in equal_runs(made_up(), made_up()).measured


def test_a_norm_that_was_not_logged_is_that_of_the_gradients():
    trace = made_up()
    logged = trace.log_history[1].pop("grad_norm")
    assert curves(trace, made_up(), largest_gap)["grad_norm"][0][1] == pytest.approx(logged, rel=1e-5)


def test_long_curves_are_thinned_but_have_the_first_difference():
    expected, seen = made_up(steps=500), made_up(steps=500)
    seen.steps[123].gradients[B] *= 2
    steps = curves(seen, expected, largest_gap)["steps"]
    assert len(steps) <= MOST_STEPS and {1, 124, 500} <= set(steps) and steps == sorted(steps)


def test_the_script_sets_no_markup():
    script = web_page._templates()[2]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|\.style\b", script)
