"""`peft-harness repro`: no traceback over what a user brings, 1 only if a clause fails, 0 only if something was judged."""

import dataclasses
import json

import jsonschema
import pytest

from harness import defaults
from harness.contract import expectations
from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.laws import universal
from harness.paths import PACKAGE
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from harness.session import case_file, failure
from harness.session.repro import judge_spec
from harness.subjects import Traits
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
        monkeypatch.setattr(universal, "LAWS_OF_SEVERAL_RUNS", several or {})
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
        ({"FRZ-01": holds, "ACC-02": applies_not}, 0, "ACC-02 not judged nothing is accumulated"),
        ({"FRZ-01": holds, "ACC-02": fails}, 1, "ACC-02 fails it holds it does not"),
        ({"FRZ-01": holds, "ACC-02": raises}, 3, "ACC-02 not judged the law failed with ZeroDivisionError: nothing to"),
        ({"FRZ-01": fails, "ACC-02": raises}, 1, "FRZ-01 fails"),
        ({"FRZ-01": holds, "ACC-02": compares_nan}, 3, "ACC-02 not judged step 1: the loss is nan"),
        ({"FRZ-01": holds, "ACC-02": cannot_train}, 0, "ACC-02 not judged a run to compare with cannot be trained"),
        ({"FRZ-01": lambda *_: Verdict(AMBIGUOUS, "it holds"), "ACC-02": holds}, 3, "FRZ-01 undecided"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_the_exit_code_says_what_was_judged(judge, laws, code, line, several):
    compared = {"GEN-02": holds}
    done, said = judge({}, several=laws | compared) if several else judge(laws, several=compared)
    assert done == code, said
    assert line in " ".join(said.split())


@pytest.mark.parametrize(
    ("several", "code"),
    [({}, 3), ({"API-05": holds}, 3), ({"GEN-02": holds}, 0), ({"RES-01": applies_not}, 3), ({"RES-01": fails}, 1)],
)
def test_a_run_that_is_compared_with_no_other_is_undecided(judge, several, code):
    done, said = judge({"FRZ-01": holds}, several=several)
    assert done == code
    assert ("no run could be compared with another one" in said) == (code == 3)


def test_laws_that_do_not_apply_are_named(judge):
    _, said = judge({"FRZ-01": holds, "CKPT-04": raises}, several={"RES-01": raises}, spec=ONE_STEP.resumed(1))
    assert "CKPT-04 not judged nothing is saved" in " ".join(said.split())
    assert "RES-01 not judged it compares runs that resume nothing" in " ".join(said.split())


def test_what_was_not_judged_is_said_before_what_holds(judge):
    _, said = judge({"FRZ-01": holds, "CKPT-04": raises}, several={"GEN-02": holds})
    strength = "the reference does not model it (it was not applied): compared with itself only (GEN-02)"
    assert said.startswith(f"holds: {strength}")
    assert said.index("nothing is saved") < said.index("FRZ-01")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ValueError: --load_best_model_at_end requires", "spec.json: upstream refuses it: ValueError: --load_best"),
        ("rank 1 of 2 was killed by SIGKILL\n  line 3", "spec.json: could not be trained: rank 1 of 2 was killed by"),
        ("the 2 ranks had not ended after 60 s\nrank 0 was in:", "could not be trained: the 2 ranks had not ended"),
        ("OutOfMemoryError: CUDA out of memory", "spec.json: could not be trained: OutOfMemoryError: CUDA out of"),
        ("", "spec.json: upstream refuses it: an error without words"),
    ],
)
def test_a_run_that_does_not_begin_is_refused(judge, error, words):
    with pytest.raises(UsageError) as refused:
        judge({"FRZ-01": fails}, trace=Trace(ONE_STEP, "hf-trainer", {}, error=error))
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("events", [["train_begin", "step_begin"], ["train_begin", "step_begin", "step_end"], []])
def test_a_run_that_ends_after_its_first_step_began_fails(judge, events):
    """The last one is of a subject that records steps and no events."""
    steps = [] if events[-1:] == ["step_begin"] else [Step(1, [], [0.1], {}, {})]
    begun = Trace(ONE_STEP, "hf-trainer", {}, error="RuntimeError: mixed", steps=steps, events=events)
    code, said = judge({"FRZ-01": fails, "LOOP-04": holds}, trace=begun)
    assert code == 1
    assert "1 fails, 1 not judged" in said, "the error is told once, by the clause that a run completes"
    line = "LOOP-04 fails the run trains to its end the run ended with RuntimeError: mixed"
    assert line in " ".join(said.split())
    begun.events, begun.steps = ["train_begin"], []
    with pytest.raises(UsageError, match="upstream refuses it: RuntimeError: mixed"):
        judge({"FRZ-01": fails}, trace=begun)


@pytest.mark.parametrize("error", ["ValueError: no padding", "rank 1 of 2: NotImplementedError: not on this device"])
def test_words_in_the_first_step_are_a_refusal(judge, error):
    begun = Trace(ONE_STEP, "hf-trainer", {}, error=error, events=["train_begin", "step_begin"])
    with pytest.raises(UsageError, match=f"upstream refuses it: {error}"):
        judge({"LOOP-04": fails}, trace=begun)
    begun.events.append("step_end")
    assert judge({"LOOP-04": fails}, trace=begun)[0] == 1, "after the step they are no refusal"


def test_a_run_without_an_end_is_refused_before_it_is_trained(judge):
    def train(*_, **options):
        raise AssertionError("it was trained")

    endless = PLAIN.but(
        data={"rows": 10, "iterable": True}, per_device_train_batch_size=2, gradient_accumulation_steps=6
    )
    with pytest.raises(UsageError, match=r"spec\.json: upstream would train for ever: a pass over .* a step needs 6"):
        judge({"LOOP-04": holds}, spec=endless, train=train)
    with pytest.raises(UsageError, match="it was trained"):
        judge({"LOOP-04": holds}, spec=endless.but(gradient_accumulation_steps=5), train=train)


def test_what_upstream_raises_while_a_law_merges_is_upstreams(judge):
    def merge(*_):
        exec(compile("def merge(): raise RuntimeError('no such layer')", "peft/layer.py", "exec"), space)
        space["merge"]()

    space = {"__name__": "peft.tuners.lora.layer"}
    code, said = judge({"API-15": merge}, several={"GEN-02": holds})
    assert code == 1
    assert "peft's merge() raised RuntimeError: no such layer, at peft/layer.py:1" in said


def test_a_known_defect_that_describes_the_run_is_no_failure(judge, monkeypatch):
    known = Expectation(
        "FRZ-01", "drawn", ("torch>=1",), "it does not", "a fault of upstream.", spec={"model.family": "llama"}
    )
    monkeypatch.setattr(expectations, "load", lambda directory: [known])
    code, said = judge({"FRZ-01": fails}, several={"GEN-02": holds})
    assert (code, "FRZ-01 is a known fault of upstream that this run has: a fault of upstream." in said) == (0, True)
    other = dataclasses.replace(known, spec={"model.family": "gpt2"})
    monkeypatch.setattr(expectations, "load", lambda directory: [other])
    assert judge({"FRZ-01": fails}, several={"GEN-02": holds})[0] == 1


def test_processes_that_end_by_a_known_defect_say_so(judge, monkeypatch):
    known = Expectation("LOOP-04", "drawn", ("torch>=1",), "SIGABRT", "rank 0 saves.", spec={"model.family": "llama"})
    killed = Trace(ONE_STEP, "hf-trainer", {}, error="rank 0 of 2 was killed by SIGABRT")
    for entry, said in (
        (known, "killed by SIGABRT: a known fault of upstream: rank 0 saves."),
        (dataclasses.replace(known, match="SIGKILL"), "killed by SIGABRT"),
        (dataclasses.replace(known, spec={"model.family": "gpt2"}), "killed by SIGABRT"),
    ):
        monkeypatch.setattr(expectations, "load", lambda directory, entry=entry: [entry])
        with pytest.raises(UsageError) as refused:
            judge({"FRZ-01": holds}, trace=killed)
        assert str(refused.value).endswith(said)
    # A refusal of upstream's is no death of a process.
    monkeypatch.setattr(expectations, "load", lambda directory: [dataclasses.replace(known, match="no padding")])
    with pytest.raises(UsageError) as refused:
        judge({"FRZ-01": holds}, trace=dataclasses.replace(killed, error="ValueError: no padding"))
    assert "known fault" not in str(refused.value)


def test_a_refused_run_to_compare_with_is_no_failure(judge):
    """add_adapter takes no prompt tuning, for example. That is no fault of the run that is judged."""
    made = Trace(ONE_STEP, "hf-trainer", {}, steps=[Step(1, [], [0.1], {}, {})])
    refused = Trace(ONE_STEP, "hf-trainer", {}, error="ValueError: not with this route")

    def train(self, spec, *more, **options):
        return made if spec == defaults.plain(ONE_STEP) else refused

    def compares(train, spec):
        return fails() if train(spec.but(seed=7)).error else holds()

    code, said = judge({}, several={"API-05": compares, "GEN-02": holds}, train=train)
    assert code == 0
    assert "a run to compare with is refused: ValueError: not with this route" in said


def test_the_judgement_is_written_as_its_schema_says(tmp_path):
    """A real run."""
    file, report = tmp_path / "spec.json", tmp_path / "report.json"
    file.write_text(json.dumps(ONE_STEP.but(lora={"use_dora": False, "modules_to_save": None}).to_json()))
    assert judge_spec(file, json=report) == 0
    body = json.loads(report.read_text())
    jsonschema.validate(body, json.loads((PACKAGE / "session" / "judge_schema.json").read_text()))
    assert body["strength"] == "equal to the independent reference bit for bit"
    assert body["spec"] == defaults.plain(ONE_STEP).to_json()


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
        self.traits, self.in_theirs = Traits(), False


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
