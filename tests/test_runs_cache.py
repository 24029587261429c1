"""Tests of harness/runs/cache.py: the checkpoints that a resumed run finds."""

from pathlib import Path

from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.trace import Checkpoint, Trace


class WritesTwice:
    """A subject that writes the checkpoint of step 2 twice, as releases of transformers before 4.50 do at a run's end."""

    name = "writes-twice"

    def unsupported(self, spec):
        return None

    def train(self, spec, directory):
        trace = Trace(spec, self.name, {})
        if spec.resume is not None:
            trace.output = {"found": sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))}
            return trace
        path = Path(directory) / "checkpoint-2"
        path.mkdir()
        (path / "trainer_state.json").write_text("{}")
        trace.checkpoints = [Checkpoint(2, str(path), {"trainer_state.json": 2}, {}, {}, {}, []) for _ in range(2)]
        return trace


def test_a_checkpoint_that_was_written_twice_is_resumed_from(tmp_path):
    for checkpoint in (2, True):
        resumed = Runs(WritesTwice(), tmp_path / str(checkpoint)).train(RunSpec().resumed(checkpoint))
        assert resumed.output["found"] == ["checkpoint-2", "checkpoint-2/trainer_state.json"]
