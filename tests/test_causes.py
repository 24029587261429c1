"""Failing cases grouped by cause: each is in exactly one, and independent faults stay apart."""

import json
from collections import Counter
from pathlib import Path

import pytest

from harness.causes import reach, root
from harness.causes.group import group, index
from harness.spec import ADD, RunSpec
from harness.verdict import Case

#: Cases that `check --with transformers==5.24.0` judged. It wants a peft that does not exist, so that add_adapter is dead,
#: and renamed an argument that peft's prefix tuning looks for.
REPORT = Path(__file__).parent / "reports_of_suites" / "transformers_5_24.jsonl"

PLAIN = RunSpec()
TOO_OLD = "ValueError: The version of PEFT you are using is not compatible, please use a version >= 0.22.0"


def of_5_24() -> list[Case]:
    cases = []
    for line in REPORT.read_text().splitlines():
        body = json.loads(line)
        specs = [RunSpec.from_json(body["spec"]).to_json()] if "spec" in body else []
        reason = body["evidence"].pop("reason", "")
        evidence, raised = body["evidence"], body.get("raised", [])
        case = Case(body["clause"], body["scenario"], "", "hf-trainer", "cpu", body["verdict"], evidence, specs, reason)
        case.raised = raised
        cases.append(case)
    return cases


def made(clause, scenario, verdict="pass", *seen, spec=PLAIN, raised=(), **fields):
    evidence = {"expected": "something", "seen": list(seen)} if seen else {}
    return Case(
        clause,
        scenario,
        "",
        "hf-trainer",
        verdict=verdict,
        evidence=evidence,
        specs=[spec.to_json()],
        raised=list(raised),
        **fields,
    )


def error(kind, message, file="peft/mapping.py", function="get"):
    return {"kind": kind, "message": message, "package": file.partition("/")[0], "file": file, "function": function}


def test_the_release_that_nobody_had_seen_has_its_causes():
    cases = of_5_24()
    dead, prefix, holds = group(cases, check="peft-harness check --with transformers==5.24.0")
    failing = [case for case in cases if case.verdict in ("fail", "unexpected_pass")]
    assert sum(len(cause.members) for cause in (dead, prefix, holds)) == len(failing)
    assert dead.sentence == f"check_peft_version of transformers (transformers/utils/peft_utils.py) raises {TOO_OLD}"
    assert dead.packages == ("transformers",)
    assert dead.reaches.startswith("every run through add_adapter (")
    assert "get_peft_model is untouched: " in dead.reaches
    # What follows from it is no cause of its own: "[]", None, and a LookupError of the test.
    seen = {case.evidence["seen"][0] for case in failing if (case.clause, case.scenario) in dead.members}
    assert {"[]", "None", "LookupError: no checkpoint at step 4; there are []"} < seen
    assert prefix.sentence.startswith(
        "_prefix_tuning_forward of peft (peft/peft_model.py) raises ValueError: Model does"
    )
    assert prefix.members == (("FRZ-02", "bert-classifier/prefix-tuning"),)
    assert holds.members == (("AMP-03", "fp16/add_adapter"),)
    assert dead.next == (
        "peft-harness check --with transformers==5.24.0 --clause EMB-06 --clause EMB-05 --clause EMB-01",
    )


def test_only_packages_that_differ_are_to_blame():
    cases = of_5_24()
    assert [cause.packages for cause in group(cases)][:2] == [("transformers",), ("peft", "transformers")]
    assert [cause.packages for cause in group(cases, changed=["transformers"])] == [("transformers",)] * 3
    assert [cause.packages for cause in group(cases, changed=["torch", "peft"])] == [(), ("peft",), ()]


def test_a_small_fault_is_not_swallowed_by_a_large_one():
    large = [
        made(
            "FRZ-01",
            f"n{n}/add_adapter",
            "fail",
            f"the run ended with {TOO_OLD}",
            spec=PLAIN.but(adapter={"route": ADD}),
        )
        for n in range(1060)
    ]
    small = [made("FRZ-02", f"n{n}", "fail", "the run ended with TypeError: no 'past_key_values'") for n in range(16)]
    assert [len(cause.members) for cause in group([*small, *large])] == [1060, 16]


def test_one_message_from_two_places_is_two_causes():
    index_error = "IndexError: list index out of range"
    cases = [
        made(
            "FRZ-01",
            name,
            "fail",
            f"the run ended with {index_error}",
            raised=[error(*index_error.split(": "), file=file)],
        )
        for name, file in (("a", "peft/mapping.py"), ("b", "peft/mapping.py"), ("c", "transformers/trainer.py"))
    ]
    assert [cause.members for cause in group(cases)] == [(("FRZ-01", "a"), ("FRZ-01", "b")), (("FRZ-01", "c"),)]


def test_numbers_ranks_and_paths_do_not_part_a_cause():
    words = [
        "the run ended with rank 1 of 2: RuntimeError: layer 3 of /made/0001/checkpoint-4 has 16 rows",
        "the run ended with RuntimeError: layer 0 of /made/0207/checkpoint-12 has 8 rows",
    ]
    cases = [made("CKPT-01", f"s{n}", "fail", sentence) for n, sentence in enumerate(words)]
    (cause,) = group(cases)
    assert len(cause.members) == 2
    assert "checkpoint-4 has 16 rows" in cause.sentence


def test_a_case_that_was_not_judged_because_of_the_error_joins_its_cause():
    cases = [
        made("FRZ-01", "plain", "fail", f"the run ended with {TOO_OLD}"),
        made(
            "API-05",
            "t5",
            "not_comparable",
            f"upstream does not inject it by add_adapter: {TOO_OLD.partition(': ')[2]}",
        ),
        made("RES-01", "plain", "not_comparable", reason=f"the uninterrupted run ended with {TOO_OLD}"),
        made("RES-02", "plain", "skipped", reason="shows on a GPU only"),
        made("PERF-01", "plain", "not_comparable", reason="nothing is recorded for this stack"),
    ]
    (cause,) = group(cases)
    assert [clause for clause, _ in cause.members] == ["FRZ-01", "API-05", "RES-01"]


def test_a_refusal_that_is_asked_for_is_no_cause():
    refused = error("ValueError", "Can't find a valid checkpoint at /made/checkpoint-4")
    cases = [
        *[made("RES-04", name, raised=[refused]) for name in ("empty", "removed", "no-file")],
        made("RES-04", "kept", "fail", "checkpoint-4 is gone from the directory", raised=[refused]),
    ]
    (cause,) = group(cases)
    assert cause.sentence == "checkpoint-4 is gone from the directory"


@pytest.mark.parametrize(
    ("sentences", "parts"),
    [
        # Other steps, layers and scenarios, the same quantity and factor.
        (
            [
                "step 1: the gradient is 2 times what it must be",
                "step 3: the gradient is 2.001 times that of the large batch",
                "step 1: gradient of model.layers.0.self_attn.q_proj.lora_A.weight differs by 0.5 at most (1, expected 0.5)",
            ],
            1,
        ),
        (["step 1: the gradient is 2 times what it must be", "step 1: the gradient is 0.5 times what it must be"], 2),
        (["step 1: logged loss 5.2, expected 2.6", "step 4: logged loss 8.0, expected 4.0"], 1),
        (
            [
                "step 1: logged loss 5.2, expected 2.6",
                "adapter at the end: a.b.lora_A.weight differs by 1 at most (2, expected 1)",
            ],
            2,
        ),
        (
            [
                "checkpoint-2: no tensor for model.layers.0.self_attn.q_proj.lora_A.weight",
                "checkpoint-4: no tensor for model.layers.1.self_attn.v_proj.lora_A.weight",
            ],
            1,
        ),
        (["checkpoint-2: no file optimizer.pt", "checkpoint-2: no file scheduler.pt"], 2),
        # These say nothing of themselves, so clauses are kept apart.
        (["None", "None"], 2),
    ],
)
def test_findings_of_several_clauses_are_one_cause_if_they_tell_of_one_thing(sentences, parts):
    clauses = ["LOSS-01", "ACC-01", "GEN-01"]
    cases = [made(clause, "plain", "fail", sentence) for clause, sentence in zip(clauses, sentences, strict=False)]
    causes = group(cases)
    assert len(causes) == parts
    assert sum(len(cause.members) for cause in causes) == len(cases)


def test_a_known_defect_that_holds_is_a_cause_by_itself():
    cases = [
        made("AMP-03", "fp16", "unexpected_pass", reason="accelerate ignores fp16"),
        made("AMP-09", "fp16", "unexpected_pass", reason="accelerate ignores fp16"),
    ]
    (cause,) = group(cases)
    assert "must fail: accelerate ignores fp16" in cause.sentence


def test_hung_ranks_are_grouped_by_where_they_hang():
    stack = 'rank 0 was in:\n  File "/x/site-packages/{}", line 7 in {}\n  File "/y/harness/rank.py", line 1 in play'
    cases = []
    for name, file, function in (("a", "accelerate/state.py", "wait"), ("b", "peft/model.py", "save")):
        from harness.processes.group import RanksFailed

        failed = RanksFailed("the 2 ranks had not ended after 60 s\n" + stack.format(file, function))
        cases.append(made("DIST-01", name, "fail", f"the run ended with {failed}", raised=[failed.raised]))
    assert [cause.packages for cause in group(cases)] == [("accelerate",), ("peft",)]


def test_every_case_has_the_number_of_its_cause():
    cases = of_5_24()
    causes = group(cases)
    numbers = index(causes)
    assert Counter(numbers.values()) == {n: len(cause.members) for n, cause in enumerate(causes)}
    assert group([made("FRZ-01", "plain")]) == []


# ---- what a cause reaches ----


def specs(**values):
    return [PLAIN.but(max_steps=n, **values).to_json() for n in (3, 4, 5)]


def test_a_field_that_separates_is_named():
    bad, good = specs(adapter={"route": ADD}), specs()
    said = "every run through add_adapter (3 runs); get_peft_model is untouched: 3 runs hold"
    assert reach.reaches(bad, good) == said
    assert reach.reaches(specs(bf16=True), good) == "every run with bf16 True (3 runs); 3 runs without it hold"


def test_two_fields_are_named_if_neither_separates_alone():
    both = specs(adapter={"peft_type": "IA3"}, model={"family": "gpt2"})
    good = specs(adapter={"peft_type": "IA3"}) + specs(model={"family": "gpt2"})
    assert reach.reaches(both, good).startswith("every run with peft_type IA3 and with family gpt2 (3 runs); 3 runs ")


def test_nothing_is_said_where_nothing_separates():
    assert reach.reaches(specs(), [PLAIN.but(max_steps=6).to_json()]) == ""
    assert reach.reaches(specs(adapter={"route": ADD}), []) == ""
    assert reach.reaches([], specs()) == ""


def test_one_run_is_described_by_what_it_changes():
    assert reach.reaches(specs(bf16=True)[:1], specs()) == "one run: arguments.max_steps=3, arguments.bf16=True"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("step 12: loss 1.5e-3, expected 2", "step N: loss N, expected N"),
        ("model.layers.11.q_proj and lora_A of fsdp2", "model.layers.N.q_proj and lora_A of fsdpN"),
        ("no such file: '/tmp/run/x-1/adapter.bin'", "no such file: 'PATH'"),
        ("trained rows [1, 2, 3]", "trained rows [N]"),
        ("Error(s) in loading:\n  size mismatch for a.1.b", "Error(s) in loading: size mismatch for a.N.b"),
        ("digest 7f3a9bc1 before training", "digest N before training"),
    ],
)
def test_sentences_without_what_differs(text, plain):
    assert root.normal(text) == plain


def test_a_factor_that_is_a_number_of_each_run_is_one_cause():
    cases = [
        Case(
            "ACC-01", f"windows-of-{steps}", "suites/x.py::test", "hf-trainer", verdict="fail",
            evidence={"seen": [f"step 1: the gradient is {1 / steps:.4g} times that of the large batch"]},
            specs=[RunSpec().but(gradient_accumulation_steps=steps).to_json()],
        )
        for steps in (2, 3, 4, 5, 7)
    ]  # fmt: skip
    (found,) = group(cases)
    assert found.sentence.startswith(
        "the gradient is 1 / gradient_accumulation_steps times what it must be; for example: "
    )
    cases[0].specs[0]["arguments"]["gradient_accumulation_steps"] = 1
    assert len(group(cases)) == 2
