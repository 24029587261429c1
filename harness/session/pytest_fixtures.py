"""The fixtures of `suites/`, all of them: training runs, recorded baselines, and the way to a verdict."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from harness import defaults, subjects
from harness.crash.enumeration import MACHINE, PROCESS
from harness.crash.exploration import Exploration
from harness.crash.judged_run import explore_states
from harness.crash.rank_saves import RANK_SAVES, explore_ranks
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import record_run
from harness.errors import UsageError
from harness.laws.universal import Applied
from harness.processes import gpu_locks
from harness.runs import drawn, judging, preflight
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from harness.session.specs import Brought
from harness.session.state import (
    CASES,
    STATE,
    VERDICTS,
    DrawnFailure,
    NotComparable,
    NotTrained,
    Unsupported,
    skip_if,
    skip_uncompared,
)
from harness.spec import RunSpec
from harness.subjects import WrongSubject, traits
from harness.trace import Trace
from harness.verdict import NOT_COMPARABLE, Otherwise, Verdict


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The training runs of the session. Each spec is trained once."""
    state = request.config.stash[STATE]
    root = tmp_path_factory.mktemp("runs")
    made = state.runs = Runs(subjects.load(state.subject), root, state.device)
    takes = state.traits.foreign and subjects.unsupported(made.subject, made.on_device(PLAIN)) is None
    if takes and (sentence := preflight.refused(made)):
        if not hasattr(request.config, "workerinput"):
            pytest.exit(sentence, returncode=2)
        raise WrongSubject(sentence)  # a worker of xdist cannot end the session
    yield made
    state.effort.runs, state.effort.seconds = made.made, made.seconds
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def train(request: pytest.FixtureRequest, runs: Runs) -> Callable[..., Trace]:
    """train(spec, again=False, subject=None): train a spec, or take its trace from the cache.

    - again: train it a second time.
    - subject: another subject than the session's.

    If the subject cannot train the spec, or the run that it resumes, the case is skipped with the reason.
    """

    def train_or_skip(spec: RunSpec, again: bool = False, subject: subjects.Subject | None = None) -> Trace:
        for leg in (spec, spec.first_leg()) if spec.resume else (spec,):
            skip_if(subjects.unsupported(subject or runs.subject, runs.on_device(leg)))
        for case in request.node.stash[CASES]:
            case.specs.append(spec.to_json())
        return runs.train(spec, subject, again)

    return train_or_skip


@pytest.fixture
def baseline(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """baseline(kind, name, figure, bf16=False): return the figure that was recorded in this environment.

    - kind: "counters" or "ratios".
    - name: of the figure.
    - figure: measures it. With --record it is called, and the result is recorded and returned.
    - bf16: whether the run is in bfloat16.

    If none was recorded, the case is not comparable (NotComparable).
    """
    from harness.throughput import baselines

    state = request.config.stash[STATE]

    def recorded(kind: str, name: str, figure: Callable[[], Any], bf16: bool = False) -> Any:
        if request.config.getoption("--record"):
            made = {"counters": {}, "ratios": {}, kind: {name: figure()}}
            baselines.record(state.device, state.commit, made["counters"], made["ratios"], baselines.DIRECTORY)
            return made[kind][name]
        found, reason = baselines.matching(state.device, bf16=bf16, kind=kind, name=name)
        body = {} if found is None else getattr(found, kind)
        if name not in body:
            raise NotComparable(reason or f"no {kind} of {name} are recorded in this environment")
        return body[name]

    return recorded


@dataclass(frozen=True)
class Timing:
    """What a timed process needs to know. preloads: the modules of --preload."""

    preloads: list[str]


@pytest.fixture
def timed(request: pytest.FixtureRequest, upstream: Any) -> Timing:
    """For cases that need an idle machine. They are skipped unless --timed is given."""
    if not request.config.getoption("--timed"):
        pytest.skip("takes two minutes, on a machine that does nothing else: --timed")
    return Timing(request.config.stash[STATE].preload)


@pytest.fixture
def cuda(runs: Runs) -> None:
    """For cases that only a GPU can judge, whatever the tier of their clause. They are skipped elsewhere."""
    if runs.device != "cuda":
        pytest.skip("shows on a GPU only: --device cuda")


@pytest.fixture
def gpu_memory(cuda: None) -> Iterator[None]:
    """For cases that need most of a GPU's memory. Of all workers, one at a time runs such a case on each GPU."""
    import torch

    with gpu_locks.memory():
        yield
        # torch keeps freed memory for this process. Other workers need it.
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def trace(request: pytest.FixtureRequest, train: Callable[..., Trace]) -> Trace:
    """The trace of the scenario that `harness.runs.scenarios.over` gives the test."""
    return train(request.param)


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Callable[[Verdict], None]:
    """judge(verdict): record a verdict on the test's case. `harness.session.decide` reads it when the test has ended.

    If a test records several, all must hold.
    """
    (case,) = request.node.stash[CASES]

    def record(verdict: Verdict) -> None:
        if verdict.outcome == NOT_COMPARABLE and any(isinstance(sentence, Otherwise) for sentence in verdict.seen):
            raise NotComparable("; ".join(verdict.seen))
        case.evidence.update(verdict.measured)
        request.node.stash[VERDICTS].append(verdict)

    return record


@pytest.fixture
def judge_brought(
    request: pytest.FixtureRequest, runs: Runs, judge: Callable[[Verdict], None]
) -> Callable[[Brought, str], None]:
    """judge_brought(brought, clause): judge a run of --spec by a clause's law. The run is trained once for all clauses.

    The case is skipped if the run cannot be trained (NotTrained), or if the law does not apply to it (NotComparable).
    """

    def judge_one(brought: Brought, clause: str) -> None:
        (case,) = request.node.stash[CASES]
        try:
            spec = runs.on_device(defaults.plain(brought.spec))
            case.specs[:] = [spec.to_json()]
            if brought not in runs.measured:
                runs.measured[brought] = _laws(brought, spec)
            laws = runs.measured[brought]
        except WrongSubject:
            raise
        except UsageError as error:
            runs.measured[brought] = error
            laws = error
        if isinstance(laws, UsageError):
            raise NotTrained(str(laws))
        judge(skip_uncompared(judging.decided(laws[clause])))

    def _laws(brought: Brought, spec: RunSpec) -> dict[str, Applied]:
        try:
            reason = subjects.unsupported(runs.subject, spec)
        except WrongSubject:
            raise
        except UsageError as error:
            raise UsageError(f"{brought.where}: {error}") from None
        if reason:
            raise UsageError(f"{brought.where}: subject {runs.subject.name} does not train such a spec ({reason})")
        return dict(judging.laws_of(spec, judging.trained(spec, runs, brought.where), runs))

    return judge_one


@pytest.fixture
def draw(request: pytest.FixtureRequest, runs: Runs) -> drawn.Draw:
    """Draws runs with hypothesis and judges each by several clauses (`harness.runs.drawn`)."""

    def fail(verdict: Verdict, clause: str) -> None:
        raise DrawnFailure(verdict, clause)

    state = request.config.stash[STATE]
    chosen_seed = request.config.getoption("--hypothesis-seed", None)
    return drawn.Draw(request.node.stash[CASES], runs, fail, chosen_seed, state.expectations)


@pytest.fixture
def upstream(runs: Runs) -> Any:
    """The subject, for clauses about transformers' and peft's interfaces. If it is no Trainer, the case is skipped."""
    from harness.subjects.hf_trainer import HFTrainer

    if not isinstance(runs.subject, HFTrainer):
        raise Unsupported(
            f"subject {runs.subject.name} is no transformers.Trainer, and the clause is about its interface"
        )
    subject = runs.subject.on(runs.device)

    def before_build(spec: RunSpec) -> None:
        skip_if(subjects.unsupported(subject, spec))
        runs.built += 1

    if traits(runs.subject).foreign:
        subject.before_build = before_build
    return subject


@pytest.fixture
def afterwards(runs: Runs, upstream: Any) -> Callable[[RunSpec, Callable[[Any], Any]], Trace]:
    """afterwards(spec, call): train a spec in several processes, and call `call` in each rank at the end.

    - call: gets the rank's Trainer. What it returns is in Trace.distributed["afterwards"].
    """

    def train_and_call(spec: RunSpec, call: Callable[[Any], Any]) -> Trace:
        skip_if(upstream.unsupported(runs.on_device(spec)))
        return runs.train(spec, subject=upstream.in_ranks(call.__name__, afterwards=call))

    return train_and_call


@pytest.fixture
def explored(request: pytest.FixtureRequest, runs: Runs, upstream: Any) -> Exploration:
    """What became of the crash states of "SAVE/STOP" (suites/test_crash.py), judged once in a session."""
    name, _, stop = request.param.rpartition("/")
    saved = SAVES[name]
    skip_if(upstream.unsupported(saved.spec))
    for case in request.node.stash[CASES]:
        case.specs.append(saved.spec.to_json())
    recorded_key, key = ("crash", name), ("crash", request.param)
    if recorded_key not in runs.measured:
        try:
            runs.measured[recorded_key] = record_run(saved, runs.directory("crash"), upstream)
        except UsageError as error:  # there is no inotify, or the save cannot be recorded
            raise Unsupported(str(error)) from None
    if key not in runs.measured:
        runs.measured[key] = explore_states(
            request.param,
            saved,
            runs.measured[recorded_key],
            crashes=(PROCESS,) if stop == "killed" else (MACHINE,),
            at_end=stop == "stopped",
            subject=upstream,
        )
    found: Exploration = runs.measured[key]
    return found


#: States of a save of several ranks that are judged. Each costs a group of ranks, and two seconds more if one fails.
_RANK_STATES = 16


@pytest.fixture
def explored_ranks(request: pytest.FixtureRequest, runs: Runs, upstream: Any) -> Exploration:
    """What became of crash states of a save of several ranks, a sample."""
    saved = RANK_SAVES[request.param]
    skip_if(upstream.unsupported(saved.spec))
    for case in request.node.stash[CASES]:
        case.specs.append(saved.spec.to_json())
    return explore_ranks(request.param, saved, runs.directory("crash"), _RANK_STATES, subject=upstream)
