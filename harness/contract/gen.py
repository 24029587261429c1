"""GEN: what holds of any training run, drawn at random, beside the clauses of the other chapters."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "GEN",
    "any run, drawn at random",
    (
        Clause(
            "GEN-01",
            "On a CPU, a run through transformers.Trainer MUST be bit-equal to the reference implementation of the "
            "path: rows, gradients, losses, learning rates, adapter and optimizer state.",
            source="transformers/trainer.py:1453-2041 (Trainer.train)",
        ),
        Clause(
            "GEN-02",
            "If the same run is made twice in one process, both MUST be bit-equal.",
            source="transformers/trainer_utils.py:180 (set_seed)",
            profile="any-loop",
        ),
    ),
    profile="trainer",
)
