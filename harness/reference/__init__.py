"""A runnable reference, in plain torch, of what transformers.Trainer does with a LoRA adapter.

Read `trainer` (the loop) first, then `loss`, `lora`, `data`, `optimizer`, `checkpoint`. No code is shared with Trainer,
peft or accelerate; transformers supplies the base model only. In float32 on a CPU the results are theirs bit for bit.
"""
