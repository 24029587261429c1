"""What SafeCheckpoints adds to a save: python -m harness.checkpoints.cost [--device cuda] [--size 7b] [--directory DIR].

The same run is trained twice, with a checkpoint after each step: by the Trainer, and by the Trainer with SafeCheckpoints.
Printed are the medians over the saves: the Trainer's own, and what SafeCheckpoints adds, part by part. The base has random
weights: what is saved has the sizes of a LoRA on that model, with AdamW's two moments in float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.checkpoints.safe import SafeCheckpoints

#: Name -> hidden_size, intermediate_size, layers, heads, vocabulary, rank. 7b: the sizes of Llama-2-7B.
SIZES = {"tiny": (64, 128, 2, 4, 256, 8), "1b": (2048, 8192, 16, 32, 32000, 64), "7b": (4096, 11008, 32, 32, 32000, 64)}

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Measure, and print one JSON object in the end."""
    parser = argparse.ArgumentParser(prog="python -m harness.checkpoints.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--saves", type=int, default=5, metavar="N")
    parser.add_argument("--directory", type=Path, default=None, metavar="DIR", help="where to save; by default TMPDIR")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.directory) as place:
        print(json.dumps(measure(asked.size, asked.device, asked.saves, Path(place)), indent=1))


def measure(size: str, device: str, saves: int, place: Path) -> dict[str, Any]:
    """Return seconds and bytes of a save. The first save of each run is left out: it makes caches."""
    from transformers import Trainer

    base = _base(size, device)
    plain = _timed(base, Trainer, saves, device, place / "plain")
    safe_class = type("SafeTrainer", (SafeCheckpoints, Trainer), {})
    safe = _timed(base, safe_class, saves, device, place / "safe")
    names = ("save", "digest", "fsync", "rename", "rotate")
    part = {name: statistics.median(one[name] for one in safe) for name in names}
    whole, before = (statistics.median(one["whole"] for one in each) for each in (safe, plain))
    held = [each for each in (place / "safe").glob("checkpoint-*/*") if each.is_file()]
    # Save by save: the medians of parts do not add up to the median of the whole.
    rest = statistics.median(one["whole"] - sum(one[name] for name in names) for one in safe)
    added = part["rename"] + part["rotate"] + rest
    return {
        "size": size,
        "device": device,
        "checkpoint_bytes": sum(each.stat().st_size for each in held),
        "trainer_save_s": before,
        "trainer_saves_s": [one["whole"] for one in plain],
        "safe_save_s": whole,
        "safe_saves_s": [one["whole"] for one in safe],
        "of_it": {**{f"{name}_s": value for name, value in part.items()}, "rest_s": rest},
        "added_besides_fsync_and_digest_share": added / before,
    }


def _base(size: str, device: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, words, rank = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=words, dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    )  # fmt: skip
    with torch.device(device):
        base: Any = LlamaForCausalLM(config)  # Any: upstream wraps .to() so that its arguments are lost
    return get_peft_model(base.to(config.dtype), LoraConfig(r=rank, target_modules=_TARGETS))


def _timed(model: Any, trainer_class: Any, saves: int, device: str, place: Path) -> list[dict[str, float]]:
    from transformers import TrainingArguments

    found: list[dict[str, float]] = []

    class Timed(trainer_class):  # type: ignore[misc]
        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            begin = time.perf_counter()
            super()._save_checkpoint(*args, **kwargs)
            found.append({"whole": time.perf_counter() - begin, **getattr(self, "checkpoint_seconds", {})})

    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 8
    arguments = TrainingArguments(
        output_dir=str(place), max_steps=saves + 1, save_strategy="steps", save_steps=1, save_total_limit=1,
        per_device_train_batch_size=1, logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=device == "cpu",
    )  # fmt: skip
    shutil.rmtree(place, ignore_errors=True)
    Timed(model=model, args=arguments, train_dataset=rows).train()
    return found[1:]


if __name__ == "__main__":
    main()
