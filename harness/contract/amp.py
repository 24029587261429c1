"""AMP: mixed precision."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "AMP",
    "mixed precision",
    (
        Clause(
            "AMP-01",
            "With bf16=True each forward pass MUST be computed under torch.autocast(bfloat16), and nothing else in "
            "half precision. The model's outputs, adapter, gradients, optimizer state and adapter files MUST be "
            "float32.",
            source="accelerate/accelerator.py:586-597 (Accelerator.__init__), 1824-1835 (Accelerator.prepare_model)",
        ),
        Clause(
            "AMP-02",
            "After train() with bf16=True, the model MUST compute in the precision of its parameters again.",
            source="accelerate/accelerator.py:1824-1835 (Accelerator.prepare_model, which wraps forward for good)",
        ),
        Clause(
            "AMP-03",
            "On a CPU, fp16=True MUST be refused, or give a warning, or take effect. The run MUST NOT silently be in "
            "float32.",
            source="accelerate/accelerator.py:565-569 (Accelerator.__init__)",
            device="cpu",
            refuses=True,
        ),
        Clause(
            "AMP-04",
            "On a float16 or bfloat16 base, get_peft_model MUST make float32 adapters, unless "
            "autocast_adapter_dtype=False. add_adapter MUST make them in the base's dtype. Training MUST keep either "
            "dtype.",
            source="peft/tuners/tuners_utils.py:2705-2762 (cast_adapter_dtype); peft/mapping_func.py:110-122 "
            "(get_peft_model); transformers/integrations/peft.py:426 (PeftAdapterMixin.add_adapter)",
            profile="stack",
        ),
        Clause(
            "AMP-05",
            "On a GPU, fp16=True MUST train an adapter on a float16 base through either injection route. Losses and "
            "gradient norms MUST be finite, every adapter tensor MUST move, and the base MUST stay frozen.",
            source="accelerate/accelerator.py:578-584 (Accelerator.__init__), 2946 (Accelerator.clip_grad_norm_); "
            "torch/amp/grad_scaler.py (GradScaler.unscale_)",
            tier="gpu",
        ),
        Clause(
            "AMP-06",
            "With fp16=True each checkpoint MUST hold the GradScaler's state in scaler.pt (scale, factors, interval, "
            "growth tracker). A resumed run MUST continue from that state bit for bit, after an overflow too.",
            source="transformers/trainer.py:3579-3598 (Trainer._save_scaler), 3993-4018 (Trainer._load_scaler)",
            tier="gpu",
        ),
        Clause(
            "AMP-07",
            "If the gradient of a step overflows float16, the step MUST be skipped: parameters and learning rate "
            "stay, the scale is halved, global_step advances, and the logged grad_norm is not finite.",
            source="accelerate/optimizer.py:169-184 (AcceleratedOptimizer.step); transformers/trainer.py:1941-1947 "
            "(Trainer._run_epoch)",
            tier="gpu",
        ),
        Clause(
            "AMP-08",
            "With fp16=True, the gradient norm and clipping MUST be of unscaled gradients. The logged grad_norm MUST "
            "be that of the float32 run, within rounding. No clipped gradient may be longer than max_grad_norm.",
            source="accelerate/accelerator.py:2919-2946 (Accelerator.unscale_gradients)",
            tier="gpu",
        ),
        Clause(
            "AMP-09",
            "fp16 and bf16 together MUST be refused, and so MUST bf16 without a device for it. fp16_full_eval and "
            "bf16_full_eval MUST cast the model for a separate evaluate() only: evaluations within train() change "
            "nothing, and after evaluate() the model is what it was.",
            source="transformers/training_args.py:288-293, 1775-1788 (TrainingArguments); "
            "transformers/trainer.py:2939-2945 (Trainer.evaluation_loop)",
            refuses=True,
        ),
        Clause(
            "AMP-11",
            "tf32=True MUST let CUDA compute float32 products in TF32, and what is logged MUST stay the same within "
            "rounding. With tf32=False the run MUST be the one without the argument, bit for bit.",
            source="transformers/training_args.py:1664-1685 (TrainingArguments.__post_init__)",
            tier="gpu",
        ),
        Clause(
            "AMP-12",
            "A Trainer MUST train in the precision of its own arguments, whichever Trainer has trained the model "
            "before. This MUST hold whether or not unwrap_model(keep_fp32_wrapper=False) has removed the earlier "
            "Trainer's autocast.",
            source="accelerate/accelerator.py:1805-1809 (Accelerator.prepare_model, which passes over a model that any "
            "Accelerator has prepared)",
        ),
        Clause(
            "AMP-13",
            "In half precision the adapter's contribution MUST NOT be lost by rounding: of its effect on the logits in "
            "float32, at least 1 - 16 u MUST be left, where u is the unit roundoff of the format and 16 the roundings that "
            "the adapter's own part goes through.",
            source="peft/tuners/lora/layer.py:932-968 (Linear.forward, which adds the adapter's output to one that is "
            "rounded already); torch/amp/autocast_mode.py (autocast)",
        ),
    ),
    profile="trainer",
)
