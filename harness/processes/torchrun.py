"""Start a group of ranks by torchrun, as users do. Each rank is a new process that imports upstream.

- `python -m harness.processes.torchrun agent OWNER N FILE` is torchrun itself. It ends when the process OWNER ends.
- Each of its N workers is `python -m harness.processes.torchrun rank FILE`.
- FILE is a pickled pair: the `harness.processes.group.Group`, and the modules to preload.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

from harness.processes.group import Ended, Group, environment, error_file, show_stacks
from harness.processes.rank import die_with_parent, play, wait_for_the_others

#: Seconds that ranks may take to import upstream, in addition to the limit of their group.
_START = 120.0

_TICK = 0.05


def start(group: Group, preloads: tuple[str, ...]) -> Ended:
    """Run a group by torchrun to its end, and return how it ended (`harness.processes.ranks.run` judges that)."""
    file = group.directory / "group.pickle"
    file.write_bytes(pickle.dumps((group, preloads)))
    printed = group.directory / "torchrun.out"
    with printed.open("wb") as output:
        agent = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "harness.processes.torchrun",
                "agent",
                str(os.getpid()),
                str(group.world_size),
                str(file),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    until = time.monotonic() + _START + group.limit
    try:
        while agent.poll() is None:
            if time.monotonic() > until:
                show_stacks(group, dict(enumerate(_pids(group))))
                return Ended({}, timed_out=True)
            time.sleep(_TICK)
    finally:
        # Ctrl-C gets here, too. If the agent dies, so do its ranks (`die_with_parent`).
        if agent.poll() is None:
            agent.kill()
            agent.wait()
    reported = any(error_file(group.directory, rank).is_file() for rank in range(group.world_size))
    if agent.returncode and not reported:
        lines = "\n  ".join(printed.read_text(errors="replace").splitlines()[-12:])
        return Ended({}, error=f"torchrun ended with exit status {agent.returncode}:\n  {lines}")
    return Ended(dict.fromkeys(range(group.world_size), 0))


def _pids(group: Group) -> list[int]:
    files = [group.directory / f"rank-{rank}.pid" for rank in range(group.world_size)]
    return [int(file.read_text()) for file in files if file.is_file()]


def _agent(owner: int, world_size: str, file: str) -> None:
    # torch is imported afterwards, since that takes seconds.
    die_with_parent(owner)
    from torch.distributed.run import main

    main(["--standalone", "--nproc-per-node", world_size, "-m", "harness.processes.torchrun", "rank", file])


def _rank(file: Path) -> None:
    from harness.processes.imports import import_upstream

    die_with_parent(os.getppid())
    group, preloads = pickle.loads(file.read_bytes())  # noqa: S301 - `start` wrote it
    rank = int(os.environ["RANK"])
    (group.directory / f"rank-{rank}.pid").write_text(str(os.getpid()))
    # OpenMP reads its variables once, when upstream is imported, so they are set before.
    os.environ |= group.environment
    # torchrun ends the other ranks as soon as one has failed, so this one waits until they have failed, too.
    play(group, rank, connect=lambda: import_upstream(list(preloads)), failed=lambda: wait_for_the_others(group))


if __name__ == "__main__":
    if sys.argv[1] == "agent":
        _agent(int(sys.argv[2]), *sys.argv[3:])
    else:
        _rank(Path(sys.argv[2]))
