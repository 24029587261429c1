"""What the fields of a RunSpec may hold: kinds, bounds and choices, as tables. They are checked when a spec is read.

A spec that Python code builds is not checked. Upper bounds are far above what anybody trains: they refuse numbers that
make a run endless or fill the memory. Where upstream has a bound of its own, that one is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.reading import shown, shown_path

# ---- rules ----


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`.

    - whole: whether it must be an int.
    - share: whether it is a number of steps, or below 1 a share of all steps.
    - null: whether None is taken.
    """

    low: float
    high: float
    whole: bool = True
    share: bool = False
    null: bool = False

    def __str__(self) -> str:
        kind = "a number of steps or a share below 1" if self.share else "an int" if self.whole else "a number"
        bounds = " to ".join(f"{bound:,}" if abs(bound) < 1e15 else f"{bound:.3g}" for bound in (self.low, self.high))
        return f"{kind}, {bounds}" + (", or null" if self.null else "")

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.null
        if isinstance(value, bool) or not isinstance(value, int if self.whole and not self.share else (int, float)):
            return False
        if not self.low <= value <= self.high:  # NaN is neither
            return False
        return not self.share or value < 1 or value == int(value)


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(str(value) for value in self.values)}"

    def allows(self, value: Any) -> bool:
        return any(value == choice and type(value) is type(choice) for choice in self.values)


@dataclass(frozen=True)
class ChoiceOrObject(Choice):
    """One of some values, or a JSON object. objects: what the object is."""

    objects: str = "an object"

    def __str__(self) -> str:
        return f"{super().__str__()}, or {self.objects}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, Mapping) or super().allows(value)


@dataclass(frozen=True)
class Flag:
    """True or false. null: whether None is taken."""

    null: bool = False

    def __str__(self) -> str:
        return "true or false" + (", or null" if self.null else "")

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool) or (self.null and value is None)


@dataclass(frozen=True)
class Each:
    """Numbers of a list or an object, or one number."""

    rule: Number
    null: bool = True

    def __str__(self) -> str:
        return f"for each entry {self.rule}"

    def allows(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            return all(self.rule.allows(item) for item in value)
        return self.rule.allows(value) or (self.null and value is None)


@dataclass(frozen=True)
class Text:
    """A string that is not empty. null: whether None is taken."""

    null: bool = False

    def __str__(self) -> str:
        return "a text that is not empty" + (", or null" if self.null else "")

    def allows(self, value: Any) -> bool:
        if not isinstance(value, str):
            return self.null and value is None
        return bool(value.strip()) and "\x00" not in value


Rule = Number | Choice | Flag | Each | Text

# ---- bounds ----

#: The largest float32. A learning rate of 1e36 is legal: a case overflows by it on purpose.
_FLOAT = 3.4028235e38
#: torch.manual_seed takes 64 bits.
_SEED = Number(0, 2**64 - 1)
#: The longest pretrainings have some million steps.
_STEPS = 10**7
#: A step of a million rows for each device; the largest pretrainings have some thousand.
_BATCH = Number(1, 2**20)
_SHARE = Number(0, 1, whole=False)
_REAL = Number(0, _FLOAT, whole=False)

#: Part of a spec -> field -> what it may hold, beside the kind that its annotation names.
FIELDS: dict[str, dict[str, Rule]] = {
    "model": {
        "family": Text(),
        "path": Text(null=True),
        "dtype": Choice(
            ("float32", "float16", "bfloat16", "float64", "float", "half", "double", "float8_e4m3fn", "float8_e5m2")
        ),
        "seed": _SEED,
        "quantization": ChoiceOrObject((None, "nf4", "int8"), "the fields of a quantization_config"),
        # bitsandbytes packs into any dtype of a whole number of bytes.
        "quant_storage": Choice((None, "uint8", "int8", "float16", "bfloat16", "float32", "float64")),
        # transformers/utils/import_utils.py knows others, such as the name of a kernel on the hub, which is code.
        "attn_implementation": Choice(
            (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
        ),
    },
    "adapter": {
        "route": Choice(("get_peft_model", "add_adapter")),
        "peft_type": Text(),
        "name": Text(),
        "seed": _SEED,
    },
    "data": {
        # A row is some hundred bytes at least, so ten million rows are gigabytes. `_check_data` limits the tokens.
        "rows": Number(1, 10**7),
        "eval_rows": Number(0, 10**7),
        # The longest contexts have ten million tokens.
        "length": Number(1, 2**24),
        "min_length": Number(1, 2**24, null=True),
        "ignored": _SHARE,
        # Token 0 is the padding, so that there must be another. The largest vocabularies have a million.
        "vocab_size": Number(2, 2**24),
        "seed": _SEED,
        "path": Text(null=True),
        "task": Choice(
            (
                *("causal", "classification", "seq2seq", "token-classification", "question-answering", "masked"),
                *("image-classification", "speech", "image-text"),
            )
        ),
        # Images and sounds of this size take a second to make.
        "shape": Each(Number(1, 2**12), null=False),
        "prefix": Each(Number(0, 2**24), null=False),
        "max_length": Number(1, 2**24, null=True),
    },
    "launch": {
        "device": Choice(("cpu", "cuda")),
        "strategy": Choice(("single", "ddp", "fsdp1", "fsdp2", "loaded", "tp", "zero1", "zero2", "zero3")),
        # All ranks are processes of one host, and no host has more GPUs.
        "ranks": Number(1, 256),
        # The largest hosts have some hundred cores.
        "threads": Number(0, 1024),
        "state_dict_type": Choice((None, "FULL_STATE_DICT", "SHARDED_STATE_DICT")),
        # Seconds: four months.
        "limit": Number(0, 10**7, whole=False),
    },
    "resume": {"checkpoint": Number(0, _STEPS), "writer": Text(null=True)},
}


def _flags(names: str, null: bool = False) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Flag(null))


#: Fields of TrainingArguments: a text for a flag or a number would count as true, or end in a TypeError of upstream's.
ARGUMENTS: dict[str, Rule] = {
    "max_steps": Number(-1, _STEPS),  # -1: as many as the epochs have
    "num_train_epochs": Number(0, 10**6, whole=False),
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "eval_accumulation_steps": Number(1, 2**20, null=True),
    "learning_rate": _REAL,
    "weight_decay": _REAL,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _REAL,
    "max_grad_norm": Number(-_FLOAT, _FLOAT, whole=False, null=True),  # zero and less: no clipping
    "label_smoothing_factor": _SHARE,
    "neftune_noise_alpha": Number(0, _FLOAT, whole=False, null=True),
    "warmup_steps": Number(0, _STEPS, share=True),
    "warmup_ratio": Number(0, 1, whole=False, null=True),
    "logging_steps": Number(0, _STEPS, share=True),
    "save_steps": Number(0, _STEPS, share=True),
    "eval_steps": Number(0, _STEPS, share=True, null=True),
    "eval_delay": Number(0, _STEPS, whole=False),
    "save_total_limit": Number(-1, _STEPS, null=True),  # zero and less: no limit
    "seed": Number(0, 2**32 - 1),  # numpy.random.seed takes 32 bits
    "data_seed": Number(0, 2**64 - 1, null=True),
    # Each worker is a process of every rank.
    "dataloader_num_workers": Number(0, 256),
    "dataloader_prefetch_factor": Number(1, 10**4, null=True),
    "torch_empty_cache_steps": Number(1, _STEPS, null=True),
    "ddp_bucket_cap_mb": Number(1, 10**6, null=True),
    "ddp_timeout": Number(1, 10**7),  # seconds
    "fsdp_min_num_params": Number(0, 10**15),
    "local_rank": Number(-1, 255),
    "past_index": Number(-1, 1000),
    **_flags(
        "average_tokens_across_devices bf16 fp16 bf16_full_eval fp16_full_eval torch_compile use_liger_kernel use_cache "
        "auto_find_batch_size logging_first_step log_on_each_node logging_nan_inf_filter prediction_loss_only "
        "eval_on_start eval_do_concat_batches eval_use_gather_object batch_eval_metrics save_only_model save_on_each_node "
        "load_best_model_at_end ignore_data_skip restore_callback_states_from_checkpoint full_determinism use_cpu "
        "dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers dataloader_in_order "
        "remove_unused_columns skip_memory_metrics do_train do_eval do_predict group_by_length save_safetensors adafactor "
        "no_cuda use_ipex jit_mode_eval push_to_hub"
    ),
    **_flags(
        "tf32 activation_checkpointing gradient_checkpointing disable_tqdm greater_is_better ddp_find_unused_parameters "
        "ddp_broadcast_buffers ddp_static_graph dispatch_batches split_batches include_tokens_per_second",
        null=True,
    ),
}

#: Arguments that are objects. Another name with an object for a value is no argument.
OBJECTS = (
    *("accelerator_config", "activation_checkpointing_kwargs", "deepspeed", "fsdp_config"),
    *(
        "gradient_checkpointing_kwargs",
        "liger_kernel_config",
        "lr_scheduler_kwargs",
        "optim_args",
        "parallelism_config",
    ),
)

#: The widest published model has 53,248 hidden features in a feed-forward layer, and none is wider than 25,600.
_WIDTH = Number(1, 2**18)
_OPTIONAL_WIDTH = Number(1, 2**20, null=True)
#: DeepNet has a thousand layers.
_LAYERS = Number(0, 4096)
_HEADS = Number(1, 4096)
_EXPERTS = Number(1, 2**16, null=True)
#: Some models have a row of weights for each position. The longest context has ten million.
_POSITIONS = Number(1, 2**27, null=True)

#: Fields of a model's config that make it large. Others are finite numbers.
MODEL_CONFIG: dict[str, Rule] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "moe_intermediate_size"), _OPTIONAL_WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), _LAYERS),
    "num_decoder_layers": Number(0, 4096, null=True),
    # Vision models have a number for each stage.
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), Each(_HEADS, null=False)),
    "num_key_value_heads": Number(1, 4096, null=True),
    **dict.fromkeys(("head_dim", "d_kv"), _OPTIONAL_WIDTH),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"), _EXPERTS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), _POSITIONS),
    "vocab_size": Number(1, 2**24),
    "num_labels": Number(1, 2**24),
    **dict.fromkeys(("initializer_range", "layer_norm_eps", "rms_norm_eps", "layer_norm_epsilon"), _REAL),
    **_flags("tie_word_embeddings use_cache attention_bias mlp_bias is_encoder_decoder"),
}

#: OFT has a rank of zero where its block size is given.
_RANK = Number(0, 2**16)
_ANY = Number(-_FLOAT, _FLOAT, whole=False)

#: Fields of peft's config classes.
ADAPTER_CONFIG: dict[str, Rule] = {
    **dict.fromkeys(("r", "init_r", "target_r"), _RANK),
    "lora_alpha": _ANY,
    "alpha": _ANY,
    "rank_pattern": Each(_RANK),
    "alpha_pattern": Each(_ANY),
    "layers_to_transform": Each(Number(0, 4095)),
    "num_virtual_tokens": Number(1, 10**6, null=True),
    "encoder_hidden_size": Number(1, 2**18, null=True),
    "encoder_num_layers": Number(1, 4096),
    "n_frequency": Number(1, 2**36),
    "oft_block_size": Number(0, 2**18),
    "boft_block_size": Number(0, 2**18),
    "boft_block_num": Number(0, 2**18),
    "num_vectors": Number(1, 2**20),
    "vector_length": Number(1, 2**18),
    "projection_prng_key": _SEED,
    "random_seed": Number(0, 2**64 - 1, null=True),
    **_flags("inference_mode fan_in_fan_out use_rslora lora_bias use_qalora ensure_weight_tying"),
}

#: How the names of a probability end, in configs of models and adapters.
_DROPOUT = ("dropout", "pdrop", "dropout_prob", "dropout_rate")

#: Any other number in an object: what fits into int64, or a finite float.
_LARGEST = 2**63 - 1


def check(rules: Mapping[str, Rule], values: Mapping[str, Any], where: str) -> None:
    """Check the fields of an object. Raises UsageError that names the field, its value and what is allowed.

    - rules: of the fields that have one. Numbers in other fields must be finite and fit into 64 bits, at any depth.
    - where: what messages call the object.
    """
    for name, value in values.items():
        rule = rules.get(name)
        if rule is None and rules is not ARGUMENTS and name.endswith(_DROPOUT):
            rule = Number(0, 1, whole=False, null=True)
        if rule is not None and not rule.allows(value):
            raise UsageError(f"{where}, {shown_path(name)}: expected {rule}; found {shown(value)}")
        if rule is None:
            _check_any(value, f"{where}, {shown_path(name)}")


def _check_any(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise UsageError(f"{where}: the key {shown(name)} is no string")
            _check_any(item, f"{where}, {shown_path(name)}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_any(item, where)
    elif isinstance(value, str):
        if "\x00" in value:
            raise UsageError(f"{where}: {shown(value)} has a NUL character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{where}: expected a finite number; found {shown(value)}")
    elif isinstance(value, int):
        if not -_LARGEST <= value <= 2**64 - 1:
            raise UsageError(f"{where}: expected a number of 64 bits; found {shown(value)}")
    elif value is not None:
        raise UsageError(f"{where}: expected a JSON value; found {type(value).__name__}")


# ---- dataclasses ----

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "None": type(None)}


def check_kind(value: Any, annotation: str, where: str) -> None:
    """Check a value against the annotation of its field. Classes of ours are left out: their parts are read before."""
    if annotation.startswith("Mapping["):
        if not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
            raise UsageError(f"{where}: expected {annotation}, found {shown(value)}")
    elif annotation.startswith("tuple"):
        inner = annotation[len("tuple[") :].partition(",")[0]
        if not isinstance(value, tuple):
            raise UsageError(f"{where}: expected {annotation}, found {shown(value)}")
        for index, item in enumerate(value):
            check_kind(item, inner, f"{where}, entry {index}")
    else:
        kinds = [part.strip() for part in annotation.split("|")]
        if all(_known_kind(kind) for kind in kinds) and not any(_is(value, kind) for kind in kinds):
            raise UsageError(f"{where}: expected {annotation}, found {shown(value)}")


def _known_kind(kind: str) -> bool:
    return kind in _TYPES or kind.startswith("Mapping[")


def _is(value: Any, kind: str) -> bool:
    if kind.startswith("Mapping["):
        return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    if isinstance(value, bool):  # which is an int to Python
        return kind == "bool"
    return isinstance(value, _TYPES[kind]) or (kind == "float" and isinstance(value, int))


def unknown(where: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error about a field that there is not, with the nearest name that there is."""
    known = list(known)
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"{where}: unknown field {shown(name)}; known are {', '.join(known)}{hint}")


def read(kind: type, value: Any, where: str, part: str = "") -> Any:
    """Return a dataclass made of a JSON object.

    - part: its key in `FIELDS`; "" for none.

    Raises UsageError for an unknown field, a wrong kind, or a value that no rule allows.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected a JSON object, found {shown(value)}")
    fields = {f.name: str(f.type) for f in dataclasses.fields(kind) if "derived" not in f.metadata}
    values = {}
    for name, item in value.items():
        if name not in fields:
            raise unknown(where, str(name), fields)
        if fields[name].startswith("tuple") and isinstance(item, list):
            item = tuple(item)
        check_kind(item, fields[name], f"{where}, {name}")
        values[name] = item
    if part:
        # True and False are choices of their own here, not numbers.
        numbers = {name: item for name, item in values.items() if not isinstance(item, bool)}
        check(FIELDS[part], numbers, where)
    return kind(**values)


# ---- keyword arguments of the Trainer ----

#: Keys of RunSpec.trainer whose value is "module:object", or ["module:object", {options}] (`harness.subjects.
#: trainer_keywords`).
OBJECTS_OF_TRAINER = (
    *("compute_loss_func", "compute_metrics", "data_collator", "optimizer_cls_and_kwargs"),
    *("optimizers", "preprocess_logits_for_metrics"),
)

#: All keys of RunSpec.trainer.
TRAINER = ("callbacks", "model_init", *OBJECTS_OF_TRAINER)


def named(value: Any) -> tuple[str, Mapping[str, Any]] | None:
    """Return the name and the options that a value of RunSpec.trainer has; None if it is neither form.

    - value: "NAME", or ["NAME", {options}].
    """
    name, options = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, {})
    well = isinstance(name, str) and isinstance(options, Mapping) and all(isinstance(key, str) for key in options)
    return (name, options) if well else None


def check_trainer(trainer: Mapping[str, Any], where: str) -> None:
    """Check RunSpec.trainer: known keys, and values of the form that each takes. UsageError names the nearest key."""
    for name, value in trainer.items():
        if name not in TRAINER:
            raise unknown(where, name, TRAINER)
        if name == "model_init":
            if not isinstance(value, bool):
                raise UsageError(f"{where}, model_init: expected true or false; found {shown(value)}")
        elif name == "callbacks":
            items = value if isinstance(value, (list, tuple)) else [None]
            if any(named(item) is None for item in items):
                form = 'a list of "NAME" or ["NAME", {options}]'
                raise UsageError(f"{where}, callbacks: expected {form}; found {shown(value)}")
        elif named(value) is None:
            form = '"module:object" or ["module:object", {options}]'
            raise UsageError(f"{where}, {name}: expected {form}; found {shown(value)}")
    check({}, trainer, where)


# ---- fields that belong together ----


def check_adapter(peft_type: str, config: Mapping[str, Any], where: str) -> None:
    """Check the fields of a peft config class. peft_type: such as "LORA", of which the rank is at least one."""
    rank = {"r": Number(1, 2**16)} if peft_type in ("LORA", "ADALORA") else {}
    check({**ADAPTER_CONFIG, **rank}, config, where)


#: Tokens of rows that are made: a microsecond each.
_MADE_TOKENS = 2**24


def check_data(data: Any, where: str) -> None:
    """Check the fields of a DataSpec against each other: lengths, the size of all rows together, the order."""
    shortest = data.length if data.min_length is None else data.min_length
    if shortest > data.length:
        raise UsageError(f"{where}, min_length: {shortest} is above length, {data.length}")
    rows = data.rows + data.eval_rows
    made = data.path is None and not data.inline
    if made and rows * data.length > _MADE_TOKENS:
        raise UsageError(
            f"{where}, rows: {rows:,} rows of {data.length:,} tokens are too many to make; {_MADE_TOKENS:,} tokens are "
            "allowed, and more in a file that `path` names"
        )
    numbers = math.prod(data.shape)
    if data.shape and rows * numbers > _MADE_TOKENS:
        raise UsageError(
            f"{where}, shape: {rows:,} rows of {numbers:,} numbers are too many to make; {_MADE_TOKENS:,} numbers are allowed"
        )
    if data.prefix and data.task != "image-text":
        raise UsageError(f"{where}, prefix: rows of task {data.task!r} have none; rows of task 'image-text' do")
    if data.path is None and data.inline and len(data.inline) < rows:
        raise UsageError(f"{where}, inline: {len(data.inline)} rows, but {data.rows} + {data.eval_rows} are asked for")
    if data.max_length == 1 and data.task == "causal":
        raise UsageError(f"{where}, max_length: one token leaves nothing to predict; expected 2 or more")
    # Token 0 is the padding. Rows differ, so there are not more of them than sequences.
    if made and data.length < 64 and rows > data.length * (data.vocab_size - 1) ** data.length:
        raise UsageError(f"{where}, rows: there are no {rows:,} rows of {data.length} tokens below {data.vocab_size}")
    if data.order and (len(data.order) != data.rows or set(data.order) != set(range(data.rows))):
        raise UsageError(f"{where}, order: expected each of 0 to {data.rows - 1} once; found {shown(data.order)}")
