"""harness/gate/soak.py: the suites run many times."""

import json

import pytest

from harness.errors import UsageError
from harness.gate import soak
from harness.gate.scope import Scope

HELD = {"FRZ-01[one]": "pass", "RES-01[two]": "known_defect"}

#: A suite whose verdict depends on the hash seed, like a law that iterates over a set of names.
SUITE = """
import os
import pytest
from harness.verdict import verdict

@pytest.mark.clause("FRZ-01")
def test_by_the_seed(judge):
    judge(verdict("the first seed", [] if os.environ["PYTHONHASHSEED"] == "1" else ["another"]))
"""


def report(verdicts):
    cases = [(name.partition("[")[0], name.partition("[")[2].rstrip("]"), said) for name, said in verdicts.items()]
    return {"clauses": [{"id": id, "cases": [{"scenario": where, "verdict": said}]} for id, where, said in cases]}


@pytest.fixture
def runs(monkeypatch):
    """runs(*reports): makes the runs of the suites report these verdicts in turn. None is a run that hangs."""

    def put(*reports):
        def run(seed, judged, rest, file, limit):
            verdicts = reports[seed - 1]
            if verdicts is None:
                return None
            file.write_text(json.dumps(report(verdicts)))
            return int("fail" in verdicts.values())

        monkeypatch.setattr(soak, "_run", run)

    return put


def test_runs_that_judge_alike(runs, tmp_path, capsys):
    runs(HELD, HELD, dict(reversed(HELD.items())))
    assert soak.soak(3, Scope(), file=tmp_path / "soak.json") == 0
    assert "3 runs: 3 judged alike, 0 differently or hung" in capsys.readouterr().out
    written = json.loads((tmp_path / "soak.json").read_text())["runs"]
    assert [(run["seed"], run["exit"], run["cases"], run["differs"]) for run in written] == [
        (1, 0, 2, []),
        (2, 0, 2, []),
        (3, 0, 2, []),
    ]


def test_an_engine_makes_the_runs(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs(HELD, HELD | {"FRZ-01[one]": "fail"}, HELD)
    assert soak.soak(3, Scope(), on="local", places=1) == 1
    assert "3 runs: 2 judged alike, 1 differently or hung" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--on mars: is neither local"):
        soak.soak(3, Scope(), on="mars")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({**HELD, "FRZ-01[one]": "fail"}, "FRZ-01[one]: fail, pass in the first run"),
        ({"FRZ-01[one]": "pass"}, "RES-01[two]: not judged, known_defect in the first run"),
        ({**HELD, "RES-02[new]": "pass"}, "RES-02[new]: pass, not judged in the first run"),
        (None, "had not ended after 5 s"),
        ({}, "judged no case (exit code"),
    ],
    ids=["fails", "is-missing", "is-new", "hangs", "judges-nothing"],
)
def test_a_run_that_judges_differently_is_reported(second, said, runs, capsys):
    runs(HELD, second, HELD)
    assert soak.soak(3, Scope(), limit=5) == 1
    output = capsys.readouterr().out
    assert said in output
    assert "3 runs: 2 judged alike, 1 differently or hung" in output


def test_one_run_cannot_be_compared():
    with pytest.raises(UsageError, match="expected 2 or more"):
        soak.soak(1, Scope())


def test_a_first_run_that_did_not_judge_all_is_nothing_to_compare_with(monkeypatch):
    def run(seed, judged, rest, file, limit):
        file.write_text(json.dumps(report(HELD) | {"complete": False, "not_judged": 3}))
        return 2

    monkeypatch.setattr(soak, "_run", run)
    with pytest.raises(UsageError, match="ended before all was judged"):
        soak.soak(2, Scope())


@pytest.mark.slow
def test_suites_that_depend_on_the_hash_seed_are_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["harness.session.plugin"]\n')
    (tmp_path / "test_seed.py").write_text(SUITE)
    monkeypatch.setattr(soak, "SUITES", tmp_path)
    assert soak.soak(2, Scope(), ["-n", "0"]) == 1
    assert "FRZ-01[by_the_seed]: fail, pass in the first run" in capsys.readouterr().out


def test_suites_that_cannot_run_are_an_error_with_the_end_of_their_output(tmp_path, monkeypatch, capfd):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["harness.session.plugin"]\n')
    monkeypatch.setattr(soak, "SUITES", tmp_path)
    with pytest.raises(UsageError, match=r"the suites judged no case \(exit code 4\)"):
        soak.soak(2, Scope(), ["-n", "0", "--no-such-option"])
    assert "unrecognized arguments: --no-such-option" in capfd.readouterr().err
