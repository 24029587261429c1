"""Tests of `peft-harness sweep`: the covering array, workers that die, the fewest fields, and what is reported."""

import errno
import functools
import itertools
import json
import os
import signal
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import jsonschema
import pytest

from harness import subjects
from harness.errors import OutOfSpace, UsageError
from harness.paths import PACKAGE
from harness.processes import workers as workers_module
from harness.processes.engine import Engine
from harness.processes.group import send
from harness.processes.workers import Died, Workers
from harness.runs import fields, judging, sweep_elsewhere
from harness.runs import sweep as sweep_module
from harness.runs.cache import Runs
from harness.runs.fewest import cause, fewest, with_defaults
from harness.runs.pairs import Pairs
from harness.runs.sweep import RANKED, Cause, Refusal, Result, Sweep
from harness.runs.trial import (
    BROKEN,
    ENDED,
    FAILS,
    HOLDS,
    KNOWN,
    OUTCOMES,
    REFUSED,
    UNDECIDED,
    Outcome,
    Trial,
    unsupported,
)
from harness.session import sweep as session
from harness.spec import RunSpec
from tests.processes import alive, until

TABLE = {"a": "012", "b": "01", "c": "0123", "d": "01", "e": "01", "launch": ("one", "two")}


def changed(row):
    return {name: value for name, value in row.items() if value != TABLE[name][0]}


def pairs_of(row):
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


ALL = {
    frozenset(((one, x), (other, y)))
    for one, other in itertools.combinations(TABLE, 2)
    for x in TABLE[one]
    for y in TABLE[other]
}


def drawn(pairs):
    while (row := pairs.next()) is not None:
        pairs.cover(row)
        yield row


# ---- the covering array ----


def test_rows_have_each_pair_and_no_row_is_in_vain():
    pairs = Pairs(TABLE, seed=1)
    seen = set()
    for row in drawn(pairs):
        assert row.keys() == TABLE.keys() and pairs_of(row) - seen
        seen |= pairs_of(row)
    assert seen == ALL
    assert pairs.counts() == (len(ALL), len(ALL), len(ALL)) and pairs.uncovered() == []


def test_a_seed_repeats_the_rows():
    assert list(drawn(Pairs(TABLE, 3))) == list(drawn(Pairs(TABLE, 3))) != list(drawn(Pairs(TABLE, 4)))


def test_a_row_that_is_taken_back_is_owed_again():
    pairs = Pairs(TABLE)
    first = pairs.next()
    pairs.take_back(first)
    assert pairs.counts()[0] == 0
    assert set().union(*map(pairs_of, drawn(pairs))) == ALL


@pytest.mark.parametrize(
    "together", [{"a": "1"}, {"a": "1", "c": "2"}, {"a": "1", "b": "1", "c": "2"}], ids=["value", "pair", "triple"]
)
def test_what_is_forbidden_is_in_no_row(together):
    pairs = Pairs(TABLE)
    pairs.forbid(together)
    rows = list(drawn(pairs))
    assert not any(together.items() <= row.items() for row in rows)
    refused = {pair for pair in ALL if together.items() <= dict(pair).items()} | (
        {pair for pair in ALL if ("a", "1") in pair} if len(together) == 1 else set()
    )
    assert set().union(*map(pairs_of, rows)) == ALL - refused
    assert pairs.counts() == (len(ALL - refused), len(ALL - refused), len(ALL))


def test_a_pair_that_no_row_can_have_is_not_looked_for_for_ever():
    pairs = Pairs({"a": "01", "b": "01", "c": "01"})
    for value in "01":  # a=1 and b=1 leave c without a value
        pairs.forbid({"a": "1", "b": "1", "c": value})
    rows = list(drawn(pairs))
    assert not any((row["a"], row["b"]) == ("1", "1") for row in rows)
    assert pairs.share() < 1 and pairs.uncovered() == [({"a": "1"}, {"b": "1"})]


def test_values_can_be_fixed():
    pairs = Pairs(TABLE)
    rows = []
    while (row := pairs.next({"launch": ["two"], "a": ["0", "2"]})) is not None:
        rows.append(row)
    assert {(row["launch"], row["a"]) for row in rows} == {("two", "0"), ("two", "2")}


# ---- the fewest fields ----


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_fewest_fields_are_found(size, seed):
    row = {f"f{number}": "1" for number in range(60)}
    needed = dict([*row.items()][seed * 17 :: 13][:size])
    asked = []

    def same(part):
        asked.append(part)
        return needed.items() <= part.items()

    assert fewest(row, same) == needed
    assert len(asked) < 40 * size


def test_a_failure_of_the_default_run_needs_no_field():
    assert fewest({"a": "1", "b": "1"}, lambda part: True) == {}


def test_a_default_that_has_a_part_in_a_refusal_is_found():
    table = {"best": ("no", "yes"), "eval": ("no", "steps", "epoch"), "other": ("0", "1"), "far": ("0", "1")}

    def accepted(row):
        return row.get("best") != "yes" or row.get("eval", "no") == "epoch"

    found = with_defaults({"best": "yes"}, accepted, table, [("best", "eval", "other")])
    assert found == {"best": "yes", "eval": "no"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("step 3: loss 1.5e-3, expected -2", "step 11: loss 2.25, expected 7e9"),
        (
            "gradients of model.layers.0.self_attn.v_proj.lora_B.weight differ",
            "gradients of t.encoder.block.1.wo differ",
        ),
        ("ValueError: no, at /tmp/a/b/x.py:12", "ValueError: no, at /srv/c/x.py:99"),
        ("trained rows [4, 3]", "trained rows [1, 2, 9, 8]"),
    ],
)
def test_a_cause_is_without_what_differs_from_run_to_run(one, other):
    assert cause(one) == cause(other)
    assert cause(one) != cause("another " + other)


# ---- workers ----


def work(task):
    if task == "hang":
        time.sleep(60)
    elif task == "die":
        os._exit(7)
    elif task == "raise":
        raise RuntimeError("no")
    elif task == "print":
        print("last words", flush=True)
        os.abort()
    return task, os.getpid()


def answers(workers, *tasks, limit=20.0, **options):
    waiting, found = list(tasks), {}
    while waiting or workers.busy:
        while waiting and workers.free:
            workers.give(waiting.pop(0), limit, **options)
        found.update(workers.ended(1.0))
    return found


def test_a_worker_that_dies_or_hangs_is_replaced(tmp_path):
    with Workers(work, 2, tmp_path) as workers:
        found = answers(workers, "die", "raise", "print", "one", "two")
        assert isinstance(found["die"], Died) and "exit status 7" in found["die"].how
        assert isinstance(found["raise"], Died) and found["raise"].how == "RuntimeError: no"
        assert "SIGABRT" in found["print"].how and "last words" in found["print"].output
        assert [found[name][0] for name in ("one", "two")] == ["one", "two"]
        found = answers(workers, "hang", limit=0.3)
        assert found["hang"].hung and "sleep" not in found["hang"].how and "in work" in found["hang"].output
        assert answers(workers, "after")["after"][0] == "after"


def starts_what_stays(task):
    """Start a process in a session of its own that ignores SIGTERM, and hang: as a fork server that hangs."""
    file, half = task
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        file.write_text(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    while not file.is_file() or not file.read_text():
        time.sleep(0.01)
    if half:
        return "an answer"
    time.sleep(60)


def send_half(channel, message):
    """Send a message whole, unless it is an answer."""
    if message == "an answer":
        channel.sendall(struct.pack("<Q", 100) + b"half")
        time.sleep(60)
    send(channel, message)


@pytest.mark.parametrize("half", [False, True], ids=["no-answer", "half-an-answer"])
def test_what_a_worker_that_hangs_has_started_ends_with_it(tmp_path, monkeypatch, half):
    monkeypatch.setattr(workers_module, "_ANSWER", 0.2)
    monkeypatch.setattr(workers_module, "send", send_half)
    task, began = (tmp_path / "pid", half), time.monotonic()
    with Workers(starts_what_stays, 1, tmp_path) as workers:
        found = answers(workers, task, limit=30.0 if half else 1.0)
        assert found[task].hung
        assert workers.free == 1
    assert time.monotonic() - began < 10
    assert until(lambda: not alive(int(task[0].read_text())), 5.0)


def test_a_process_that_the_kernel_keeps_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "_ANSWER", 0.1)
    with Workers(work, 1, tmp_path) as workers:
        monkeypatch.setattr(workers_module, "_wait", lambda pid, until: (0, 0))
        found, began = answers(workers, "hang", limit=0.2), time.monotonic()
        assert found["hang"].hung and workers.free == 1
        monkeypatch.undo()
        assert answers(workers, "after")["after"][0] == "after"
        assert time.monotonic() - began < 5


def test_a_worker_is_used_again_unless_a_fresh_one_is_asked_for(tmp_path):
    with Workers(work, 1, tmp_path, tasks=3) as workers:
        pids = [answers(workers, number)[number][1] for number in range(4)]
        assert len(set(pids)) == 2 and pids[0] == pids[2]
        assert answers(workers, "fresh", fresh=True)["fresh"][1] not in pids
    with pytest.raises(ProcessLookupError):
        os.kill(pids[-1], 0)


# ---- the sweep, with a made-up judge ----


@dataclass
class MadeUp:
    """Judges rows by tables. refused, fails, broken, dies: the fields that do it."""

    refused: list = field(default_factory=list)
    fails: list = field(default_factory=list)
    broken: list = field(default_factory=list)
    dies: list = field(default_factory=list)

    def _has(self, rows, row):
        full = {name: row.get(name, values[0]) for name, values in TABLE.items()}
        return next((part for part in rows if part.items() <= full.items()), None)

    def why(self, row):
        part = self._has(self.refused, row)
        return f"upstream refuses {part}" if part else ""

    def judge(self, row):
        if reason := self.why(row):
            return Outcome(row, REFUSED, refused=reason)
        if self._has(self.dies, row):
            os._exit(3)
        found = [(FAILS, clause, f"step {os.getpid()}: wrong") for clause in ("ACC-02", "LOSS-01")]
        findings = found if self._has(self.fails, row) else []
        findings += [(BROKEN, "RES-01", "the law failed with KeyError")] if self._has(self.broken, row) else []
        return Outcome(row, findings[0][0] if findings else HOLDS, findings, laws={"pass": 5}, equal=True)

    def found(self, row, clause):
        return next((words for _, found, words in self.judge(row).findings if found == clause), "")

    def fewest(self, row, clause, words):
        return fewest(changed(row), lambda part: cause(self.found(part, clause)) == cause(words))

    def refusals(self, rows):
        return [self.why(row) for row in rows]

    def forbidden(self, row, sentence, trained=True):
        found = fewest(changed(row), lambda part: self.why(part) == sentence)
        return with_defaults(found, lambda part: not self.why(part), TABLE, [TABLE])


def swept(trial, path, **options):
    options = {"launch": "launch", "seconds": 60.0, "rows": 60, **options}
    return Sweep(trial, TABLE, options.pop("unsupported", lambda row: ""), changed, directory=path, **options).run()


def test_refused_pairs_are_found_and_the_others_are_covered(tmp_path):
    refused = [{"a": "1", "c": "2"}, {"b": "1", "d": "0"}, {"e": "1", "launch": "two"}]
    result = swept(MadeUp(refused), tmp_path, rows=120)
    assert sorted(result.refusals, key=str) == sorted(
        (Refusal(part, f"upstream refuses {part}") for part in refused), key=str
    )
    assert result.covered == result.allowed == len(ALL) - 3 and result.pairs == len(ALL)
    assert result.outcomes[REFUSED] >= 3 and result.judged == result.outcomes[HOLDS] == result.equal
    assert result.laws["pass"] == 5 * result.judged
    assert result.ranked > 0 and (result.code, result.over) == (0, False)


def test_a_tenth_of_the_rows_has_several_ranks(tmp_path):
    result = swept(MadeUp(), tmp_path)
    assert 60 / RANKED - 1 <= result.ranked <= 60 / RANKED + 1


def test_what_is_known_without_training_is_never_tried(tmp_path):
    trial = MadeUp([{"a": "2"}, {"a": "1", "b": "1"}])
    result = swept(trial, tmp_path, unsupported=trial.why, suspects=[("a", "b")])
    assert [refusal.fields for refusal in result.refusals] == trial.refused
    assert result.outcomes.keys() == {HOLDS} and result.judged > 60


def test_failures_are_grouped_by_their_fewest_fields(tmp_path):
    result = swept(MadeUp(fails=[{"a": "1", "b": "1"}, {"d": "1", "e": "1"}], broken=[{"c": "3"}]), tmp_path)
    found = {tuple(one.fewest.items()): one for one in result.causes}
    assert found.keys() == {(("a", "1"), ("b", "1")), (("d", "1"), ("e", "1")), (("c", "3"),)}
    both = found[("a", "1"), ("b", "1")]
    assert sorted(both.clauses) == ["ACC-02", "LOSS-01"] and both.rows > 1 and both.smallest
    assert all(one.alone for one in result.causes) and result.code == 1


def test_a_configuration_that_ends_its_process_is_a_failure_of_its_own(tmp_path):
    result = swept(MadeUp(dies=[{"c": "1", "d": "1"}]), tmp_path, rows=25)
    assert result.outcomes[ENDED] and result.code == 1
    assert {one.kind for one in result.causes} == {ENDED}
    assert all("exit status 3" in one.clauses[""] for one in result.causes)


class Hangs(MadeUp):
    """Judges rows, but for those with some fields: it waits for ever for them."""

    def judge(self, row):
        if self._has(self.dies, row):
            time.sleep(600)
        return super().judge(row)


def test_configurations_that_hang_are_stopped_and_said_and_the_others_are_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "LIMIT", 0.2)
    trial, began = Hangs(dies=[{"c": "1", "d": "0"}]), time.monotonic()
    result = swept(trial, tmp_path, rows=14)
    assert time.monotonic() - began < 30
    assert result.stopped == result.outcomes[ENDED] > 1 and result.outcomes[HOLDS] > 12
    (one,) = result.causes
    assert one.hung and one.kind == ENDED and one.rows == result.stopped and one.fewest["c"] == "1"
    assert "had not ended after 180 s, and was stopped with all of its processes" in one.clauses[""]
    assert result.code == 1
    text = "\n".join(session.lines(Result(causes=[replace(one, fewest={})], stopped=3), [tmp_path / "x.json"]))
    assert "3 of them stopped at a limit" in text and "not looked for, since each try would last" in text
    assert session.to_json(Result(stopped=3), [], 0, 1.0)["stopped_at_a_limit"] == 3


def test_the_sweep_stops_when_its_time_is_over(tmp_path):
    began = time.monotonic()
    result = swept(Slow(), tmp_path, seconds=1.0)
    assert time.monotonic() - began < 5
    assert result.over and result.share < 0.95 and result.code == 3


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Three places of an engine, which do tasks in threads; they lose a worker at a row that ends its process."""

    def opened(trial):
        def done(subject, task, limit, fresh):
            row = task[1]
            if task[0] in ("judge", "fewest") and trial._has(trial.dies, row):
                raise ConnectionError("the worker is gone")
            return sweep_module.work(trial, task)

        monkeypatch.setattr(sweep_elsewhere, "done", done)
        return sweep_elsewhere.Elsewhere(Engine(ThreadPoolExecutor(3), 3, tmp_path / "lease", "me", ""), "made-up")

    return opened


def test_an_engine_finds_what_workers_here_find(tmp_path, places):
    trial = MadeUp([{"a": "1", "c": "2"}], fails=[{"a": "1", "b": "1"}], broken=[{"c": "3"}])
    here = swept(trial, tmp_path, rows=120)
    there = swept(trial, tmp_path, rows=120, elsewhere=lambda: places(trial))
    assert there.covered == there.allowed and there.refusals == here.refusals
    assert {str(one.fewest) for one in there.causes} == {str(one.fewest) for one in here.causes} and there.code == 1


def test_a_worker_that_an_engine_loses_is_a_failure_of_its_configuration(tmp_path, places):
    trial = MadeUp(dies=[{"c": "1", "d": "1"}])
    result = swept(trial, tmp_path, rows=5, seconds=5.0, elsewhere=lambda: places(trial))
    assert result.outcomes[ENDED] and result.code == 1
    assert "its worker was lost (ConnectionError: the worker is gone)" in {one.clauses[""] for one in result.causes}


@pytest.mark.slow
def test_a_host_judges_and_one_that_dies_is_replaced():
    row = fields.default()
    assert sweep_elsewhere.done("hf-trainer", ("judge", row), 180.0, False).kind == HOLDS
    hung = sweep_elsewhere.done("hf-trainer", ("judge", row), 0.01, True)
    assert isinstance(hung, Died) and hung.hung
    process, _ = sweep_elsewhere._HOSTS["hf-trainer"]
    process.kill()
    dead = sweep_elsewhere.done("hf-trainer", ("judge", row), 180.0, False)
    assert isinstance(dead, Died) and dead.how == "its process ended with -9"
    assert sweep_elsewhere.done("hf-trainer", ("judge", row), 180.0, False).kind == HOLDS
    sweep_elsewhere.end_hosts()
    assert not sweep_elsewhere._HOSTS


@pytest.mark.slow
def test_a_host_that_cannot_start_says_why():
    with pytest.raises(UsageError, match="the sweep could not start its process"):
        sweep_elsewhere.done("nobody", ("judge", {}), 1.0, False)


def test_a_short_sweep_has_rows_too(tmp_path):
    """Each value by itself would take longer than there is time for. Only rows change several fields."""
    log = tmp_path / "log"

    class Logged(Slow):
        def judge(self, row):
            with log.open("a") as stream:
                stream.write(f"{len(changed(row))}\n")
            return super().judge(row)

    swept(Logged(), tmp_path, seconds=1.5, workers=1)
    assert max(map(int, log.read_text().split())) > 1


def test_what_is_refused_does_not_starve_the_rows(tmp_path):
    """Each value is refused with many others, and finding out which takes long. Half of the time is left for rows."""

    class Searched(MadeUp):
        def judge(self, row):
            time.sleep(0.1)
            return super().judge(row)

        def forbidden(self, row, sentence, trained=True):
            time.sleep(0.2)
            return super().forbidden(row, sentence, trained)

    refused = [{"a": x, "c": y} for x in "12" for y in "123"] + [{"b": "1", "d": "1"}, {"d": "1", "e": "1"}]
    seen = []
    trial = Searched(refused)
    result = swept(trial, tmp_path, seconds=1.8, workers=1, progress=lambda now: seen.append((now.phase, now.judged)))
    assert result.judged >= 3 and result.over
    assert any("rows of the array" in phase and "refusals to look into" in phase for phase, _ in seen), seen
    assert any(phase.startswith("each value by itself, ") for phase, _ in seen)


class Full(MadeUp):
    """Judges the first rows, until the disk is full."""

    def judge(self, row):
        if row.get("a") == "2":
            raise OutOfSpace("no space left on /there")
        return super().judge(row)


def test_the_sweep_ends_when_a_disk_is_full_and_takes_that_for_no_refusal(tmp_path):
    result = swept(Full(), tmp_path)
    assert result.full == "no space left on /there"
    assert result.outcomes.keys() == {HOLDS} and result.judged < 60
    assert not result.refusals and not result.causes
    assert "\n".join(session.lines(result, [])).startswith("ended early, since a disk is full (")
    assert session.to_json(result, [], 0, 1.0)["complete"] is False


class Slow(MadeUp):
    def judge(self, row):
        time.sleep(0.4)
        return super().judge(row)


# ---- what is reported ----


@pytest.mark.parametrize(
    ("sentence", "crash"),
    [
        ("the run: upstream refuses it: ValueError: no", False),
        ("the run: upstream refuses it: TypeError: no", True),
        ("the run: upstream refuses it: rank 0 of 2: AttributeError: no", True),
        ("the run: upstream cannot train it (ImportError: no, at x.py:1)", False),
        ("no release of peft has the field IA3Config 'r'", False),
    ],
)
def test_a_crash_is_no_refusal(sentence, crash):
    assert Refusal({}, sentence).crash is crash


@pytest.mark.parametrize(
    ("causes", "covered", "code"),
    [
        ([], 96, 0),
        ([], 94, 3),
        ([Cause({"ACC-02": "no"}, FAILS, {})], 96, 1),
        ([Cause({"": "no"}, ENDED, {})], 96, 1),
        ([Cause({"ACC-02": "no"}, FAILS, {}, alone=False)], 96, 3),
        ([Cause({"ACC-02": "no"}, BROKEN, {})], 96, 3),
        ([Cause({"ACC-02": "no"}, UNDECIDED, {})], 96, 3),
    ],
)
def test_exit_codes(causes, covered, code):
    assert Result(causes=causes, covered=covered, allowed=100).code == code


def test_the_report_says_each_cause_with_its_spec(tmp_path):
    row = {"method": "ia3", "launch": "ddp"}
    result = Result(covered=90, allowed=95, pairs=100, seconds=60.0, ranked=4)
    result.outcomes.update({FAILS: 2, HOLDS: 30, KNOWN: 1, REFUSED: 3})
    result.laws["pass"] = 500
    result.known["ACC-01", "a known fault"] = 1
    result.causes = [Cause({"ACC-02": "step 1: wrong"}, FAILS, row, rows=2, smallest=True, alone=True)]
    result.refusals = [Refusal({"bias": "all", "method": "ia3"}, "no such field")]
    files = session.spec_files(result, tmp_path)
    session.write_specs(result, files)
    text = "\n".join(session.lines(result, files))
    assert text.startswith("fails: 1 cause (33 configurations in 1.0 min)")
    for words in (
        "94.7 %",
        "method=ia3, launch=ddp",
        "step 1: wrong",
        f"peft-harness repro {files[0]}",
        "no such field",
    ):
        assert words in text
    assert RunSpec.load(files[0]) == fields.spec(row)
    body = json.loads(session.dumps(result, files, seed=0, minutes=1.0))
    jsonschema.validate(body, json.loads((PACKAGE / "session" / "sweep_schema.json").read_text()))
    assert body["configurations"].keys() == OUTCOMES.keys()


# ---- the table of fields ----


def test_the_table_has_fields_enough_and_each_value_changes_a_spec():
    assert len(fields.FIELDS) >= 45
    plain = fields.spec({})
    assert plain == fields.DEFAULT.but(adapter={"config": plain.adapter.config})
    for name, values in fields.names().items():
        assert fields.spec({name: values[0]}) == plain
        for value in values[1:]:
            spec = fields.spec({name: value})
            assert spec != plain, (name, value)
            assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_groups_and_suspects_name_fields():
    assert {name for group in (*fields.GROUPS, *fields.SUSPECTS) for name in group} <= fields.FIELDS.keys()


def test_the_small_array_has_each_value_that_it_may_have():
    rows, modelled = fields.small_array(), fields.modelled()
    for name, values in fields.names().items():
        may = set(values) - set(fields._NOT_IN_THE_SMALL_ARRAY.get(name, ()))
        assert {row[name] for row in rows} == may, name
    assert all(row[name] in modelled[name] for row in rows[:6] for name in row)


def test_a_method_without_a_field_is_refused_before_it_is_trained():
    from harness import subjects

    why = functools.partial(unsupported, subjects.load("hf-trainer"))
    assert not why({}) and not why({"method": "ia3"})
    assert "lora_alpha" in why({"method": "ia3", "lora_alpha": "1"})


@pytest.mark.parametrize(("known", "kind"), [("rank 0 saves alone.", KNOWN), ("", ENDED)])
def test_processes_that_end_by_a_known_defect_are_no_finding(monkeypatch, known, kind):
    def killed(*_):
        raise judging.Refused(f"the run{judging.NOT_TRAINED}rank 0 of 2 was killed by SIGABRT", known=known)

    monkeypatch.setattr(judging, "judge", killed)
    outcome = Trial(subjects.load("hf-trainer"), []).judge(fields.default())
    assert (outcome.kind, bool(outcome.findings)) == (kind, kind == ENDED)
    assert outcome.known == ({"LOOP-04": known} if known else {})


@pytest.mark.parametrize(
    "error", [OutOfSpace("no space left on /there"), OSError(errno.ENOSPC, "No space left on device", "/there/x")]
)
def test_a_full_disk_is_no_verdict_on_a_configuration(monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(Runs, "train", full)
    trial = Trial(subjects.load("hf-trainer"), [])
    for call in (trial.judge, trial.refused, lambda row: trial.found(row, "RES-01")):
        with pytest.raises(OutOfSpace, match="no space left on /there"):
            call(fields.default())
    with pytest.raises(OutOfSpace, match="no space left on /there"):
        judging.decided(full)
