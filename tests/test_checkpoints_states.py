"""The judge of checkpoints on every state that a crash during a save may leave: torn ones are torn, whole ones whole."""

import pytest

from harness import crash
from harness.checkpoints.judge import judge
from harness.crash.operations import apply
from harness.crash.outcomes import folders, wholes
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import record_run
from harness.crash.trees import below, write_tree

#: Files that neither resuming nor loading reads. They may be missing; the end of README.md may be, too.
UNREAD = ("README.md", "training_args.bin", "generation_config.json")


def is_torn(inside, saved, only_model):
    """Return whether a checkpoint lacks what is read, or has a file that is not as it was saved.

    - inside, saved: what its directory holds, and held when it was whole: path -> bytes.
    """
    for file, content in saved.items():
        name, here = file.rpartition("/")[2], inside.get(file)
        if content is None:
            continue
        if here is None:
            # Without training_args.bin nothing says that the optimizer was left out on purpose.
            if name not in UNREAD or (only_model and name == "training_args.bin"):
                return True
        elif here != content:
            text = name == "README.md" and here and b"\0" not in here
            last_newline = name.endswith(".json") and here == content[:-1]
            if not text and not last_newline:
                return True
    return False


def check(name, at_most, directory):
    """Judge the checkpoints of each state of a save, and return how many were judged. Each content is judged once."""
    made = record_run(SAVES[name], directory / "recorded").recording
    after = dict(made.before)
    for operation in made.operations:
        apply(after, operation)
    known = wholes(made.before, after)
    for operation, tree in zip(made.operations, states_between(made), strict=True):
        if operation.path.endswith("trainer_state.json"):  # what is saved and deleted between two saves
            for where, versions in wholes(tree).items():
                known.setdefault(where, versions)
    seen = set()
    for number, state in enumerate(crash.states(made, at_most=at_most)):
        run = directory / f"state-{number}"
        write_tree(state.tree, run)
        for where in folders(state.tree):
            inside = below(state.tree, where)
            key = (where, frozenset(inside.items()), tuple(folders(state.tree)))
            if key not in seen:
                seen.add(key)
                torn = all(is_torn(inside, saved, name == "only-model") for saved in known.get(where, [{}]))
                found = judge(run / where)
                assert found.verdict == ("torn" if torn else "whole"), f"{where}: {state.how}: {found.why}"
    return len(seen)


def states_between(made):
    tree = dict(made.before)
    for operation in made.operations:
        apply(tree, operation)
        yield dict(tree)


def test_a_sample_of_states_of_a_save(tmp_path):
    assert check("plain", 60, tmp_path) >= 55


# Of a save over an older checkpoint, states have whole files of two saves: only the times of the files or a manifest tell.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SAVES if name != "overwritten"])
def test_every_state_of_every_save(name, tmp_path):
    assert check(name, None, tmp_path) > 150
