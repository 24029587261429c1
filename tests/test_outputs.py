"""What is known to fail at the end fails at the start, and no command ends with Python's own exit code 1."""

import errno
import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from harness import ending, files
from harness.cli import app
from harness.cli import outputs as declared
from harness.cli.cache_use import use_cache
from harness.cli.pytest_process import run_pytest
from harness.errors import OutOfSpace, UsageError
from harness.files import Attempts, check_writable, check_writable_directory, out_of_space, write_whole
from harness.paths import cache_directory, is_cache, keeping_bytecode, mark_cache
from harness.real import reference_alone
from harness.runs.scenarios import PLAIN
from harness.session.decide import decide
from harness.subjects.observer import Observer
from harness.verdict import SKIPPED, Case
from tests import command_line

# ---- files that cannot be written ----


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a file, links of several kinds, and a read-only file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "protected").write_text("mine")
    (tmp_path / "protected").chmod(0o444)
    for link, target in (
        ("to-file", "file"),
        ("to-nothing", "gone"),
        ("to-itself", "to-itself"),
        ("to-device", "/dev/null"),
    ):
        (tmp_path / link).symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def listing(directory):
    return {path: path.lstat().st_mtime_ns for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is a directory; name a file"),
        ("folder", "is a directory; name a file"),
        ("pipe", "is no regular file; name a file"),
        ("/dev/null", "is no regular file; name a file"),
        ("/dev/full", "is no regular file; name a file"),
        ("to-device", "is no regular file; name a file"),
        ("to-nothing", "is a link that leads nowhere; name a file"),
        ("to-itself", "is a link that leads nowhere; name a file"),
        ("file/x.json", "cannot be written (not a directory); name a file in a directory that you can write to"),
        ("protected", "cannot be written (it is read-only); name a file in a directory that you can write to"),
        ("n" * 256, "cannot be written (file name too long); name a file in a directory that you can write to"),
        ("new/" + "n" * 256, "cannot be written (file name too long); name a file in a directory that you can"),
        ("n\0", "cannot be written (embedded null byte); name a file in a directory that you can write to"),
        ("/proc/x.json", "cannot be written ("),
        ("/proc/self/environ", "cannot be written ("),
    ],
)
def test_a_file_that_cannot_be_written_is_found_and_nothing_changes(place, name, words):
    before = listing(place)
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        check_writable("--json", name)
    assert str(caught.value).startswith("--json ")
    assert listing(place).keys() == before.keys()


@pytest.mark.parametrize("name", ["x.json", "file", "to-file", "new/er/x.json", "n" * 255, "ä" * 127])
def test_a_file_that_can_be_written_is_not_made(place, name):
    before = listing(place)
    path = check_writable("--json", name)
    assert path.name == ("file" if name == "to-file" else os.path.basename(name))
    assert listing(place).keys() == before.keys() and (place / "file").read_text() == "mine"
    write_whole(path, "new")
    assert (place / name).read_text() == "new"
    assert not any(".." not in each.name and each.name.startswith(".") for each in place.rglob("*"))


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_found_and_what_was_there_stays(place, monkeypatch):
    monkeypatch.setattr(files, "_write_new", full)
    with pytest.raises(UsageError, match=r"--json new/x: cannot be written \(no space left on device\)"):
        check_writable("--json", "new/x")
    with pytest.raises(UsageError, match=r"--output new: cannot be written \(no space left on device\)"):
        check_writable_directory("--output", "new")
    with pytest.raises(OSError) as caught:
        write_whole(place / "file", "new")
    assert caught.value.filename == str(place / "file") and (place / "file").read_text() == "mine"
    assert not (place / "new").exists()


def test_a_device_is_never_replaced_by_a_file(place):
    with pytest.raises(UsageError, match="is no regular file"):
        write_whole(place / "to-device", "x")
    assert (place / "to-device").is_symlink()


@pytest.mark.parametrize("name", ["file", "file/x", "to-nothing/x", "/proc/x", "a\0"])
def test_a_directory_that_cannot_be_written_is_found(place, name):
    with pytest.raises(UsageError, match=r"--output .* cannot be written \(.+\); name a directory"):
        check_writable_directory("--output", name)


def test_a_write_that_fails_is_tried_again_and_the_last_one_counts():
    written = Attempts()
    with written.attempt():
        full()
    with pytest.raises(OSError, match="No space"):
        written.require_last()
    with written.attempt():
        pass
    written.require_last()


# ---- options that name files ----


OUTPUTS = [
    "json",
    "html",
    "plot",
    "png",
    "markdown",
    "output",
    "script",
    "issue",
    "junit",
    "sarif",
    "code_quality",
    "badge",
]
#: `defects --script NAME` prints a script of the table.
NAMES_NO_FILE = {("defects", "script")}


def output_options():
    """Return (command, option, kind) of each option that names a file or a directory to write."""
    found = []
    group: Any = typer.main.get_command(app)
    for command in group.commands.values():
        for param in command.params:
            if param.name in OUTPUTS and (command.name, param.name) not in NAMES_NO_FILE:
                found.append((command, param))
    return found


def test_each_option_that_names_an_output_is_checked():
    options = output_options()
    assert len(options) >= 12
    for command, param in options:
        assert isinstance(command, declared.Command), command.name
        context = typer.Context(command)
        param.callback(context, param, "x")
        assert context.meta[declared._OUTPUTS], f"{command.name} {param.opts}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("soak --times 2 --json folder", "--json folder: is a directory; name a file"),
        ("speed --plot x.xyz", "--plot x.xyz: no format of a plot; end the name in .png, .svg, .pdf"),
        ("speed --plot x", "--plot x: no format of a plot"),
        ("coverage --plot x.pgf", "--plot x.pgf: no format of a plot"),
        ("speed --json x.png --plot x.png", "--json x.png: --plot names the same file; name another one"),
        ("mutants --module file --json file", "--json file: --module names the same file; name another one"),
        ("mutants --module file --html to-file", "--module names the same file"),
        ("gate --baseline file --candidate current --markdown ./file", "--baseline names the same file"),
        ("check --with file --json to-file", "--with names the same file"),
        ("train --data file --output file/x", "--output file/x: cannot be written (not a directory)"),
    ],
)
def test_outputs_are_checked_before_a_command_works(place, line, words):
    before = listing(place)
    code, output, errors = command_line.run(*line.split(" "))
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert words in errors
    assert listing(place).keys() == before.keys() and (place / "file").read_text() == "mine"


def test_matplotlib_writes_each_format():
    from matplotlib.backend_bases import FigureCanvasBase

    assert set(declared._FORMATS) <= set(FigureCanvasBase.get_supported_filetypes())


def test_a_missing_matplotlib_is_found_before_a_command_works(place, monkeypatch):
    monkeypatch.setattr("harness.cli.outputs.importlib.util.find_spec", lambda name: None)
    assert command_line.run("speed", "--plot", "x.png") == (
        2,
        "",
        "peft-harness: --plot: matplotlib is not installed; pip install matplotlib\n",
    )


def test_a_deleted_directory_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, errors = command_line.run("clauses", "RES-05")
    monkeypatch.chdir(tmp_path)
    assert (code, errors) == (
        2,
        "peft-harness: the current directory does not exist any more; change to another one\n",
    )


# ---- numbers ----


@pytest.mark.parametrize(
    "line",
    [
        *("soak --times 10001", "soak --times 1e9", "soak --times 0", "soak --times -1"),
        *("speed --seconds nan", "speed --seconds inf", "speed --seconds 0", "speed --seconds 1e30"),
        *("speed --ranks 0", "speed --ranks -3", "speed --ranks 999", "speed --ranks 1"),
        *("train --steps 1", "train --steps 1000000000", "train --batch-size 0", "train --length 7"),
        *("train --threads -1", "train --threads 5000", "train --seed -1", "train --seed 4294967296"),
        *("train --length 100000000000", "train --batch-size 100000000"),
    ],
)
def test_a_number_out_of_bounds_is_refused_at_once(place, line):
    command, option, number = line.split(" ")
    code, output, errors = command_line.run(command, option, number)
    assert (code, output) == (2, "")
    assert option in errors.splitlines()[-1] and errors.splitlines()[-1].startswith("peft-harness: ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("soak --clause ABC-*", "--clause 'ABC-*' matches no clause"),
        ("soak --device tpu", "--device 'tpu' is neither cpu nor cuda"),
        ("soak --subject nobody", "unknown subject 'nobody'; known are hf-trainer, reference"),
        ("speed --strategy ddp", "--strategy: does not go with one process; name --ranks N, too"),
        ("speed --ranks 2 --seconds 5", "--seconds: does not go with --ranks"),
        ("speed --ranks 2 --rates", "--rates: does not go with --ranks"),
        ("speed --rates --shape tiny --shape long", "--rates: does not go with a second --shape"),
        ("speed --rates --subject reference", "--rates: does not go with --subject"),
    ],
)
def test_an_option_that_chooses_nothing_is_refused_at_once(place, line, words):
    code, output, errors = command_line.run(*line.split(" "))
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"peft-harness: {words}")


# ---- what a command ends with ----


@pytest.fixture
def ends(monkeypatch, tmp_path):
    """ends(error): the exit code and the sentence of a command in which an exception is raised."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(error):
        def explain(ids):
            raise error

        monkeypatch.setattr("harness.register.explain.explain", explain)
        code, output, errors = command_line.run("clauses")
        assert (output, errors[-1:]) == ("", "\n")
        return code, errors.removeprefix("peft-harness: ").rstrip("\n")

    return run


def named(error, name):
    error.name = name
    return error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("wrong"), 2, "wrong"),
        (UsageError("two\nlines \x1b[31m"), 2, r"two\nlines \x1b[31m"),
        (UsageError("x" * 10**6), 2, "xxx ... xxx"),
        (KeyboardInterrupt(), 130, "interrupted; if it was a gate, the same command continues it"),
        (SystemExit(1), 2, "ended the command by sys.exit(1), so nothing is judged"),
        (SystemExit(0), 2, "ended the command by sys.exit(0), so nothing is judged"),
        (MemoryError(), 2, "not enough memory; end other processes, or choose a smaller run"),
        (named(ImportError("libtorch.so: no such file"), "torch"), 2, "torch cannot be imported (libtorch.so: no"),
        (named(ModuleNotFoundError("No module named 'peft'"), "peft"), 2, "peft cannot be imported (No module named"),
        (OSError(errno.ENOSPC, "No space left on device", "/there/x"), 2, "no space left on /there; free some, or"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/there/x"), 2, "no space left on /there; free some, or"),
        (RuntimeError("Error: I/O error: No space left on device (os error 28)"), 2, "no space left on "),
        (PermissionError(errno.EACCES, "Permission denied", "/there"), 2, "/there: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/there"), 2, "/there: read-only file system"),
        (RecursionError("maximum recursion depth exceeded"), 2, "internal error: RecursionError: maximum recursion"),
        (ValueError("one\ntwo"), 2, "internal error: ValueError: one; please report it with "),
        (EOFError("Ran out"), 2, "internal error: RuntimeError: EOFError: Ran out; please report it with "),
        (named(ImportError("cannot import name 'x'"), "harness.words"), 2, "internal error: ImportError: cannot"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_no_exception_leaves_a_command(ends, error, code, words):
    ended, sentence = ends(error)
    assert ended == code
    assert words in sentence
    assert "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 2100


def test_a_full_disk_is_found_in_the_causes_of_an_error():
    error = ValueError("no file")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert out_of_space(error).startswith("no space left on ")
    assert out_of_space(ValueError("No space left in the shelf")) == ""
    assert out_of_space(None) == ""


def test_a_run_that_a_full_disk_ended_is_not_judged(tmp_path, monkeypatch):
    """Its error would fail clauses, and 1 means that upstream is wrong."""
    with pytest.raises(OutOfSpace, match="no space left on"):
        Observer(PLAIN, "hf-trainer", (), tmp_path).finish(OSError(errno.ENOSPC, "No space left on device"))
    assert Observer(PLAIN, "hf-trainer", (), tmp_path).finish(ValueError("x")).error == "ValueError: x"
    case, report = Case("RES-01", "plain", "a::b", "hf-trainer"), SimpleNamespace(outcome="failed", longrepr=None)
    raised = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    call = SimpleNamespace(excinfo=SimpleNamespace(value=raised))
    item = SimpleNamespace(stash={}, nodeid="a::b")
    monkeypatch.setattr("harness.session.failure.representation", lambda item, sentence, lines: sentence)
    decide(SimpleNamespace(runs=None), item, case, call, report)
    assert (case.verdict, case.misused) == (SKIPPED, True) and case.reason.startswith("no space left on")


def test_the_traceback_of_an_internal_error_is_in_the_file_that_is_named(ends, tmp_path):
    _, sentence = ends(ValueError("one"))
    (log,) = tmp_path.glob("peft-harness-error-*.log")
    assert sentence == f"internal error: ValueError: one; please report it with {log}"
    assert log.read_text().startswith("['peft-harness', 'clauses']\nTraceback") and "in explain" in log.read_text()


def test_with_a_variable_the_traceback_is_printed(ends, tmp_path, monkeypatch):
    monkeypatch.setenv(ending.DEBUG, "1")
    _, printed = ends(ValueError("one"))
    assert printed.startswith("Traceback") and printed.endswith("please report it with the lines above")
    assert not list(tmp_path.glob("*.log"))


@pytest.mark.parametrize(
    ("code", "ended"),
    [(None, 0), (0, 0), (1, 1), (2, 2), (3, 3), (4, 2), (120, 2), (-9, 2), (130, 130), (137, 137), ("1", 2), (True, 1)],
)
def test_exit_codes_of_others_are_not_taken_for_ours(code, ended):
    assert ending.ended(code) == ended


def test_the_reference_alone_ends_in_the_same_way(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for error, words in (
        (SystemExit(0), "internal error: SystemExit: 0; please report it with"),
        (OSError(errno.ENOSPC, "No space left on device", "/there/x"), "no space left on /there"),
        (ValueError("one"), "internal error: ValueError: one; please report it with"),
    ):
        monkeypatch.setattr(reference_alone, "_spec", lambda chosen, error=error: (_ for _ in ()).throw(error))
        assert reference_alone.main([]) == 2
        assert capsys.readouterr().err.startswith(f"python -m harness.reference: {words}")


@pytest.mark.parametrize("text", ["", "[]", "[" * 5000, '{"ACC-01": 1}'])
def test_a_damaged_table_of_faults_is_one_sentence(monkeypatch, tmp_path, text):
    (tmp_path / "proofs.json").write_text(text)
    monkeypatch.setattr("harness.register.entries.PROOFS", tmp_path / "proofs.json")
    code, output, errors = command_line.run("clauses", "RES-05")
    assert (code, output, errors.count("\n")) == (2, "", 1) and f"{tmp_path / 'proofs.json'}: " in errors


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "peft-harness: stdout: the results cannot be printed (no space left on device)\n",
        ),
    ],
)
def test_results_that_are_not_printed_are_no_success(monkeypatch, capsys, error, code, words):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken(error))
        assert ending.ended(0) == code
    assert capsys.readouterr().err == words


PROCESS = [sys.executable, "-m", "harness", "clauses"]


@pytest.mark.parametrize(
    ("redirected", "code", "words"),
    [
        ("| head -1", 141, ""),
        (">/dev/full", 2, "peft-harness: stdout: the results cannot be printed (no space left on device)\n"),
        (
            ">&-",
            2,
            "peft-harness: stdout is closed, so nothing can be printed; redirect it to a file or to /dev/null\n",
        ),
        ("<&- >/dev/null 2>&-", 0, ""),
    ],
)
def test_a_shell_that_takes_no_output(redirected, code, words):
    line = f"{' '.join(PROCESS)} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, words)


@pytest.mark.parametrize("module", ["harness", "harness.cli"])
def test_a_poor_environment_has_results_all_the_same(module):
    poor = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "0", "LINES": "many", "PYTHONUTF8": "0"}
    words = [sys.executable, "-m", module, "cache", "clean", "ä→"]
    done = subprocess.run(words, capture_output=True, env=poor)
    assert done.returncode == 2
    assert done.stderr.startswith(b"peft-harness: cache clean ") and b"no such kind" in done.stderr


def test_a_gate_finds_a_read_only_directory_before_it_makes_environments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".peft-harness").touch()
    code, _, errors = command_line.run("gate", "--baseline", "current", "--candidate", "current")
    assert (code, errors) == (
        2,
        f"peft-harness: the gate's results in {tmp_path}/.peft-harness: cannot be written (not a directory); "
        "change to a directory that you can write to\n",
    )


@pytest.mark.parametrize(("code", "ended"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 2), (5, 2), (143, 143)])
def test_codes_of_the_suites_are_those_of_a_command(monkeypatch, code, ended):
    done = subprocess.CompletedProcess([], code)
    monkeypatch.setattr("harness.cli.pytest_process.subprocess.run", lambda *words, **options: done)
    assert run_pytest([], "reference", "cpu", [], [], None, []) == ended


@pytest.mark.parametrize("code", [-9, -11, 120])
def test_suites_that_end_otherwise_are_one_sentence(monkeypatch, code):
    done = subprocess.CompletedProcess([], code)
    monkeypatch.setattr("harness.cli.pytest_process.subprocess.run", lambda *words, **options: done)
    with pytest.raises(UsageError, match=f"the suites' process ended with {code}, so not all that was asked for is"):
        run_pytest([], "reference", "cpu", [], [], None, [])


# ---- the cache of a command ----


def test_the_cache_is_made_with_its_mark(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "new"))
    use_cache()
    assert is_cache(tmp_path / "new")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    mark_cache(tmp_path / "mine")
    assert not is_cache(tmp_path / "mine")


def test_a_chosen_cache_that_cannot_be_written_is_wrong_usage(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"PEFT_HARNESS_CACHE .*file: cannot be written \(not a directory\)"):
        use_cache()


def test_without_a_home_directory_nothing_is_cached_and_that_is_said(tmp_path, monkeypatch, capsys):
    # Set and deleted, so that they are restored.
    for name in ("PEFT_HARNESS_CACHE", "UV_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    use_cache()
    assert os.environ["PEFT_HARNESS_CACHE"].startswith(f"{tmp_path}/peft-harness-cache-")
    assert os.environ["UV_CACHE_DIR"] == f"{os.environ['PEFT_HARNESS_CACHE']}/uv"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"peft-harness: the cache {tmp_path}/file/.cache/peft-harness: cannot be written (not a directory); "
        "set PEFT_HARNESS_CACHE to cache what the command makes"
    )


def test_without_a_user_the_sentence_names_the_variable(monkeypatch):
    monkeypatch.delenv("PEFT_HARNESS_CACHE", raising=False)
    monkeypatch.setattr("harness.paths.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UsageError, match="set HOME, or PEFT_HARNESS_CACHE"):
        cache_directory()
    assert keeping_bytecode({"PYTHONDONTWRITEBYTECODE": "1"}) == {"PYTHONDONTWRITEBYTECODE": "1"}


def test_a_relative_cache_does_not_move_with_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", "mine")
    monkeypatch.chdir(tmp_path)
    assert cache_directory() == tmp_path / "mine"
