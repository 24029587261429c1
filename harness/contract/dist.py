"""DIST: several processes, each with a copy of the model (DistributedDataParallel)."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "DIST",
    "several processes (DDP)",
    (
        Clause(
            "DIST-01",
            "All ranks MUST end with the same adapter, optimizer state and base, bit for bit, and a run made twice MUST "
            "be the same run.",
            source="accelerate/accelerator.py:2058-2060 (Accelerator.prepare_model)",
            tier="mp",
        ),
        Clause(
            "DIST-02",
            "N ranks with batches of B rows MUST train as one process with batches of N * B does: the same rows in the "
            "same order, and gradients, losses and adapter equal up to the order of sums.",
            source="transformers/trainer.py:2199 (Trainer.compute_loss)",
            tier="mp",
        ),
        Clause(
            "DIST-03",
            "Where ranks start from adapters of their own, rank 0's MUST be trained by all.",
            source="torch/nn/parallel/distributed.py (DistributedDataParallel.__init__, _sync_module_states)",
            tier="mp",
        ),
        Clause(
            "DIST-04",
            "Each rank MUST save its random number generators, and torch's on the CPU MUST be in the same state on all "
            "ranks: they are seeded alike and draw alike.",
            source="transformers/trainer.py:419 (Trainer.__init__)",
            tier="mp",
        ),
        Clause(
            "DIST-05",
            "find_unused_parameters MUST be on for a PeftModel, and for a model with add_adapter unless activation "
            "checkpointing is; ddp_find_unused_parameters overrules both.",
            source="transformers/trainer.py:749-756 (Trainer._build_accelerator_args)",
            tier="mp",
        ),
        Clause(
            "DIST-06",
            "Activation checkpointing of either kind MUST train under DDP as it does in one process.",
            source="transformers/trainer.py:749-756 (Trainer._build_accelerator_args)",
            tier="mp",
        ),
        Clause(
            "DIST-07",
            "Rank r of W MUST train the batches r, r + W, ... of an epoch's order, which all ranks share; where the "
            "rows do not fill the last ones they wrap to its start, and resuming goes on from there bit for bit.",
            source="accelerate/data_loader.py:73-111 (SeedableRandomSampler), 1254-1260 (prepare_data_loader)",
            tier="mp",
        ),
        Clause(
            "DIST-08",
            "The logged loss MUST be that of all ranks' rows together.",
            source="transformers/trainer.py:2249 (Trainer._maybe_log_save_evaluate)",
            tier="mp",
        ),
        Clause(
            "DIST-09",
            "A model that lies on several devices (device_map) MUST be refused by a run in several processes.",
            source="accelerate/accelerator.py:1470-1481 (Accelerator.prepare)",
            tier="mp",
        ),
        Clause(
            "DIST-10",
            "Ranks with unlike numbers of labels MUST leave the gradient of the mean over the labels of all of them.",
            source="transformers/trainer.py:2199 (Trainer.compute_loss)",
            tier="mp",
        ),
        Clause(
            "DIST-11",
            "Resumed with another number of ranks, a run MUST train each row of the epoch once; where the rows of a step "
            "stay the same, it MUST be the uninterrupted run.",
            source="transformers/trainer.py:1706-1709 (Trainer._init_training_state)",
            tier="mp",
        ),
        Clause(
            "DIST-12",
            "A run in several processes in which nothing is trainable MUST be refused before its first step.",
            source="torch/nn/parallel/distributed.py (DistributedDataParallel.__init__)",
            tier="mp",
        ),
    ),
)
