"""The runs that are timed: Llama models of several sizes, with their batches, as RunSpecs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError
from harness.fixtures import data
from harness.spec import RunSpec

#: Configs of the published models that the sizes are named after. Their weights are random.
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
    # Eager attention, whose weights go through memory. The device works longer than the host, and an H100 draws three
    # quarters of its power limit, so that its clock is steady.
    "long": {
        "vocab_size": 1024, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 4,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "attn_implementation": "eager",
    },
    "8b": {  # Llama-3.1-8B
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
    "7b": {  # Llama-2-7B
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    },
}  # fmt: skip


#: The layers of a Llama that published benchmarks adapt.
ALL_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

#: Models whose weights are drawn on the GPU: on a CPU that takes a minute.
_LARGE = ("1b", "long", "7b", "8b")


@dataclass(frozen=True)
class Shape:
    """A run that can be timed.

    - name: as given to --shape.
    - size: a key of CONFIGS.
    - rows, length: of a micro-batch; length in tokens.
    - dtype: of the base model's weights.
    - bf16: whether the run uses bf16 autocast.
    - quantization: of the base model, None for none.
    - checkpointing: whether activations are checkpointed.
    - published: whether it has the settings of published benchmarks: all projections are adapted, at a learning rate of 1e-4.
    - ahead: whether the host runs ahead of the device. It then waits at no step for the loss or for a batch, so a short
      delay of the host does not change a step's time.
    - devices: the devices on which `peft-harness speed` times this shape unless --shape names others.
    """

    name: str
    size: str
    rows: int
    length: int
    dtype: str = "float32"
    bf16: bool = False
    quantization: str | None = None
    checkpointing: bool = False
    published: bool = False
    ahead: bool = False
    devices: tuple[str, ...] = ("cuda",)

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.rows * self.length

    def spec(self, device: str) -> RunSpec:
        """Return the run on a device. It has no end. The loss is logged every 12 steps, first before any step is timed."""
        family = "harness.fixtures.on_device:llama" if device == "cuda" and self.size in _LARGE else "llama"
        model = {"family": family, "config": CONFIGS[self.size], "dtype": self.dtype, "quantization": self.quantization}
        spec = RunSpec().but(
            model=model,
            lora={"r": 8 if self.size == "tiny" else 16, "lora_alpha": 16, "lora_dropout": 0.0},
            # An epoch of the tiny shape has a hundred steps, so that few blocks contain the end of one.
            data={"rows": self.rows * (100 if self.size == "tiny" else 16), "length": self.length},
            launch={"device": device, "threads": 1 if self.size == "tiny" else 0},
            max_steps=1_000_000,
            per_device_train_batch_size=self.rows,
            # At 1e-2 large models are unstable, and differences of rounding grow: on an H100 (2026-11-27) the mean of 7B's
            # first twelve losses, which begin at 10.4, was 8.3 eager, 9.2 compiled and 11.6 captured.
            learning_rate=1e-2 if self.size == "tiny" else 1e-3,
            logging_steps=12,
        )
        if self.published:
            spec = spec.but(lora={"target_modules": ALL_PROJECTIONS}, learning_rate=1e-4)
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
        # The settings of published benchmarks: each takes minutes, so a device times them only if they are named.
        Shape("1b-2x4096", "1b", 2, 4096, "bfloat16", bf16=True, published=True, devices=()),
        Shape("7b-2x4096", "7b", 2, 4096, "bfloat16", bf16=True, published=True, devices=()),
        Shape("8b", "8b", 2, 4096, "bfloat16", bf16=True, published=True, devices=()),
        Shape("8b-nf4", "8b", 2, 4096, "bfloat16", bf16=True, quantization="nf4", published=True, devices=()),
    )
}


@dataclass(frozen=True)
class OwnShape(Shape):
    """A run that the user brought, as it is.

    - own: the run.
    - tokens_of_step: tokens of an optimizer step, on average, without padding.
    """

    own: RunSpec = field(default_factory=RunSpec)
    tokens_of_step: int = 0

    @property
    def tokens(self) -> int:
        return self.tokens_of_step

    def spec(self, device: str) -> RunSpec:
        """Return the run without an end, without checkpoints and evaluations.

        If its rows are made, an epoch has 16 steps or more.
        """
        given = self.own.data
        made = given.path is None and not given.inline and not given.order
        rows = max(given.rows, 16 * window(self.own)) if made else given.rows
        ended = ("num_train_epochs", "load_best_model_at_end", "metric_for_best_model", "eval_steps", "save_steps")
        arguments = {name: value for name, value in self.own.arguments.items() if name not in ended}
        spec = dataclasses.replace(self.own, arguments=arguments)
        return spec.but(
            data={"rows": rows},
            launch={"device": device},
            max_steps=1_000_000,
            logging_strategy="steps",
            logging_steps=12,
            save_strategy="no",
            eval_strategy="no",
        )


def window(spec: RunSpec) -> int:
    """Return how many rows an optimizer step of one process trains."""
    return int(spec.arguments["per_device_train_batch_size"]) * int(
        spec.arguments.get("gradient_accumulation_steps", 1)
    )


def own(spec: RunSpec, name: str) -> OwnShape:
    """Return the shape of a run that the user brought. name: what tables call it.

    Raises UsageError if the run has several ranks.
    """
    if spec.launch.ranks > 1:
        raise UsageError(f"{name}: it has {spec.launch.ranks} ranks, and one process is timed; set launch.ranks to 1")
    rows = data.rows(spec.data)[0]
    tokens = sum(sum(row.get("attention_mask", [1])) for row in rows) / max(1, len(rows))
    return OwnShape(
        name,
        "own",
        rows=window(spec),
        length=round(tokens),
        dtype=spec.model.dtype,
        bf16=bool(spec.arguments.get("bf16")),
        devices=(),
        own=spec,
        tokens_of_step=round(tokens * window(spec)),
    )


def host_is_ahead(spec: RunSpec) -> bool:
    """Return whether a run's host does not wait for the device at each step (`Shape.ahead`)."""
    return spec.arguments.get("logging_nan_inf_filter") is False


def peak_bytes(spec: RunSpec) -> int:
    """Estimate the peak memory, in bytes, of a process that trains a spec of these shapes.

    The sum of the model's weights, the logits and what is computed of them, and one layer's attention weights if attention
    is eager. On an H100 (2026-11-27) 135M took 5.3 GiB, 1B 51.0, 7B 14.0 and long 16.7. The estimates are 5.0, 51.6, 13.8 and
    16.3.
    """
    config = spec.model.config
    if "num_hidden_layers" not in config or "hidden_size" not in config or "intermediate_size" not in config:
        return 1 << 28
    config = {"vocab_size": 1024, "num_attention_heads": 1, "num_key_value_heads": 1, **config}
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    attention = 2 * hidden * hidden * (1 + config["num_key_value_heads"] / heads)
    layer = attention + 3 * hidden * config["intermediate_size"]
    weights = config["num_hidden_layers"] * layer + config["vocab_size"] * hidden
    tokens = spec.arguments["per_device_train_batch_size"] * spec.data.length
    attention_weights = tokens * spec.data.length * heads if config.get("attn_implementation") == "eager" else 0
    held = 24 * tokens * config["vocab_size"] + 16 * attention_weights
    if not spec.arguments.get("activation_checkpointing"):
        # What a layer keeps for its backward pass. On an H200 (2026-11-29) the Trainer took 80.4 GiB at 8B.
        kept = 2 * tokens * config["num_hidden_layers"] * (15 * hidden + 5 * config["intermediate_size"])
        held = max(held, kept)
    return int(weights * (2 if spec.model.dtype == "bfloat16" else 4) + held)


def chosen(names: list[str], device: str) -> list[Shape]:
    """Return the shapes of these names; without names, those of the device. UsageError for an unknown name."""
    for name in names:
        if name not in SHAPES:
            raise UsageError(f"--shape {name}: known are {', '.join(SHAPES)}")
    return [SHAPES[name] for name in names] or [shape for shape in SHAPES.values() if device in shape.devices]
