"""Readers of what somebody else wrote, given anything: a result or one sentence, in a moment, and no file is changed.

CI draws a few dozen inputs for each reader. PEFT_HARNESS_FUZZ=5000 draws that many, from another seed each time.
"""

import copy
import json
import os
import time
from functools import partial

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness import trace as traces
from harness.contract import expectations
from harness.errors import UsageError
from harness.fixtures import data
from harness.gate import requirements
from harness.reading import read_json
from harness.runs import damage
from harness.runs.scenarios import PLAIN
from harness.session import journal
from harness.spec import DataSpec, RunSpec
from harness.throughput import baselines
from harness.verdict import Case

#: Inputs that each test draws. Sixty take about half a second.
CHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example]
DRAWN = int(os.environ.get("PEFT_HARNESS_FUZZ", "60"))
fuzzed = partial(
    settings,
    max_examples=DRAWN,
    derandomize="PEFT_HARNESS_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=CHECKED,
)

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 10**30, -(10**30), 2**63, 2**64, 1e308, 0.5, True, False]),
)
scalars = st.one_of(
    st.none(), numbers, st.text(max_size=12), st.sampled_from(["", "../x", "/etc/passwd", "a:b", "\x00"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

FULL = PLAIN.but(data={"min_length": 4, "ignored": 0.1}).resumed(4, damage=("delete optimizer.pt",)).to_json()


def paths(value, path=()):
    """Return the path of each value in a JSON value, the whole included."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [inner for key, item in items for inner in paths(item, (*path, key))]


@st.composite
def mutated(draw, whole):
    """Draw a JSON value with one to three places replaced, removed or given a new key."""
    changed = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(changed)[1:] or [()]))
        if not path:
            return draw(values)
        owner = changed
        for key in path[:-1]:
            owner = owner[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if how == "replace":
            owner[path[-1]] = draw(values)
        elif how == "remove":
            del owner[path[-1]]
        elif isinstance(owner, dict):
            owner[draw(st.text(max_size=8))] = draw(values)
    return changed


@st.composite
def torn(draw, whole):
    """Draw bytes: those of `whole` cut, with some bytes changed, or any at all."""
    how = draw(st.sampled_from(["cut", "flip", "insert", "any"]))
    at = draw(st.integers(0, max(0, len(whole) - 1)))
    if how == "cut":
        return whole[:at]
    if how == "flip":
        return whole[:at] + draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :]
    if how == "insert":
        return whole[:at] + draw(st.binary(max_size=12)) + whole[at:]
    return draw(st.binary(max_size=200))


def answered(read, allowed=1.0):
    """Call a reader. It must return, or raise UsageError with one sentence, in `allowed` seconds."""
    began = time.process_time()
    try:
        result = read()
    except UsageError as error:
        sentence = str(error)
        assert sentence.strip() and "\n" not in sentence
        sentence.encode()  # it can be printed
        result = None
    assert time.process_time() - began < allowed
    return result


@pytest.fixture
def watched(tmp_path):
    """Return a directory for the input. Beside it lies a file that nothing may touch."""
    precious = tmp_path / "precious.txt"
    precious.write_text("the only copy\n")
    (tmp_path / "mine").mkdir()
    yield tmp_path / "mine"
    assert precious.read_text() == "the only copy\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "precious.txt"]


@given(body=st.one_of(mutated(FULL), values))
@example(body={"launch": {"ranks": True}})
@fuzzed()
def test_a_spec(body):
    spec = answered(lambda: RunSpec.from_json(body))
    if spec is not None:
        assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        assert spec.hash == RunSpec.from_json(spec.to_json()).hash


@given(text=torn(json.dumps(FULL).encode()))
@fuzzed()
def test_the_file_of_a_spec(watched, text):
    (watched / "spec.json").write_bytes(text)
    answered(lambda: RunSpec.load(watched / "spec.json"))
    assert (watched / "spec.json").read_bytes() == text


@given(text=torn(b'{"input_ids": [1, 2, 3], "labels": [1, -100, 3]}\n' * 3))
@fuzzed()
def test_rows(watched, text):
    (watched / "rows.jsonl").write_bytes(text)
    read = answered(lambda: data.rows(DataSpec(path=str(watched / "rows.jsonl"), rows=1)))
    if read is not None:
        ((row,), _) = read
        assert all(0 <= token < 2**63 for token in row["input_ids"])


@given(row=mutated({"input_ids": [1, 2, 3], "labels": [1, -100, 3]}))
@fuzzed()
def test_a_row(watched, row):
    (watched / "rows.jsonl").write_text(json.dumps(row))
    made = answered(lambda: data.rows(DataSpec(path=str(watched / "rows.jsonl"), rows=1)))
    if made is not None:
        data.dataset(made[0], DataSpec(rows=1))


REQUIREMENTS = b"# pins\ntransformers==5.1.0\npeft>=0.18,<0.20 ; python_version > '3.8'\n-r more.txt\n-c limits.txt\n"


@given(text=torn(REQUIREMENTS))
@fuzzed()
def test_a_requirements_file(watched, text):
    (watched / "pins.txt").write_bytes(text)
    (watched / "more.txt").write_text("accelerate\n")
    (watched / "limits.txt").write_text("accelerate<2\n")
    answered(lambda: requirements.read(str(watched / "pins.txt")))


@given(words=st.text(max_size=60))
@fuzzed()
def test_requirements_in_words(words):
    answered(lambda: requirements.read(words))


DEFECT = b"""[[defect]]
clause = "RES-05"
scenarios = ["plain"]
match = "words"
reason = "why"
versions = ["torch>=1"]
link = "https://example.org/1"
"""


@given(text=torn(DEFECT))
@fuzzed()
def test_expectations(watched, text):
    (watched / "x.toml").write_bytes(text)
    answered(lambda: expectations.load(watched))


@given(
    body=mutated({"schema_version": 1, "kind": "baseline", "components": {"torch": "2"}, "counters": {"a": {"b": 1}}})
)
@fuzzed()
def test_a_baseline(watched, body):
    (watched / "x.json").write_text(json.dumps(body))
    answered(lambda: baselines.matching("cpu", watched, name="a"))


CASE = Case("RES-05", "plain", "suites/test_res.py::test_x", "hf-trainer", "cpu")
JOURNAL = [{"run": ["hf-trainer", "cpu"]}, CASE.__dict__]


@given(text=torn("".join(json.dumps(line) + "\n" for line in JOURNAL).encode()))
@fuzzed()
def test_a_journal(watched, text):
    (watched / "run.jsonl").write_bytes(text)
    opened = answered(lambda: journal.Journal.open(str(watched / "run.jsonl"), ["hf-trainer", "cpu"], writes=True))
    if opened is None:
        assert (watched / "run.jsonl").read_bytes() == text


@given(change=mutated(CASE.__dict__))
@fuzzed()
def test_a_case_of_a_journal(watched, change):
    (watched / "run.jsonl").write_text(json.dumps(JOURNAL[0]) + "\n" + json.dumps(change) + "\n")
    answered(lambda: journal.read(watched / "run.jsonl"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the files of a trace of one step."""
    from harness import subjects
    from harness.processes.imports import import_upstream

    import_upstream()
    directory = tmp_path_factory.mktemp("trace")
    trace = subjects.load("hf-trainer").train(PLAIN.but(max_steps=1), directory / "run")
    trace.save(directory / "saved")
    return {file.name: file.read_bytes() for file in (directory / "saved").iterdir()}


@given(drawn=st.data())
@fuzzed()
def test_a_trace(watched, saved, drawn):
    torn_one = drawn.draw(st.sampled_from(sorted(saved)))
    for name, content in saved.items():
        if name == torn_one:
            content = drawn.draw(torn(content))
        (watched / name).write_bytes(content)
    answered(lambda: traces.Trace.load(watched))


@given(drawn=st.data())
@fuzzed()
def test_the_fields_of_a_trace(watched, saved, drawn):
    for name, content in saved.items():
        if name.endswith(".json"):
            content = json.dumps(drawn.draw(mutated(json.loads(content)))).encode()
        (watched / name).write_bytes(content)
    answered(lambda: traces.Trace.load(watched))


@given(act=st.text(max_size=30) | st.sampled_from(["delete ../../precious.txt", "truncate ../../precious.txt 0"]))
@fuzzed()
def test_damage(watched, act):
    checkpoint = watched / "checkpoint-1"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    answered(lambda: damage.apply(act, watched))


@given(text=st.binary(max_size=300) | torn(b'{"a": [1, 2, {"b": null}]}'))
@fuzzed()
def test_json(watched, text):
    (watched / "x.json").write_bytes(text)
    answered(lambda: read_json(watched / "x.json"))
