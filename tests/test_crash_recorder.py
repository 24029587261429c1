"""What the recorder sees of a Trainer's save, against two other witnesses: strace, and processes that are killed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from harness.crash.enumeration import PROCESS, states
from harness.crash.trees import key, read_tree
from harness.paths import ROOT

pytestmark = pytest.mark.slow

#: Records the save of limit-1 in the directory of its argument, and prints the operations.
RECORD = """
import json, sys
from pathlib import Path
from harness.processes.imports import import_upstream
import_upstream()
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import record_run
made = record_run(SAVES["limit-1"], Path(sys.argv[1]))
print(json.dumps([[one.kind, one.path, one.to] for one in made.recording.operations]))
"""

CALLS = "mkdir,mkdirat,open,openat,creat,write,writev,pwrite64,pwritev,ftruncate,truncate,rename,renameat,renameat2"
CALLS += ",unlink,unlinkat,rmdir,fsync,fdatasync,sync_file_range,msync,link,linkat,symlink,symlinkat,copy_file_range"


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


def paths_in(words, run):
    """Return the paths in the words of a call, relative to `run`. -y prints each descriptor with its path."""
    found = []
    for folder, name, file in re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"|\d+<([^>]*)>', words):
        path = file or os.path.normpath(os.path.join(folder or os.path.dirname(run), name))
        if path.startswith(f"{run}/"):
            found.append(path.removeprefix(f"{run}/"))
    return found


def whole_lines(text):
    """Yield the lines of strace's output. A call in which another thread came between is printed in two parts."""
    begun = {}
    for line in text.splitlines():
        process = line.partition(" ")[0]
        if line.endswith("<unfinished ...>"):
            begun[process] = line.removesuffix("<unfinished ...>")
        elif resumed := re.match(r"\d+ +<\.\.\. \w+ resumed>(.*)", line):
            yield begun.pop(process, process) + resumed[1]
        else:
            yield line


def seen_by_strace(text, run):
    """Return the operations on files below `run` as the recorder names them. Writes that follow each other are one."""
    found = []
    for line in whole_lines(text):
        call = re.match(r"\d+ +(\w+)\((.*)\) += +(-?\d+)", line)
        if call is None or int(call[3]) < 0:
            continue
        name, words = call[1], call[2]
        paths = paths_in(words, run)
        if not paths:
            continue
        if name.startswith("mkdir"):
            found.append(("mkdir", paths[0], ""))
        elif name.startswith(("open", "creat")):
            if "O_CREAT" in words:
                found.append(("create", paths[0], ""))
        elif name.startswith("rename"):
            found.append(("rename", paths[0], paths[1]))
        elif (name == "unlinkat" and "AT_REMOVEDIR" in words) or name == "rmdir":
            found.append(("rmdir", paths[0], ""))
        elif name.startswith("unlink"):
            found.append(("unlink", paths[0], ""))
        elif "sync" in name:
            found.append(("sync", paths[0], ""))
        elif ("write", paths[0], "") != (found or [None])[-1]:
            found.append(("write", paths[0], ""))
    return found


def once(operations):
    """Return operations with writes of one file that follow each other as one."""
    made = []
    for one in map(tuple, operations):
        if not made or one != made[-1] or one[0] != "write":
            made.append(one)
    return made


def test_the_order_of_operations_is_what_strace_sees(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: the order was not compared with what another witness sees")
    log = tmp_path / "strace.log"
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "0", "-o", str(log), "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*command, sys.executable, "-c", RECORD, str(tmp_path / "work")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    recorded = once(json.loads(done.stdout.splitlines()[-1]))
    seen = seen_by_strace(log.read_text(errors="replace"), str(tmp_path / "work" / "run"))
    # The relative paths of the run: strace prints what the program passed.
    assert recorded[0] == ("mkdir", "checkpoint-4", "")
    start = seen.index(recorded[0])
    assert seen[start : start + len(recorded)] == recorded
    # No native code syncs a file: the recorder would not see it.
    assert not [one for one in seen if one[0] == "sync"]


#: Trains limit-1 and kills itself once the save has made a number of operations.
KILLED = """
import os, signal, sys
from pathlib import Path
from harness.processes.imports import import_upstream
import_upstream()
from harness.crash import recorder
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import record_run
poll = recorder.Recorder._poll
def killing(self):
    poll(self)
    if len(self._operations) >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
recorder.Recorder._poll = killing
record_run(SAVES["limit-1"], Path(sys.argv[1]))
"""

#: Trains limit-1 without a recorder, and says when the save of step 4 begins.
TRAINING = """
import sys
from pathlib import Path
from harness.processes.imports import import_upstream
import_upstream()
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import RUN, working_in
from harness.subjects.hf_trainer import HFTrainer
with working_in(Path(sys.argv[1])):
    RUN.mkdir()
    trainer = HFTrainer().build(SAVES["limit-1"].spec, RUN)
    save = trainer._save_checkpoint
    def saying(*arguments, **options):
        if trainer.state.global_step == 4:
            print("saving", file=sys.stderr, flush=True)
        return save(*arguments, **options)
    trainer._save_checkpoint = saying
    trainer.train()
"""


@pytest.fixture(scope="module")
def constructed(tmp_path_factory):
    """Return the states that a killed process leaves, as `content` gives them."""
    from harness.crash.saves import SAVES
    from harness.crash.trainer_ways import record_run
    from harness.processes.imports import import_upstream

    import_upstream()
    made = record_run(SAVES["limit-1"], tmp_path_factory.mktemp("recorded"))
    return {content(state.tree): state.how for state in states(made.recording, (PROCESS,))}


def content(tree):
    """Return a tree with the random part of a temporary file's name left out."""
    return key({re.sub(r"/\.tmp\w+$", "/.tmp", where): node for where, node in tree.items()})


@pytest.mark.parametrize("number", [1, 4, 9, 20, 34])
def test_a_process_that_is_killed_leaves_a_constructed_state(number, constructed, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(number)], env=environment())
    assert done.returncode == -signal.SIGKILL
    assert content(read_tree(tmp_path / "run")) in constructed


@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_killed_at_any_time_leaves_a_constructed_state(seed, constructed, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(tmp_path)], env=environment(), stderr=subprocess.PIPE, text=True
    )
    with child:
        for line in child.stderr:
            if line.strip() == "saving":
                break
        time.sleep(random.Random(seed).uniform(0, 0.03))
        child.kill()
    tree = read_tree(tmp_path / "run")
    if any(where.startswith("checkpoint-5") for where in tree):
        pytest.skip("the run had ended before it was killed")
    assert content(tree) in constructed
