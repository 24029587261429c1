"""The register: written files in step with the code, every clause proven, and what a proof is."""

import dataclasses

import pytest
from packaging.requirements import Requirement

from harness import contract
from harness.contract.releases import RELEASES
from harness.register import entries, write
from harness.register import page as contract_page
from tests import proofs

pytest_plugins = ["pytester"]


def test_the_page_and_the_proofs_are_in_step():
    stale = [
        path.name for path, text in write.current(proofs.collect()).items() if path.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"{' and '.join(stale)} out of step: run `peft-harness clauses --write` and commit what it wrote"


def test_every_clause_has_something_that_makes_it_fail():
    unproven = sorted(id for id, entry in entries.entries().items() if not entry.proven)
    assert not unproven, f"nothing is known to make these clauses fail: {', '.join(unproven)}; see tests/faults.py"


def test_a_clause_that_nothing_makes_fail_is_not_proven():
    bare = {id for id, entry in entries.entries({}).items() if not entry.proven}
    # No fault is counted here. ACC-01 was broken by a release, RES-02 is a known defect.
    assert "ACC-03" in bare and not {"ACC-01", "RES-02"} & bare


def test_every_clause_names_the_tests_that_judge_it():
    found = entries.entries()
    assert [id for id, entry in found.items() if not entry.judged_by] == []
    drawn = ("test_any_run", "test_any_model_and_method")
    judged = [test for test in found["GEN-01"].judged_by if test.startswith("test_generated.py")]
    assert judged[:2] == [f"test_generated.py::{test}" for test in drawn]


def test_marks_are_read_without_importing(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import no_such_module\n\n@pytest.mark.clause('X-01')\n@over(ALL)\ndef test_one(): ...\n\n"
        "def helper(): ...\n\n@pytest.mark.clause('X-01')\ndef test_two(): ...\n"
    )
    assert entries.judged_by(tmp_path) == {"X-01": ["test_x.py::test_one", "test_x.py::test_two"]}


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: f"{release.clause}-{release.bad.split()[0]}")
def test_a_release_names_a_clause_and_stacks(release):
    assert release.clause in contract.clauses()
    assert release.bad not in release.good
    pins = [Requirement(pin) for stack in (release.bad, *release.good) for pin in stack.split()]
    assert {pin.name for pin in pins} <= {"transformers", "accelerate", "peft", "bitsandbytes"}
    assert all(str(pin.specifier).startswith("==") for pin in pins)


def test_the_page_shows_names_and_globs_as_they_are():
    entry = entries.entries()["RES-02"]
    statement = "A _private name and lora_A in a[0] | *"
    odd = dataclasses.replace(entry, clause=dataclasses.replace(entry.clause, statement=statement))
    page = contract_page.page({**entries.entries(), "RES-02": odd})
    assert r"A \_private name and lora_A in a\[0\] \| \*" in page
    assert "### RES-02\n" in page and "[RES resume](#res-resume)" in page


CONFTEST = "from tests.conftest import pytest_configure, pytest_runtest_call"

TESTS = """
from tests.faults import FAILED, proves

@proves("XYZ-01", says="It fails.")
def test_that_makes_it_fail():
    FAILED.add("XYZ-01")

@proves("XYZ-01", says="It fails.")
def test_that_does_not():
    FAILED.add("XYZ-02")
"""


def test_a_test_that_proves_a_clause_has_seen_it_fail(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["this test proves XYZ-01, its mark says, but no check of XYZ-01 failed in it"])
