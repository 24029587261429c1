"""Made-up results of cells, and tables of them."""

from harness.map import results_table


def result(
    transformers, peft="0.18.1", accelerate="1.13.0", fails=(), state="judged", date="2026-11-29T10:00:00Z", **more
):
    """Return the result of a cell with the clauses ACC-01, LOSS-01 and RES-01. fails: those that fail."""
    stack = {"transformers": transformers, "peft": peft, "accelerate": accelerate}
    clauses = {
        clause: {
            "verdict": "fail" if clause in fails else "pass",
            "seen": f"{clause} is broken" if clause in fails else "",
            "cases": [
                ["get_peft_model", "lora", "single", "pass", 3],
                ["add_adapter", "lora", "single", "fail" if clause in fails else "pass", 2],
            ],
            "seconds": 1.0,
        }
        for clause in ("ACC-01", "LOSS-01", "RES-01")
    }
    causes = [
        {"sentence": f"the cause of {clause}", "cases": 2, "clauses": [clause], "reaches": "", "packages": ["transformers"],
         "example": ""}
        for clause in fails
    ]  # fmt: skip
    if state != "judged":
        clauses, causes = {}, []
    body = {
        "stack": stack,
        "requirements": " ".join(f"{name}=={version}" for name, version in stack.items()),
        "device": "cpu", "run": "suites", "state": state, "sentence": "" if state == "judged" else "no release fits",
        "python": "3.11.7", "machine": "linux x86_64, CPU", "cores": 2, "date": date, "requires": [], "lock": "x==1\n",
        "lock_key": "k", "clauses": clauses, "causes": causes, "seconds": 2.0,
        "keys": dict.fromkeys(("ACC-01", "LOSS-01", "RES-01"), "1"),
    }  # fmt: skip
    return body | more


def table(*results, tables=()):
    return results_table.table(results, tables, "2026-11-29T12:00:00Z", "0")


def line():
    """Return a table in which ACC-01 fails in transformers 5.3.0 alone, and 5.24.0 wants a peft that there is not."""
    cells = [result(f"5.{minor}.0", fails=["ACC-01"] if minor == 3 else []) for minor in (1, 2, 3, 4)]
    wants = ["transformers 5.24.0 wants peft >= 0.22.0, the stack has 0.21.2; no such release is on the index"]
    cells.append(result("5.23.0", "0.21.2", "1.15.0"))
    cells.append(result("5.24.0", "0.21.2", "1.15.0", fails=["ACC-01", "LOSS-01", "RES-01"], requires=wants))
    cells.append(result("5.9.0", "0.10.0", state="unresolvable"))
    return table(*cells)
