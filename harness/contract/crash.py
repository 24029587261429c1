"""CRASH: what a crash during a save leaves, and what becomes of it."""

from harness.contract.clause import Chapter, Clause

_SAVE = "transformers/trainer.py:3355-3429 (Trainer._save_checkpoint)"
_RESUME = "transformers/trainer.py:1557-1568 (Trainer.train), 3671-3731 (Trainer._load_from_checkpoint)"

CHAPTER = Chapter(
    "CRASH",
    "crash states",
    (
        Clause(
            "CRASH-01",
            "If the process or the machine stops during a save, resume_from_checkpoint=True MUST go on bit for bit from a "
            "whole checkpoint, or end with an error before the first step. It MUST NOT go on as another run in silence.",
            source=f"{_SAVE}; transformers/trainer_utils.py:270-279 (get_last_checkpoint)",
            device="cpu",
        ),
        Clause(
            "CRASH-02",
            "If resume_from_checkpoint=True does not go on after such a stop, its error MUST name the torn checkpoint, one "
            "of its damaged files, and the whole checkpoint to use if one is left.",
            source=f"transformers/trainer_utils.py:270-279 (get_last_checkpoint); {_RESUME}",
            device="cpu",
        ),
        Clause(
            "CRASH-03",
            "A torn checkpoint that is named (resume_from_checkpoint=PATH) MUST resume bit for bit or be refused. It MUST "
            "NOT go on as another run in silence.",
            source=_RESUME,
            device="cpu",
        ),
        Clause(
            "CRASH-04",
            "A torn checkpoint MUST load for inference and as the best model as it was saved, or be refused, or a warning "
            "MUST name the damaged file.",
            source="peft/peft_model.py:417-680 (PeftModel.from_pretrained); transformers/trainer.py:3735-3839 "
            "(Trainer._load_best_model)",
            device="cpu",
        ),
        Clause(
            "CRASH-05",
            "If there was a whole checkpoint before a save, there MUST be one after any stop during it: rotation MUST NOT "
            "delete the last whole one before the new one is on the disk.",
            source="transformers/trainer_utils.py:342-385 (rotate_checkpoints)",
            device="cpu",
        ),
        Clause(
            "CRASH-06",
            "A save that cannot write (a full disk, a read-only one) MUST end with an error, and MUST leave each older "
            "checkpoint whole.",
            source=_SAVE,
            device="cpu",
        ),
        Clause(
            "CRASH-07",
            "If each rank stops at its own point of a save, resuming MUST go on bit for bit or end with an error in every "
            "rank. It MUST NOT go on as another run in silence.",
            source=f"{_SAVE}; transformers/trainer.py:3841-3863 (Trainer._load_rng_state)",
            tier="mp",
            device="cpu",
        ),
    ),
)
