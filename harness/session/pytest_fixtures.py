"""The fixtures of `suites/`: training runs, what is recorded of them, and the way to a verdict."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from harness import subjects
from harness.processes import gpu_locks
from harness.runs import drawn
from harness.runs.cache import Runs
from harness.session.state import CASES, STATE, VERDICTS, DrawnFailure, NotComparable, Unsupported, skip_if
from harness.spec import RunSpec
from harness.trace import Trace
from harness.verdict import Verdict


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The session's training runs, each made once."""
    state = request.config.stash[STATE]
    root = tmp_path_factory.mktemp("runs")
    made = Runs(subjects.load(state.subject), root, state.device)
    yield made
    state.effort.runs, state.effort.seconds = made.made, made.seconds
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def train(request: pytest.FixtureRequest, runs: Runs) -> Callable[..., Trace]:
    """train(spec, again=False, subject=None): the subject's trace of a spec, or that of another subject.

    Skips, with the reason, what it does not train; so it does where the run that a spec resumes cannot be trained.
    """

    def trained(spec: RunSpec, again: bool = False, subject: subjects.Subject | None = None) -> Trace:
        for leg in (spec, spec.first_leg()) if spec.resume else (spec,):
            skip_if((subject or runs.subject).unsupported(runs.on_device(leg)))
        for case in request.node.stash[CASES]:
            case.specs.append(spec.to_json())
        return runs.train(spec, subject, again)

    return trained


@pytest.fixture
def baseline(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """baseline(kind, name, figure, bf16=False): what is recorded of this environment; NotComparable where nothing is.

    bf16: whether it is a figure of a run in bfloat16. With --record figure() is recorded, and returned.
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
    """preloads: of --preload, for processes that are timed."""

    preloads: list[str]


@pytest.fixture
def timed(request: pytest.FixtureRequest, upstream: Any) -> Timing:
    """For cases that take a machine's whole attention: skipped unless --timed is given."""
    if not request.config.getoption("--timed"):
        pytest.skip("takes two minutes, on a machine that does nothing else: --timed")
    return Timing(request.config.stash[STATE].preload)


@pytest.fixture
def cuda(runs: Runs) -> None:
    """For cases that only a GPU can show, whatever the tier of their clause: skipped elsewhere."""
    if runs.device != "cuda":
        pytest.skip("shows on a GPU only: --device cuda")


@pytest.fixture
def gpu_memory(cuda: None) -> Iterator[None]:
    """For cases that only a GPU can show, and that fill much of it: among all workers one case at a time on each GPU."""
    import torch

    with gpu_locks.memory():
        yield
        # What is kept for this process's next tensors is nobody else's.
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def trace(request: pytest.FixtureRequest, train: Callable[..., Trace]) -> Trace:
    """The trace of the scenario that `harness.runs.scenarios.over` names."""
    return train(request.param)


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Callable[[Verdict], None]:
    """judge(verdict): record a verdict on the test's case. `harness.session.decide` reads it when the test has ended.

    If a test records several, all must hold.
    """
    (case,) = request.node.stash[CASES]

    def record(verdict: Verdict) -> None:
        case.evidence.update(verdict.measured)
        request.node.stash[VERDICTS].append(verdict)

    return record


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
    """The subject, for clauses about transformers' and peft's own interfaces; skipped for one that is no Trainer."""
    from harness.subjects.hf_trainer import HFTrainer

    if not isinstance(runs.subject, HFTrainer):
        raise Unsupported(
            f"subject {runs.subject.name} is no transformers.Trainer, and the clause is about its interface"
        )
    return runs.subject.on(runs.device)


@pytest.fixture
def afterwards(runs: Runs, upstream: Any) -> Callable[[RunSpec, Callable[[Any], Any]], Trace]:
    """afterwards(spec, call): the trace of a run in several processes, at whose end each rank calls `call` with its
    Trainer; what that returns is in Trace.distributed["afterwards"].
    """

    def trained(spec: RunSpec, call: Callable[[Any], Any]) -> Trace:
        skip_if(upstream.unsupported(runs.on_device(spec)))
        return runs.train(spec, subject=upstream.in_ranks(call.__name__, afterwards=call))

    return trained
