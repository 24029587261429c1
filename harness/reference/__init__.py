"""A runnable reference, in plain torch, of what transformers.Trainer does with a LoRA adapter.

Read `trainer` (the loop), then `loss`, `lora`, `batches`, `optimizer`, `checkpoint`; the rest is rare. Nothing is taken from
Trainer, peft or accelerate; transformers supplies the base model and Adafactor only. In float32 on a CPU the results are
bit-equal to theirs. A name such as "trainer.py:train" beside a step is the place in transformers 5.23.0 that does the same.
"""
