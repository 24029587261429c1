"""What a gate concludes from what two sides did, on made-up cases and traces."""

import copy
import dataclasses
import json

import jsonschema
import pytest
import torch

from harness.causes.cause import Cause
from harness.gate import cell_findings, cells, checkpoints, clauses, interface, locks, numbers, show, summary
from harness.gate.by_cause import GateCause
from harness.gate.compare import Outcome
from harness.gate.environments import Environment
from harness.gate.findings import BROKEN, FIXED, LOST, NOTE, Finding, exit_code, in_order, verdict
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.paths import PACKAGE
from harness.spec import RunSpec
from harness.tolerance import STACKS
from harness.verdict import ORDER, Case
from tests.traces import A, made_up, with_checkpoint


def case(outcome, clause="ACC-01", scenario="plain", **values):
    return Case(clause, scenario, f"suites/x.py::test[{scenario}]", "hf-trainer", verdict=outcome, **values)


@pytest.mark.parametrize(
    ("before", "after", "means", "words"),
    [
        ("pass", "fail", BROKEN, "half the gradient (held before, fails now in 1 case (plain))"),
        ("pass", "known_defect", BROKEN, "half the gradient"),
        ("unexpected_pass", "fail", BROKEN, "half the gradient"),
        ("ambiguous", "fail", BROKEN, "was undecided before"),
        ("fail", "pass", FIXED, "failed before, holds now in 1 case"),
        ("known_defect", "unexpected_pass", FIXED, "failed before, holds now"),
        ("skipped", "pass", NOTE, "can be judged now, and holds"),
        ("skipped", "fail", NOTE, "can be judged now, and fails in 1 case (plain): half the gradient"),
        ("pass", "skipped", LOST, "cannot be judged now in 1 case (plain): no such argument"),
    ],
)
def test_a_case_that_changed_is_a_finding(before, after, means, words):
    seen = {"evidence": {"seen": ["half the gradient"]}} if after in ("fail", "known_defect") else {}
    new = case(after, reason="no such argument" if after == "skipped" else "", **seen)
    (found,) = clauses.compared([case(before)], [new])
    assert (found.about, found.where, found.means) == ("clause", "ACC-01", means)
    assert words in found.sentence


@pytest.mark.parametrize("state", ["pass", "fail", "known_defect", "skipped", "ambiguous"])
def test_an_unchanged_case_is_no_finding(state):
    assert clauses.compared([case(state)], [case(state)]) == []


def test_a_finding_joins_the_cases_of_a_clause_that_changed_in_the_same_way():
    names = ["a", "b", "c", "d"]
    before = [case("pass", scenario=name) for name in names] + [case("fail", "RES-01", "x")]
    after = [case("fail", scenario=name) for name in names] + [case("pass", "RES-01", "x")]
    found = clauses.compared(before, after)
    assert [(finding.where, finding.means) for finding in found] == [("ACC-01", BROKEN), ("RES-01", FIXED)]
    assert found[0].details["scenarios"] == names and "4 cases (a, b, c, ...)" in found[0].sentence


def test_cases_of_the_same_name_are_told_apart_by_their_tests():
    before = [case("pass"), dataclasses.replace(case("pass"), nodeid="suites/y.py::test[plain]")]
    after = [case("fail"), dataclasses.replace(before[1])]
    (found,) = clauses.compared(before, after)
    assert (found.means, found.details["scenarios"]) == (BROKEN, ["plain"])


def test_a_drawn_case_beside_a_lost_one_is_not_counted():
    named = [case("skipped", scenario="a"), case("skipped", scenario="drawn-0", drawn=0)]
    (found,) = clauses.compared([case("pass", scenario="a"), case("pass", scenario="drawn-0")], named)
    assert (found.means, found.details["scenarios"]) == (LOST, ["a"])


def test_a_law_that_no_longer_applies_to_a_drawn_run_is_no_finding():
    assert clauses.compared([case("pass")], [case("skipped", drawn=0)]) == []


@pytest.mark.parametrize(
    ("means", "said", "code"),
    [([], "safe", 0), ([NOTE, FIXED], "safe", 0), ([NOTE, LOST], "inconclusive", 3), ([LOST, BROKEN], "unsafe", 1)],
)
def test_the_gravest_finding_decides(means, said, code):
    findings = [Finding("clause", "ACC-01", meaning, "") for meaning in means]
    assert verdict(findings) == said and exit_code(said) == code


# ---- numbers ----


def test_equal_runs_are_bit_equal():
    assert numbers.parting(made_up(), made_up()) == numbers.Parting("bit-equal")


def test_a_parting_names_the_first_step_and_tensor_that_differ():
    after = made_up()
    for step in after.steps[2:]:
        step.gradients = {name: 0.25 * tensor for name, tensor in step.gradients.items()}
    part = numbers.parting(made_up(), after)
    assert (part.kind, part.step) == ("changed", 3)
    assert part.what == f"gradient of {A}"
    assert part.gradient == pytest.approx(0.75, rel=1e-6)
    assert part.ratio == 1.0


def test_a_gradient_four_times_too_small_shows_in_the_ratio():
    after = made_up()
    for step in after.steps:
        step.gradients = {name: 0.25 * tensor for name, tensor in step.gradients.items()}
    part = numbers.parting(made_up(), after)
    assert part.ratio == pytest.approx(0.25)
    assert str(part).startswith("the gradient is 0.25 times what it was; first differs at step 1")


@pytest.mark.parametrize(("factor", "kind"), [(0.5, "within"), (10, "changed")])
def test_a_difference_beyond_the_tolerance_between_stacks_is_a_change(factor, kind):
    after = made_up()
    after.adapter = {name: tensor + factor * STACKS.adapter for name, tensor in after.adapter.items()}
    assert numbers.parting(made_up(), after).kind == kind


def test_other_rows_are_a_change_even_with_equal_numbers():
    after = made_up()
    after.steps[1].batches[0].rows.reverse()
    assert numbers.parting(made_up(), after).kind == "within"
    after.steps[1].batches[0].rows[0] = 7
    part = numbers.parting(made_up(), after)
    assert (part.kind, part.step, part.what) == ("changed", 2, "the rows it trains")


def test_rounding_to_four_logged_digits_is_no_change():
    after = made_up()
    for entry in after.log_history:
        entry["loss"] = round(entry["loss"], 4) + 4e-5
    assert numbers.parting(made_up(), after).kind == "within"


# ---- checkpoints ----


def saved(tmp_path, **changes):
    """A made-up run with a checkpoint at step 2 that holds the adapter of the end."""
    return with_checkpoint(made_up(**changes), tmp_path, 2)


def test_a_resumed_run_equals_the_run_that_wrote_the_checkpoint():
    whole = made_up()
    assert checkpoints.goes_on(copy.deepcopy(whole), whole, 2, numbers.EQUAL).holds
    changed = copy.deepcopy(whole)
    changed.adapter[A] = changed.adapter[A] + 1e-6
    assert not checkpoints.goes_on(changed, whole, 2, numbers.EQUAL).holds
    assert checkpoints.goes_on(changed, whole, 2, numbers.WITHIN).holds


def test_between_stacks_with_other_numbers_rows_and_adapter_are_still_compared(monkeypatch):
    whole, resumed = made_up(), made_up()
    resumed.adapter_resumed = {name: tensor.clone() for name, tensor in whole.adapter.items()}
    monkeypatch.setattr(type(whole), "checkpoint", lambda self, step: type("Saved", (), {"adapter": whole.adapter}))
    for step in resumed.steps:
        step.gradients = {name: 4 * tensor for name, tensor in step.gradients.items()}
    assert checkpoints.goes_on(resumed, whole, 2, numbers.CHANGED).holds
    resumed.steps[3].batches[0].rows = [0, 1]
    assert "step 4: trained rows [0, 1]" in checkpoints.goes_on(resumed, whole, 2, numbers.CHANGED).seen[0]
    resumed.adapter_resumed[A] = torch.zeros_like(resumed.adapter_resumed[A])
    assert "after loading checkpoint-2" in checkpoints.goes_on(resumed, whole, 2, numbers.CHANGED).seen[0]
    resumed.error = "ValueError: no"
    assert "ValueError: no" in checkpoints.goes_on(resumed, whole, 2, numbers.CHANGED).seen[0]


def test_other_logits_of_a_loaded_adapter_are_found(tmp_path):
    from safetensors.torch import save_file

    for name, value in (("one", 0.5), ("same", 0.5), ("other", 0.6)):
        (tmp_path / name).mkdir()
        save_file({"logits": torch.full((2, 3), value)}, tmp_path / name / "logits.safetensors")
    assert checkpoints.computes(tmp_path / "same", tmp_path / "one").holds
    assert "logits differs by 0.1" in checkpoints.computes(tmp_path / "other", tmp_path / "one").seen[0]


# ---- interface ----


def test_changed_defaults_come_before_what_is_gone_and_what_is_new():
    before = {"LoraConfig": {"r": "8", "old": "1", "kept": "2"}}
    after = {"LoraConfig": {"r": "16", "kept": "2", "new": "3"}, "HiraConfig": {}}
    assert [f"{change.where} {change}" for change in interface.changes(before, after)] == [
        "LoraConfig.r 8 became 16",
        "LoraConfig.old is gone (was 1)",
        "HiraConfig is new (there)",
        "LoraConfig.new is new (3)",
    ]


def test_the_interface_of_this_stack_has_defaults_as_made():
    found = interface.interface()
    assert found["LoraConfig"]["r"] == "8"
    assert found["TrainingArguments"]["gradient_accumulation_steps"] == "1"
    assert found["get_peft_model"]["adapter_name"] == "'default'"
    assert interface.changes(found, interface.interface()) == []


# ---- what is shown ----


@pytest.fixture
def sides(tmp_path):
    environment = Environment("peft==1", "python", {"peft": "1", "torch": "2"}, "peft==1\n", "key")
    return [Side(name, environment, tmp_path / name, Scope()) for name in ("baseline", "candidate")]


FINDINGS = [
    Finding("numbers", "plain", BROKEN, "the gradient is 0.25 times what it was", {"ratio": 0.25}),
    Finding("clause", "ACC-01", BROKEN, "half | the gradient", {"scenarios": ["a", "b"]}),
    Finding("clause", "FRZ-01", BROKEN, "drifts", {"scenarios": ["a"]}),
    Finding("interface", "LoraConfig.r", NOTE, "LoraConfig.r: 8 became 16"),
]


@pytest.fixture
def outcome():
    cases = {"baseline": [case("pass")], "candidate": [case("fail")]}
    return Outcome("unsafe", in_order(FINDINGS), {"plain": numbers.Parting("bit-equal")}, cases, 12.0)


@pytest.mark.parametrize(("lacking", "means"), [("candidate", "lost"), ("baseline", "note")])
def test_interfaces_that_cannot_be_compared_are_said(sides, lacking, means):
    for side in sides:
        answer = {"error": None, "data": {"environment": {}, "interface": {}}}
        side.done["inventory"] = {"error": "odd", "data": None} if side.name == lacking else answer
    (finding,) = cell_findings.interfaces(*sides)
    assert (finding.means, finding.sentence) == (means, f"not compared: the {lacking} odd")


def test_a_sentence_of_a_stack_is_no_command_to_the_terminal(sides, outcome, capsys):
    from rich.console import Console

    words = "a\x1b]0;title\x07\x1b[2J\u202eb\nunsafe: none"
    cause = Cause(words, (("ACC-01", "plain"),), example=words, next=(words,))
    outcome.causes[:] = [GateCause(cause, BROKEN), GateCause(cause, LOST)]
    outcome.findings[:] = [Finding("clause", "ACC-01", NOTE, words), Finding("clause", "ACC-01", FIXED, words)]
    outcome.requires[:] = [{"sides": ["candidate"], "sentence": words}]
    show.screen(Console(width=160), show.to_report(sides, outcome))
    printed = capsys.readouterr().out
    assert printed.count("a ]0;title [2J b unsafe: none") == 7
    assert all(character == "\n" or character.isprintable() for character in printed)


def test_the_summary_is_markdown_with_what_broke_first(sides, outcome):
    del (report := show.to_report(sides, outcome))["causes"]  # as a release without causes wrote it
    text = summary.markdown(report)
    lines = text.splitlines()
    assert lines[:8] == [
        "## Upgrade gate: UNSAFE",
        "",
        "`ACC-01, FRZ-01, numbers of plain`",
        "",
        "| | torch | transformers | peft | accelerate | bitsandbytes |",
        "|---|---|---|---|---|---|",
        "| baseline | 2 | - | 1 | - | - |",
        "| candidate | 2 | - | 1 | - | - |",
    ]
    at = lines.index("### Broken by the upgrade (3)")
    assert lines[at - 1 : at + 3] == ["", lines[at], "", "- `ACC-01` (clause): `half | the gradient`"]
    assert "Nothing that held on the baseline is broken" not in text


def test_the_report_has_both_sides_and_their_locks_beside_it(sides, outcome, tmp_path):
    show.write_report(tmp_path / "out" / "report.json", sides, show.to_report(sides, outcome))
    body = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.validate(body, json.loads((PACKAGE / "gate" / "report_schema.json").read_text()))
    assert body["verdict"] == "unsafe"
    assert body["candidate"]["report"]["clauses"][0]["verdict"] == "fail"
    assert (tmp_path / "out" / body["baseline"]["lock"]).read_text() == f"{locks.MARK}\npeft==1\n"
    assert [finding["where"] for finding in body["findings"]] == ["ACC-01", "FRZ-01", "plain", "LoraConfig.r"]


def test_a_report_has_the_specs_of_cases_that_somebody_may_repeat(sides, outcome, tmp_path):
    spec = RunSpec().to_json()
    outcome.cases["candidate"][:] = [case(verdict, scenario=verdict, specs=[spec]) for verdict in ORDER]
    show.write_report(tmp_path / "report.json", sides, show.to_report(sides, outcome))
    text = (tmp_path / "report.json").read_text()
    cases = json.loads(text)["candidate"]["report"]["clauses"][0]["cases"]
    assert {one["verdict"] for one in cases if one["spec"] == spec} == {"fail", "ambiguous", "not_comparable"}
    assert sum('"scenario": "' in line for line in text.splitlines()) == len(ORDER) + 1  # and one of the baseline


def test_runs_are_compared_by_their_spec():
    assert RunSpec().hash == made_up(RunSpec()).spec.hash


# ---- cells ----


def test_every_cell_is_trained_here_and_saves_often_enough_to_be_resumed():
    from harness.subjects.hf_trainer import HFTrainer

    specs = cells.cells()
    assert len(specs) >= 50
    assert {"plain", "plain/add_adapter", "accumulation-of-4", "nf4", "t5"} <= set(specs)
    for name, spec in specs.items():
        assert HFTrainer().unsupported(spec) is None, name
        assert spec.arguments["save_strategy"] == "steps" and spec.arguments["save_steps"] == 3, name


@pytest.mark.parametrize(
    ("steps", "expected"), [([3, 6, 9, 10], 6), ([3, 6, 9, 12, 15, 18, 20], 12), ([3, 4], None), ([3], None)]
)
def test_a_run_is_resumed_with_about_a_third_of_it_left(steps, expected):
    assert cells.resumed_step(steps) == expected


# ---- two sides ----

SPECS = {"plain": RunSpec()}


def trained(side, trace=None, task="cells/plain", error=None):
    """Store on a side the trace or the error of a trained cell."""
    side.done[task] = {"error": error, "data": {}}
    if trace is not None:
        trace.save(side.directory / task / "trace")


def quartered():
    trace = made_up()
    for step in trace.steps:
        step.gradients = {name: 0.25 * tensor for name, tensor in step.gradients.items()}
    return trace


def test_a_cell_that_now_crashes_hangs_or_raises_is_broken(sides):
    for error in ("had not ended after 120 s", "ended its process with status -11: it printed no error"):
        trained(sides[0], made_up())
        trained(sides[1], error=error)
        (found,) = cell_findings.trained(*sides, SPECS)
        assert (found.means, found.sentence) == (BROKEN, f"trained before; now it {error}")
        (found,) = cell_findings.trained(sides[1], sides[0], SPECS)
        assert found.means == FIXED
    trained(sides[1], made_up(error="ValueError: no"))
    (found,) = cell_findings.trained(*sides, SPECS)
    assert found.means == BROKEN and "ends with ValueError: no" in found.sentence


@pytest.mark.parametrize(("events", "refused"), [(["train_begin"], True), (["train_begin", "step_begin"], False)])
def test_a_cell_that_fails_in_its_first_step_is_not_refused(sides, events, refused):
    trace = made_up(error="RuntimeError: mixed")
    trace.steps, trace.events = [], events
    trained(sides[0], trace)
    assert bool(cell_findings.refused(sides[0], "plain")) is refused


def test_a_cell_that_is_no_longer_supported_is_lost(sides):
    trained(sides[0], made_up())
    sides[1].done["cells/plain"] = {"error": None, "data": {"unsupported": "no such argument"}}
    (found,) = cell_findings.trained(*sides, SPECS)
    assert found.means == LOST and "no such argument" in found.sentence


def changed(sides):
    return list(cell_findings.changed(*sides, cell_findings.partings(*sides, SPECS)))


def test_changed_numbers_are_broken_unless_the_reference_computes_them_too(sides):
    trained(sides[0], made_up())
    trained(sides[1], quartered())
    (found,) = changed(sides)
    assert found.means == BROKEN and found.details["ratio"] == pytest.approx(0.25)
    trained(sides[1], made_up(), "reference/plain")
    assert changed(sides)[0].means == BROKEN
    trained(sides[1], quartered(), "reference/plain")
    (found,) = changed(sides)
    assert found.means == FIXED and "as the reference computes it" in found.sentence


def test_equal_numbers_are_no_finding(sides):
    for side in sides:
        trained(side, made_up())
    assert changed(sides) == []


def loads(side, name, value):
    from safetensors.torch import save_file

    side.done[name] = {"error": None, "data": {}}
    (side.directory / name).mkdir(parents=True)
    save_file({"logits": torch.full((2, 3), value)}, side.directory / name / "logits.safetensors")


def test_an_adapter_with_other_logits_on_the_other_side_is_broken(sides):
    for side in sides:
        trained(side, made_up())
        loads(side, "own/plain", 0.5)
    loads(sides[0], "loaded/plain", 0.5)
    loads(sides[1], "loaded/plain", 0.6)
    (found,) = cell_findings.inferred(*sides, SPECS)
    assert found.means == BROKEN and "(upgrade): loaded: logits differs by 0.1" in found.sentence
    sides[0].done["loaded/plain"] = {"error": "KeyError: 'kasa_config'", "data": None}
    ways = [finding.details["way"] for finding in cell_findings.inferred(*sides, SPECS)]
    assert ways == ["upgrade", "roll-back"]


def test_a_side_need_not_load_what_it_cannot_train(sides):
    trained(sides[0], error="AttributeError: no such model")
    trained(sides[1], made_up())
    loads(sides[1], "own/plain", 0.5)
    sides[0].done["loaded/plain"] = {"error": "AttributeError: no such model", "data": None}
    assert list(cell_findings.inferred(*sides, SPECS)) == []
