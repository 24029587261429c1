"""The summary of a report that somebody else may have written: what it reads, and what GitHub and GitLab make of its text."""

import json
import os
import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from harness.errors import UsageError
from harness.gate import summary
from harness.gate.extract import TITLES

#: Words that do something in a comment, if they stand in plain text.
COMMANDS = [
    "/merge",
    "x\n/approve\n",
    "x\r\n\n/assign @root\r",
    "@everyone and @acme/security",
    "Closes #1, fixes acme/app#2",
    "![](https://elsewhere/pixel.png)",
    "[text](javascript:alert(1))",
    "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "`` ` ``` /merge `",
    "```\n/merge\n```\n",
    "| a | b |\n|---|---|",
    "<!-- hidden -->",
    "safe \u202e\u2066 text \u200b\ufeff\x00\x1b[31m",
    "# heading\n\n---\n\n> quote",
    "$`x`$ \\",
    "\ud800",
    "",
    "x" * 100_000,
]


def report(**changes):
    side = {"versions": {"torch": "2.13.0+cpu", "peft": "0.18.1"}}
    finding = {"about": "clause", "where": "ACC-01", "means": "broken", "sentence": "is 0.25 times that"}
    return {"verdict": "unsafe", "baseline": side, "candidate": side, "findings": [finding], **changes}


def caused(**changes):
    cause = {
        "sentence": "ValueError: no", "cases": 2, "clauses": ["ACC-01"], "reaches": "every run", "packages": ["peft"],
        "next": ["peft-harness check --clause ACC-01"], "example": "ACC-01 [plain]: no", "members": [], "means": "broken",
        "elsewhere": [{"about": "cell", "where": "plain"}], "follows": [],
    }  # fmt: skip
    return report(causes=[cause | changes], requires=[{"sides": ["candidate"], "sentence": "a wants b >= 2"}])


def finding(**changes):
    return report(findings=[report()["findings"][0] | changes])


def shown(text):
    """What a reader of Markdown sees outside of code, and what kinds of things there are."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    children = [child for token in tokens for child in token.children or []]
    kinds = {token.type for token in tokens + children}
    return "\n".join(child.content for child in children if child.type == "text"), kinds


#: All that a summary consists of.
KINDS = re.compile(
    r"(heading|paragraph|table|thead|tbody|tr|th|td|bullet_list|list_item)_(open|close)|inline|text|code_inline|softbreak"
)


def check(text):
    outside, kinds = shown(text)
    assert not {kind for kind in kinds if not KINDS.fullmatch(kind)}
    assert not re.search(r"[@/#<\[!`]|https?:", outside), outside
    assert all(line == "" or line[0] in "#|-`NT" for line in text.splitlines())
    assert all(character == "\n" or character.isprintable() for character in text)
    assert len(text.encode()) < 65_536


@pytest.mark.parametrize("words", COMMANDS, ids=range(len(COMMANDS)))
def test_words_of_a_report_are_no_commands(words):
    versions = {"versions": {"torch": words, "peft": words}}
    text = summary.markdown(finding(where=words, sentence=words) | {"compared": words, "candidate": versions})
    check(text)
    assert text.startswith("## Upgrade gate: UNSAFE\n")
    assert len(re.findall(r"^- .* \(clause\): ", text, re.MULTILINE)) == 1
    text = summary.markdown(caused(sentence=words, reaches=words, packages=[words], example=words, next=[words]))
    check(text)
    assert (
        len(re.findall(r"^- .*: 2 cases of 1 clause; 1 run is no longer trained as before; ", text, re.MULTILINE)) == 1
    )


@given(st.lists(st.tuples(st.text(), st.text(), st.sampled_from(list(TITLES))), max_size=5), st.text())
@settings(max_examples=50, deadline=None)
def test_any_words_of_a_report_are_no_commands(findings, compared):
    made = [{"about": "clause", "where": a, "sentence": b, "means": means} for a, b, means in findings]
    check(summary.markdown(report(findings=made, compared=compared)))


def test_what_a_comment_cannot_take_is_left_out(tmp_path):
    long = "\U0001f600" * 400
    many = [{"about": "clause", "where": long, "sentence": long, "means": means} for means in TITLES]
    names = [f"{part}/report.json" for part in ("cpu", "gpu")]
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(report(findings=many * 30)))
    text = summary.of_files(tmp_path, names)
    check(text)
    assert "- and 10 more in the report\n" in text and text.endswith("The rest is left out; see the report.\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (report(verdict="safe\n/merge"), "verdict is 'safe\\n/merge'; it is one of safe, unsafe, inconclusive"),
        (report(verdict=["safe"]), "verdict is no str"),
        (report(baseline=[]), "baseline is no dict"),
        (report(candidate={"versions": []}), "versions is no dict"),
        (report(findings={}), "findings is no list"),
        (report(findings=[1]), "a finding is no object"),
        (finding(about="elsewhere"), "about is 'elsewhere'"),
        (finding(means="fine"), "means is 'fine'"),
        (finding(sentence=None), "sentence is no str"),
        (report(causes={}), "causes is no list"),
        (report(causes=[1]), "a cause is no object"),
        (caused(means="fine"), "means is 'fine'; it is one of broken, lost"),
        (caused(cases="many"), "cases is no int"),
        (caused(cases=True), "cases is no int"),
        (caused(clauses=[1]), "clauses has something that is no text"),
        (caused(elsewhere=[{"about": "x"}]), "about is 'x'"),
        (caused(follows=[1]), "a follow is no object"),
        (caused() | {"requires": [{"sides": ["candidate"]}]}, "sentence is no str"),
        ({}, "verdict is no str"),
    ],
)
def test_a_field_of_another_kind_is_named(body, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        summary.markdown(body)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("peft-harness bisect --clause ACC-01 --good current --bad 'peft==1 x>2'", True),
        ("peft-harness repro --with peft==1 gate.cases/ACC-01-plain.json", True),
        ("peft-harness check --clause ACC-01 > /etc/passwd", False),
        ("peft-harness check --clause 'ACC-01;rm'", False),
        ("peft-harness check --clause $(id)", False),
        ("peft-harness check --clause ACC-01 --preload evil", False),
        ("peft-harness check --clause ACC-01 --subject a:b", False),
        ("peft-harness repro case.json --trust-code", False),
        ("peft-harness bisect --good current --bad 'peft @ https://elsewhere/peft.whl'", False),
        ("peft-harness cache --remove x", False),
        ("rm -rf x", False),
        ("peft-harness check 'unfinished", False),
    ],
)
def test_a_command_of_a_report_is_shown_only_if_it_runs_no_code_of_others(command, shown):
    text = summary.markdown(caused(next=[command]))
    commands = [line for line in text.splitlines() if line.startswith("- next")]
    # In the shell, `>` without quotes would write a file: what is shown is quoted.
    expected = [f"- next: `{shlex.join(shlex.split(command))}`"] if shown or "passwd" in command else []
    assert commands == expected


def test_causes_and_what_packages_require_are_in_the_summary():
    lines = summary.markdown(caused()).splitlines()
    assert lines[2:5] == [
        "`1 cause; 2 cases of 1 clause held before and now fail; 1 run is no longer trained as before`",
        "",
        "- Requires: `candidate: a wants b >= 2`",
    ]
    at = lines.index("### Broken by the upgrade (1 cause)")
    assert lines[at + 2].startswith(
        "- `ValueError: no`: 2 cases of 1 clause; 1 run is no longer trained as before; `every run`"
    )
    assert lines[at + 3] == "- next: `peft-harness check --clause ACC-01`"


def as_link(directory):
    (directory / "report.json").symlink_to("/proc/self/environ")


def as_device(directory):
    (directory / "report.json").symlink_to("/dev/zero")


def in_link(directory):
    directory.rmdir()
    directory.symlink_to("/proc/self")


def in_link_of_ours(directory):
    directory.rmdir()
    directory.symlink_to(directory.parent.parent)
    (directory.parent.parent / "report.json").write_text(json.dumps(report()))


def as_100_megabytes(directory):
    with (directory / "report.json").open("w") as file:
        file.truncate(100_000_000)


def written(content):
    return lambda directory: (directory / "report.json").write_bytes(content)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (as_link, "leads out of"),
        (as_device, "leads out of"),
        (in_link, "such file"),
        (in_link_of_ours, "leads out of"),
        (lambda directory: os.mkfifo(directory / "report.json"), "is a pipe"),
        (lambda directory: (directory / "report.json").mkdir(), "is a directory"),
        (as_100_megabytes, "too large"),
        (written(b""), "not JSON"),
        (written(bytes(range(256))), "not UTF-8"),
        (written(b"[" * 100_000), "levels"),
        (written(b"[1, 2"), "not JSON"),
        (written(b"[]"), "verdict is no str"),
        (written(b'{"verdict": "safe", "verdict": "unsafe"}'), "twice"),
        (lambda directory: None, "there is no such file, so the gate did not end"),
    ],
    ids=["link", "device", "linked folder", "our own file through a link", "pipe", "folder", "100 MB", "empty", "binary",
         "deep", "cut off", "list", "double key", "missing"],
)  # fmt: skip
def test_only_a_regular_file_is_read(tmp_path, monkeypatch, make, said):
    monkeypatch.setenv("SECRET", "hidden")
    directory = tmp_path / "artifacts" / "cpu"
    directory.mkdir(parents=True)
    make(directory)
    text = summary.of_files(tmp_path / "artifacts", ["cpu/report.json"])
    check(text)
    assert text.startswith("## Upgrade gate: NO REPORT\n") and said in text and "hidden" not in text


def test_a_name_that_leads_out_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    (tmp_path / "artifacts").mkdir()
    for name in ("../report.json", str(tmp_path / "report.json")):
        assert "leads out of artifacts" in summary.of_files(tmp_path / "artifacts", [name])


def test_each_of_several_reports_has_its_name(tmp_path):
    for part in ("cpu", "gpu"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "report.json").write_text(json.dumps(report()))
    text = summary.of_files(tmp_path, ["cpu/report.json", "gpu/report.json"])
    assert re.findall("^## .*", text, re.MULTILINE) == [
        "## Upgrade gate (`cpu`): UNSAFE",
        "## Upgrade gate (`gpu`): UNSAFE",
    ]
    assert text.count("- `ACC-01` (clause): `is 0.25 times that`\n") == 2


def test_wrong_usage_is_one_sentence(capsys):
    assert summary.main(["only-a-directory"]) == 2
    assert capsys.readouterr().err == "ci/summary: name a directory, and reports in it\n"
