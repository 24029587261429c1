"""PERF: what a step costs."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "PERF",
    "throughput",
    (
        Clause(
            "PERF-01",
            "An optimizer step MUST cost what is recorded for it in the same environment: operations, floating-point "
            "operations, values read, bytes kept, bytes held and bytes at the peak.",
            source="transformers/trainer.py:1830-1950 (Trainer._run_epoch)",
        ),
        Clause(
            "PERF-02",
            "Equal steps MUST cost the same in every run: no cost may grow with the number of steps.",
            source="transformers/trainer.py:1830-1950 (Trainer._run_epoch)",
        ),
        Clause(
            "PERF-03",
            "A step MUST take the floating-point operations of forward and backward pass, and with activation "
            "checkpointing those of one more forward pass. It MUST keep no more for the backward pass than that "
            "needs. It MUST read at most one value per micro-batch from the device beyond what the path reads.",
            source="transformers/trainer.py:2061-2130 (Trainer.training_step), 1869-1908 (Trainer._run_epoch)",
        ),
        Clause(
            "PERF-04",
            "In units of the reference's time, a step MUST NOT take longer than is recorded in the same environment.",
            source="transformers/trainer.py:1830-1950 (Trainer._run_epoch)",
            option="--timed",
        ),
        Clause(
            "PERF-05",
            "Saving a checkpoint MUST write each byte of its files once.",
            source="transformers/trainer.py:3215-3290 (Trainer._save_checkpoint)",
            profile="checkpoint",
        ),
        Clause(
            "PERF-06",
            "Resuming MUST read each byte of a checkpoint's files at most once.",
            source="transformers/trainer.py:3563-3690 (Trainer._load_optimizer_and_scheduler, _load_from_checkpoint)",
            profile="checkpoint",
        ),
    ),
    profile="stack",
)
