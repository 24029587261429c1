"""CKPT: content of a checkpoint."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "CKPT",
    "content of a checkpoint",
    (
        Clause(
            "CKPT-01",
            "A checkpoint of a get_peft_model run MUST hold the adapter, its config and model card, the optimizer, "
            "the scheduler, the random states, the trainer's state and its arguments. It MUST hold nothing else: no "
            "config.json and no weights of the base.",
            source="transformers/trainer.py:3355-3422 (Trainer._save_checkpoint), 4131-4177 (Trainer._save); "
            "peft/peft_model.py:238-415 (PeftModel.save_pretrained)",
        ),
        Clause(
            "CKPT-02",
            "A checkpoint of an add_adapter run MUST hold the same files as one of get_peft_model, with "
            "generation_config.json in place of the model card. It MUST hold no config.json.",
            source="transformers/modeling_utils.py:3443-3477 (PreTrainedModel.save_pretrained)",
        ),
        Clause(
            "CKPT-03",
            "Without an adapter, a checkpoint MUST hold the whole model: config.json, generation_config.json and "
            "model.safetensors with every parameter. An adapter's file MUST have none of them.",
            source="transformers/trainer.py:4131-4177 (Trainer._save)",
        ),
        Clause(
            "CKPT-04",
            "Through either route, adapter_model.safetensors MUST name each tensor base_model.model.<path in the "
            "base>.lora_A.weight, without the adapter's name. (Another method has other words in place of "
            "lora_A.weight.) The file MUST hold the bytes of the tensors and of the header only. The same run MUST "
            "write the same bytes.",
            source="peft/utils/save_and_load.py:346-354 (get_peft_model_state_dict); "
            "transformers/modeling_utils.py:3458-3465 (PreTrainedModel.save_pretrained)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-05",
            "adapter_config.json MUST hold the adapter's config. inference_mode MUST be true (get_peft_model) or "
            "false (add_adapter). If the base was loaded from a directory, the file MUST name it. Its lists MUST "
            "have the same order in every process.",
            source="peft/peft_model.py:375-415 (PeftModel.save_pretrained); peft/config.py:150-153 "
            "(PeftConfigMixin.save_pretrained); transformers/integrations/peft.py:424 (PeftAdapterMixin.add_adapter)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-06",
            "Saving MUST NOT change the run. inference_mode of the config in memory MUST stay what it was, and a run "
            "that saves MUST be bit-equal to a run that does not.",
            source="peft/peft_model.py:382-415 (PeftModel.save_pretrained)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-07",
            "optimizer.pt MUST hold AdamW's two moments and step counter of each trained tensor, and of no frozen "
            "tensor: 8P + 4n bytes for n float32 tensors with P numbers. SGD without momentum MUST have no state.",
            source="transformers/trainer.py:3564 (Trainer._save_optimizer_and_scheduler)",
        ),
        Clause(
            "CKPT-08",
            "scheduler.pt of step N MUST hold the schedule after N steps (last_epoch N, _step_count N + 1). It MUST "
            "hold the learning rates of step N + 1, one for each parameter group.",
            source="transformers/trainer.py:3576 (Trainer._save_optimizer_and_scheduler); "
            "torch/optim/lr_scheduler.py:398-418 (LambdaLR.state_dict)",
        ),
        Clause(
            "CKPT-09",
            "rng_state.pth MUST hold the states that the global generators of Python, numpy and torch have at the "
            "save, and CUDA's if there is a GPU. It MUST hold no other generator.",
            source="transformers/trainer.py:3462-3511 (Trainer._save_rng_state)",
        ),
        Clause(
            "CKPT-10",
            "trainer_state.json MUST hold the step, the epoch, the run's length and everything logged until the "
            "save. It MUST keep TrainerControl as it was when the save was requested.",
            source="transformers/trainer.py:3398-3409 (Trainer._save_checkpoint); "
            "transformers/trainer_callback.py:95-147 (TrainerState)",
        ),
        Clause(
            "CKPT-11",
            "training_args.bin MUST be a pickled TrainingArguments of this run. torch.load MUST refuse to read it "
            "with weights_only=True.",
            source="transformers/trainer.py:4177 (Trainer._save)",
            refuses=True,
        ),
        Clause(
            "CKPT-12",
            'save_strategy "steps" MUST save every save_steps and at the last step, "epoch" at the end of each '
            'epoch, "best" at each evaluation that is better than all before it, and "no" never.',
            source="transformers/trainer_callback.py:568-621 (DefaultFlowCallback); transformers/trainer.py:2273-2274 "
            "(Trainer._maybe_log_save_evaluate)",
        ),
        Clause(
            "CKPT-13",
            "save_total_limit MUST delete the oldest checkpoints. During training it MUST NOT delete the newest or "
            "the best. With a limit of 1 and a best model, only the best MUST be left after training.",
            source="transformers/trainer_utils.py:342-386 (rotate_checkpoints); transformers/trainer.py:2023-2028 "
            "(Trainer._finalize_training)",
        ),
        Clause(
            "CKPT-14",
            "save_only_model MUST leave out optimizer, scheduler and random states. A run that resumes from such a "
            "checkpoint MUST keep its step and MUST start the optimizer and the schedule anew.",
            source="transformers/trainer.py:3390-3395 (Trainer._save_checkpoint)",
        ),
        Clause(
            "CKPT-15",
            'With get_peft_model, an adapter named "default" MUST lie at the top of the checkpoint. Every other '
            "adapter, trained or not, MUST lie in a directory of its name.",
            source="peft/peft_model.py:311 (PeftModel.save_pretrained)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-16",
            "With add_adapter, a checkpoint MUST hold every adapter of the model, active or not. If several adapters "
            "are active, saving MUST be refused with ValueError.",
            source="transformers/modeling_utils.py:3450-3477 (PreTrainedModel.save_pretrained)",
            refuses=True,
        ),
        Clause(
            "CKPT-17",
            "A checkpoint of get_peft_model(mixed=True) MUST hold the adapter's tensors and no weights of the base.",
            source="transformers/trainer.py:4143-4158 (Trainer._save); peft/mixed_model.py:388-395 "
            "(PeftMixedModel.save_pretrained)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-18",
            "An adapter MUST be saved in the dtype that it is trained in. Through get_peft_model on a half-precision "
            "base that is float32, unless autocast_adapter_dtype=False. Through add_adapter it is the base's dtype.",
            source="peft/tuners/tuners_utils.py:2705-2745 (cast_adapter_dtype); transformers/integrations/peft.py:426 "
            "(PeftAdapterMixin.add_adapter)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-19",
            "save_model(directory) MUST write the adapter, its config and training_args.bin. It MUST also write the "
            "model card or generation_config.json of its route, and the tokenizer of the Trainer or of its data "
            "collator, if there is one. It MUST write nothing of the optimizer.",
            source="transformers/trainer.py:4077-4177 (Trainer.save_model, Trainer._save)",
        ),
        Clause(
            "CKPT-21",
            "If an adapter is loaded from a checkpoint into a fresh base, by PeftModel.from_pretrained or by "
            "load_adapter, it MUST be the trained one: tensors and logits bit for bit.",
            source="peft/peft_model.py:418-470 (PeftModel.from_pretrained); transformers/integrations/peft.py:80 "
            "(PeftAdapterMixin.load_adapter)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-22",
            "With push_to_hub, each save MUST push the adapter of its checkpoint and its config, byte for byte, "
            "whatever the adapter's name. It MUST push no file of the base.",
            source="transformers/trainer.py:4422-4470 (Trainer._push_from_checkpoint)",
            needs=("transformers>=5.10",),
        ),
        Clause(
            "CKPT-23",
            "An adapter's file MUST hold all tensors of that adapter and none of another. This MUST hold if one "
            "adapter's name is part of another's, and if a module of the base has the adapter's name.",
            source="peft/utils/save_and_load.py:131-146 (_filter_state_dict_for_adapter_name)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-24",
            "modules_to_save MUST reload into the modules that they were saved from, under every PYTHONHASHSEED. "
            "This MUST hold, too, if the name of one module is part of another's.",
            source="peft/utils/save_and_load.py:600-620 (set_peft_model_state_dict); peft/utils/other.py:780 "
            "(ModulesToSaveWrapper.adapter_state_dict_load_map)",
            profile="stack",
        ),
        Clause(
            "CKPT-25",
            "No adapter file MUST ever be empty. Its tensors MUST be exactly the trained ones, what a method keeps "
            "beside them, such as VeRA's projections, and the weights of embedding layers that are adapted or resized "
            "(EMB-03, EMB-05). None may be without elements if it has some in memory, and after training not every "
            "lora_B may be zero. This MUST hold, too, if the layers of the base are wrapped.",
            source="peft/tuners/tuners_utils.py:1510-1539 (BaseTuner._get_adapter_state_dict)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-26",
            "If layers are compiled one by one, this MUST NOT show in the adapter's file: no key has _orig_mod. The "
            "file MUST load into a plain base, and a plain run's file MUST load into compiled layers.",
            source="peft/tuners/tuners_utils.py:1568-1582 (BaseTuner._remove_adapter_name_from_key), 1585-1618 "
            "(BaseTuner._remap_adapter_state_dict_for_load)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-27",
            "optimizer.pt MUST consist of the bytes of its tensors and of their names. Each tensor MUST be stored "
            "once, and none as a view of a larger one. So the file grows with the adapter only, whatever the "
            "optimizer.",
            source="transformers/trainer.py:3564 (Trainer._save_optimizer_and_scheduler)",
        ),
        Clause(
            "CKPT-28",
            "An adapter file MUST hold each tensor once. What layers share, such as the projections of VeRA and "
            "RandLoRA, MUST NOT be written again for each layer.",
            source="peft/tuners/vera/model.py:271-287 (VeraModel._get_adapter_state_dict)",
            profile="checkpoint",
        ),
        Clause(
            "CKPT-29",
            "A saved adapter MUST be the same however it is loaded: by from_pretrained and load_adapter with each of "
            "their arguments, under another name, beside another adapter, from tensors, by a hot swap, by the model "
            "itself. Its values MUST be the saved ones in the dtype that they have afterwards. low_cpu_mem_usage MUST "
            "change no dtype and no value.",
            source="peft/peft_model.py:418-643, 1417-1605 (PeftModel.from_pretrained, load_adapter); "
            "peft/utils/save_and_load.py (set_peft_model_state_dict); peft/utils/hotswap.py (hotswap_adapter)",
            profile="stack",
        ),
        Clause(
            "CKPT-30",
            "save_model() at any event of a run, called by a callback, MUST save the trained tensors as they are then. It "
            "MUST leave modes and requires_grad as they were, and the run as it is without it, bit for bit.",
            source="transformers/trainer.py:3290-3340 (Trainer.save_model)",
            device="cpu",
        ),
        Clause(
            "CKPT-31",
            "If an optimizer has other weights for training than for evaluation (schedule-free), checkpoints and "
            "save_model() MUST hold those for evaluation.",
            source="transformers/trainer.py:2073-2074, 2958-2959 (Trainer.training_step, evaluation_loop); "
            "accelerate/optimizer.py:124-152 (AcceleratedOptimizer.train, eval)",
            device="cpu",
        ),
    ),
    profile="trainer",
)
