"""Made-up reports of each command, with texts that would be dangerous in a page."""

import json

#: Texts of a report that nobody trusts: each would end its element, run a script, or open an address that is none.
HOSTILE = (
    "</script><script>document.title = 'broken'</script>",
    '<img src=x onerror="document.title = `broken`">',
    "\" onmouseover=\"document.title = 'broken'",
    "<!-- <script>",
    "javascript:document.title='broken'",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028]]>&lt;b&gt;",
)

ENVIRONMENT = {
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "python": "3.11",
    "platform": "Linux",
    "device": "cpu",
}

CURVES = {
    "of": ["seen", "expected"],
    "steps": [1, 2, 3],
    "loss": [[5.5, 5.4, None], [5.5, 5.3, 5.1]],
    "grad_norm": [[0.3, 0.2, 0.1], [0.1, 0.1, 0.1]],
    "tensors": {"model.layers.0.lora_A.weight": [0.0, 0.01, 0.02]},
}


def spec(number=0):
    return {"model": {"family": "llama"}, "arguments": {"max_steps": 4, "seed": number, "report_to": "none"}}


def case(scenario, verdict="pass", trained=None, **evidence):
    return {"scenario": scenario, "verdict": verdict, "evidence": evidence, "spec": trained or spec()}


def suites(*clauses, causes=None, **changes):
    """Return a report by clause. clauses: (id, cases)."""
    body = {
        "schema_version": 1,
        "environment": ENVIRONMENT,
        "clauses": [
            {"id": id, "verdict": "fail" if any(one["verdict"] == "fail" for one in cases) else "pass", "cases": cases}
            for id, cases in clauses
        ],
        **({"causes": causes} if causes is not None else {}),
    }
    return body | changes


def failing():
    """Return a report with a failing case that has curves and a cause, one that holds, and hostile texts everywhere."""
    bad = case("plain/add_adapter", "fail", expected="equal", seen=["step 1: differs"], curves=CURVES, link=HOSTILE[4])
    odd = [case(text, "fail", spec(at), seen=[text], reason=text, **{text: text}) for at, text in enumerate(HOSTILE)]
    known = case("plain", "known_defect", reason="a fault", link="https://example.org/issues/1")
    causes = [
        {
            "sentence": "the gradient is a third", "cases": 1, "clauses": ["LOSS-01"], "reaches": "every run",
            "packages": ["transformers"], "next": ["peft-harness check --clause LOSS-01"],
            "members": [{"clause": "LOSS-01", "scenario": "plain/add_adapter"}],
        },
        {"sentence": HOSTILE[0], "next": [HOSTILE[1]], "packages": [HOSTILE[2]], "members": []},
    ]  # fmt: skip
    return suites(("LOSS-01", [bad, case("n37")]), ("ODD-01", odd), ("ACC-01", [known]), causes=causes)


def gate():
    """Return a gate's report in which a clause broke, numbers changed, and steps were timed."""
    interval = {"estimate": 0.01, "low": -0.01, "high": 0.03, "quadruples": 8}
    number = {"step": 1, "what": "gradient of x", "loss": 0.1, "gradient": 0.2, "adapter": 0.3, "ratio": 0.3}
    both = {
        "baseline": suites(("LOSS-01", [case("plain"), case("n37", seen=["as ever"])])),
        "candidate": suites(("LOSS-01", [case("plain", "fail", seen=["step 1"]), case("n37", seen=["as ever"])])),
    }
    return {
        "schema_version": 1,
        "verdict": "unsafe",
        **{
            side: {
                "requirements": "transformers==5.24.0" if side == "candidate" else "current",
                "versions": {"transformers": "5.24.0" if side == "candidate" else "5.23.0", "torch": "2.13.0"},
                "lock": None, "known_since": None, "report": report,
            }
            for side, report in both.items()
        },
        "findings": [
            {"about": "clause", "where": "LOSS-01", "means": "broken", "sentence": "step 1", "details": {}},
            {"about": "interface", "where": "LoraConfig.x", "means": "note", "sentence": "1 became 2", "details": {}},
        ],
        "numbers": {
            "plain": {"kind": "changed", **number, "curves": CURVES | {"of": ["baseline", "candidate"]}},
            "n37": {"kind": "bit-equal", **number},
        },
        "timing": {"tiny": {"word": "unclear", "margin": 0.01, "slower": [], "wall": interval}},
        "crossed": {"candidate": {"resumed": ["plain", "n37"], "loaded": ["plain"]}, "baseline": {}},
        "compared": "compared: two cases",
        "requires": [{"sentence": "transformers 5.24.0 wants peft >= 0.22.0"}],
        "outside": {"scope": "mine.toml", "clauses": ["DS-01", "DS-02"], "cases": {"ACC-01": 3}, "runs": []},
        "left_out": [{"package": "deepspeed", "reason": "no wheel"}],
        "seconds": 3.0,
    }  # fmt: skip


def sweep():
    cause = {
        "kind": "fails", "clauses": [{"clause": "LOSS-01", "seen": "step 1"}, {"clause": None, "seen": "it died"}],
        "configurations": 3, "fields": {"arguments.optim": "sgd"}, "smallest": False, "in_a_new_process": None,
        "spec": spec(), "file": ".peft-harness/sweep/a b.json",
    }  # fmt: skip
    return {
        "schema_version": 1, "environment": ENVIRONMENT, "seed": 0, "minutes": 1, "seconds": 60.0, "complete": True,
        "configurations": {"holds": 5, "fails": 3}, "several_ranks": 0, "equal_to_the_reference": 5, "laws": {"pass": 9},
        "pairs": {"all": 10, "not_refused": 8, "covered": 6}, "causes": [cause],
        "known_defects": [{"clause": "ACC-01", "reason": "a fault", "configurations": 2}],
        "refused": [{"fields": {"launch": "zero3"}, "sentence": "not with this", "crash": False}],
    }  # fmt: skip


def mutants():
    killed = {"clause": "LOSS-01", "scenario": "plain", "outcome": "killed", "sentence": "step 1: <twice>"}
    common = {"chapter": "LOSS", "thread": "", "usual": {"final loss": True}, "seconds": 1.0, "held": 2}
    return {
        "schema_version": 1, "environment": ENVIRONMENT, "seconds": 2.0, "workers": 2, "cases": 3, "unfit": [],
        "usual": ["final loss"],
        "mutants": [
            {"name": "twice", "says": "Twice.", "status": "killed", "why": "", "killed_by": {"LOSS-01": 1}, "cases": [killed]}
            | common,
            {"name": "lives", "says": "Lives.", "status": "survived", "why": "no case fails", "killed_by": {}, "cases": []}
            | common,
        ],
    }  # fmt: skip


def judge():
    laws = [
        {"clause": "LOSS-01", "verdict": "fail", "seen": ["step 1"], "reason": ""},
        {"clause": "ACC-01", "verdict": "not_comparable", "seen": [], "reason": "nothing is accumulated"},
    ]
    return {
        "schema_version": 1, "environment": ENVIRONMENT, "spec": spec(), "subject": "hf-trainer",
        "strength": "compared with the reference", "laws": laws,
    }  # fmt: skip


def large(cases=4000):
    """Return a report with many cases, each with a spec of its own and 500 characters of evidence."""
    whole = json.loads(json.dumps(spec()))
    whole["arguments"] |= {f"argument_{number}": number for number in range(40)}
    return suites(
        *(
            (
                f"LOSS-{clause:02}",
                [
                    case(
                        f"scenario-{clause}-{number}",
                        "fail" if number % 4 == 0 else "pass",
                        whole | {"data": {"rows": clause * 100 + number}},
                        expected="equal", seen=[f"step {number}: " + "x" * 400], largest_loss_difference=number / 7,
                    )
                    for number in range(100)
                ],
            )
            for clause in range(cases // 100)
        )
    )  # fmt: skip
