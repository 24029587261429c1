"""`peft-harness repro`: no traceback over what a user brings, 1 only if a clause fails, 0 only if something was judged."""

import json

import pytest

from harness.errors import UsageError
from harness.laws import universal
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from harness.session import case_file, failure, repro
from harness.session.repro import Tally, judge_spec
from harness.trace import Step, Trace
from harness.verdict import AMBIGUOUS, FAIL, NOT_COMPARABLE, PASS, Case, Unjudged, Verdict

ONE_STEP = PLAIN.but(max_steps=1)


@pytest.fixture
def judge(tmp_path, monkeypatch, capsys):
    """Judge a spec whose run is made up. Return the exit code and what was printed."""

    def judge(laws, spec=ONE_STEP, trace=None, several=None, train=None, **case):
        made = trace or Trace(spec, "hf-trainer", {}, steps=[Step(1, [], [0.1], {}, {})])
        monkeypatch.setattr(Runs, "train", train or (lambda self, spec, *more, **options: made))
        monkeypatch.setattr(universal, "LAWS_OF_ONE_RUN", laws)
        monkeypatch.setattr(repro, "LAWS_OF_SEVERAL_RUNS", several or {})
        file = tmp_path / "spec.json"
        file.write_text(json.dumps({"spec": spec.to_json(), **case}))
        code = judge_spec(file)
        return code, capsys.readouterr().out

    return judge


def holds(*_):
    return Verdict(PASS, "it holds")


def fails(*_):
    return Verdict(FAIL, "it holds", ("it does not",))


def raises(*_):
    raise ZeroDivisionError("nothing to divide by")


def applies_not(*_):
    return Verdict(NOT_COMPARABLE, "the law applies to the spec", ("nothing is accumulated",))


def compares_nan(*_):
    return Verdict(NOT_COMPARABLE, "it is the same", (Unjudged("step 1: the loss is nan"),))


def cannot_train(*_):
    raise UsageError("add_adapter does not take it")


@pytest.mark.parametrize(
    ("laws", "code", "line"),
    [
        ({"FRZ-01": holds, "ACC-02": applies_not}, 0, "ACC-02 not judged: nothing is accumulated"),
        ({"FRZ-01": holds, "ACC-02": fails}, 1, "    it does not"),
        (
            {"FRZ-01": holds, "ACC-02": raises},
            3,
            "ACC-02 not judged: the law failed with ZeroDivisionError: nothing to",
        ),
        ({"FRZ-01": fails, "ACC-02": raises}, 1, "1 could not be judged"),
        ({"FRZ-01": holds, "ACC-02": compares_nan}, 3, "ACC-02 not judged: step 1: the loss is nan"),
        ({"FRZ-01": holds, "ACC-02": cannot_train}, 3, "ACC-02 not judged: a run to compare with cannot be trained"),
        ({"ACC-02": applies_not}, 3, "0 hold, 0 fail"),
        ({}, 3, "0 hold, 0 fail"),
        ({"FRZ-01": lambda trace: Verdict(AMBIGUOUS, "it holds"), "ACC-02": holds}, 3, "1 could not be judged"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_the_exit_code_says_what_was_judged(judge, laws, code, line, several):
    done, said = judge({}, several=laws) if several else judge(laws)
    assert done == code, said
    assert line in said


def test_laws_that_do_not_apply_are_named(judge):
    _, said = judge({"FRZ-01": holds}, several={"RES-01": raises}, spec=ONE_STEP.resumed(1))
    assert "CKPT-04 not judged: nothing is saved" in said
    assert "RES-01 not judged: it compares runs that resume nothing" in said


def test_a_tally_without_verdicts_is_no_success():
    assert Tally().code == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ValueError: --load_best_model_at_end requires", "spec.json: upstream refuses it: ValueError: --load_best"),
        ("rank 1 of 2 was killed by SIGKILL\n  line 3", "spec.json: could not be trained: rank 1 of 2 was killed by"),
        ("the 2 ranks had not ended after 60 s\nrank 0 was in:", "could not be trained: the 2 ranks had not ended"),
        ("", "spec.json: upstream refuses it: an error without words"),
    ],
)
def test_a_run_that_does_not_begin_is_refused(judge, error, words):
    with pytest.raises(UsageError) as refused:
        judge({"FRZ-01": fails}, trace=Trace(ONE_STEP, "hf-trainer", {}, error=error))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_that_ends_within_its_first_step_is_refused(judge):
    begun = Trace(ONE_STEP, "hf-trainer", {}, error="RuntimeError: mixed", steps=[Step(1, [], [0.1], {}, {})])
    begun.events = ["train_begin", "step_begin"]
    with pytest.raises(UsageError, match="upstream refuses it: RuntimeError: mixed"):
        judge({"FRZ-01": fails}, trace=begun)
    begun.events.append("step_end")
    assert judge({"FRZ-01": fails}, trace=begun)[0] == 1


def test_a_case_that_failed_before_its_first_step_fails_again(judge):
    code, _ = judge(
        {"LOOP-04": fails}, trace=Trace(ONE_STEP, "hf-trainer", {}, error="ValueError: no"), clause="LOOP-04"
    )
    assert code == 1


@pytest.mark.parametrize("error", [RuntimeError("broken\nin two lines"), SystemExit(0), MemoryError()])
def test_a_subject_that_raises_or_exits_has_judged_nothing(judge, error):
    def train(*_, **options):
        raise error

    with pytest.raises(UsageError, match=type(error).__name__) as refused:
        judge({"FRZ-01": holds}, train=train)
    assert "\n" not in str(refused.value)


def test_arguments_that_upstream_refuses_are_no_failure(tmp_path):
    """A real run: TrainingArguments raise ValueError before the first step."""
    (tmp_path / "spec.json").write_text(json.dumps(ONE_STEP.but(optim="no_such_optimizer").to_json()))
    with pytest.raises(UsageError, match=r"spec\.json: upstream refuses it: ValueError: ") as refused:
        judge_spec(tmp_path / "spec.json")
    assert "\n" not in str(refused.value)


# ---- the file, and the line that a failure prints ----


class _State:
    """What `failure.block` reads of a session's state."""

    def __init__(self, preload):
        self.preload = preload


@pytest.mark.parametrize(
    ("subject", "preload", "spec", "drawn", "needs"),
    [
        ("hf-trainer", [], PLAIN, None, False),
        ("hf-trainer", [], PLAIN, 5, False),
        ("my_trainer:subject", [], PLAIN, None, True),
        ("hf-trainer", ["my_patch"], PLAIN, None, True),
        ("hf-trainer", [], PLAIN.but(model={"family": "mine:factory"}), 5, True),
        # The test of the suites has its own specs.
        ("hf-trainer", [], PLAIN.but(logging_dir="x"), None, False),
    ],
)
def test_the_printed_command_works_as_printed(tmp_path, monkeypatch, subject, preload, spec, drawn, needs):
    monkeypatch.chdir(tmp_path)
    test = "suites/test_frz_kinds.py::test_base_is_frozen[x]"
    case = Case("FRZ-01", "plain", test, subject, specs=[spec.to_json()], drawn=drawn)
    monkeypatch.setattr(case_file, "path_of", lambda case: "")
    *_, line = failure.block(_State(preload), case, Verdict(FAIL, "it holds", ("it does not",)))
    path = ".peft-harness/cases/FRZ-01-plain.json"
    assert line == f"  repeat    peft-harness repro {path}{' --trust-code' if needs else ''}"
    read = case_file.load(path)
    assert (read.subject, read.preload, read.spec) == (subject, tuple(preload), spec if drawn else None)


@pytest.mark.parametrize(
    "change",
    [
        {"test": "../../x.py::test_x"},
        {"test": "conftest.py"},
        {"test": "test_rng.py::test_no_such_test"},
        {"test": "test_rng.py\0::test_x"},
        {"test": 3},
        {"subject": "--version"},
        {"subject": 3},
        {"device": "tpu"},
        {"preload": "os"},
        {"preload": ["-x"]},
        {"schema_version": 99},
    ],
)
def test_a_case_file_is_checked(tmp_path, change):
    body = {
        "test": "test_rng.py::test_the_seed_alone_gives_the_order_of_the_rows",
        "subject": "hf-trainer",
        "device": "cpu",
        "preload": [],
    }
    (tmp_path / "case.json").write_text(json.dumps({**body, **change}))
    with pytest.raises(UsageError, match=next(iter(change))):
        case_file.load(tmp_path / "case.json")


@pytest.mark.parametrize("argument", [-1, 1e9, "3", None, 10**9, [1]])
def test_the_numbers_of_a_life_are_checked(tmp_path, argument):
    life = [{"do": "switch", "which": argument}]
    (tmp_path / "case.json").write_text(json.dumps({"spec": PLAIN.to_json(), "life": life}))
    with pytest.raises(UsageError, match="life: switch has which"):
        case_file.load(tmp_path / "case.json")
