"""Tests of the table of suites/test_loaders.py: its cases are possible, and cover each pair of values that is."""

import itertools

from harness.suites.test_loaders import AXES, TABLE, name_of, together


def pairs(row):
    return set(itertools.combinations(enumerate(row), 2))


def test_every_two_values_that_go_together_are_together_in_a_case():
    possible = [row for row in itertools.product(*AXES.values()) if together(*row)]
    assert set(TABLE) <= set(possible)
    missing = set().union(*map(pairs, possible)) - set().union(*map(pairs, TABLE))
    assert not missing, sorted(map(str, missing))[:20]


def test_every_case_has_a_name_of_its_own():
    assert len({name_of(*row) for row in TABLE}) == len(TABLE)
