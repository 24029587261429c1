"""Readers of what somebody else wrote, given anything: a result or one sentence, in a moment, and no file is changed.

CI draws a few dozen inputs for each reader. PEFT_HARNESS_FUZZ=5000 draws that many, from another seed each time.
"""

import copy
import json
import os
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness import reading
from harness import trace as traces
from harness.contract import expectations
from harness.errors import UsageError
from harness.fixtures import data
from harness.gate import requirements, scope_file, stored, summary
from harness.reading import read_json
from harness.reports import (
    badge,
    github,
    gitlab,
    junit,
    kinds,
    nights,
    pins,
    sarif,
    trend,
    trend_command,
    trend_page,
    web_page,
)
from harness.runs import damage
from harness.runs.scenarios import PLAIN
from harness.session import journal
from harness.spec import DataSpec, RunSpec
from harness.throughput import baselines
from harness.verdict import Case
from tests import made_up_reports
from tests import test_requirement_inputs as inputs

#: What the readers of TOML use.
tomllib = vars(reading)["tomllib"]

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


def changing(values):
    """Where a value is changed, how, and with what. Small, so that hypothesis need not print what is changed."""
    return st.lists(
        st.tuples(
            st.integers(0, 9999),
            st.sampled_from(["replace", "replace", "replace", "remove", "add"]),
            values,
            st.text(max_size=8),
        ),
        min_size=1,
        max_size=3,
    )


changes = changing(values)
#: TOML and YAML have dates, too.
with_dates = changing(values | st.dates() | st.datetimes() | st.times())
tears = st.tuples(
    st.sampled_from(["cut", "flip", "insert", "any"]), st.floats(0, 1), st.binary(min_size=1, max_size=12)
)


def changed(whole, how):
    """Return a JSON value with one to three places replaced, removed or given a new key."""
    whole = copy.deepcopy(whole)
    for number, act, value, name in how:
        places = paths(whole)[1:]
        if not places:
            return value
        path = places[number % len(places)]
        owner = whole
        for key in path[:-1]:
            owner = owner[key]
        if act == "replace":
            owner[path[-1]] = value
        elif act == "remove":
            del owner[path[-1]]
        elif isinstance(owner, dict):
            owner[name] = value
    return whole


def torn(content, how):
    """Return bytes that are cut, changed in a place, longer by some, or others altogether."""
    act, where, extra = how
    at = int(where * len(content))
    return {
        "cut": content[:at],
        "flip": content[:at] + extra + content[at + len(extra) :],
        "insert": content[:at] + extra + content[at:],
        "any": extra,
    }[act]


def mutated(whole):
    return st.builds(partial(changed, whole), changes)


def tables(whole):
    """Return TOML as its parser returns it, with values changed. That is always a table."""
    return st.builds(partial(changed, whole), with_dates).filter(lambda table: isinstance(table, dict))


def tearing(content):
    return st.builds(partial(torn, content), tears)


def answered(read, allowed=1.0, refusal=UsageError):
    """Call a reader. It must return, or raise its refusal with one sentence, in `allowed` seconds."""
    began = time.process_time()
    try:
        result = read()
    except refusal as error:
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


@given(body=mutated(FULL) | values)
@example(body={"launch": {"ranks": True}})
@fuzzed()
def test_a_spec(body):
    spec = answered(lambda: RunSpec.from_json(body))
    if spec is not None:
        assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        assert spec.hash == RunSpec.from_json(spec.to_json()).hash


@given(text=tearing(json.dumps(FULL).encode()))
@fuzzed()
def test_the_file_of_a_spec(watched, text):
    (watched / "spec.json").write_bytes(text)
    answered(lambda: RunSpec.load(watched / "spec.json"))
    assert (watched / "spec.json").read_bytes() == text


@given(text=tearing(b'{"input_ids": [1, 2, 3], "labels": [1, -100, 3]}\n' * 3))
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


@given(text=tearing(REQUIREMENTS))
@fuzzed()
def test_a_requirements_file(watched, text):
    (watched / "pins.txt").write_bytes(text)
    (watched / "more.txt").write_text("accelerate\n")
    (watched / "limits.txt").write_text("accelerate<2\n")
    answered(lambda: requirements.read(str(watched / "pins.txt")))


#: Project files and locks: (name, what it holds).
PROJECTS = {
    "pyproject.toml": [inputs.PROJECT, inputs.UV_PROJECT, inputs.POETRY],
    "uv.lock": [inputs.UV_LOCK],
    "poetry.lock": [inputs.POETRY_LOCK],
    "pylock.toml": [inputs.PYLOCK],
    "pdm.lock": [inputs.PDM_LOCK],
    "Pipfile": [inputs.PIPFILE],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in PROJECTS.items() for text in texts])
@given(data=st.data())
@fuzzed(max_examples=max(1, DRAWN // 4))
def test_a_project_or_lock_file(watched, name, text, data):
    (watched / name).write_bytes(data.draw(tearing(text.encode())))
    answered(lambda: requirements.read(str(watched / name)))
    # Few torn files are TOML, so values are changed behind the parser as well.
    changed = data.draw(tables(tomllib.loads(text)))
    (watched / name).write_text("")
    with mock.patch.object(tomllib, "loads", return_value=changed):
        answered(lambda: requirements.read(f"{watched / name}:dev"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Pipfile.lock", json.loads(inputs.PIPFILE_LOCK)),
        ("environment.yml", {"dependencies": ["python=3.11", "pytorch=2.6", {"pip": ["peft", "-r x.txt"]}]}),
    ],
)
@given(data=st.data())
@fuzzed()
def test_a_lock_of_pipenv_and_an_environment_of_conda(watched, name, content, data):
    (watched / name).write_text(json.dumps(data.draw(mutated(content))))
    answered(lambda: requirements.read(str(watched / name)))


CONDA = b"""name: mine
dependencies:
  - python=3.11
  - pytorch=2.6
  - pip:
    - peft==0.18.1
    - -r pins.txt
    - 2026-01-01
"""


@given(text=tearing(CONDA))
@fuzzed()
def test_an_environment_of_conda(watched, text):
    (watched / "environment.yml").write_bytes(text)
    answered(lambda: requirements.read(str(watched / "environment.yml")))


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


@given(text=tearing(DEFECT))
@fuzzed()
def test_expectations(watched, text):
    (watched / "x.toml").write_bytes(text)
    answered(lambda: expectations.load(watched))


@given(text=tearing(DEFECT), entry=tables(tomllib.loads(DEFECT.decode())))
@fuzzed()
def test_known_defects_of_the_users_own(watched, text, entry):
    (watched / "mine.toml").write_bytes(text)
    answered(lambda: expectations.load_own(watched / "mine.toml"))
    # Few torn files are TOML, so values are changed behind the parser as well.
    with mock.patch.object(tomllib, "loads", return_value=entry):
        read = answered(lambda: expectations.load_own(watched / "mine.toml"))
    for one in read or ():
        one.excuses("RES-05", "hf-trainer", FULL, "words")
        one.applies("RES-05", "plain", "hf-trainer")


SCOPE = b"""[tool.peft-harness]
subject = "hf-trainer"
device = "cpu"
routes = ["get_peft_model"]
methods = ["lora", "dora"]
launches = ["single", "ddp"]
clauses = ["LOSS-*", "ACC-*"]
specs = ["mine.json"]
known-defects = ["mine.toml"]
margins = { throughput = 0.05, memory = 0.1 }
"""


@given(text=tearing(SCOPE), body=tables(tomllib.loads(SCOPE.decode())))
@fuzzed()
def test_a_scope(watched, text, body):
    (watched / "mine.json").write_text("{}")
    (watched / "mine.toml").write_bytes(DEFECT)
    (watched / "pyproject.toml").write_bytes(text)
    (watched / "scope.toml").write_text("")
    answered(lambda: scope_file.read(watched / "pyproject.toml"))
    with mock.patch.object(tomllib, "loads", return_value=body):
        answered(lambda: scope_file.read(watched / "scope.toml"))


@given(
    body=mutated({"schema_version": 1, "kind": "baseline", "components": {"torch": "2"}, "counters": {"a": {"b": 1}}})
)
@fuzzed()
def test_a_baseline(watched, body):
    (watched / "x.json").write_text(json.dumps(body))
    answered(lambda: baselines.matching("cpu", watched, name="a"))


CASE = Case("RES-05", "plain", "suites/test_res.py::test_x", "hf-trainer", "cpu")
JOURNAL = [{"run": ["hf-trainer", "cpu"]}, CASE.__dict__]


@given(text=tearing("".join(json.dumps(line) + "\n" for line in JOURNAL).encode()))
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


@given(which=st.integers(0, 99), how=tears)
@fuzzed()
def test_a_trace(watched, saved, which, how):
    torn_one = sorted(saved)[which % len(saved)]
    for name, content in saved.items():
        (watched / name).write_bytes(torn(content, how) if name == torn_one else content)
    answered(lambda: traces.Trace.load(watched))


@given(how=changes)
@fuzzed()
def test_the_fields_of_a_trace(watched, saved, how):
    for name, content in saved.items():
        if name.endswith(".json"):
            content = json.dumps(changed(json.loads(content), how)).encode()
        (watched / name).write_bytes(content)
    answered(lambda: traces.Trace.load(watched))


@given(act=st.text(max_size=30) | st.sampled_from(["delete ../../precious.txt", "truncate ../../precious.txt 0"]))
@fuzzed()
def test_damage(watched, act):
    checkpoint = watched / "checkpoint-1"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    answered(lambda: damage.apply(act, watched))


@given(text=st.binary(max_size=300) | tearing(b'{"a": [1, 2, {"b": null}]}'))
@fuzzed()
def test_json(watched, text):
    (watched / "x.json").write_bytes(text)
    answered(lambda: read_json(watched / "x.json"))


REPORT = {
    "schema_version": 1,
    "verdict": "unsafe",
    "compared": "85 cases",
    "stacks": {"baseline": {"torch": "2.13.0"}, "candidate": {"torch": "2.14.1"}},
    "baseline": {"versions": {"torch": "2.13.0"}},
    "candidate": {"versions": {"torch": "2.14.1"}},
    "findings": [{"about": "clause", "means": "broken", "where": "ACC-01", "sentence": "is 0.25 times that"}],
    "requires": [{"sides": ["candidate"], "sentence": "transformers 5.24.0 wants peft >= 0.22.0"}],
    "causes": [
        {
            "sentence": "ValueError: no", "cases": 1, "clauses": ["ACC-01"], "reaches": "", "packages": ["peft"],
            "next": ["peft-harness check --clause ACC-01"], "example": "", "members": [], "means": "broken",
            "elsewhere": [{"about": "cell", "where": "plain"}], "follows": [],
        }
    ],
}  # fmt: skip


@given(report=mutated(REPORT))
@fuzzed()
def test_the_report_of_a_gate(watched, report):
    (watched / "report.json").write_text(json.dumps(report))
    text = answered(lambda: summary.of_files(watched, ["report.json"]))
    assert text.startswith("## Upgrade gate: ")


#: What --json of each command writes.
REPORTS = {
    kinds.SUITES: made_up_reports.failing(),
    kinds.GATE: made_up_reports.gate(),
    kinds.SWEEP: made_up_reports.sweep(),
    kinds.MUTANTS: made_up_reports.mutants(),
    kinds.JUDGE: made_up_reports.judge(),
}


def written(report):
    """Return what `report` writes of a report, for each of its options."""
    kind = web_page.check(report, "report.json")
    report["pins"] = pins.to_json(pins.find([], kinds.packages(report), Path()))
    texts = [module.write(report) for module in (web_page, junit, sarif, gitlab, badge, github)]
    texts.append(summary.markdown(report) if kind == kinds.GATE else github.summary(report))
    return texts


@pytest.mark.parametrize("kind", REPORTS)
@given(data=st.data())
@fuzzed(max_examples=max(1, DRAWN // 2))
def test_what_is_made_of_a_report(watched, kind, data):
    report = data.draw(mutated(REPORTS[kind]))
    (watched / "report.json").write_text(json.dumps(report))
    for text in answered(lambda: written(read_json(watched / "report.json", nan=True))) or ():
        text.encode()


@given(reports=st.lists(mutated(REPORTS[kinds.SUITES]) | mutated(REPORTS[kinds.GATE]), min_size=2, max_size=6))
@fuzzed(max_examples=max(1, DRAWN // 2))
def test_reports_of_many_nights(watched, reports):
    (watched / "nights.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    (watched / "2026-11-01.json").write_text(json.dumps(reports[0]))

    def made():
        found, left_out = nights.read(watched)
        tracks = trend.tracks(found)
        return json.dumps(trend_command.to_json(tracks, left_out)), trend_page.write(tracks, left_out)

    for text in answered(made) or ():
        text.encode()


@given(text=tearing(b'{"a": [1, 2, {"b": null}]}'), cut=st.integers(0, 60))
@fuzzed()
def test_a_line_of_stored_answers(text, cut):
    """Only what was stored comes back, whatever was changed in it."""
    line = stored.line({"a": [1]}).rstrip("\n")
    assert stored.read(line) == {"a": [1]}
    assert stored.read(line[:cut] + text.decode(errors="replace") + line[cut + 1 :]) in (None, {"a": [1]})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a function that makes a trainer of the reference, and the files of a checkpoint that it can go on from."""
    from harness.processes.imports import import_upstream
    from harness.subjects import reference

    import_upstream()
    spec = RunSpec().but(max_steps=2, save_strategy="steps", save_steps=1, per_device_train_batch_size=2)
    directory = tmp_path_factory.mktemp("checkpoint")

    def trainer(output):
        return reference.build(spec, output, lambda event, trainer: None)

    reference.train(trainer(directory), spec, None)
    return trainer(directory / "other"), {
        file.name: file.read_bytes() for file in (directory / "checkpoint-1").iterdir()
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(which=st.integers(0, 99), how=tears)
@fuzzed()
def test_a_checkpoint(watched, checkpoint, which, how):
    from harness.reference.checkpoint import CheckpointError
    from harness.subjects import resumable

    trainer, files = checkpoint
    directory = watched / "checkpoint-1"
    directory.mkdir(exist_ok=True)
    torn_one = sorted(files)[which % len(files)]
    for name, content in files.items():
        (directory / name).write_bytes(torn(content, how) if name == torn_one else content)
    answered(lambda: resumable.check(directory, trainer), refusal=CheckpointError)
