"""RES: what a resumed run has in common with the run that was interrupted."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "RES",
    "resume",
    (
        Clause(
            "RES-01",
            "train(resume_from_checkpoint=PATH) MUST continue as the uninterrupted run did, whatever the "
            "configuration. This covers rows, gradients, learning rates, logged losses and gradient norms of each "
            "later step, and the final adapter and optimizer state, bit for bit.",
            source="transformers/trainer.py:1557-1568 (Trainer.train), 1819-1882 (Trainer._run_epoch)",
            profile="any-loop",
        ),
        Clause(
            "RES-02",
            "A run through add_adapter MUST resume from its own checkpoint bit for bit. The same checkpoint MUST "
            "resume through get_peft_model.",
            source="transformers/trainer.py:3671-3731 (Trainer._load_from_checkpoint)",
            profile="checkpoint",
        ),
        Clause(
            "RES-03",
            "resume_from_checkpoint=False MUST start afresh, whatever lies in output_dir. True MUST use the "
            "checkpoint of the highest step, by number. If there is none, it MUST raise ValueError.",
            source="transformers/trainer.py:1473, 1553-1556 (Trainer.train); "
            "transformers/trainer_utils.py:270-279 (get_last_checkpoint)",
            refuses=True,
        ),
        Clause(
            "RES-04",
            "Before the first step, a path without an adapter file MUST be refused with ValueError \"Can't find a "
            'valid checkpoint at", and one without trainer_state.json with FileNotFoundError.',
            source="transformers/trainer.py:3642-3657 (Trainer._load_from_checkpoint), 1565 (Trainer.train)",
            refuses=True,
        ),
        Clause(
            "RES-05",
            "If a file of the checkpoint is truncated, there MUST be an error before the first step. "
            "training_args.bin, adapter_config.json and README.md are not read: without them the run MUST resume bit "
            "for bit.",
            source="transformers/trainer.py:3720 (Trainer._load_from_checkpoint), 3886-3991 "
            "(Trainer._load_optimizer_and_scheduler); peft/peft_model.py:1417-1525 (PeftModel.load_adapter)",
            refuses=True,
        ),
        Clause(
            "RES-06",
            "train() MUST NOT read TrainingArguments.resume_from_checkpoint, which is documented as meant for the "
            "caller's own script. Called without an argument, train() MUST start afresh.",
            source="transformers/training_args.py:754-756, 1501-1506 (TrainingArguments.resume_from_checkpoint)",
        ),
        Clause(
            "RES-07",
            "Resuming a finished run MUST make no optimizer step, keep global_step and the adapter, and report a "
            "training_loss of 0, wherever in an epoch the run ended.",
            source="transformers/trainer.py:1657-1674 (Trainer._inner_training_loop), 1998-2000 "
            "(Trainer._finalize_training); transformers/trainer_callback.py:591-593 (DefaultFlowCallback.on_step_end)",
            profile="any-loop",
        ),
        Clause(
            "RES-08",
            "training_loss and train_steps_per_second of a resumed run MUST be those of the steps that this call made.",
            source="transformers/trainer.py:1643-1644 (Trainer._inner_training_loop), 1997-2008 "
            "(Trainer._finalize_training)",
        ),
        Clause(
            "RES-09",
            "If a run resumes inside a logging window, the first logged loss MUST be the mean over the steps since "
            "the checkpoint. The adapter and later logs MUST NOT be affected.",
            source="transformers/trainer.py:1645-1649 (Trainer._inner_training_loop), 2254 "
            "(Trainer._maybe_log_save_evaluate)",
        ),
        Clause(
            "RES-10",
            "log_history MUST be restored and extended to what the uninterrupted run logs, evaluations included. The "
            "same MUST hold for trainer_state.json: total_flos, num_input_tokens_seen, best_metric and the states of "
            "callbacks.",
            source="transformers/trainer.py:1694-1704 (Trainer._init_training_state)",
        ),
        Clause(
            "RES-11",
            "The base learning rate MUST come from the checkpoint, not from a changed learning_rate. A changed "
            "number of steps MUST stretch the schedule from the second resumed step on. The first resumed step MUST "
            "still use the saved rate.",
            source="transformers/trainer.py:3969-3991 (Trainer._load_optimizer_and_scheduler), 1347 "
            "(Trainer.create_scheduler)",
        ),
        Clause(
            "RES-12",
            "If a batch size, an accumulation, or a logging, evaluation or save interval differs from the "
            "checkpoint's, there MUST be a warning with its name and both values. The position in the data MUST be "
            "that of a run with the new sizes.",
            source="transformers/trainer_utils.py:1133-1170 (compare_trainer_and_checkpoint_args); "
            "transformers/trainer.py:1706-1709 (Trainer._init_training_state)",
        ),
        Clause(
            "RES-13",
            "If the checkpoint has another rank or other target_modules than the model, there MUST be a warning, or "
            "an error before the first step.",
            source="peft/peft_model.py:1506-1539 (PeftModel.load_adapter); transformers/trainer.py:3720 "
            "(Trainer._load_from_checkpoint, which drops the result)",
            refuses=True,
        ),
        Clause(
            "RES-14",
            "With ignore_data_skip=True, a resumed run MUST train the rows of the checkpoint's epoch from the first "
            "row on. It MUST go on to the same last step.",
            source="transformers/trainer.py:1706-1709 (Trainer._init_training_state), 1842-1849 (Trainer._run_epoch)",
        ),
        Clause(
            "RES-15",
            "At the start of each step of a resumed run, the generators of torch (CUDA's too), numpy and Python MUST "
            "be in the state that they had there in the uninterrupted run. This MUST hold in the middle of an epoch "
            "and at its start.",
            source="transformers/trainer.py:1838-1882 (Trainer._run_epoch), 3841-3884 (Trainer._load_rng_state)",
            profile="any-loop",
        ),
        Clause(
            "RES-16",
            "Resuming MUST keep the adapter's dtype: a bfloat16 adapter (autocast_adapter_dtype=False) MUST resume "
            "bit for bit.",
            source="transformers/trainer.py:3720 (Trainer._load_from_checkpoint); peft/peft_model.py:1596-1599 "
            "(PeftModel.load_adapter)",
            profile="any-loop",
        ),
        Clause(
            "RES-17",
            "All adapters of a model MUST be restored bit for bit, whatever their names. The active adapter alone "
            "MUST be trained further.",
            source="transformers/trainer.py:3624-3640, 3703-3720 (Trainer._load_from_checkpoint)",
            profile="checkpoint",
        ),
        Clause(
            "RES-18",
            "A run with prompt tuning MUST resume bit for bit.",
            source="peft/utils/save_and_load.py:549 (set_peft_model_state_dict)",
            profile="any-loop",
        ),
        Clause(
            "RES-20",
            "With auto_find_batch_size, a resumed run MUST use the batch size of the checkpoint. Without it, it MUST "
            "use that of the arguments.",
            source="transformers/trainer.py:1566-1568 (Trainer.train)",
        ),
        Clause(
            "RES-21",
            "Before the first step, every adapter tensor of the checkpoint MUST be restored bit for bit, whatever "
            "the adapter and its wrapping.",
            source="transformers/trainer.py:3700-3720 (Trainer._load_from_checkpoint); peft/peft_model.py:1506-1519 "
            "(PeftModel.load_adapter)",
            profile="any-loop",
        ),
        Clause(
            "RES-22",
            "If a run resumes inside an epoch, it MUST train the rest of that epoch's rows in that epoch's order, "
            "and each later epoch in its own order.",
            source="transformers/trainer.py:1842-1857 (Trainer._run_epoch); accelerate/data_loader.py:1395 "
            "(skip_first_batches)",
            profile="any-loop",
        ),
        Clause(
            "RES-23",
            "If the accumulation does not divide the epoch, a run MUST resume bit for bit from each of its steps.",
            source="transformers/trainer.py:1706-1709 (Trainer._init_training_state), 1860-1871 (Trainer._run_epoch)",
            profile="any-loop",
        ),
        Clause(
            "RES-24",
            "If a dataset draws random numbers in __getitem__, the run MUST resume bit for bit.",
            source="transformers/trainer.py:1873-1882 (Trainer._run_epoch)",
            profile="any-loop",
        ),
        Clause(
            "RES-25",
            "A checkpoint whose save was interrupted MUST NOT count as complete. resume_from_checkpoint=True MUST "
            "use the newest complete one, or the error MUST say which file of which directory is missing.",
            source="transformers/trainer_utils.py:270-279 (get_last_checkpoint); transformers/trainer.py:3355-3429 "
            "(Trainer._save_checkpoint)",
            refuses=True,
        ),
        Clause(
            "RES-26",
            "If optimizer.pt, scheduler.pt, rng_state.pth or a rank's rng_state_N.pth is missing, an error or a "
            "warning MUST name it. The run MUST NOT silently become another run.",
            source="transformers/trainer.py:3841-3863 (Trainer._load_rng_state), 3903-3928 "
            "(Trainer._load_optimizer_and_scheduler)",
            refuses=True,
        ),
        Clause(
            "RES-27",
            "With enable_jit_checkpoint, SIGTERM at any place of a step MUST end train() within that step, with one whole "
            "checkpoint, and SIGTERM MUST get its handler back. The run that resumes from it MUST be the run that was not "
            "stopped, bit for bit, its log included.",
            source="transformers/trainer_jit_checkpoint.py:11-121 (CheckpointManager, JITCheckpointCallback)",
            device="cpu",
        ),
    ),
    profile="trainer",
)
