"""CKPT: content of a checkpoint."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "CKPT",
    "content of a checkpoint",
    (
        Clause(
            "CKPT-01",
            "A checkpoint of a get_peft_model run MUST hold the adapter, its config and model card, the optimizer, "
            "the scheduler, the random states, the trainer's state and arguments, and nothing else: no config.json, "
            "no weights of the base.",
            source="transformers/trainer.py:3355-3422 (Trainer._save_checkpoint), 4131-4177 (Trainer._save); "
            "peft/peft_model.py:238-415 (PeftModel.save_pretrained)",
        ),
        Clause(
            "CKPT-02",
            "A checkpoint of an add_adapter run MUST hold what one of get_peft_model does, with generation_config.json "
            "in place of the model card, and no config.json.",
            source="transformers/modeling_utils.py:3443-3477 (PreTrainedModel.save_pretrained)",
        ),
        Clause(
            "CKPT-03",
            "Without an adapter a checkpoint MUST hold the whole model: config.json, generation_config.json and a "
            "model.safetensors with every parameter, of which an adapter's file has none.",
            source="transformers/trainer.py:4131-4177 (Trainer._save)",
        ),
        Clause(
            "CKPT-04",
            "adapter_model.safetensors MUST name each tensor base_model.model.<path in the base>.lora_A.weight, or "
            "what its method has in place of lora_A.weight, without the adapter's name, through either route; its "
            "bytes are those of the tensors and of the header, and the same run writes the same bytes.",
            source="peft/utils/save_and_load.py:346-354 (get_peft_model_state_dict); "
            "transformers/modeling_utils.py:3458-3465 (PreTrainedModel.save_pretrained)",
        ),
        Clause(
            "CKPT-05",
            "adapter_config.json MUST hold the adapter's config, with inference_mode true (get_peft_model) or false "
            "(add_adapter), the base's directory if it was loaded from one, and its lists in an order that is the same "
            "in every process.",
            source="peft/peft_model.py:375-415 (PeftModel.save_pretrained); peft/config.py:150-153 "
            "(PeftConfigMixin.save_pretrained); transformers/integrations/peft.py:424 (PeftAdapterMixin.add_adapter)",
        ),
        Clause(
            "CKPT-06",
            "Saving MUST NOT change the run: inference_mode of the config in memory is what it was, and a run that "
            "saves is bit-equal to one that does not.",
            source="peft/peft_model.py:382-415 (PeftModel.save_pretrained)",
        ),
        Clause(
            "CKPT-07",
            "optimizer.pt MUST hold AdamW's two moments and step counter of each trained tensor and of no frozen one: "
            "8P + 4n bytes of tensors for n float32 tensors of P numbers; SGD without momentum has no state.",
            source="transformers/trainer.py:3564 (Trainer._save_optimizer_and_scheduler)",
        ),
        Clause(
            "CKPT-08",
            "scheduler.pt of step N MUST stand after N steps (last_epoch N, _step_count N + 1) and at the learning "
            "rates of step N + 1, one for each parameter group.",
            source="transformers/trainer.py:3576 (Trainer._save_optimizer_and_scheduler); "
            "torch/optim/lr_scheduler.py:398-418 (LambdaLR.state_dict)",
        ),
        Clause(
            "CKPT-09",
            "rng_state.pth MUST hold the states of Python's, numpy's and torch's global generators as they are at the "
            "save (CUDA's too where there is one), and of no other generator.",
            source="transformers/trainer.py:3462-3511 (Trainer._save_rng_state)",
        ),
        Clause(
            "CKPT-10",
            "trainer_state.json MUST tell the step, the epoch, the run's length and all that was logged until the "
            "save, and keep TrainerControl as it was when the save was asked for.",
            source="transformers/trainer.py:3398-3409 (Trainer._save_checkpoint); "
            "transformers/trainer_callback.py:95-147 (TrainerState)",
        ),
        Clause(
            "CKPT-11",
            "training_args.bin MUST be a pickled TrainingArguments of this run, which torch.load refuses to read with "
            "weights_only=True.",
            source="transformers/trainer.py:4177 (Trainer._save)",
        ),
        Clause(
            "CKPT-12",
            'save_strategy "steps" MUST save each save_steps and at the last step, "epoch" at the end of each epoch, '
            '"best" at each evaluation that beats all before it, "no" never.',
            source="transformers/trainer_callback.py:568-621 (DefaultFlowCallback); transformers/trainer.py:2273-2274 "
            "(Trainer._maybe_log_save_evaluate)",
        ),
        Clause(
            "CKPT-13",
            "save_total_limit MUST delete the oldest checkpoints, never the newest or the best while training; with a "
            "limit of 1 and a best model, only the best one is left when training has ended.",
            source="transformers/trainer_utils.py:342-386 (rotate_checkpoints); transformers/trainer.py:2023-2028 "
            "(Trainer._finalize_training)",
        ),
        Clause(
            "CKPT-14",
            "save_only_model MUST leave out optimizer, scheduler and random states; a run that resumes from such a "
            "checkpoint keeps its step but starts the optimizer and the schedule anew.",
            source="transformers/trainer.py:3390-3395 (Trainer._save_checkpoint)",
        ),
        Clause(
            "CKPT-15",
            'get_peft_model: an adapter named "default" MUST lie at the top of the checkpoint and every other one, '
            "trained or not, in a directory of its name.",
            source="peft/peft_model.py:311 (PeftModel.save_pretrained)",
        ),
        Clause(
            "CKPT-16",
            "add_adapter: a checkpoint MUST hold every adapter of the model, active or not; saving with several active "
            "ones is refused with ValueError.",
            source="transformers/modeling_utils.py:3450-3477 (PreTrainedModel.save_pretrained)",
        ),
        Clause(
            "CKPT-17",
            "A checkpoint of get_peft_model(mixed=True) MUST hold the adapter's tensors and no weights of the base.",
            source="transformers/trainer.py:4143-4158 (Trainer._save); peft/mixed_model.py:388-395 "
            "(PeftMixedModel.save_pretrained)",
        ),
        Clause(
            "CKPT-18",
            "An adapter MUST be saved in the dtype that it is trained in: float32 beside a half precision base through "
            "get_peft_model, unless autocast_adapter_dtype=False; the base's dtype through add_adapter.",
            source="peft/tuners/tuners_utils.py:2705-2745 (cast_adapter_dtype); transformers/integrations/peft.py:426 "
            "(PeftAdapterMixin.add_adapter)",
        ),
        Clause(
            "CKPT-19",
            "save_model(directory) MUST write the adapter, its config and training_args.bin, with the model card or "
            "generation_config.json of its route, and a tokenizer that the Trainer or its data collator has; nothing "
            "of the optimizer.",
            source="transformers/trainer.py:4077-4177 (Trainer.save_model, Trainer._save)",
        ),
        Clause(
            "CKPT-21",
            "An adapter that is loaded from a checkpoint into a fresh base, by PeftModel.from_pretrained or by "
            "load_adapter, MUST be the trained one: tensors and logits bit for bit.",
            source="peft/peft_model.py:418-470 (PeftModel.from_pretrained); transformers/integrations/peft.py:80 "
            "(PeftAdapterMixin.load_adapter)",
        ),
        Clause(
            "CKPT-22",
            "With push_to_hub each save MUST push the adapter of its checkpoint and its config, byte for byte, whatever "
            "the adapter's name, and no file of the base.",
            source="transformers/trainer.py:4422-4470 (Trainer._push_from_checkpoint)",
            needs=("transformers>=5.10",),
        ),
        Clause(
            "CKPT-23",
            "An adapter's file MUST hold all of its tensors and none of another adapter, whatever the names: names "
            "that are part of one another, and names that a module of the base has too.",
            source="peft/utils/save_and_load.py:131-146 (_filter_state_dict_for_adapter_name)",
        ),
        Clause(
            "CKPT-24",
            "modules_to_save MUST reload into the modules that they were saved from, also where the name of one is "
            "part of another's, under every PYTHONHASHSEED.",
            source="peft/utils/save_and_load.py:600-620 (set_peft_model_state_dict); peft/utils/other.py:780 "
            "(ModulesToSaveWrapper.adapter_state_dict_load_map)",
        ),
        Clause(
            "CKPT-25",
            "No adapter file MUST ever be empty: its tensors are exactly the trained ones (and what a method keeps beside "
            "them, such as VeRA's projections), none without elements, and after training not every lora_B is zero, also "
            "where the layers of the base are wrapped.",
            source="peft/tuners/tuners_utils.py:1510-1539 (BaseTuner._get_adapter_state_dict)",
        ),
        Clause(
            "CKPT-26",
            "Compiling the layers one by one MUST NOT show in the adapter's file (no _orig_mod in a key); it loads "
            "into a plain base, and a plain one into compiled layers.",
            source="peft/tuners/tuners_utils.py:1568-1582 (BaseTuner._remove_adapter_name_from_key), 1585-1618 "
            "(BaseTuner._remap_adapter_state_dict_for_load)",
        ),
        Clause(
            "CKPT-27",
            "optimizer.pt MUST be the bytes of its tensors, each stored once and none as a view of something larger, "
            "and their names: a file grows with the adapter alone, whatever the optimizer.",
            source="transformers/trainer.py:3564 (Trainer._save_optimizer_and_scheduler)",
        ),
        Clause(
            "CKPT-28",
            "An adapter file MUST hold each tensor once: what layers share, such as the projections of VeRA and RandLoRA, "
            "is not written again for each of them.",
            source="peft/tuners/vera/model.py:271-287 (VeraModel._get_adapter_state_dict)",
        ),
    ),
)
