"""`harness.conformance`: clauses as tests of somebody's own session, of their Trainer or of their loop."""

import contextlib
import json
import subprocess
import sys
import time

import pytest

from harness import LoopSubject, TrainerSubject, conformance, contract, environment, paths, subjects
from harness.alarm import CutOff, cut_off
from harness.causes.group import by_root, group
from harness.contract import expectations
from harness.contract.clause import PROFILES, Chapter, Clause
from harness.errors import UsageError
from harness.laws import equal
from harness.runs import allowed
from harness.session import conformance_summary, failure, suite_tests
from harness.session.pyargs import PROPERTY
from harness.spec import RunSpec
from harness.verdict import Case, Verdict
from tests import somebodys
from tests.traces import made_up


@pytest.fixture
def judged(request):
    """judged(test, *ids): run these cases of what conformance() returned; the cases that were judged, with outcomes."""

    def run(test, *ids):
        (mark,) = test.pytestmark
        found = {one.id: one.values[0] for one in mark.args[1]}
        cases = []
        for id in ids:
            before = len(request.node.user_properties)
            try:
                test(case=found[id], request=request)
                ended = "passed"
            except (pytest.fail.Exception, pytest.skip.Exception, pytest.xfail.Exception) as outcome:
                ended = f"{type(outcome).__name__}: {outcome}"
            ((name, value),) = request.node.user_properties[before:]
            assert name == PROPERTY
            cases.append((Case(**json.loads(value)), ended))
        del request.node.user_properties[:]
        return cases

    return run


#: Classes with a fault -> the cases that are judged; the clause that must be first in the list, and words of its cause.
FAULTS = {
    "ForgetsItems": (["FRZ-01-accumulation", "LOSS-01-ragged", "ACC-01-ragged"], "LOSS-01", "times what it must be"),
    "ShufflesLabels": (["FRZ-01-plain", "LOSS-01-full-rows"], "LOSS-01", "is trained with the labels of row"),
    "SavesWhole": (
        ["FRZ-01-plain", "CKPT-25-plain-test_adapter_file_is_exactly_the_trained_tensors"],
        "CKPT-25",
        "model.safetensors",
    ),
    "ForgetsOptimizerOnResume": (["FRZ-01-plain", "RES-01-step-6"], "RES-01", "optimizer's state is empty"),
    "DividesTwice": (["FRZ-01-plain", "LOSS-01-full-rows"], "LOSS-01", "num_items_in_batch 120"),
    "MovesTheBase": (["FRZ-01-plain", "LOSS-01-full-rows"], "FRZ-01", "digest"),
    "LeavesOneOut": (["FRZ-01-plain", "FRZ-02-plain"], "FRZ-02", "group 0: no "),
    "SavesLate": (
        ["FRZ-01-plain", "CKPT-25-plain-test_last_adapter_file_is_the_adapter_as_trained"],
        "CKPT-25",
        "lora_B",
    ),
    "ForgetsTheAdapterOnResume": (["FRZ-01-plain", "RES-01-step-6"], "RES-01", "adapter after loading checkpoint-6:"),
    "StartsTheEpochAnew": (["FRZ-01-plain", "RES-22-plain/step-6"], "RES-22", "trained rows"),
}


#: A fault of the loss and one of a file; the loop below has faults of resuming. The others take as long again.
QUICK = ("ShufflesLabels", "SavesWhole")


@pytest.mark.parametrize(
    "fault", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_a_fault_of_a_trainer_is_named_by_its_clause(fault, judged):
    ids, clause, words = FAULTS[fault]
    test = conformance(TrainerSubject(getattr(somebodys, fault)), clauses=sorted({id[:7].rstrip("-") for id in ids}))
    ended = judged(test, *ids)
    cases = [case for case, _ in ended]
    assert any(case.verdict == "fail" for case in cases), ended
    first = by_root(group(cases), cases)[0]
    assert first.members[0][0] == clause and words in first.sentence + first.example
    assert {case.whose for case in cases if case.verdict == "fail"} == {"yours"}
    assert any(line.startswith("yours: ") for line in conformance_summary.lines(cases))


def test_the_five_faults_of_a_loop_are_named(judged):
    ids = {
        "LOSS-01-ragged": "times what it must be",
        "ACC-02-short-last-window-test_a_short_window_is_normalised_by_its_own_tokens": "times that of the large batch",
        "CKPT-25-plain-test_adapter_file_is_exactly_the_trained_tensors": "model.safetensors is there",
        "RES-22-plain/step-6": "trained rows",
        "RES-07-ended-inside-an-epoch": "the loop made step",
    }
    clauses = ["LOSS-01", "ACC-02", "CKPT-25", "RES-22", "RES-07", "FRZ-01"]
    test = conformance(LoopSubject(somebodys.loop), profile="checkpoint", clauses=clauses)
    for (case, ended), words in zip(judged(test, *ids), ids.values(), strict=True):
        assert case.verdict == "fail" and words in ended, ended
        assert "transformers/" not in ended  # nothing of the Trainer's is in a loop
    ((held, _),) = judged(test, "FRZ-01-plain")
    assert held.verdict == "pass"


@pytest.mark.parametrize("name", ["torch", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_the_shipped_loops_have_none_of_them(name, judged):
    ids = ["LOSS-01-ragged", "RES-22-plain/step-6", "RES-07-ended-inside-an-epoch"]
    test = conformance(subjects.load(name), profile="checkpoint", clauses=["LOSS-01", "RES-22", "RES-07"])
    assert {ended for _, ended in judged(test, *ids)} == {"passed"}


@pytest.mark.skipif(environment.version("trl") is not None, reason="trl is installed")
def test_a_shipped_subject_names_the_extra_that_it_needs():
    with pytest.raises(UsageError, match=r"subject 'trl-sft' needs trl: pip install 'peft-harness\[trl\]'"):
        subjects.load("trl-sft")


def test_what_a_loop_does_not_take_is_said_by_name():
    def short(model, rows, batch_size, learning_rate, steps, recorder):
        pass

    subject = LoopSubject(short)
    assert subject.unsupported(RunSpec()) is None  # seed: the harness sets it
    assert subject.unsupported(RunSpec().but(weight_decay=0.1)) == "the loop takes no weight_decay"
    assert subject.unsupported(RunSpec().but(gradient_accumulation_steps=2)) == "the loop takes no accumulation"
    assert subject.unsupported(RunSpec().resumed(2)) == "the loop takes no resume_from"
    with pytest.raises(UsageError, match="takes no recorder; without these"):
        LoopSubject(lambda model, rows, batch_size, learning_rate, steps: None)
    with pytest.raises(UsageError, match="did you mean 'accumulation'"):
        LoopSubject(lambda model, rows, batch_size, learning_rate, steps, recorder, acumulation: None)


def test_the_plain_run_comes_first(judged):
    test = conformance(TrainerSubject(somebodys.Raises), clauses=["FRZ-01", "RES-05"])
    (first, ended), (second, skipped) = judged(test, "FRZ-01-plain", "FRZ-01-accumulation")
    assert ended.startswith(
        "Failed: Raises: the plain run, which is trained first, ended with TypeError: training_step()"
    )
    assert "at transformers/trainer.py" in ended and ended.endswith("no clause is judged")
    assert first.misused and second.misused and skipped.startswith("Skipped")
    assert list(conformance_summary.lines([first, second])) == [f"nothing is judged: {first.reason}"]


class _RaisesIfAsked(somebodys.Plain):
    def training_step(self, *args, **keywords):
        if self.args.gradient_accumulation_steps > 1:
            raise TypeError("no accumulation here")
        return super().training_step(*args, **keywords)


def test_what_holds_of_no_completed_run_is_undecided(judged, monkeypatch):
    from harness.laws import frozen
    from harness.verdict import verdict

    monkeypatch.setattr(frozen, "base_frozen", lambda trace: verdict("holds of anything", []))
    test = conformance(TrainerSubject(_RaisesIfAsked), clauses=["FRZ-01"])
    ((case, ended),) = judged(test, "FRZ-01-accumulation")
    assert case.verdict == "ambiguous" and "none was: TypeError: no accumulation here" in ended


def _ends_never(model, rows, batch_size, learning_rate, steps, recorder, seed=42):
    time.sleep(60)


def test_a_case_that_never_ends_is_cut_off_with_its_stack(judged, monkeypatch):
    from harness.runs import preflight

    monkeypatch.setattr(preflight, "refused", lambda runs: "")
    test = conformance(LoopSubject(_ends_never), profile="any-loop", clauses=["FRZ-02"], limit=4)
    for case, ended in judged(test, "FRZ-02-plain"):
        assert case.verdict == "fail" and "CutOff: cut off after 4 s" in ended
        assert "in _ends_never" in ended and "time.sleep(60)" in ended


def _tries_again():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(1)


def test_a_loop_that_catches_errors_is_cut_off_all_the_same():
    with pytest.raises(CutOff, match="cut off after"), cut_off(0.1):
        _tries_again()


class _AddsEntropy(somebodys.Plain):
    def log(self, logs, *args):
        super().log({**logs, "entropy": 1.0}, *args)


def test_what_a_trainer_adds_on_purpose_is_allowed(judged):
    id = "LOG-01-plain"
    ((case, _),) = judged(conformance(TrainerSubject(_AddsEntropy), clauses="LOG-01"), id)
    assert case.verdict == "fail" and case.whose == "convention" and "entropy" in str(case.evidence["seen"])
    ((case, _),) = judged(conformance(TrainerSubject(_AddsEntropy), clauses="LOG-01", allow={"LOG-*": ["entropy"]}), id)
    assert case.verdict == "pass"


OWN = """
[[defect]]
clause = "LOSS-01"
scenario = "full-rows"
versions = ["transformers"]
match = "num_items_in_batch 120"
reason = "we divide twice"
"""


def test_known_defects_of_the_subject_are_strict_both_ways(judged, tmp_path):
    file = tmp_path / "known.toml"
    file.write_text(OWN)
    for cls, verdict, words in (
        (somebodys.DividesTwice, "known_defect", "yours: we divide twice"),
        (somebodys.Plain, "unexpected_pass", "says it must fail with 'num_items_in_batch 120'"),
    ):
        test = conformance(TrainerSubject(cls), clauses=["LOSS-01"], expectations=file)
        ((case, ended),) = judged(test, "LOSS-01-full-rows")
        assert case.verdict == verdict and words in ended


def test_known_defects_of_what_it_is_built_on_are_upstreams():
    known = expectations.load(paths.SUITES / "expectations")
    trainers = expectations.inherited(known, "Plain", ("transformers", "peft", "accelerate", "bitsandbytes", "torch"))
    loops = expectations.inherited(known, "loop", ("peft", "accelerate", "bitsandbytes", "torch"))
    assert sum(one.inherited for one in trainers) > sum(one.inherited for one in loops) > 0
    assert not any(one.inherited and "transformers" in one.packages for one in loops)
    assert expectations.inherited(known, "reference", ()) == known


def test_each_clause_names_a_profile_and_stack_judges_nobody_elses_class():
    assert {clause.profile for clause in contract.clauses().values()} == set(PROFILES)
    sizes = [len(contract.in_profile(name)) for name in PROFILES]
    assert sizes == sorted(set(sizes)) and sizes[-1] == len(contract.clauses())
    who = subjects.traits(TrainerSubject(somebodys.Plain))
    stack = [clause for clause in contract.clauses().values() if clause.profile == "stack"]
    assert all(who.why_not(clause) for clause in stack)
    assert not any(subjects.traits(subjects.load("hf-trainer")).why_not(clause) for clause in stack)
    with pytest.raises(UsageError, match="profile 'stack' is about interfaces of transformers and peft themselves"):
        conformance(TrainerSubject(somebodys.Plain), profile="stack")
    with pytest.raises(ValueError, match="its profile is none of"):
        Chapter("XYZ", "made up", (Clause("XYZ-01", "MUST", "nowhere:1", profile="sometimes"),))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"subject": somebodys.Plain}, "is no subject; wrap it in"),
        ({"profile": "loop"}, "profile 'loop' is none of any-loop, checkpoint, trainer, stack"),
        ({"clauses": "ABC-*"}, "'ABC-*' matches no clause"),
        ({"clauses": 3}, "clauses=3; expected a glob over clauses"),
        ({"allow": {"LOG-*": "entropy"}}, "allow['LOG-*'] is 'entropy'; expected a list of names"),
        ({"expectations": 3}, "expectations=3; expected the path of a file"),
        ({"limit": "60"}, "limit='60'; expected seconds"),
        ({"device": "tpu"}, "device='tpu' is neither 'cpu' nor 'cuda'"),
        ({"clauses": "API-02"}, "none of them is in profile 'trainer'"),
        ({"expectations": "nowhere.toml"}, "nowhere.toml is neither in the current directory nor in"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, words):
    with pytest.raises(UsageError) as raised:
        conformance(**{"subject": TrainerSubject(somebodys.Plain), **arguments})
    assert words in str(raised.value) and isinstance(raised.value, pytest.Collector.CollectError)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainerSubject(3), "3 is no subclass of transformers.Trainer"),
        (lambda: TrainerSubject(somebodys.Plain, config=dict), "expected a subclass of TrainingArguments"),
        (lambda: TrainerSubject(somebodys.Plain, defaults=3), "defaults is 3; expected a dict of texts to values"),
        (lambda: TrainerSubject(somebodys.Plain, defaults={"rate": 1}), "'rate', which TrainingArguments has no field"),
        (lambda: TrainerSubject(somebodys.Plain, extra={"model": None}), "extra has 'model', which the harness gives"),
        (lambda: TrainerSubject(somebodys.Plain, dataset=[]), "dataset is [], which cannot be called"),
        (
            lambda: TrainerSubject(somebodys.Plain, not_for={"LOSS-*": 3}),  # type: ignore[dict-item]
            "expected a dict of texts",
        ),
        (lambda: TrainerSubject(somebodys.Plain, sequences=0), "sequences is 0; expected a whole number from 1 on"),
        (lambda: TrainerSubject(somebodys.Plain, name="a/b"), "name is 'a/b'; expected a printable text"),
        (lambda: LoopSubject(3), "3 is no function of Python"),
        (lambda: LoopSubject(_ends_never, built_on="peft"), "built_on'] is 'peft'; expected a list of names"),
    ],
)
def test_wrong_arguments_of_a_subject_are_one_sentence(make, words):
    with pytest.raises(UsageError) as raised:
        make()
    assert words in str(raised.value)


def test_a_scenario_that_says_nothing_of_a_class_is_not_judged(judged):
    subject = TrainerSubject(somebodys.Plain, not_for={"FRZ-01/plain": "made up"}, lacks=lambda spec: "no such run")
    ((_, ended),) = judged(conformance(subject, clauses="FRZ-01"), "FRZ-01-plain")
    assert "the plain run (no such run), so no clause is judged" in ended
    who = subjects.traits(subject)
    clause = contract.clauses()["FRZ-01"]
    assert (who.why_not(clause, "plain"), who.why_not(clause, "accumulation")) == ("made up", None)


def test_what_is_allowed_is_left_out_of_logs_files_and_frozen_tensors():
    trace = made_up()
    trace.base |= {"q.lora_A.ref.weight": "1"}
    trace.log_history = [{"loss": 1.0, "rewards/margins": 2.0}]
    names = allowed.names([{"FRZ-*": ["*.ref.*"]}, {"LOG-*": ["rewards/*"]}], "")
    shown = allowed.without(trace, names)
    assert "q.lora_A.ref.weight" not in shown.base and shown.log_history == [{"loss": 1.0}]
    assert allowed.names([{"FRZ-*": ["*.ref.*"]}], "LOG-01") == [] and len(trace.base) > len(shown.base)


def test_a_loss_of_its_own_may_round_otherwise_and_no_more():
    unequal = Verdict("fail", "equal", ("step 1",))
    trace = made_up()
    trace.own_loss = "SFTTrainer"
    exact = trace.steps[0].gradients
    near = {name: tensor + 1e-7 for name, tensor in exact.items()}
    assert equal.unless_rounding(unequal, trace, near).outcome == "not_comparable"
    far = {name: tensor + 1e-4 for name, tensor in exact.items()}
    assert equal.unless_rounding(unequal, trace, far) is unequal
    trace.own_loss = ""
    assert equal.unless_rounding(unequal, trace, near) is unequal


def test_a_case_that_made_no_run_is_not_judged(judged, monkeypatch):
    from harness.suites import test_rng

    def made_nothing(upstream, tmp_path, judge):
        judge(Verdict("pass", "holds of nothing"))

    monkeypatch.setattr(test_rng, "test_numbers_drawn_before_trainer_change_nothing", marked(made_nothing))
    ((case, ended),) = judged(conformance(TrainerSubject(somebodys.Plain), clauses="RNG-01"), "RNG-01-made_nothing")
    assert case.verdict == "skipped" and "it makes no run of Plain, and is about what that is built on" in ended


def marked(function):
    """Return a function as a test of RNG-01."""
    return pytest.mark.clause("RNG-01")(function)


def test_a_place_of_upstream_is_shown_if_the_class_does_not_override_it():
    def sources(cls):
        return failure.sources(contract.clauses()["LOSS-03"], subjects.traits(TrainerSubject(cls)))

    assert sources(somebodys.Plain) == ["  upstream  transformers/trainer.py:2099-2111 (Trainer.training_step)"]
    (line,) = sources(somebodys.DividesTwice)
    assert line == "  yours     DividesTwice.training_step, which overrides that of transformers.Trainer"


@pytest.mark.slow
def test_cases_have_the_ids_that_pytest_gives_them():
    found = suite_tests.find(list(contract.clauses()))
    ours = {
        f"{one.module.__name__.rpartition('.')[2]}.py::{one.function.__name__}" + f"[{one.scenario}]" * bool(one.values)
        for one in found
    }
    command = [sys.executable, "-m", "pytest", str(paths.SUITES), "--collect-only", "-q", "-n", "0"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    theirs = {line.partition("suites/")[2] for line in printed.splitlines() if "::" in line}
    left_out = {
        id for id in theirs - ours if not id.startswith(("test_generated.py", "test_launches.py", "test_sweep.py"))
    }
    assert ours <= theirs and not left_out
