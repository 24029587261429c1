"""Progress where there is no terminal, and consoles in pipes."""

import contextlib
import io
import time

import pytest
from rich.table import Table

from harness import progress
from harness.words import counted


def test_plain_lines_come_at_intervals_and_end_with_the_last_state(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    with progress.Progress(3, "mutants") as shown:
        shown.advance(1, "first killed")
        time.sleep(0.5)
        assert "mutants: 1 of 3, first killed (0 s)" in capsys.readouterr().err.splitlines()
        shown.advance(2, "last killed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("mutants: 3 of 3, last killed (")
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_a_silent_job_still_prints_that_it_works(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.1)
    with progress.Progress(None, "timing"):
        time.sleep(0.35)
    assert capsys.readouterr().err.splitlines().count("timing (0 s)") >= 2


def test_lines_come_through_while_stderr_is_redirected(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    hidden = io.StringIO()
    with progress.Progress(1, "loading", forks=True) as shown:
        with contextlib.redirect_stderr(hidden):
            shown.advance()
    assert capsys.readouterr().err.splitlines()[0] == "loading: 1 of 1 (0 s)"
    assert hidden.getvalue() == ""


def test_a_short_job_prints_nothing(capsys):
    with progress.Progress(2, "mutants") as shown:
        shown.advance(2)
    assert capsys.readouterr().err == ""


def test_a_process_that_forks_starts_no_thread_and_prints_when_asked(monkeypatch, capsys):
    import threading

    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    before = threading.active_count()
    with progress.Progress(2, "mutants", forks=True) as shown:
        assert threading.active_count() == before
        time.sleep(0.1)
        shown.tick()
        assert capsys.readouterr().err == "mutants: 0 of 2 (0 s)\n"


def test_several_tasks_have_a_line_each_until_they_are_finished(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with progress.Progress(forks=True) as shown:
        first, second = shown.add("baseline: suites", 4), shown.add("candidate: suites")
        capsys.readouterr()
        first.update(4)
        assert capsys.readouterr().err == "baseline: suites: 4 of 4 (0 s)\ncandidate: suites (0 s)\n"
        second.update(1, 2)
        assert capsys.readouterr().err == "candidate: suites: 1 of 2 (0 s)\n"


def test_a_console_in_a_pipe_wraps_nothing_and_fills_no_lines():
    stream = io.StringIO()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "text"):
        table.add_column(name)
    table.add_row("a", "long words " * 60)
    table.add_row("b", "short")
    console = progress.screen(stream)
    console.print(table)
    console.print("words " * 60, style="bold red")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[2] == "b     short"
    assert "\x1b" not in stream.getvalue()


def test_brackets_and_colons_of_a_failure_are_printed_as_they_are():
    stream = io.StringIO()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column("seen")
    table.add_row("KeyError: [/red] [bold]model[0] :warning:")
    console = progress.screen(stream)
    console.print(table)
    console.print("/home/me/[/red]/a")
    assert stream.getvalue().splitlines() == ["KeyError: [/red] [bold]model[0] :warning:", "/home/me/[/red]/a"]


@pytest.mark.parametrize(("number", "words"), [(0, "0 cases"), (1, "1 case"), (2, "2 cases"), (4058, "4,058 cases")])
def test_counted(number, words):
    assert counted(number, "case") == words
