"""The table of verbs: which pairs and triples of method, kind of layer, verb, tying, dtype and route are cases."""

import itertools

import pytest
import torch

from harness.fixtures.methods import METHODS, misfit
from harness.laws import verbs, weighted
from harness.runs.verb_table import ACTIONS, KINDS, RUNS, rows
from harness.session.state import NotComparable, RefusedByUpstream, skip_uncompared
from harness.spec import ADD
from harness.suites.test_tables import GOTTEN
from harness.verdict import FAIL, NOT_COMPARABLE, Verdict, verdict

FIELDS = ("kind", "method", "action", "tying", "dtype", "route")
ROWS = list(rows("").values())


def fits(values):
    """Return whether the values of two fields may be together, by what the tables say of methods and verbs."""
    kind, method, action, route = (values.get(name) for name in ("kind", "method", "action", "route"))
    verb = ACTIONS.get(action)
    if (verb and route and route not in verb.routes) or (verb and values.get("dtype") not in (None, *verb.dtypes)):
        return False
    if method and route == ADD and not METHODS[method].add_adapter:
        return False
    if kind and method and method not in KINDS[kind].methods:
        return False
    if verb and kind and (kind not in (verb.kinds or KINDS) or (KINDS[kind].quantization and not verb.packed)):
        return False
    if verb and method and method not in (verb.methods or METHODS):
        return False
    # A method of which no kind of layer has the verb.
    return not (verb and method and all(method not in KINDS[k].methods for k in verb.kinds or KINDS))


def test_every_pair_of_values_is_a_case():
    values = {name: sorted({getattr(row, name) for row in ROWS}) for name in FIELDS}
    missing = []
    for one, other in itertools.combinations(FIELDS, 2):
        seen = {(getattr(row, one), getattr(row, other)) for row in ROWS}
        missing += [
            (x, y)
            for x, y in itertools.product(values[one], values[other])
            if (x, y) not in seen and fits({one: x, other: y})
        ]
    assert not missing


def test_every_triple_of_method_layer_and_verb_is_one_case():
    triples = [(row.kind, row.method, row.action) for row in ROWS]
    assert len(triples) == len(set(triples))
    assert set(triples) == {
        (kind, method, action)
        for kind, method in RUNS
        for action in ACTIONS
        if fits({"kind": kind, "method": method, "action": action})
    }


def test_every_method_that_adapts_layers_is_on_linear_layers():
    assert set(KINDS["linear"].methods) == {name for name, method in METHODS.items() if method.targeted}


def test_no_case_asks_for_a_route_that_upstream_refuses():
    for row in ROWS:
        family = KINDS[row.kind].family
        assert misfit(family if ":" not in family else "llama", row.method, add_adapter=row.route == ADD) is None


def test_linear_and_packed_layers_are_trained_by_runs_that_are_there_anyway():
    assert RUNS["linear", "lora"] == GOTTEN["llama/lora"]
    assert RUNS["nf4", "ia3"] == GOTTEN["llama-nf4/ia3"]


# ---- refusals ----


def refused(error):
    def act():
        raise error

    return verbs.refusing("it", act)


def test_an_error_that_is_raised_outside_of_upstream_is_no_refusal():
    assert refused(ValueError("not by upstream")).outcome == FAIL


def test_a_refusal_of_upstream_is_no_failure():
    import peft

    def act():
        peft.LoraConfig(use_dora=True, layers_pattern="x", target_modules=["q"])
        return verdict("", [])

    found = verbs.refusing("it", act)
    assert found.outcome == NOT_COMPARABLE
    assert "layers_pattern" in found.seen[0]
    # The case is skipped, so that the clause holds by its other cases.
    with pytest.raises(RefusedByUpstream, match="layers_pattern"):
        skip_uncompared(found)


def test_nothing_to_compare_is_no_refusal():
    with pytest.raises(NotComparable, match="no layer"):
        skip_uncompared(Verdict(NOT_COMPARABLE, "it merges", ("no layer",)))


def test_an_error_of_torch_below_upstream_is_no_refusal():
    def act():
        return verdict(str(torch.zeros(2) @ torch.zeros(3)), [])

    found = verbs.refusing("it", act)
    assert found.outcome == FAIL


# ---- combinations ----


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0.7 * 4 + 0.4 * -3, 0.7 * 1 + 0.4 * 2]),
        # Of two elements each tensor keeps the larger one.
        ("magnitude_prune", [0.7 * 4 + 0.4 * -3, 0.0]),
        # The sum 4 - 3 is positive, so -3 is left out.
        ("ties", [0.7 * 4, 0.0]),
    ],
)
def test_combinations_by_hand(kind, expected):
    tensors = [torch.tensor([4.0, 1.0]), torch.tensor([-3.0, 2.0])]
    made = weighted.combined(kind, tensors, [0.7, 0.4], 0.5)
    torch.testing.assert_close(made, torch.tensor(expected, dtype=torch.float64))
