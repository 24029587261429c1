"""The fork server: a process that imports upstream, trains nothing, and forks groups of ranks for one other process.

A process that has trained cannot be forked: the threads of its autograd engine would be missing in the child, and the child
would wait for them for ever. So this process only imports, forks, watches and kills.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import patches
from harness.environment import describe
from harness.errors import UsageError
from harness.processes import cuda_free_fork
from harness.processes.group import CUT, GRACE, LONG_GRACE, Ended, Group, receive, send, show_stacks
from harness.processes.imports import import_upstream
from harness.processes.rank import die_with_parent, play, wait_for_the_others

#: Seconds between two looks at the ranks.
_TICK = 0.005


def main(channel: socket.socket, preloads: list[str], owner: int) -> None:
    """Run groups, one after the other, until the owner closes its end of the channel or dies.

    - channel: receives a `Group`, and sends the `Ended` of it or a UsageError.
    - preloads: modules to import before upstream is used.
    - owner: the process id of the owner.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # While this process imports, it does not look at the channel.
    signal.signal(signal.SIGTERM, _end_at_once)
    die_with_parent(owner, by=signal.SIGTERM)
    _adopt_orphans()
    refusal: UsageError | None = None
    prepared = False
    try:
        with cuda_free_fork.cuda_untouched():
            import_upstream(preloads)
    except UsageError as error:
        refusal = error
    while _readable(channel, 1.0) or os.getppid() == owner:
        if not _readable(channel, 0):
            continue
        try:
            group = receive(channel)
            with cuda_free_fork.cuda_untouched():
                if not (refusal or prepared):
                    prepare()
                    prepared = True
                _import(group)
            unforkable = group.backend is None and cuda_free_fork.cuda_started()
            send(channel, refusal or (Ended({}, unforkable=True) if unforkable else serve(group, channel, owner)))
        except (EOFError, OSError):
            return


#: What ranks import when they first wrap, observe or save. Not every release of torch has each of them.
AT_FIRST_USE = (
    "torch.distributed.algorithms.ddp_comm_hooks",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
    "harness.processes.shims",
)


def prepare() -> None:
    """Do once what every rank would otherwise do at first use.

    - Import what ranks need.
    - Build a base model, which ranks copy, and inject an adapter. The tables that this makes take 1.5 s.
    - Save the adapter, which compiles the model card's template: a fifth of a short run of DDP.
    - Look up the versions of the stack.
    """
    from harness.fixtures import models
    from harness.spec import AdapterSpec, ModelSpec
    from harness.subjects.hf_trainer import inject

    for name in AT_FIRST_USE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Building, injecting and saving start no thread and no autograd; training would.
    model = inject(models.build(ModelSpec()), AdapterSpec())
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
    describe()
    patches.freeze()


def _import(group: Group) -> None:
    """Import the modules that the group's ranks need, with the group's environment variables set."""
    missing = [name for name in group.imports if name not in sys.modules]
    if missing:
        os.environ |= group.environment
        for name in missing:
            # If a rank needs a module that cannot be imported, the rank reports the error.
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        patches.freeze()


def _readable(channel: socket.socket, seconds: float) -> bool:
    return bool(select.select([channel], [], [], seconds)[0])


def serve(group: Group, channel: socket.socket, owner: int) -> Ended:
    """Fork the ranks of a group, and watch them to their end. If the owner is gone, kill them and raise EOFError."""
    # The kernel picks the port, and rank 0 serves on this very socket, so nobody can take the port in between.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        pids = {rank: _fork(group, rank, server, channel) for rank in range(group.world_size)}
    try:
        return watch(group, pids, gone=lambda: os.getppid() != owner or _readable(channel, 0))
    finally:
        _end_orphans()


def _adopt_orphans() -> None:
    """Have the kernel make this process the parent of what its ranks leave behind, such as a compiler."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _end_at_once(*_: object) -> None:
    _end_orphans()
    os._exit(1)


def _end_orphans() -> None:
    """Kill and reap every child that is left after all ranks have ended, and the children of those."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while children.is_file() and (left := children.read_text().split()):
        for pid in map(int, left):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def watch(group: Group, pids: dict[int, int], gone: Callable[[], bool]) -> Ended:
    """Wait until all ranks have ended.

    If a rank fails, the others have a few seconds to end by themselves, and are then killed. If the group's limit is over,
    all ranks write their stacks and are killed.

    - pids: rank -> process id.
    - gone: whether the owner is gone. If so, all ranks are killed and EOFError is raised.
    """
    started = time.monotonic()
    grace = LONG_GRACE if group.backend is None else GRACE
    failed: float | None = None
    statuses: dict[int, int] = {}
    while len(statuses) < len(pids):
        left = {rank: pid for rank, pid in pids.items() if rank not in statuses}
        for rank, pid in left.items():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[rank] = os.waitstatus_to_exitcode(status)
                _kill(pid)  # the rank's children, such as workers of its dataloaders
        now = time.monotonic()
        if failed is None and any(statuses.values()):
            failed = now
        left = {rank: pid for rank, pid in pids.items() if rank not in statuses}
        if gone():
            _end(left)
            raise EOFError
        if failed is not None and now - failed > grace:
            _end(left)
            return Ended(statuses | dict.fromkeys(left, CUT))
        if left and now - started > group.limit:
            show_stacks(group, left)
            _end(left)
            return Ended(statuses | dict.fromkeys(left, CUT), timed_out=True)
        time.sleep(_TICK)
    return Ended(statuses)


def _end(pids: dict[int, int]) -> None:
    for pid in pids.values():
        _kill(pid)
    for pid in pids.values():
        os.waitpid(pid, 0)


def _kill(leader: int) -> None:
    """Kill a rank and the processes that it has started, if they are still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _fork(group: Group, rank: int, server: socket.socket, channel: socket.socket) -> int:
    fork_server = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # parent and child both do this, so it is done whichever runs first
        return pid
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    channel.close()
    die_with_parent(fork_server)
    port = server.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(group.world_size), "LOCAL_WORLD_SIZE": str(group.world_size)}

    def connect() -> None:
        from torch.distributed import TCPStore, barrier, init_process_group  # type: ignore[attr-defined]

        listening = {"is_master": True, "master_listen_fd": server.detach()} if rank == 0 else {"is_master": False}
        store = TCPStore("127.0.0.1", port, group.world_size, wait_for_workers=False, **listening)
        if group.backend is None:
            # accelerate connects. It finds a store that is served already, like the store of torchrun's agent.
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            stores.append(store)
            return
        init_process_group(group.backend, store=store, rank=rank, world_size=group.world_size)
        # If a rank failed before the others had connected to it, they would fail with another error than its own.
        barrier()

    stores: list[Any] = []  # keeps the store alive as long as this rank
    # If accelerate connects, other ranks may still need the store that rank 0 serves after rank 0 has failed.
    serves = rank == 0 and group.backend is None
    play(group, rank, connect, failed=lambda: wait_for_the_others(group) if serves else None)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:], os.getppid())
