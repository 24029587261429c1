"""`peft-harness defects`: each known defect is a row, in each form, and a report says which were seen."""

import json
import re

import pytest

from harness.contract import expectations
from harness.paths import SUITES
from harness.upstream import known
from tests.command_line import run

DEFECTS = expectations.load(SUITES / "expectations")


def report(*cases):
    clauses = [
        {
            "id": clause,
            "verdict": "pass",
            "cases": [{"scenario": name, "verdict": verdict, "evidence": {}, "spec": None}],
        }
        for clause, name, verdict in cases
    ]
    return {"schema_version": 1, "environment": {}, "clauses": clauses}


def test_each_known_defect_is_a_row():
    rows = known.table()
    assert len(rows) == len(DEFECTS)
    assert all(bool(row.script) != bool(row.why_no_script) for row in rows)
    assert f"{len(rows)} known defects; " in known.counts(rows)


def test_a_report_says_which_were_seen():
    seen = report(("ACC-01", "t5/lora", "known_defect"), ("ACC-01", "bert-classifier/lora", "unexpected_pass"))
    states = {row.scenario: row.state for row in known.table(["ACC-01"], seen)}
    assert states["t5/*"] == known.CONFIRMED
    assert states["bert-classifier/*"] == known.GONE
    assert states["llama-classifier/*"] == known.NOT_SEEN


def test_the_table_in_each_form(tmp_path):
    files = {name: tmp_path / f"d.{name}" for name in ("markdown", "html", "json")}
    code, said, _ = run(
        "defects", "--clause", "ACC-*", *(w for name, path in files.items() for w in (f"--{name}", path))
    )
    assert code == 0
    rows = json.loads(files["json"].read_text())["defects"]
    assert {row["clause"].partition("-")[0] for row in rows} == {"ACC"}
    assert f"{len(rows)} known defects" in said
    markdown, html = files["markdown"].read_text(), files["html"].read_text()
    assert markdown.count("\n| ACC-") == len(rows) == html.count('<th scope="row"')
    # Self-contained: nothing is loaded from elsewhere. Links lead to threads only.
    assert not re.search(r"<(script|link|img)\b|url\(", html)
    assert set(re.findall(r'href="(https://[^/"]+/)', html)) <= {"https://github.com/"}


def test_what_a_defect_says_is_escaped():
    row = known.Row("ACC-01", "<i>|*", "peft", "<b>|x", "javascript:alert(1)", "", "<u>", "", True, "")
    html = known.to_html([row])
    assert "<b>" not in html and "<i>" not in html and "<u>" not in html and "javascript:" not in html
    assert "<b>" not in known.to_markdown([row])


def test_a_script_of_the_table_is_printed():
    code, said, _ = run("defects", "--script", "qlora-12-strict")
    assert code == 0 and said.startswith('"""') and "load_state_dict" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--clause", "NONE-*"), "NONE-"),
        (("--script", "no-such"), "no script is named"),
        (("--report", "r.json"), "is no report"),
    ],
    ids=["clause", "script", "report"],
)
def test_what_is_used_wrongly_is_said(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_text('{"clauses": 3}')
    code, _, errors = run("defects", *words)
    assert code == 2 and said in errors and "Traceback" not in errors
