"""`peft-harness checkpoint DIR`, `newest_whole` and `SafeCheckpoints`: checkpoints of somebody's own run.

- judge: is a checkpoint whole? choose: which one of a run to resume from. command: both, on the screen and as JSON.
- weights, whole, demands, adapter_directory, header: adapters and models. states: what resuming needs besides.
  sharded: FSDP's and DeepSpeed's files. torch_files, pickles, stored_numbers: files of torch.save, read without running them.
- outlook: the releases that wrote a checkpoint, and the known defects that reach it.
- safe, saving, manifest: saves that survive a crash.
"""

from harness.checkpoints.choose import NoWholeCheckpoint, newest_whole
from harness.checkpoints.saving import CheckpointError

__all__ = ["CheckpointError", "NoWholeCheckpoint", "newest_whole"]
