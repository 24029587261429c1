"""MEM: memory."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "MEM",
    "memory",
    (
        Clause(
            "MEM-01",
            "After a Trainer is dropped, its model, optimizer, datasets and dataloaders MUST be collectable, "
            "wherever in an epoch it stopped.",
            source="accelerate/state.py:1233-1373 (GradientState), accelerate/data_loader.py:373-420 "
            "(DataLoaderStateMixin)",
        ),
        Clause(
            "MEM-02",
            "Beyond the model, a step MUST hold no more than the adapter's gradients and optimizer state and one "
            "micro-batch's activations. It MUST NOT hold more after more steps.",
            source="transformers/trainer.py:1830-1950 (Trainer._run_epoch)",
        ),
    ),
    profile="trainer",
)
