"""Tests of harness/runs/damage.py: what is left of a damaged checkpoint, and the order in which the Trainer writes files."""

from pathlib import Path

import pytest

from harness import subjects
from harness.errors import UsageError
from harness.processes.imports import import_upstream
from harness.runs import damage
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN, continued


def test_files_are_torn_off_in_the_order_in_which_the_trainer_writes_them(tmp_path):
    import_upstream()
    spec = continued(PLAIN.but(max_steps=3), 2).first_leg()
    checkpoint = Path(Runs(subjects.load("hf-trainer"), tmp_path).train(spec).checkpoint(2).path)
    assert {path.name for path in checkpoint.iterdir()} == set(damage.WRITTEN)
    times = [(checkpoint / name).stat().st_mtime_ns for name in damage.WRITTEN]
    assert times == sorted(times)


@pytest.fixture
def checkpoints(tmp_path):
    """Return a directory with checkpoint-9 and checkpoint-10, in which each file has four bytes."""
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in damage.WRITTEN:
            (tmp_path / f"checkpoint-{step}" / name).write_bytes(b"1234")
    return tmp_path


def left(checkpoints, step):
    return {path.name: path.stat().st_size for path in (checkpoints / f"checkpoint-{step}").iterdir()}


def test_torn_after_a_file_leaves_it_and_what_was_written_before(checkpoints):
    damage.apply("newest torn after adapter_config.json", checkpoints)
    assert left(checkpoints, 10) == dict.fromkeys(damage.WRITTEN[:3], 4)
    assert left(checkpoints, 9) == dict.fromkeys(damage.WRITTEN, 4)


def test_torn_in_a_file_leaves_half_of_it(checkpoints):
    damage.apply("torn in adapter_model.safetensors", checkpoints)
    for step in (9, 10):
        assert left(checkpoints, step) == {"README.md": 4, "adapter_model.safetensors": 2}


def test_the_newest_is_the_one_of_the_highest_step(checkpoints):
    damage.apply("newest remove", checkpoints)
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-9"]


WRONG = [
    *("torn under README.md", "torn after model.bin", "newest", "newest torn after", "", "  ", "delete", "Delete x"),
    *("truncate optimizer.pt -1", "truncate optimizer.pt 1e3", "truncate optimizer.pt \u00b2", "truncate optimizer.pt"),
    *("truncate optimizer.pt " + "9" * 5000, "newest newest remove", "remove everything", "delete a b"),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_unknown_damage_is_refused(checkpoints, wrong):
    with pytest.raises(UsageError, match="unknown damage"):
        damage.apply(wrong, checkpoints)
    assert left(checkpoints, 10) == dict.fromkeys(damage.WRITTEN, 4)


@pytest.mark.parametrize("name", ["gone.pt", "x" * 5000, "nul\x00", "checkpoint\x1b[2J"])
def test_damage_to_a_file_that_is_not_there_is_refused(checkpoints, name):
    with pytest.raises(UsageError, match="has no file") as caught:
        damage.apply(f"delete {name}", checkpoints)
    assert str(caught.value).isprintable()


def test_unknown_damage_is_refused_before_the_first_leg_is_trained(tmp_path):
    runs = Runs(subjects.load("hf-trainer"), tmp_path)
    with pytest.raises(UsageError, match="unknown damage"):
        runs.train(PLAIN.resumed(2, damage=("burn everything",)))
    assert runs.made == 0


@pytest.mark.parametrize("words", ["delete {}", "truncate {} 0", "newest delete {}"])
@pytest.mark.parametrize("way", ["absolute", "dots", "link", "linked-directory"])
def test_nothing_outside_of_the_checkpoint_is_touched(checkpoints, tmp_path_factory, words, way):
    """A spec that somebody sent may name any path as damage."""
    outside = tmp_path_factory.mktemp("outside") / "mine.txt"
    outside.write_text("keep me")
    for step in (9, 10):
        (checkpoints / f"checkpoint-{step}" / "link").symlink_to(outside)
        (checkpoints / f"checkpoint-{step}" / "folder").symlink_to(outside.parent)
    up = Path(*[".."] * len(checkpoints.parts))
    name = {"absolute": str(outside), "dots": f"{up}{outside}", "link": "link", "linked-directory": "folder/mine.txt"}
    with pytest.raises(UsageError, match="leads out of"):
        damage.apply(words.format(name[way]), checkpoints)
    assert outside.read_text() == "keep me"
