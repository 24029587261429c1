"""What the harness changes in upstream for speed: it is listed, it can be turned off, and nothing that is timed uses it."""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from harness import patches
from harness.paths import SUITES
from harness.processes.imports import import_upstream
from harness.runs.scenarios import PLAIN
from harness.suites import test_perf as perf
from harness.throughput import counters
from harness.throughput.pairs import Entrant, Runner
from harness.throughput.shapes import SHAPES
from tests import forked
from tests.faults import verdict_of
from tests.reporting_subject import REPORTS, replaced

#: What is replaced in a patched process on any machine. On a machine with a GPU, its seeds are not left out.
ALWAYS = {"jinja2:Environment.compile", "accelerate:_is_package_available", "gc:freeze", "transformers:progress bars"}

SUBJECT = "tests.reporting_subject:subject"


def test_each_patch_is_listed_with_its_reason():
    names = [patch.name for patch in patches.PATCHES]
    assert len(set(names)) == len(names)
    for patch in patches.PATCHES:
        module, _, attribute = patch.replaces.rpartition(":")
        assert module and attribute and len(patch.reason) > 40


def test_patches_are_off_within_a_block_and_on_after_it():
    import_upstream()
    assert set(replaced()) >= ALWAYS
    with patches.off():
        assert replaced() == [] and patches.active() == [] and patches.names() == []
        # A process that is started here is unpatched, too.
        assert os.environ[patches.UNPATCHED] == "1"
        with patches.off():
            pass
        patches.apply()
        assert replaced() == []
    assert set(replaced()) >= ALWAYS and patches.UNPATCHED not in os.environ
    with patches.off(frozen=True):
        assert replaced() == ["gc:freeze"]


def test_the_cached_template_renders_what_jinja2_renders():
    import_upstream()
    text = "{{ name }} is {% if good %}good{% endif %}"
    with patches.off():
        expected = jinja2.Template(text).render(name="a", good=True)
    assert [jinja2.Template(text).render(name="a", good=True) for _ in range(2)] == [expected] * 2
    assert jinja2.Template(text).render(name="b", good=False) == "b is "


# ---- in each process ----


def reports(directory, *options):
    """Judge a few cases in a session of its own; return its output, its JSON report, and the reports of its processes."""
    test_ids = [f"{SUITES}/test_loss.py", f"{SUITES}/test_dist.py"]
    words = ["-p", "no:cacheprovider", "--subject", SUBJECT, "--json", str(directory / "report.json")]
    words += ["--clause", "LOSS-01", "--clause", "DIST-01", "-k", "ddp-2 or full-rows"]
    environment = {**os.environ, REPORTS: str(directory)}
    done = forked.run([sys.executable, "-m", "pytest", *test_ids, *words, *options], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {kind: [json.loads(file.read_text()) for file in directory.glob(f"{kind}-*.json")] for kind in KINDS}
    return done.stdout, json.loads((directory / "report.json").read_text()), found


KINDS = ("session", "rank")


def test_a_session_names_its_patches(tmp_path):
    printed, report, found = reports(tmp_path, "-n", "0")
    names = patches.names()
    assert f"patched for speed: {', '.join(names)}; --unpatched turns them off" in printed
    assert report["environment"]["patches"] == names
    assert len(found["session"]) == 1 and len(found["rank"]) == 2
    for each in (*found["session"], *found["rank"]):
        assert set(each["replaced"]) >= ALWAYS and set(each["active"]) >= set(names) - {"no-deepspeed-shared-memory"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("-n", "1"), id="xdist"),
        pytest.param(("-n", "0", "--torchrun"), id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_unpatched_leaves_upstream_as_it_is_in_every_process(tmp_path, options):
    printed, report, found = reports(tmp_path, "--unpatched", *options)
    assert "patched for speed: nothing" in printed and report["environment"]["patches"] == []
    assert len(found["session"]) == 1 and len(found["rank"]) == 2
    for each in (*found["session"], *found["rank"]):
        assert each == {"replaced": [], "active": []}


def test_a_timed_process_is_unpatched(tmp_path, monkeypatch):
    monkeypatch.setenv(REPORTS, str(tmp_path))
    runner = Runner(Entrant("trainer", SUBJECT, SHAPES["tiny"].spec("cpu")))
    try:
        runner.ready()
    finally:
        runner.end()
    (report,) = [json.loads(file.read_text()) for file in tmp_path.glob("session-*.json")]
    assert report == {"replaced": [], "active": []}


# ---- what PERF measures ----


def test_counted_steps_are_unpatched(runs, tmp_path, monkeypatch):
    seen, train = [], counters.train  # type: ignore[attr-defined]

    def spied(subject, spec, directory, on_step):
        return train(subject, spec, directory, lambda number, log: seen.append(replaced()) or on_step(number, log))

    monkeypatch.setattr(counters, "train", spied)
    counters.count(runs.subject, PLAIN.but(logging_steps=500), tmp_path, brief=True)
    # Frozen objects replace no call, and no garbage is collected within a counted step.
    assert len(seen) > counters.STEPS and all(each == ["gc:freeze"] for each in seen)
    assert set(replaced()) >= ALWAYS


@pytest.mark.parametrize(
    ("test", "compiled"),
    [(perf.test_saving_writes_each_byte_once, True), (perf.test_resuming_reads_each_byte_once, False)],
    ids=["save", "load"],
)
def test_a_timed_save_calls_upstreams_own_functions(runs, tmp_path, test, compiled):
    """jinja2's own function compiles the model card's template in every save: a cached one would hide that."""
    calls: list[int] = []
    own: list[int] = []
    seen: list[Any] = []
    with patches.off(frozen=True):
        compile = jinja2.Environment.compile

    def counted(self, *args, **kwargs):
        calls.append(1)
        return compile(self, *args, **kwargs)

    def pedantic(function, setup=lambda: None, rounds=1, **options):
        seen.append(replaced())
        with pytest.MonkeyPatch.context() as counting:
            counting.setattr(jinja2.Environment, "compile", counted)
            for _ in range(rounds):
                setup()
                calls.clear()
                function()
                own.append(len(calls))

    benchmark = SimpleNamespace(pedantic=pedantic, extra_info={})
    assert verdict_of(test, runs, tmp_path, spec=perf.LARGE, benchmark=benchmark).holds
    assert seen == [[]] and len(own) == 5 and all(bool(number) == compiled for number in own)
