"""Groups of ranks: how they start, fail, hang and end, and that none outlives the process that asked for it."""

import functools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import environment
from harness.errors import UsageError
from harness.processes import launch, ranks
from harness.processes.group import Group, RanksFailed, output_file
from harness.processes.group import environment as environment_of_ranks
from harness.spec import RunSpec
from harness.subjects import launch_arguments
from harness.subjects.hf_trainer import HFTrainer
from harness.trace import Trace
from tests import rank_calls
from tests.processes import alive, until


def group(call, tmp_path, size=2, limit=30.0, **options):
    return Group(call, size, tmp_path / "ranks", limit, **options)


def test_groups_run_and_the_later_ones_need_no_imports(tmp_path):
    for size in (1, 2, 3):
        file = tmp_path / f"sum-{size}"
        started = time.monotonic()
        ranks.run(Group(functools.partial(rank_calls.add_up, str(file)), size, tmp_path / str(size)))
        seconds = time.monotonic() - started
        assert float(file.read_text()) == size * (size + 1) / 2
    assert seconds < 5  # measured 0.2 s; importing upstream takes 5 to 20 s


def test_the_exception_of_one_rank_ends_the_others_and_names_it(tmp_path):
    started = time.monotonic()
    with pytest.raises(RanksFailed, match=r"^rank 1 of 2: the second rank has had enough$") as failed:
        ranks.run(group(rank_calls.raise_on_one, tmp_path))
    assert failed.value.rank == 1 and not failed.value.alike
    assert time.monotonic() - started < 25


def test_a_rank_writes_to_no_descriptor_that_was_pytests(tmp_path):
    """A handler that was made while pytest captured has a descriptor that in a rank may be anything."""
    logger = logging.getLogger("made-up")
    (tmp_path / "ranks").mkdir()
    with (tmp_path / "captured").open("w") as captured:
        logger.addHandler(handler := logging.StreamHandler(captured))
        server = ranks.ForkServer((), pristine=True)
        try:
            assert server.run(group(rank_calls.warn, tmp_path, size=1)).statuses == {0: 0}
        finally:
            server.end()
            logger.removeHandler(handler)
    assert "said by the logger" in output_file(tmp_path / "ranks", 0).read_text()
    assert (tmp_path / "captured").read_text() == ""


def test_an_error_that_all_ranks_raise_is_reported_once(tmp_path):
    with pytest.raises(RanksFailed, match=r"^none of us wants to$") as failed:
        ranks.run(group(rank_calls.raise_on_all, tmp_path))
    assert failed.value.alike


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_the_rank_that_serves_the_store_waits_until_the_others_have_failed(tmp_path, monkeypatch, torchrun):
    monkeypatch.setattr(ranks.settings, "torchrun", torchrun)
    with pytest.raises(RanksFailed, match=r"^none of us wants to$"):
        ranks.run(group(rank_calls.raise_late_on_one, tmp_path, backend=None))


def test_a_rank_that_dies_is_named_with_the_signal_and_its_stack(tmp_path):
    with pytest.raises(RanksFailed, match="rank 1 of 2 was killed by SIGSEGV") as failed:
        ranks.run(group(rank_calls.die_on_one, tmp_path))
    assert "die_on_one" in str(failed.value)


def test_a_hung_group_is_killed_with_every_ranks_stack_and_the_next_group_runs(tmp_path):
    with pytest.raises(RanksFailed, match="the 2 ranks had not ended after 2 s") as failed:
        ranks.run(group(rank_calls.hang_on_one, tmp_path, limit=2))
    message = str(failed.value)
    assert "rank 0 was in:" in message and "wait_for_others" in message
    assert "rank 1 was in:" in message and "sleep_here" in message
    test_groups_run_and_the_later_ones_need_no_imports(tmp_path)


@pytest.mark.slow
def test_two_groups_at_the_same_time_do_not_mix(tmp_path):
    code = (
        "import functools, sys; from pathlib import Path; from tests import rank_calls\n"
        "from harness.processes import ranks; from harness.processes.group import Group\n"
        "for turn in range(3):\n"
        "    file = Path(sys.argv[1], f'sum-{turn}')\n"
        "    call = functools.partial(rank_calls.add_up, str(file))\n"
        "    ranks.run(Group(call, 2, Path(sys.argv[1], str(turn))))\n"
        "    assert file.read_text() == '3.0'\n"
    )
    directories = [tmp_path / name for name in ("first", "second")]
    for directory in directories:
        directory.mkdir()
    started = [subprocess.Popen([sys.executable, "-c", code, str(directory)]) for directory in directories]
    assert [process.wait(timeout=300) for process in started] == [0, 0]


PARENT = """
import functools, signal, sys
from pathlib import Path
from harness.processes import ranks
from harness.processes.group import Group
from tests import rank_calls
from tests.processes import alive, until
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background processes ignore SIGINT
ranks.run(Group(functools.partial(rank_calls.note_process, sys.argv[1]), 2, Path(sys.argv[1]), 600.0))
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGTERM))],
    ids=lambda number: number.name,
)
def test_no_rank_outlives_the_process_that_asked_for_it(number, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    files = [tmp_path / f"{rank}.pid" for rank in range(2)]
    try:
        assert until(lambda: all(file.is_file() and file.read_text() for file in files), 240)
        pids = [int(file.read_text()) for file in files]
        server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        assert all(map(alive, [*pids, server]))
        parent.send_signal(number)
        parent.wait(timeout=30)
        assert until(lambda: not any(map(alive, [*pids, server])), 15)
    finally:
        parent.kill()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_rank_outlives_the_fork_server(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    files = [tmp_path / f"{rank}.pid" for rank in range(2)]
    try:
        assert until(lambda: all(file.is_file() and file.read_text() for file in files), 240)
        pids = [int(file.read_text()) for file in files]
        server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        assert "the process that forks the ranks has died" in parent.communicate(timeout=30)[1]
        assert until(lambda: not any(map(alive, pids)), 15)
    finally:
        parent.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to a subreaper")
def test_processes_that_a_rank_leaves_behind_end_with_the_group(tmp_path):
    ranks.run(group(functools.partial(rank_calls.leave_a_child_behind, str(tmp_path / "child")), tmp_path))
    pids = [int((tmp_path / f"child-{rank}").read_text()) for rank in range(2)]
    assert not any(map(alive, pids))


def test_torchrun_starts_the_same_group(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks.settings, "torchrun", True)
    with pytest.raises(RanksFailed, match=r"^none of us wants to$") as failed:
        ranks.run(group(rank_calls.raise_on_all, tmp_path))
    # torchrun ends the other ranks as soon as one has failed, so the first waits until all have reported their error.
    assert failed.value.alike


def test_a_process_sees_one_of_several_gpus_and_its_ranks_see_all(monkeypatch):
    for name, value in {"CUDA_VISIBLE_DEVICES": "4, 6,7", environment.GPUS: ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(environment.GPUS)
    for turn, seen in [(0, "4"), (1, "6"), (5, "7")]:
        environment.see_one_gpu(turn)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen and environment.gpus() == ["4", "6", "7"]
    assert environment_of_ranks()["CUDA_VISIBLE_DEVICES"] == "7,4,6"
    too_many = TWO.but(launch={"ranks": 4, "device": "cuda"})
    assert launch_arguments.unsupported(too_many.launch) == "4 ranks need 4 GPUs, there are 3"


def test_a_gpu_is_chosen_before_cuda_is_started(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(UsageError, match="something started CUDA before one of 2 GPUs was chosen"):
        environment.see_one_gpu()


def test_a_single_gpu_keeps_its_name(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7af1")
    environment.see_one_gpu(3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-7af1" and environment.GPUS not in os.environ


TWO = RunSpec().but(launch={"strategy": "ddp", "ranks": 2}, max_steps=1, per_device_train_batch_size=2)


def test_bad_input_is_a_usage_error():
    with pytest.raises(UsageError, match="launch strategy 'dpp' is none of single, ddp"):
        HFTrainer().unsupported(TWO.but(launch={"strategy": "dpp"}))
    assert (
        HFTrainer().unsupported(TWO.but(launch={"strategy": "single"}))
        == "strategy 'single' is one process, not 2 ranks"
    )


def test_bad_input_that_a_rank_finds_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="unknown model family 'lama'"):
        launch.train(HFTrainer(), TWO.but(model={"family": "lama"}), tmp_path)


def test_a_subject_that_ranks_cannot_find_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be handed to ranks"):
        launch.train(HFTrainer(in_each_rank=lambda: None), TWO, tmp_path)


def test_a_trace_in_several_processes_survives_a_round_trip(tmp_path):
    trace = launch.train(HFTrainer(), TWO, tmp_path)
    assert trace.error is None and len(trace.ranks) == 1
    trace.save(tmp_path / "saved")
    again = Trace.load(tmp_path / "saved")
    assert again.distributed == trace.distributed and again.spec == TWO
    assert again.ranks[0].rows == trace.ranks[0].rows != trace.rows
