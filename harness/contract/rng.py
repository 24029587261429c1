"""RNG: who draws random numbers, from which generator, and which rows follow from the seed."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "RNG",
    "random numbers and data order",
    (
        Clause(
            "RNG-01",
            "Trainer() MUST seed the global generators with args.seed, so that numbers drawn before it change "
            "nothing. train() MUST NOT seed again unless it builds the model (model_init), so that numbers drawn "
            "between the two shift its stream.",
            source="transformers/trainer.py:419 (Trainer.__init__), 1484-1487 (Trainer.train)",
        ),
        Clause(
            "RNG-02",
            "Epoch e MUST use the rows in the order of torch.randperm seeded with (data_seed or seed) + e, whatever "
            "was drawn from the global generator.",
            source="accelerate/data_loader.py:73-111 (SeedableRandomSampler.__iter__); transformers/trainer.py:839 "
            "(Trainer.create_accelerator_and_postprocess)",
        ),
        Clause(
            "RNG-03",
            "Without dropout, a run MUST draw one number from torch's global generator for each pass over a "
            "dataloader, and no other: none for logging, saving or collating.",
            source="torch/utils/data/dataloader.py:690 (_BaseDataLoaderIter.__init__)",
        ),
        Clause(
            "RNG-04",
            "dataloader_num_workers and dataloader_pin_memory MUST NOT change a run, nor how it resumes.",
            source="transformers/trainer.py:1046-1051 (Trainer._get_dataloader)",
            profile="any-loop",
        ),
        Clause(
            "RNG-05",
            "full_determinism=True MUST let torch and CUDA use deterministic algorithms only. It MUST NOT change a "
            "run on a CPU. On a GPU it MUST make the same run twice.",
            source="transformers/trainer_utils.py:154-177 (enable_full_determinism)",
        ),
    ),
    profile="trainer",
)
