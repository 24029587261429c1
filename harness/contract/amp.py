"""AMP: mixed precision."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "AMP",
    "mixed precision",
    (
        Clause(
            "AMP-01",
            "bf16=True MUST compute each forward pass under torch.autocast(bfloat16) and nothing else in half "
            "precision: the model's outputs, adapter, gradients, optimizer state and adapter files are float32.",
            source="accelerate/accelerator.py:586-597 (Accelerator.__init__), 1824-1835 (Accelerator.prepare_model)",
        ),
        Clause(
            "AMP-02",
            "Once train(bf16=True) has ended, the model MUST compute in the precision of its parameters again.",
            source="accelerate/accelerator.py:1824-1835 (Accelerator.prepare_model, which wraps forward for good)",
        ),
        Clause(
            "AMP-03",
            "fp16=True on a CPU MUST be refused, warned of, or in effect, not silently a float32 run.",
            source="accelerate/accelerator.py:565-569 (Accelerator.__init__)",
            device="cpu",
        ),
        Clause(
            "AMP-04",
            "get_peft_model MUST make adapters on a float16 or bfloat16 base float32, unless told not to with "
            "autocast_adapter_dtype=False; add_adapter MUST make them of the base's dtype; training keeps either.",
            source="peft/tuners/tuners_utils.py:2705-2762 (cast_adapter_dtype); peft/mapping_func.py:110-122 "
            "(get_peft_model); transformers/integrations/peft.py:426 (PeftAdapterMixin.add_adapter)",
        ),
        Clause(
            "AMP-05",
            "fp16=True on a GPU MUST train an adapter on a float16 base, through either route: losses and gradient norms "
            "finite, every adapter tensor moved, the base frozen.",
            source="accelerate/accelerator.py:578-584 (Accelerator.__init__), 2946 (Accelerator.clip_grad_norm_); "
            "torch/amp/grad_scaler.py (GradScaler.unscale_)",
            tier="gpu",
        ),
        Clause(
            "AMP-06",
            "With fp16=True each checkpoint MUST hold the GradScaler's state in scaler.pt (scale, factors, interval, "
            "growth tracker), and a resumed run MUST go on with it, bit for bit, after an overflow too.",
            source="transformers/trainer.py:3579-3598 (Trainer._save_scaler), 3993-4018 (Trainer._load_scaler)",
            tier="gpu",
        ),
        Clause(
            "AMP-07",
            "A step whose gradient overflows float16 MUST be skipped: parameters and learning rate stay, the scale is "
            "halved, global_step goes on, and the logged grad_norm is not finite.",
            source="accelerate/optimizer.py:169-184 (AcceleratedOptimizer.step); transformers/trainer.py:1941-1947 "
            "(Trainer._run_epoch)",
            tier="gpu",
        ),
        Clause(
            "AMP-08",
            "With fp16=True norm and clipping MUST be of unscaled gradients: the logged grad_norm is that of the run in "
            "float32 but for rounding, and no clipped gradient is longer than max_grad_norm.",
            source="accelerate/accelerator.py:2919-2946 (Accelerator.unscale_gradients)",
            tier="gpu",
        ),
        Clause(
            "AMP-09",
            "fp16 and bf16 together MUST be refused, and bf16 without a device for it; fp16_full_eval and "
            "bf16_full_eval MUST cast the model for an evaluation on its own only: evaluations within train() change "
            "nothing, and after evaluate() the model is what it was.",
            source="transformers/training_args.py:288-293, 1775-1788 (TrainingArguments); "
            "transformers/trainer.py:2939-2945 (Trainer.evaluation_loop)",
        ),
        Clause(
            "AMP-11",
            "tf32=True MUST let CUDA compute products of float32 in TF32, with what is logged the same but for rounding, "
            "and tf32=False MUST NOT: it is the run without the argument, bit for bit.",
            source="transformers/training_args.py:1664-1685 (TrainingArguments.__post_init__)",
            tier="gpu",
        ),
        Clause(
            "AMP-12",
            "A Trainer MUST train in the precision of its own arguments, whatever Trainer has trained the model before, "
            "and whether unwrap_model(keep_fp32_wrapper=False) has taken that one's autocast off.",
            source="accelerate/accelerator.py:1805-1809 (Accelerator.prepare_model, which passes over a model that any "
            "Accelerator has prepared)",
        ),
    ),
)
