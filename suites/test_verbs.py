"""Verbs beside training, on every method and kind of layer: merge, unload, delete, disable, cast, save and load.

`harness/runs/verb_table.py` is the table of cases. Each method is trained once on each kind of layer. What is done here is
done to models that are rebuilt with the trained values.
"""

import pytest

from harness.fixtures import models
from harness.laws import load_ways, merging, rebuilt, verbs
from harness.runs.scenarios import PLAIN
from harness.runs.verb_table import rows
from harness.session.state import skip_if, skip_uncompared
from harness.spec import ADD, GET
from harness.subjects.hf_trainer import inject


def acts(*actions):
    """Decorate a test that runs once for each method and kind of layer with each of these actions."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in rows(*actions).items()])


def model_of(row, upstream, train):
    """Return the row's model with the trained values, in eval mode. Skips the case if this stack cannot make it."""
    skip_if(upstream.unsupported(row.spec))
    return rebuilt.trained_model(train(row.trained), row.spec).eval()


#: Action -> the law that does it and judges it.
LAWS = {
    "merge": lambda model, spec, path: merging.merges(model, spec),
    "merge-again": lambda model, spec, path: merging.merges_again(model, spec),
    "merge-and-unload": merging.unloads_merged,
    "disable": lambda model, spec, path: verbs.disables(model, spec),
    "delete": lambda model, spec, path: verbs.deletes(model, spec),
    "unload": lambda model, spec, path: verbs.unloads(model, spec),
    "cast": lambda model, spec, path: verbs.casts(model, spec),
    "modes": verbs.keeps_modes,
    "convert": verbs.converts,
}


def judged(row, upstream, train, path):
    """Do the row's action to its model, and judge it. If upstream refuses it in words, the case is skipped with them."""
    model = model_of(row, upstream, train)
    return skip_uncompared(verbs.refusing(row.action, lambda: LAWS[row.action](model, row.spec, path)))


@pytest.mark.clause("API-15")
@acts("merge")
def test_what_is_merged_computes_the_same(row, upstream, train, tmp_path, judge):
    judge(judged(row, upstream, train, tmp_path))


@pytest.mark.clause("API-02")
@acts("disable")
def test_what_is_disabled_is_the_base(row, upstream, train, tmp_path, judge):
    judge(judged(row, upstream, train, tmp_path))


@pytest.mark.clause("API-13")
@acts("delete", "unload")
def test_what_is_taken_out_leaves_the_base(row, upstream, train, tmp_path, judge):
    judge(judged(row, upstream, train, tmp_path))


@pytest.mark.clause("API-23")
@acts("cast", "modes")
def test_a_verb_leaves_what_it_is_not_about(row, upstream, train, tmp_path, judge):
    judge(judged(row, upstream, train, tmp_path))


@pytest.mark.clause("API-26")
@acts("convert")
def test_what_is_converted_computes_the_same(row, upstream, train, tmp_path, judge):
    judge(judged(row, upstream, train, tmp_path))


@pytest.mark.clause("API-23")
@pytest.mark.parametrize("route", [pytest.param(route, id=f"frozen/{route}") for route in (GET, ADD)])
def test_an_adapter_for_inference_stays_frozen(route, upstream, tmp_path, judge):
    spec = PLAIN.but(adapter={"route": route})
    judge(verbs.stays_frozen(inject(models.build(spec.model), spec.adapter), spec, tmp_path))


@pytest.mark.clause("CKPT-29")
@acts("load/")
def test_what_is_loaded_is_what_was_saved(row, upstream, train, tmp_path, judge):
    model = model_of(row, upstream, train)
    way, trained = row.action.removeprefix("load/"), set(train(row.trained).trainable)
    judge(skip_uncompared(verbs.refusing(row.action, lambda: load_ways.loads(model, row.spec, trained, way, tmp_path))))
