"""Releases that broke a clause. Each was measured: the suites fail on the bad release and hold on the good ones.

These are faults that upstream has corrected since. Some are still in the newest releases (suites/expectations/) and are
listed because their first release is known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """One fault of the past.

    - id: its name in `peft-harness history`. Two clauses may show the same fault.
    - clause: the id of the clause that fails.
    - bad: requirements of a stack with the fault. Packages that are not named do not matter.
    - good: requirements of stacks without it.
    - seen: what is wrong on the bad stack.
    """

    id: str
    clause: str
    bad: str
    good: tuple[str, ...]
    seen: str


def _stack(transformers: str, accelerate: str, peft: str) -> str:
    return f"transformers=={transformers} accelerate=={accelerate} peft=={peft}"


_WRONG_COUNT = (_stack("4.45.2", "1.0.1", "0.13.2"), (_stack("4.46.1", "1.0.1", "0.13.2"),))

RELEASES = (
    Release("H1", "LOSS-01", *_WRONG_COUNT, "windows are normalised by the wrong token count"),
    Release("H1", "ACC-01", *_WRONG_COUNT, "gradient 1.27 times too large on rows of unequal lengths"),
    Release(
        "H3",
        "ACC-01",
        _stack("5.3.0", "1.13.0", "0.18.1"),
        (_stack("5.1.0", "1.13.0", "0.18.1"), _stack("5.5.4", "1.13.0", "0.18.1")),
        "gradients are divided twice by the accumulation count, while the logged loss is right",
    ),
    Release(
        "H2",
        "ACC-09",
        _stack("5.14.1", "1.14.0", "0.21.2"),
        (_stack("5.15.1", "1.14.0", "0.21.2"),),
        "gradient 4 times too large with label smoothing over 4 micro-batches",
    ),
    Release(
        "H5",
        "RES-22",
        _stack("4.57.6", "1.13.0", "0.18.1"),
        (_stack("4.57.6", "1.6.0", "0.18.1"), _stack("4.57.6", "1.15.0", "0.18.1")),
        "a run resumed in a later epoch repeats the first epoch's order (accelerate 1.7.0 to 1.14.0)",
    ),
    Release(
        "H6",
        "RES-23",
        _stack("4.51.3", "1.6.0", "0.15.2"),
        (_stack("4.52.4", "1.6.0", "0.15.2"),),
        "if accumulation does not divide the epoch, a resumed run trains other rows",
    ),
    Release(
        "H7",
        "EVAL-09",
        _stack("4.54.1", "1.10.1", "0.17.1"),
        (_stack("4.55.0", "1.10.1", "0.17.1"),),
        "no eval_loss for a PeftModel without task_type",
    ),
    Release("H8", "CKPT-23", "peft==0.19.1", ("peft==0.20.0",), 'saving adapter "foo" saves "foobar" as well'),
    Release(
        "H4",
        "DIST-10",
        _stack("4.51.3", "1.6.0", "0.15.2"),
        (_stack("5.10.4", "1.14.0", "0.19.1"),),
        "two ranks with different numbers of labels are averaged as if the numbers were equal",
    ),
    Release(
        "H9",
        "FSDP-14",
        _stack("5.23.0", "1.14.0", "0.21.2"),
        (_stack("5.23.0", "1.15.0", "0.21.2"),),
        "a full state dict under FSDP2 holds rank 0's shard only",
    ),
    Release(
        "H10",
        "CKPT-25",
        "peft==0.21.0",
        ("peft==0.20.0",),
        "if decoder layers are wrapped, the adapter file holds no tensor",
    ),
    Release(
        "H11",
        "AMP-12",
        "accelerate==1.14.0",
        ("accelerate==1.13.0",),
        "after a Trainer in float32, a Trainer with bf16=True trains the same model in float32, too",
    ),
    Release(
        "H12",
        "FSDP-20",
        _stack("5.19.0", "1.15.0", "0.21.2"),
        (_stack("5.20.2", "1.15.0", "0.21.2"),),
        "with a base that was sharded as it was loaded, ranks deadlock at the first checkpoint",
    ),
    Release(
        "H13",
        "QLORA-14",
        "bitsandbytes==0.48.2",
        ("bitsandbytes==0.49.0",),
        "a CPU unpacks packed weights in bfloat16, a GPU in float32",
    ),
    Release(
        "H14",
        "CKPT-21",
        _stack("5.23.0", "1.15.0", "0.20.0"),
        (_stack("5.10.4", "1.14.0", "0.19.1"),),
        "the first layer of X-LoRA's classifier is not saved, and a loaded one is random",
    ),
    Release(
        "H15",
        "FRZ-13",
        _stack("5.23.0", "1.15.0", "0.20.0"),
        (_stack("5.1.0", "1.13.0", "0.18.1"),),
        "a LoRA on Mamba's dt_proj trains nothing",
    ),
)
