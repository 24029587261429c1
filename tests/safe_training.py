"""A user's training run with SafeCheckpoints, which may be killed: python -m tests.safe_training OUTPUT_DIR [SECONDS]."""

import os
import signal
import sys
import threading

import torch
from transformers import Trainer

import harness
from harness.checkpoints import newest_whole
from harness.runs.scenarios import PLAIN, saving
from harness.subjects.hf_trainer import HFTrainer

RUN = saving(
    PLAIN.but(data={"rows": 24}, lora={"target_modules": ["q_proj"]}, max_steps=8, save_total_limit=2), every=1
)


class SafeTrainer(harness.SafeCheckpoints, Trainer):
    pass


def safe():
    return HFTrainer(SafeTrainer)


class BrokenDiskTrainer(SafeTrainer):
    """Its second rank cannot write at step 4."""

    def _save_rng_state(self, output_dir):
        if self.args.process_index == 1 and self.state.global_step == 4:
            raise OSError(5, "Input/output error")
        super()._save_rng_state(output_dir)


def broken_disk():
    return HFTrainer(BrokenDiskTrainer)


def main(output_dir, seconds=None):
    torch.set_num_threads(1)
    trainer = safe().build(RUN, output_dir)
    if seconds is not None:
        timer = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    trainer.train(resume_from_checkpoint=newest_whole(output_dir))


if __name__ == "__main__":
    main(*sys.argv[1:])
