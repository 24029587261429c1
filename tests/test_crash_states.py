"""The states that a crash may leave: from hand-written operations, and of real saves of a few lines."""

import json
import mmap
import os
import shutil
import threading

import pytest

from harness import crash
from harness.crash.enumeration import MACHINE, PROCESS
from harness.crash.operations import CREATE, MKDIR, RENAME, SYNC, UNLINK, WRITE, Operation, Recording, replay
from harness.crash.outcomes import EQUAL, NAMED, REFUSED, SILENT, WARNED, Answer, Damage, damages, outcome, wholes
from harness.crash.trees import Link, read_tree, write_tree
from harness.errors import UsageError

ATOMIC = (
    Operation(CREATE, "new.tmp"),
    Operation(WRITE, "new.tmp", data=b"new!"),
    Operation(SYNC, "new.tmp"),
    Operation(RENAME, "new.tmp", "file"),
    Operation(SYNC, "."),
)


def contents(recording, **options):
    return [state.tree for state in crash.states(recording, **options)]


# ---- what is made of operations ----


def test_a_killed_process_leaves_a_prefix_and_a_write_may_be_cut():
    made = Recording({}, (Operation(MKDIR, "c"), Operation(CREATE, "c/f"), Operation(WRITE, "c/f", data=b"abcd")))
    found = contents(made, crashes=(PROCESS,))
    assert found == [{}, {"c": None}, {"c": None, "c/f": b""}] + [
        {"c": None, "c/f": part} for part in (b"a", b"ab", b"abc", b"abcd")
    ]


def test_a_file_that_is_written_over_is_cut_between_old_and_new():
    found = contents(Recording({"f": b"12345"}, (Operation(WRITE, "f", data=b"abcd"),)), crashes=(PROCESS,))
    assert {tree["f"] for tree in found} == {b"12345", b"a2345", b"ab345", b"abc45", b"abcd"}


def test_a_machine_loses_empties_and_zeroes_what_was_not_synced():
    made = Recording({"f": b"old"}, tuple(one for one in ATOMIC if one.kind != SYNC))
    found = contents(made, crashes=(MACHINE,))
    # Renamed but empty, zeros, half of it, and the old one with the new one beside it.
    for tree in ({"f": b"old", "file": b""}, {"f": b"old", "file": bytes(4)}, {"f": b"old", "file": b"ne\0\0"}):
        assert tree in found
    assert {"f": b"old", "new.tmp": b"new!"} in found


def test_what_was_synced_stays():
    found = contents(Recording({"file": b"old"}, ATOMIC), crashes=(MACHINE,))
    assert {tree["file"] for tree in found} == {b"old", b"new!"}


def test_an_entry_needs_a_sync_of_its_directory():
    without = Recording({"file": b"old"}, ATOMIC[:-1])
    at_end = contents(without, crashes=(MACHINE,), at_end=True)
    assert {"file": b"old", "new.tmp": b"new!"} in at_end
    synced = Recording({"file": b"old"}, ATOMIC)
    assert {"file": b"old", "new.tmp": b"new!"} not in contents(synced, crashes=(MACHINE,), at_end=True)


def test_a_later_removal_may_come_first():
    old = {"old": None, "old/f": b"1"}
    made = Recording(old, (Operation(MKDIR, "new"), Operation(CREATE, "new/f"), Operation(UNLINK, "old/f")))
    assert {"old": None} in contents(made, crashes=(MACHINE,))
    assert {"old": None} not in contents(made, crashes=(PROCESS,))


def test_states_are_distinct_and_a_sample_repeats():
    recording = Recording({"file": b"old"}, ATOMIC)
    everything = crash.states(recording)
    assert len({state.digest for state in everything}) == len(everything)
    some = crash.states(recording, at_most=4, seed=3)
    assert [state.digest for state in some] == [state.digest for state in crash.states(recording, at_most=4, seed=3)]
    assert len(some) == 4 and some[0].tree == recording.before


def test_a_state_is_written_as_it_is(tmp_path):
    tree = {"c": None, "c/f": b"\0\1", "c/l": Link("f"), "e": None}
    write_tree(tree, tmp_path / "there")
    assert read_tree(tmp_path / "there") == tree


# ---- real saves ----


def recorded(tmp_path, save, before=()):
    for name, content in dict(before).items():
        (tmp_path / name).write_bytes(content)
    made = crash.record(save, tmp_path)
    assert made.after == read_tree(tmp_path)
    return [str(one) for one in made.operations]


def test_each_write_of_python_is_seen_by_itself(tmp_path):
    def save(directory):
        os.makedirs(directory / "a" / "b")
        with open(directory / "a" / "b" / "f", "wb", buffering=0) as file:
            file.write(b"12")
            file.write(b"345")
            os.fsync(file.fileno())
        os.replace(directory / "a" / "b" / "f", directory / "a" / "g")
        os.symlink("g", directory / "a" / "l")
        shutil.rmtree(directory / "a" / "b")

    assert recorded(tmp_path, save) == [
        "mkdir a",
        "mkdir a/b",
        "create a/b/f",
        "write a/b/f (2 bytes)",
        "write a/b/f (5 bytes)",
        "sync a/b/f",
        "rename a/b/f to a/g",
        "symlink a/l",
        "rmdir a/b",
    ]


def test_a_file_that_is_emptied_and_one_that_is_changed_in_place(tmp_path):
    def save(directory):
        (directory / "f").write_text("new")
        with open(directory / "g", "r+b", buffering=0) as file:
            file.write(b"XY")

    before = {"f": b"old text", "g": b"abcd"}
    assert recorded(tmp_path, save, before) == ["write f (0 bytes)", "write f (3 bytes)", "write g (4 bytes)"]


def test_native_code_is_seen(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")

    seen = recorded(tmp_path, lambda d: safetensors.save_file({"x": numpy.zeros(4)}, d / "t.safetensors"))
    assert seen[0].startswith("create ") and any(one.startswith("write ") for one in seen)


def test_a_directory_that_is_renamed_with_what_it_holds(tmp_path):
    def save(directory):
        (directory / "tmp").mkdir()
        (directory / "tmp" / "f").write_text("1")
        os.rename(directory / "tmp", directory / "final")
        (directory / "final" / "g").write_text("2")

    assert recorded(tmp_path, save)[-3:] == ["rename tmp to final", "create final/g", "write final/g (1 bytes)"]


def test_threads_are_seen(tmp_path):
    def save(directory):
        thread = threading.Thread(target=lambda: (directory / "f").write_text("1"))
        thread.start()
        thread.join()

    assert recorded(tmp_path, save) == ["create f", "write f (1 bytes)"]


def test_a_thread_that_outlives_the_save_is_waited_for(tmp_path):
    (tmp_path / "old").mkdir()
    for number in range(20):
        (tmp_path / "old" / str(number)).touch()

    def save(directory):
        (directory / "new").touch()
        threading.Thread(target=shutil.rmtree, args=(directory / "old",)).start()

    made = crash.record(save, tmp_path)
    assert made.after == read_tree(tmp_path) == {"new": b""}


def test_a_save_through_a_memory_map_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"1234")

    mapped = []

    def save(directory):
        with open(directory / "f", "r+b") as file:
            mapped.append(mmap.mmap(file.fileno(), 4))
        mapped[0][:2] = b"XY"  # it stays open: closing it would be an event

    with pytest.raises(UsageError, match="changed f in a way that cannot be recorded"):
        crash.record(save, tmp_path)


def test_no_directory_is_refused_in_words(tmp_path):
    with pytest.raises(UsageError, match="no directory"):
        crash.record(print, tmp_path / "absent")


# ---- outcomes ----

TORN = Damage("checkpoint-4", ("optimizer.pt",), "checkpoint-2")


@pytest.mark.parametrize(
    ("answer", "is_"),
    [
        (Answer("whole"), EQUAL),
        (Answer("other"), SILENT),
        (Answer("other", warnings=("checkpoint-4 lacks optimizer.pt",)), WARNED),
        (Answer("other", warnings=("checkpoint-4 lacks something",)), SILENT),
        (Answer(error="checkpoint-4/optimizer.pt is torn; use checkpoint-2"), NAMED),
        (Answer(error="checkpoint-4/optimizer.pt is torn"), REFUSED),
        (Answer(error="use checkpoint-2"), REFUSED),
    ],
)
def test_an_outcome_goes_by_what_was_said(answer, is_):
    assert outcome(answer, ["whole"], [TORN]) == is_


def test_what_is_damaged_is_found_by_content():
    whole = {"checkpoint-2": None, "checkpoint-2/a": b"1", "checkpoint-4": None, "checkpoint-4/a": b"2"}
    known = wholes({}, whole)
    state = {**whole, "checkpoint-4/a": b""}
    assert damages(state, known) == {"checkpoint-4": Damage("checkpoint-4", ("a",), "checkpoint-2")}
    assert damages(whole, known) == {}


# ---- a saver of one's own ----


def load(directory):
    return json.loads((directory / "state.json").read_text())


def atomically(directory):
    with open(directory / "state.tmp", "w") as file:
        json.dump({"step": 2}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(directory / "state.tmp", directory / "state.json")
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def older(directory):
    (directory / "state.json").write_text('{"step": 1}')


def test_a_save_that_is_atomic_survives_every_crash():
    found = crash.explore(atomically, load, older)
    assert found.judged == found.states > 5
    assert found.outcomes == {"load": {EQUAL: found.judged}}


def test_a_save_that_writes_over_the_old_one_does_not():
    found = crash.explore(lambda directory: (directory / "state.json").write_text('{"step": 2}'), load, older)
    assert found.outcomes["load"][REFUSED] > 2


def test_another_result_in_silence_is_found():
    def forgiving(directory):
        try:
            return load(directory)
        except (ValueError, FileNotFoundError):
            return {"step": 0}

    found = crash.explore(atomically, forgiving)
    assert "an empty directory loads without an error" in found.notes
    found = crash.explore(lambda directory: (directory / "state.json").write_text('{"step": 2}'), forgiving, older)
    assert found.outcomes["load"][SILENT] > 2


def test_a_load_that_hangs_or_dies_is_refused():
    def dies(directory):
        if load(directory) != {"step": 1}:
            return load(directory)
        os._exit(3)

    found = crash.explore(atomically, dies, older)
    assert {one.said for one in found.found if one.outcome == REFUSED} == {"its process ended with exit status 3"}


def test_what_was_saved_must_load():
    def never(directory):
        raise ValueError("no")

    with pytest.raises(UsageError, match="what was saved cannot be loaded: ValueError: no"):
        crash.explore(atomically, never)


def test_an_operation_that_cannot_be_done_is_passed_over():
    assert replay({}, [Operation(WRITE, "a/b", data=b"1"), Operation(UNLINK, "x"), Operation(RENAME, "x", "y")]) == {}
