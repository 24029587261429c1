"""The runs whose speed is told: Llama shapes by size, as RunSpecs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.spec import RunSpec

#: Configs of the published models that the sizes are named after; weights are drawn.
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "135m": {  # SmolLM2-135M
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "1b": {  # Llama-3.2-1B
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    # Attention written out, whose weights go through memory: the device works longer than the host, and draws three quarters
    # of the power that it may, so that its clock stays.
    "long": {
        "vocab_size": 1024, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 4,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "attn_implementation": "eager",
    },
    "7b": {  # Llama-2-7B
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A run whose speed is told. rows, length: of a micro-batch, in tokens. dtype: of the base. bf16: autocast.

    ahead: the host does not wait for the device at each step, to look at the loss or until a batch is there, so that what
    holds up the host for a while does not show. devices: where it is one of those that `peft-harness speed` measures unasked.
    """

    name: str
    size: str
    rows: int
    length: int
    dtype: str = "float32"
    bf16: bool = False
    quantization: str | None = None
    checkpointing: bool = False
    ahead: bool = False
    devices: tuple[str, ...] = ("cuda",)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.length

    def spec(self, device: str) -> RunSpec:
        """The run, without end. Its loss is logged every twelve steps: the first time before anything is timed."""
        # Large models are drawn where they are trained: on a CPU that takes a minute.
        family = (
            "harness.fixtures.on_device:llama" if device == "cuda" and self.size in ("1b", "long", "7b") else "llama"
        )
        model = {"family": family, "config": CONFIGS[self.size], "dtype": self.dtype, "quantization": self.quantization}
        spec = RunSpec().but(
            model=model,
            lora={"r": 8 if self.size == "tiny" else 16, "lora_alpha": 16, "lora_dropout": 0.0},
            # Epochs of a hundred steps, so that few blocks see one end.
            data={"rows": self.rows * (100 if self.size == "tiny" else 16), "length": self.length},
            launch={"device": device, "threads": 1 if self.size == "tiny" else 0},
            max_steps=1_000_000,
            per_device_train_batch_size=self.rows,
            # Large models leap at 1e-2, and what rounds otherwise goes elsewhere: the mean of 7B's first twelve losses, which
            # begin at 10.4, was 8.3 eager, 9.2 compiled and 11.6 captured on an H100.
            learning_rate=1e-2 if self.size == "tiny" else 1e-3,
            logging_steps=12,
        )
        if self.bf16:
            spec = spec.but(bf16=True)
        if self.ahead:
            spec = spec.but(logging_nan_inf_filter=False, accelerator_config={"non_blocking": True})
        if self.checkpointing:
            options = {"use_reentrant": False}
            spec = spec.but(activation_checkpointing=True, activation_checkpointing_kwargs=options)
        return spec


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "tiny", 4, 16, devices=("cpu", "cuda")),
        Shape("tiny-4x64", "tiny", 4, 64, devices=("cpu", "cuda")),
        Shape("135m", "135m", 8, 512, bf16=True),
        Shape("135m-2x64", "135m", 2, 64, devices=("cpu",)),
        Shape("135m-checkpointing", "135m", 8, 512, bf16=True, checkpointing=True),
        Shape("135m-nf4", "135m", 8, 512, dtype="bfloat16", bf16=True, quantization="nf4"),
        Shape("long", "long", 2, 4096, dtype="bfloat16", bf16=True, checkpointing=True, ahead=True, devices=()),
        Shape("1b", "1b", 8, 2048, bf16=True),
        Shape("1b-nf4-checkpointing", "1b", 8, 2048, "bfloat16", bf16=True, quantization="nf4", checkpointing=True),
        Shape("7b", "7b", 2, 1024, dtype="bfloat16", bf16=True, checkpointing=True),
        Shape("7b-nf4", "7b", 2, 1024, "bfloat16", bf16=True, quantization="nf4", checkpointing=True),
    )
}


def host_is_ahead(spec: RunSpec) -> bool:
    """Whether it does not wait for the device at each step (`Shape.ahead`)."""
    return spec.arguments.get("logging_nan_inf_filter") is False


def peak_bytes(spec: RunSpec) -> int:
    """What a process that trains a Llama of a config takes at its peak, roughly: its weights, and what becomes of the logits
    and, in attention that is written out, of a layer's weights.

    On an H100 135M took 5.3 GiB, 1B 51.0, 7B 14.0 and long 16.7, where this says 5.0, 51.6, 13.8 and 16.3.
    """
    config = spec.model.config
    if not config:
        return 1 << 28
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    attention = 2 * hidden * hidden * (1 + config["num_key_value_heads"] / heads)
    layer = attention + 3 * hidden * config["intermediate_size"]
    weights = config["num_hidden_layers"] * layer + config["vocab_size"] * hidden
    tokens = spec.arguments["per_device_train_batch_size"] * spec.data.length
    written_out = tokens * spec.data.length * heads if config.get("attn_implementation") == "eager" else 0
    held = 24 * tokens * config["vocab_size"] + 16 * written_out
    return int(weights * (2 if spec.model.dtype == "bfloat16" else 4) + held)


def chosen(names: list[str], device: str) -> list[Shape]:
    """The shapes of these names, or those of the device. UsageError names one that there is not."""
    for name in names:
        if name not in SHAPES:
            raise UsageError(f"--shape {name}: known are {', '.join(SHAPES)}")
    return [SHAPES[name] for name in names] or [shape for shape in SHAPES.values() if device in shape.devices]
