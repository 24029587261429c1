"""What is new since the night before: two reports compared, and the job that says it."""

import json
import os
import subprocess

import pytest
import yaml

from harness.gate import news as nights
from harness.paths import PACKAGE
from tests.test_gate_summary import COMMANDS, KINDS, finding, report, shown

CI = PACKAGE.parent / "ci"


def of(*findings, causes=None, **changes):
    """A report with these findings: (where, sentence) or (about, where, means, sentence)."""
    full = [one if len(one) == 4 else ("clause", one[0], "broken", one[1]) for one in findings]
    listed = [dict(zip(("about", "where", "means", "sentence"), one, strict=True)) for one in full]
    return report(findings=listed, **({} if causes is None else {"causes": causes}), **changes)


def cause(sentence, *clauses):
    return {"sentence": sentence, "clauses": list(clauses), "cases": 3}


ACC = (
    "ACC-01",
    "step 1: the gradient is 0.25 times that of the large batch (held before, fails now in 26 cases (a, b, c))",
)


def test_a_night_without_news_is_silent():
    news = nights.compared(of(ACC), of(ACC))
    assert (news.new, news.gone, news.same) == ([], [], 1)
    assert nights.markdown(news, of(ACC)) == ""


@pytest.mark.parametrize(
    "again",
    [
        "step 1: the gradient is 0.3333 times that of the large batch (held before, fails now in 2 cases (a))",
        "step 12: the gradient is 1e-05 times that of the large batch (held before, fails now in 1 case (d))",
    ],
)
def test_numbers_and_cases_make_no_news(again):
    assert nights.compared(of(ACC), of(("ACC-01", again))).same == 1


@pytest.mark.parametrize(
    "other",
    [
        ("ACC-02", ACC[1]),
        ("ACC-01", "the loss is NaN"),
        ("clause", "ACC-01", "lost", ACC[1]),
        ("numbers", "ACC-01", "broken", ACC[1]),
    ],
)
def test_another_clause_sentence_meaning_or_subject_is_news(other):
    news = nights.compared(of(ACC), of(other))
    assert (len(news.new), len(news.gone), news.same) == (1, 1, 0)


def test_everything_is_new_without_a_report_of_the_night_before():
    assert len(nights.compared(None, of(ACC)).new) == 1


def test_notes_fixes_and_undecided_times_are_no_news():
    noisy = "a step is 1 % slower: undecided after 120 s, because the machine is too noisy"
    quiet = [("clause", "A", "note", "x"), ("clause", "A", "mended", "y"), ("throughput", "time", "lost", noisy)]
    assert nights.compared(of(), of(*quiet)) == nights.News([], [], 0)
    assert len(nights.compared(of(), of(("throughput", "time", "lost", "cannot be timed: x"))).new) == 1


def test_causes_are_compared_if_both_have_them_and_clauses_are_not_counted_twice():
    old, new = cause("add_adapter wants peft >= 0.22.0", "ACC-01"), cause("prefix tuning finds no argument", "ACC-02")
    time = ("throughput", "time", "broken", "a step is 5 % slower")
    before, now = of(ACC, causes=[old]), of(ACC, ("ACC-02", "x"), time, causes=[old, new])
    news = nights.compared(before, now)
    assert news.new == [("cause, ACC-02", new["sentence"]), ("throughput time", time[3])]
    assert (news.gone, news.same) == ([], 1)
    assert nights.compared(of(), now).new[0] == ("cause, ACC-01", old["sentence"])
    # An older report has no causes: findings are compared.
    assert [about for about, _ in nights.compared(of(ACC), now).new] == ["clause ACC-02", "throughput time"]


def test_what_is_new_and_what_is_gone_is_said():
    text = nights.markdown(
        nights.compared(of(ACC, ("RES-01", "same")), of(("LOSS-01", "other"), ("RES-01", "same"))), of()
    )
    assert text.startswith("## The newest releases: 1 new, 1 gone, 1 as the night before\n")
    assert "- `clause LOSS-01`: `other`" in text.partition("### Gone (1)")[0]
    assert "- `clause ACC-01`: `step 1" in text.partition("### Gone (1)")[2]
    assert "`torch 2.13.0+cpu, peft 0.18.1`" in text


@pytest.mark.parametrize("words", COMMANDS)
def test_words_of_a_report_are_quoted(words):
    made = [finding(sentence=words), finding(where=words), of(causes=[cause(words, words)])]
    for tonight in made:
        text = nights.markdown(nights.compared(None, tonight), tonight)
        plain, kinds = shown(text)
        assert all(KINDS.fullmatch(kind) for kind in kinds)
        assert words.strip() == "" or words.strip() not in plain


def news(tmp_path, last, tonight):
    paths = [tmp_path / name for name in ("last.json", "tonight.json")]
    for path, body in zip(paths, (last, tonight), strict=True):
        if body is not None:
            path.write_text(body if isinstance(body, str) else json.dumps(body))
    return subprocess.run(["bash", str(CI / "news"), *map(str, paths)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("last", "tonight", "code", "out", "err"),
    [
        (of(ACC), of(ACC), 0, "", ""),
        (of(ACC), of(), 0, "0 new, 1 gone, 0 as", ""),
        (of(), of(ACC), 1, "1 new, 0 gone, 0 as", ""),
        (of(), of(("clause", "DS-05", "lost", "x"), verdict="inconclusive"), 3, "1 new", ""),
        (None, of(ACC), 1, "1 new", "so everything is new"),
        ("[]", of(ACC), 1, "1 new", "is no report of"),
        ("{", of(ACC), 1, "1 new", "so everything is new"),
        (of(), None, 2, "", "no such file"),
        (of(), "{}", 2, "", "is no report of"),
    ],
)
def test_the_script_says_what_is_new(tmp_path, last, tonight, code, out, err):
    done = news(tmp_path, last, tonight)
    assert done.returncode == code and out in done.stdout and err in done.stderr
    assert bool(done.stdout) == bool(out) and "Traceback" not in done.stderr


def test_a_link_to_another_file_is_not_read(tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/report.json").write_text(json.dumps(of(ACC)))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/tonight.json").symlink_to(tmp_path / "hidden/report.json")
    done = subprocess.run(
        ["bash", str(CI / "news"), "none.json", str(tmp_path / "reports/tonight.json")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "ACC-01" not in done.stdout


def test_newest_compares_with_the_report_that_it_writes_over(tmp_path):
    """ci/newest in a copy of the checkout's ci/, with a gate that writes a report."""
    home = tmp_path / "home"
    (home / "ci").mkdir(parents=True)
    (home / ".venv/bin").mkdir(parents=True)
    (home / ".venv/bin/python").symlink_to(
        os.path.realpath(subprocess.run(["which", "python3"], capture_output=True, text=True).stdout.strip())
    )
    (home / "harness").symlink_to(PACKAGE)
    for name in ("newest", "news"):
        (home / "ci" / name).write_text((CI / name).read_text())
    (home / "gate-report").mkdir()
    written = home / "gate-report/report.json"
    (home / "ci/gate").write_text(
        'mkdir -p gate-report; cp tonight.json gate-report/report.json; exit "$(cat status)"\n'
    )

    def night(body, status, *words):
        (home / "tonight.json").write_text(json.dumps(body))
        (home / "status").write_text(str(status))
        done = subprocess.run(["bash", "ci/newest", *words], capture_output=True, text=True, cwd=home)
        return done.returncode, done.stdout

    assert night(of(ACC), 1) == (1, "")
    code, said = night(of(ACC, ("RES-01", "x")), 1, "--since", str(written))
    assert code == 1 and "1 new, 0 gone, 1 as the night before" in said and "RES-01" in said
    assert (home / "gate-report/news.md").read_text() == said
    assert night(of(ACC, ("RES-01", "x")), 1, "--since", str(written)) == (0, "")
    code, said = night(of(verdict="safe"), 0, "--since", str(written))
    assert code == 0 and "0 new, 2 gone" in said
    assert night(of(), 2, "--since", str(written))[0] == 2
    assert night(of(), 0, "--since")[0] == 2


# ---- the job that opens and closes the issue ----


@pytest.mark.parametrize(
    ("status", "text", "open_issue", "does"),
    [
        ("1", "news", "", ["issue create"]),
        ("3", "news", "", ["issue create"]),
        ("1", "news", "7", ["issue comment 7"]),
        ("0", "gone", "7", ["issue comment 7", "issue close 7"]),
        ("0", "", "7", ["issue close 7"]),
        ("0", "", "", []),
    ],
)
def test_the_nightly_job_opens_comments_and_closes(tmp_path, status, text, open_issue, does):
    job = yaml.safe_load((CI / "github/nightly.yml").read_text())["jobs"]["issue"]
    gh = tmp_path / "gh"
    gh.write_text(
        f'#!/usr/bin/env bash\nif [ "$2" = list ]; then echo "{open_issue}"; else '
        f'case "$3" in --*) echo "$1 $2" ;; *) echo "$1 $2 $3" ;; esac >>{tmp_path}/does; fi\n'
    )
    gh.chmod(0o755)
    encoded = subprocess.run(["base64", "-w0"], input=text, capture_output=True, text=True).stdout
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TEXT": encoded, "STATUS": status, "GITHUB_REPOSITORY": "a/b"}
    done = subprocess.run(["bash", "-e", "-c", job["steps"][0]["run"]], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "does"
    assert (log.read_text().splitlines() if log.exists() else []) == does


def test_a_night_without_news_starts_no_job_that_can_write():
    jobs = yaml.safe_load((CI / "github/nightly.yml").read_text())["jobs"]
    assert jobs["issue"]["if"] == "needs.summary.outputs.text != '' || needs.judge.outputs.status == '0'"
    assert "permissions" not in jobs["summary"] and jobs["last"]["permissions"] == {"actions": "read"}
