"""What a user's module or subject does wrong is one sentence with the cause and its place, and never the end of a process."""

import os
import sys
import time

import pytest

from harness import subjects, user_code
from harness.errors import UsageError
from harness.processes.imports import preload
from harness.runs.scenarios import PLAIN
from harness.subjects import WrongSubject, trained, unsupported
from harness.trace import Trace

AT_IMPORT = {
    "raises": ('x = 1\nraise ValueError("no GPU\\nmore")', "ValueError: no GPU, at {file}:2"),
    "syntax": ("def f(:", "SyntaxError: invalid syntax, at {file}:1"),
    "sys-exit": ("import sys\nsys.exit(0)", "it calls sys.exit(0), at {file}:2"),
    "sys-exit-words": ('raise SystemExit("no GPU")', "it calls sys.exit('no GPU'), at {file}:1"),
    "os-exit": ("import os\nos._exit(0)", "it calls os._exit(0), at {file}:2"),
    "os-exit-by-name": ("from os import _exit\n_exit(0)", "it calls os._exit(0), at {file}:2"),
    "like-ctrl-c": ('class Stop(KeyboardInterrupt): ...\nraise Stop("enough")', "Stop: enough, at {file}:2"),
    "pytest-exit": ('import pytest\npytest.exit("bye", returncode=0)', "Exit: bye, at {file}:2"),
    "skips": ('import pytest\npytest.skip("bye", allow_module_level=True)', "Skipped: bye, at {file}:2"),
    "imports-nothing": ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing', at {file}:1"),
    "attribute": ("import os\nos.nothing", "AttributeError: module 'os' has no attribute 'nothing', at {file}:2"),
    "no-message": ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "its message cannot be made"),
    "recursion": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "closes-stdout": ("import os\nos.close(1)", "it closes stdout, where results are printed"),
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(text): write a module with a name of its own, and return (its name, its file)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text):
        name = f"own_{tmp_path.name.replace('-', '_')}"
        file = tmp_path / f"{name}.py"
        file.write_text(text + "\n")
        return name, file

    yield write
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize("case", AT_IMPORT)
def test_a_module_that_cannot_be_imported_is_named_with_its_cause_and_place(module, case):
    text, cause = AT_IMPORT[case]
    name, file = module(text)
    real_exit = os._exit
    for load, start in (
        (lambda: subjects.load(f"{name}:subject"), f"'{name}:subject': module '{name}' cannot be imported ("),
        (lambda: preload([name]), f"--preload {name}: cannot be imported ("),
    ):
        with pytest.raises(UsageError) as error:
            load()
        assert str(error.value).startswith(start) and cause.format(file=file) in str(error.value)
        assert "\n" not in str(error.value)
    assert os._exit is real_exit and not sys.stdout.closed
    os.fstat(1)


def test_ctrl_c_while_a_module_is_imported_is_said(module):
    name, file = module("raise KeyboardInterrupt")
    with pytest.raises(UsageError, match=f"KeyboardInterrupt, at {file}:1"):
        subjects.load(f"{name}:subject")


def test_the_current_directory_stays(module, tmp_path):
    name, _ = module('import os\nos.chdir("/")')
    preload([name])
    assert os.getcwd() == str(tmp_path)


def test_an_import_that_does_not_end_ends_the_process_with_2(module, monkeypatch, tmp_path):
    name, _ = module("import time\ntime.sleep(1000)")
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(user_code, "LIMIT", 0.2)
        os.dup2(os.open("stderr.txt", os.O_CREAT | os.O_WRONLY), 2)
        preload([name])
        os._exit(0)
    until = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 2
    lines = (tmp_path / "stderr.txt").read_text().splitlines()
    assert any(f'{name}.py", line 2' in line for line in lines)
    assert lines[-1].startswith(f"peft-harness: --preload {name}: cannot be imported (it had not ended after 0.2 s")


PROTOCOL = "def unsupported(self, spec): ...\n    def train(self, spec, directory): ...\n"

MADE = {
    "no-callable": ("subject = None", "is a NoneType; name a function or class"),
    "needs-arguments": ("def subject(a): ...", "cannot be made (TypeError: subject() missing 1 required positional"),
    "raises": ('def subject(): raise OSError("no weights")', "cannot be made (OSError: no weights, at "),
    "exits": ("import os\ndef subject(): os._exit(0)", "cannot be made (it calls os._exit(0), at "),
    "nothing": ("def subject(): ...", "returned NoneType, which lacks name"),
    "a-class": (f"class S:\n    name = 'x'\n    {PROTOCOL}\ndef subject(): return S", "cannot be called"),
    "a-slash": (f"class subject:\n    name = '../x'\n    {PROTOCOL}", "has the name '../x'; expected"),
    "a-number": (f"class subject:\n    name = 3\n    {PROTOCOL}", "has the name 3; expected"),
    "two-lines": (f"class subject:\n    name = 'a\\nb'\n    {PROTOCOL}", "has the name 'a\\nb'; expected"),
    "a-bad-name": (f"class subject:\n    name = property(lambda self: 1 / 0)\n    {PROTOCOL}", "ZeroDivisionError"),
    "no-attribute": ("x = 1", "has no 'subject'"),
    "a-bad-attribute": ("def __getattr__(name): 1 / 0", "does not give 'subject' (ZeroDivisionError"),
}


@pytest.mark.parametrize("case", MADE)
def test_a_factory_that_makes_no_subject_is_named(module, case):
    text, words = MADE[case]
    with pytest.raises(UsageError) as error:
        subjects.load(f"{module(text)[0]}:subject")
    assert words in str(error.value)


@pytest.mark.parametrize("name", [":", ":x", "x:", ".x:y", "a b:c", "\0:x", "no_such:x"])
def test_a_name_of_no_object_is_a_sentence(name):
    with pytest.raises(UsageError, match=r"expected module:object|cannot be imported"):
        subjects.load(name)


class Answers:
    name = "own"

    def __init__(self, reason=None, trace=None, error=None):
        self.reason, self.trace, self.error = reason, trace, error

    def unsupported(self, spec):
        if self.error:
            raise self.error
        return self.reason

    def train(self, spec, directory):
        if self.error:
            raise self.error
        return self.trace


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (Answers(reason=3), "unsupported(spec) returned 3; expected a reason, or None"),
        (Answers(reason=False), "unsupported(spec) returned False"),
        (Answers(error=ValueError("what?")), "unsupported(spec) raised an error (ValueError: what?"),
    ],
)
def test_an_answer_that_is_no_reason_is_a_wrong_subject(subject, words):
    with pytest.raises(WrongSubject) as error:
        unsupported(subject, PLAIN)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (None, "returned None; expected a harness.trace.Trace"),
        ({"steps": []}, "returned {'steps': []}; expected"),
        (Trace(PLAIN, "own", {}, steps=None), "steps is None; expected list[Step]"),
        (Trace(PLAIN, "own", {}, steps=[1]), "steps hold something else than Steps"),
        (Trace(PLAIN, "own", {}, **{"adapter": {"a": 1}}), "adapter holds something else than tensors"),
        (Trace(PLAIN, "own", {}, seconds="long"), "seconds is 'long'; expected float"),
        (Trace(None, "own", {}), "spec is None; expected a RunSpec"),
    ],
)
def test_what_is_no_trace_is_a_wrong_subject(tmp_path, trace, words):
    with pytest.raises(WrongSubject) as error:
        trained(Answers(trace=trace), PLAIN, tmp_path)
    assert words in str(error.value)


def test_what_a_subject_raises_is_the_error_of_its_trace(tmp_path):
    trace = trained(Answers(error=ValueError("no weights")), PLAIN, tmp_path)
    assert trace.error.startswith("ValueError: no weights, at ") and trace.spec == PLAIN
