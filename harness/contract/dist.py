"""DIST: several processes, each with a copy of the model (DistributedDataParallel)."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "DIST",
    "several processes (DDP)",
    (
        Clause(
            "DIST-01",
            "All ranks MUST end with the same adapter, optimizer state and base, bit for bit. A run that is made "
            "twice MUST be the same run.",
            source="accelerate/accelerator.py:2058-2060 (Accelerator.prepare_model)",
            tier="mp",
        ),
        Clause(
            "DIST-02",
            "N ranks with batches of B rows MUST train as one process with batches of N * B rows does: the same rows "
            "in the same order. Gradients, losses and adapter MUST be equal up to the order of sums.",
            source="transformers/trainer.py:2199 (Trainer.compute_loss)",
            tier="mp",
        ),
        Clause(
            "DIST-03",
            "If ranks start from different adapters, all MUST train rank 0's.",
            source="torch/nn/parallel/distributed.py (DistributedDataParallel.__init__, _sync_module_states)",
            tier="mp",
        ),
        Clause(
            "DIST-04",
            "Each rank MUST save its random number generators. torch's CPU generator MUST have the same state on all "
            "ranks, because they are seeded alike and draw alike.",
            source="transformers/trainer.py:419 (Trainer.__init__)",
            tier="mp",
        ),
        Clause(
            "DIST-05",
            "find_unused_parameters MUST be on for a PeftModel. For a model with add_adapter it MUST be on unless "
            "activation checkpointing is. ddp_find_unused_parameters MUST overrule both.",
            source="transformers/trainer.py:749-756 (Trainer._build_accelerator_args)",
            tier="mp",
        ),
        Clause(
            "DIST-06",
            "Under DDP, activation checkpointing of either kind MUST train as it does in one process.",
            source="transformers/trainer.py:749-756 (Trainer._build_accelerator_args)",
            tier="mp",
        ),
        Clause(
            "DIST-07",
            "Rank r of W MUST train the batches r, r + W, ... of an epoch's order, which MUST be the same on all "
            "ranks. If the rows do not fill the last batches, they MUST wrap to the start of the order. Resuming "
            "MUST continue from there bit for bit.",
            source="accelerate/data_loader.py:73-111 (SeedableRandomSampler), 1254-1260 (prepare_data_loader)",
            tier="mp",
        ),
        Clause(
            "DIST-08",
            "The logged loss MUST be that of the rows of all ranks together.",
            source="transformers/trainer.py:2249 (Trainer._maybe_log_save_evaluate)",
            tier="mp",
        ),
        Clause(
            "DIST-09",
            "If a model lies on several devices (device_map), a run in several processes MUST refuse it.",
            source="accelerate/accelerator.py:1470-1481 (Accelerator.prepare)",
            tier="mp",
            refuses=True,
        ),
        Clause(
            "DIST-10",
            "If ranks have different numbers of labels, the gradient MUST be that of the mean over the labels of all "
            "ranks.",
            source="transformers/trainer.py:2199 (Trainer.compute_loss)",
            tier="mp",
        ),
        Clause(
            "DIST-11",
            "If a run resumes with another number of ranks, it MUST train each row of the epoch once. If the rows of "
            "a step stay the same, it MUST be the uninterrupted run.",
            source="transformers/trainer.py:1706-1709 (Trainer._init_training_state)",
            tier="mp",
        ),
        Clause(
            "DIST-12",
            "If nothing is trainable, a run in several processes MUST be refused before its first step.",
            source="torch/nn/parallel/distributed.py (DistributedDataParallel.__init__)",
            tier="mp",
            refuses=True,
        ),
        Clause(
            "DIST-13",
            "All ranks MUST train the same order of an epoch's rows. Rank r of W MUST have the batches r, r + W, ...; "
            "with split_batches the slice r of every batch; with dispatch_batches, and on an IterableDataset, the slice "
            "r of each W batches. Rows that fill no batch of all ranks MUST be filled from the epoch's start, left out "
            "(dataloader_drop_last), or left to some ranks (even_batches=False).",
            source="accelerate/data_loader.py:113-297 (BatchSamplerShard), 299-394 (IterableDatasetShard), 726-936 "
            "(DataLoaderDispatcher)",
            tier="mp",
        ),
        Clause(
            "DIST-14",
            "At each step all ranks MUST be in the same epoch.",
            source="accelerate/data_loader.py:169-184 (BatchSamplerShard.__len__); transformers/trainer.py:2487-2555 "
            "(Trainer.set_initial_training_values)",
            tier="mp",
        ),
    ),
    profile="trainer",
)
