"""What a file that somebody sent may not name: code, pickles, and files that are written or deleted.

A spec or a case file is data. `check` and `check_case` are called with each one that a command reads. What the command
line, Python or the suites' own tables name is not checked.

1. A name of code ("module:object") must stand in `OURS`. Others need --trust-code.
2. In upstream's fields a number or a boolean is harmless, but for `REFUSED`. A string can be a path, a module or a name on
   the hub. So strings are taken in the fields of `WORDS` only. A field that a new release brings is refused until it is
   listed there.
3. `model.path` and `data.path` are read, and may lie anywhere. Pickles are never read (`harness.fixtures.models`).
4. A name that becomes a directory, such as an adapter's, must be one part of a path.

What is written, deleted or sent elsewhere is refused with --trust-code, too: a run writes to its own directory only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import compat, spec_fields
from harness.alarm import TimeIsUp, limited
from harness.errors import UsageError
from harness.files import leads_out
from harness.reading import shown
from harness.spec import CONFIG_FAMILY, RunSpec

#: The harness's own subjects (`harness.subjects.load`).
SUBJECTS = frozenset(
    {
        "hf-trainer",
        "reference",
        "trl-sft",
        "trl-dpo",
        "sentence-transformers",
        "accelerate",
        "torch",
        "harness.throughput.compiled:compiled",
        "harness.throughput.compiled:captured",
    }
)

#: The harness's own objects that a spec may name, by field. Other functions of the harness are not listed, because some
#: of them import what they are given, such as `harness.fixtures.models.load_object`.
OURS: dict[str, frozenset[str]] = {
    "model.family": frozenset(
        {
            "harness.fixtures.named_base:named",
            "harness.fixtures.on_device:llama",
            "harness.fixtures.other_names:llama",
            "harness.fixtures.plain_loss:llama",
            "harness.fixtures.prepared:corda",
            "harness.fixtures.prepared:lora_ga",
            "harness.fixtures.resized_embeddings:resized",
            "harness.fixtures.wrapped_layers:checkpointed_layers",
            "harness.fixtures.wrapped_layers:compiled_layers",
        }
    ),
    "trainer.callbacks": frozenset(
        {"early_stopping", "harness.fixtures.late_rank:LateRank", "harness.fixtures.metrics:draws"}
    ),
    "trainer.optimizers": frozenset(
        {
            "harness.fixtures.optimizers:lorafa",
            "harness.fixtures.optimizers:loraplus",
            "harness.fixtures.optimizers:parameter_groups",
            "harness.fixtures.optimizers:schedule_free",
        }
    ),
    "trainer.preprocess_logits_for_metrics": frozenset({"harness.fixtures.metrics:predictions"}),
    "trainer.compute_loss_func": frozenset(
        {"harness.fixtures.overflow:loss", "harness.fixtures.plain_loss:window_loss"}
    ),
    "trainer.compute_metrics": frozenset({"harness.fixtures.metrics:counts"}),
    "trainer.data_collator": frozenset(
        {
            "harness.fixtures.collators:for_language_modeling",
            "harness.fixtures.collators:for_seq2seq",
            "harness.fixtures.collators:packed",
            "harness.fixtures.collators:padding_free",
            "harness.fixtures.collators:with_padding",
            "harness.fixtures.other_names:collate",
            "harness.fixtures.plain_loss:shifted_collator",
        }
    ),
    "resume.writer": SUBJECTS,
}

# What a string in a field of upstream's may be.
_ANY = re.compile(r".*", re.DOTALL)  # text that nothing looks up
_WORD = re.compile(r"[\w .,=+|*()-]*")  # neither a path nor "module:object"
_NAME = re.compile(r"[\w ./@+-]*")  # of a model on the hub, or of its directory: read for the model card only
_PATTERN = "a regular expression, or the name of a module"

#: Part of a spec -> field -> what a string in it may be, at any depth below the part. Read from the sources of
#: transformers 4.45.2 to 5.24.0, peft 0.13.2 to 0.21.2, accelerate 1.15 and DeepSpeed 0.19.
WORDS: dict[str, dict[str, Any]] = {
    "arguments": {
        **dict.fromkeys(
            # transformers looks each word up in a table of its own, and imports at most packages that the table names.
            (
                *(
                    "lr_scheduler_type",
                    "optim",
                    "optim_args",
                    "lr_scheduler_kwargs",
                    "decay_type",
                    "warmup_type",
                    "mode",
                ),
                *(
                    "eval_strategy",
                    "evaluation_strategy",
                    "logging_strategy",
                    "save_strategy",
                    "train_sampling_strategy",
                ),
                *("log_level", "log_level_replica", "debug", "ddp_backend", "fsdp", "include_num_input_tokens_seen"),
                *("dataloader_multiprocessing_context", "torch_compile_mode", "half_precision_backend"),
                *("fp16_backend", "fp16_opt_level", "include_for_metrics", "interval_strategy"),
            ),
            _WORD,
        ),
        # Names of columns, of metrics and of classes of the model: compared with what is there.
        **dict.fromkeys(
            ("label_names", "length_column_name", "metric_for_best_model", "fsdp_transformer_layer_cls_to_wrap"), _WORD
        ),
        # Read by reporters that are refused below.
        "run_name": _ANY,
        # torch imports what a package's entry point names, and some backends write files. These do neither.
        "torch_compile_backend": re.compile("inductor|eager|aot_eager|cudagraphs"),
        # The other reporters send the run elsewhere, or write into the current directory.
        "report_to": re.compile("none|tensorboard"),
        "optim_target_modules": _PATTERN,
    },
    "fsdp": dict.fromkeys(
        # accelerate looks each word up in an enumeration of torch's, or among the classes of the model.
        (
            *("state_dict_type", "sharding_strategy", "reshard_after_forward", "backward_prefetch", "auto_wrap_policy"),
            *("transformer_layer_cls_to_wrap", "transformer_cls_names_to_wrap", "mixed_precision_policy"),
            *("version", "cpu_ram_efficient_loading", "activation_checkpointing", "offload_params"),
        ),
        _WORD,
    )
    | {"ignored_modules": _PATTERN},
    "deepspeed": dict.fromkeys(
        # DeepSpeed has its own tables, or calls a class of torch.optim or of torch.optim.lr_scheduler with numbers.
        (
            "type",
            "communication_data_type",
            "grad_accum_dtype",
            "dtype",
            "warmup_type",
            "seq_parallel_communication_data_type",
        ),
        _WORD,
    )
    # On "nvme" DeepSpeed empties the directory that it swaps to.
    | {"device": re.compile("cpu|none"), "": re.compile("auto")},
    "model.config": {
        **dict.fromkeys(
            # Activations, rotary embeddings, kinds of layers: tables of transformers. The others are not used here.
            (
                *("hidden_act", "hidden_activation", "activation_function", "feed_forward_proj", "dense_act_fn"),
                *("pooler_act", "pooler_hidden_act", "projector_hidden_act", "vision_feature_select_strategy"),
                # How a state space starts, and parts of vision models and of DeBERTa: compared with words.
                *("time_step_init_scheme", "layer_type", "embedder_type", "downsample_in_first_stage"),
                *("out_features", "stage_names", "pos_att_type", "norm_rel_ebd"),
                *("rope_type", "type", "layer_types", "position_embedding_type", "problem_type", "summary_type"),
                *("summary_activation", "model_type", "architectures", "transformers_version", "torch_dtype", "dtype"),
            ),
            _WORD,
        ),
        # With a slash it names a kernel on the hub, which is code.
        **dict.fromkeys(("attn_implementation", "_attn_implementation", "experts_implementation"), _WORD),
        **dict.fromkeys(("_name_or_path", "name_or_path", "origin"), _NAME),
        **dict.fromkeys(("id2label", "label2id"), _ANY),
    },
    # transformers looks these words up in tables, or in torch. The others are refused: a data set, a tokenizer.
    "model.quantization": {
        **dict.fromkeys(
            ("quant_method", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"), _WORD
        ),
        **dict.fromkeys(
            ("quant_type", "weights", "activations", "fmt", "format", "version", "activation_scheme"), _WORD
        ),
        **dict.fromkeys(("llm_int8_skip_modules", "modules_to_not_convert"), _PATTERN),
    },
    "trainer": {"": _WORD},
    "adapter.config": {
        **dict.fromkeys(
            # peft compares each word with those that it knows.
            (
                *("peft_type", "task_type", "bias", "init_lora_weights", "init_weights", "use_dora", "variant"),
                *(
                    "ab_svd_init",
                    "act_fn",
                    "config_A_B",
                    "config_C",
                    "config_D_E",
                    "corda_method",
                    "decomposition_method",
                ),
                *("direction", "encoder_reparameterization_type", "init_type", "mask_type", "opt_weighted_loss_type"),
                *(
                    "poly_type",
                    "prompt_tuning_init",
                    "psoft_svd",
                    "scale",
                    "wavelet_family",
                    "peft_version",
                    "revision",
                ),
                *("task_adapter_names", "gks_adapter_names"),
            ),
            _WORD,
        ),
        **dict.fromkeys(
            (
                *("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "layers_pattern"),
                *("target_parameters", "target_modules_bd_a", "target_modules_bd_b"),
                *("rank_pattern", "alpha_pattern", "block_size_pattern", "lambda_pattern", "n_frequency_pattern"),
            ),
            _PATTERN,
        ),
        "base_model_name_or_path": _NAME,
        "revision": _NAME,
        "prompt_tuning_init_text": _ANY,
        # peft imports the module, if megatron_config is set. This is the default, which peft saves with each adapter.
        "megatron_core": re.compile(r"megatron\.core"),
        # Anything else is the path of a model.
        "shadow_model": re.compile("mirror"),
    },
}

_CODE = "it names code"
_PICKLE = "is read as a pickle, which can run code"
_ELSEWHERE = "a run writes to its own directory only"

#: Part of a spec -> field -> why a file may not set it, and whether --trust-code allows it. None, false and empty values
#: are no setting.
REFUSED: dict[str, dict[str, tuple[str, bool]]] = {
    "arguments": {
        "output_dir": (f"{_ELSEWHERE}, which the harness chooses", False),
        "logging_dir": (_ELSEWHERE, False),
        "push_to_hub": ("a run sends nothing to the hub", False),
        "resume_from_checkpoint": ("its files are read as pickles; a spec resumes with `resume`", True),
        "trust_remote_code": (_CODE, True),
    },
    "fsdp": {},
    "deepspeed": {
        **dict.fromkeys(
            ("tensorboard", "csv_monitor", "output_path", "output_file", "nvme_path", "debug_log"), (_ELSEWHERE, False)
        ),
        **dict.fromkeys(("wandb", "comet", "nebula", "datastates"), ("a run sends nothing elsewhere", False)),
        "autotuning": ("DeepSpeed starts runs of its own, which write elsewhere", False),
        "data_efficiency": ("DeepSpeed reads pickles, and writes beside its data", True),
    },
    "model.config": {
        "auto_map": (_CODE, True),
        "trust_remote_code": (_CODE, True),
        "quantization_config": ("it can name code; set model.quantization instead", True),
    },
    "adapter.config": {
        "auto_mapping": ("peft imports the module that it names", True),
        "megatron_config": ("peft imports megatron_core for it", True),
        "tokenizer_kwargs": ("they can switch code of a tokenizer's repository on", True),
        "trust_remote_code": (_CODE, True),
        "cache_file": (f"it {_PICKLE}, and written", False),
        "covariance_file": (f"it {_PICKLE}", True),
        "prompt_tuning_init_state_dict_path": (f"it {_PICKLE}", True),
        "adapters": (f"each {_PICKLE}", True),
    },
}

#: Fields of `WORDS` of which other strings are refused for a reason of their own; as in `REFUSED`.
_STRINGS: dict[tuple[str, str], tuple[str, bool]] = {
    ("arguments", "report_to"): ("other reporters send the run elsewhere, or write into the current directory", False),
    ("deepspeed", "device"): ("DeepSpeed empties the directory that it swaps to", False),
    ("arguments", "deepspeed"): ("a file of options is not checked; write them into the spec", True),
    ("arguments", "fsdp_config"): ("a file of options is not checked; write them into the spec", True),
    ("arguments", "accelerator_config"): ("a file of options is not checked; write them into the spec", True),
}

#: Seconds for matching the patterns of a spec with names of modules. Usual ones take some microseconds.
MATCHING = 0.5

#: Names of modules as the models of transformers have them. A pattern that is slow on such names is slow in a run.
_MODULES = (
    "model.layers.10.self_attn.q_proj",
    "base_model.model.transformer.h.11.mlp.c_fc",
    "model.language_model.layers.27.mlp.experts.11.gate_up_proj",
    "encoder.block.5.layer.1.DenseReluDense.wo",
)


def check(spec: RunSpec, where: str, trusted: bool = False) -> None:
    """Raise UsageError if a spec from a file names what such a file may not name.

    - where: what messages call the file.
    - trusted: whether the user trusts the file's code (--trust-code).
    """
    patterns: list[_Pattern] = []
    for field, value, reason, allowed in _findings(spec, patterns):
        if not (trusted and allowed):
            hint = (
                "if you trust the file, repeat the command with --trust-code"
                if allowed
                else "take it out, or change it"
            )
            raise UsageError(f"{where}: {field} = {shown(value)} is refused: {reason}; {hint}")
    _match(patterns, where)
    if spec.resume is not None and spec.resume.first_leg:
        try:
            first = spec.first_leg()
        except TypeError as error:
            raise UsageError(f"{where}, resume.first_leg: {error}") from None
        check(first, f"{where}, resume.first_leg", trusted)


def check_case(subject: str | None, preloads: Sequence[str], where: str, trusted: bool = False) -> None:
    """Raise UsageError if a case file names a subject or a preload of its own. Other parameters as for `check`.

    - subject: None if the subject is another than the file's.
    """
    named = [("subject", subject)] if subject and ":" in subject and subject not in SUBJECTS else []
    named += [("preload", module) for module in preloads]
    if named and not trusted:
        field, value = named[0]
        raise UsageError(
            f"{where}: {field} = {shown(value)} is refused: it names code that this file asks to run; if you trust the "
            "file, repeat the command with --trust-code"
        )


def needed(spec: Mapping[str, Any] | None, subject: str | None, preloads: Sequence[str]) -> bool:
    """Return whether a case file needs --trust-code. spec: as JSON; None if the file's spec is not read."""
    try:
        check_case(subject, preloads, "case")
        if spec is not None:
            check(RunSpec.from_json(spec), "case")
    except UsageError:
        return True
    return False


#: A field, its value, why it is refused, and whether --trust-code allows it.
_Finding = tuple[str, Any, str, bool]

#: A field, a pattern, and whether it must be a regular expression. In a list it is a name, and need not be one.
_Pattern = tuple[str, str, bool]


def _findings(spec: RunSpec, patterns: list[_Pattern]) -> Iterator[_Finding]:
    """Find what a spec may not name. Its patterns are added to `patterns`."""
    if not spec.model.family.startswith(CONFIG_FAMILY):  # which is looked up in a table of transformers
        yield from _code("model.family", spec.model.family, ":" in spec.model.family)
    yield from _trainer(spec.trainer)
    if spec.resume is not None and spec.resume.writer is not None:
        yield from _code("resume.writer", spec.resume.writer, ":" in spec.resume.writer)
    for act in spec.resume.damage if spec.resume is not None else ():
        # `harness.runs.damage` looks again, when the checkpoint is there: it follows no link.
        if any(leads_out(word) for word in act.split()):
            yield "resume.damage", act, "it names a file outside of the checkpoint", False
    for name in (spec.adapter.name, *spec.adapter.others):
        if not _is_one_part(name):
            yield (
                "adapter.name",
                name,
                "peft saves to a directory of that name, so it must be one part of a path",
                False,
            )
    yield from _words("model.config", spec.model.config, "model.config", patterns)
    if isinstance(spec.model.quantization, Mapping):
        yield from _words("model.quantization", spec.model.quantization, "model.quantization", patterns)
    yield from _words("adapter.config", spec.adapter.config, "adapter.config", patterns)
    for name, config in spec.adapter.others.items():
        yield from _words("adapter.config", config, f"adapter.others.{name}", patterns)
    yield from _words("adapter.options", spec.adapter.options, "adapter.options", patterns)
    for name, value in spec.arguments.items():
        part = {"deepspeed": "deepspeed", "fsdp_config": "fsdp"}.get(name)
        if part is not None and isinstance(value, Mapping):
            yield from _words(part, value, f"arguments.{name}", patterns)
        else:
            yield from _words("arguments", {name: value}, "arguments", patterns)
    if "report_to" not in spec.arguments and compat.reports_everywhere():
        reason = 'before transformers 5 it means every reporter that is installed; write "none"'
        yield "arguments.report_to", None, reason, False
    part = "deepspeed" if spec.launch.deepspeed else "fsdp"
    yield from _words(part, spec.launch.options, "launch.options", patterns)


def _code(field: str, name: str, loads: bool = True) -> Iterator[_Finding]:
    """Find a name of code that is not the harness's own. loads: whether something is imported for such a name."""
    if loads and name not in OURS.get(field, ()):
        yield field, name, "it names code that this file asks to run", True


def _trainer(trainer: Mapping[str, Any]) -> Iterator[_Finding]:
    spec_fields.check_trainer(trainer, "trainer")
    for name, value in trainer.items():
        field = f"trainer.{name}"
        for item in value if name == "callbacks" else [value]:
            if (found := spec_fields.named(item)) is not None:
                path, options = found
                yield from _code(field, path)
                # What the harness's own objects take: numbers, and words that upstream compares with its own.
                yield from _words("trainer", options, f"{field}, {shown(path)}", [])


def _words(part: str, value: Any, path: str, patterns: list[_Pattern], field: str = "") -> Iterator[_Finding]:
    """Find what a part of a spec may not hold, at any depth. field: the nearest name above the value that counts."""
    words = WORDS.get(part, {})
    if isinstance(value, Mapping):
        if words.get(field) is _PATTERN:
            patterns += [(path, name, False) for name in value]
        for name, item in value.items():
            refused = REFUSED.get(part, {}).get(name)
            if refused is not None and item not in (None, False, "", [], {}):
                yield f"{path}.{name}", item, *refused
            else:
                nearest = name if name in words or not field else field
                yield from _words(part, item, f"{path}.{name}", patterns, nearest)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, str) and words.get(field) is _PATTERN:
                patterns.append((path, item, False))
            else:
                yield from _words(part, item, path, patterns, field)
    elif isinstance(value, str) and words.get(field) is _PATTERN:
        patterns.append((path, value, True))
    elif isinstance(value, str) and value:
        kinds = [words[name] for name in (field, "") if isinstance(words.get(name), re.Pattern)]
        if not any(kind.fullmatch(value) for kind in kinds):
            yield path, value, *_STRINGS.get((part, field), ("such a string can name code or a file", True))


def _is_one_part(name: Any) -> bool:
    """Return whether a name is that of a directory, and no path."""
    return isinstance(name, str) and re.fullmatch(r"(?!\.+$)[^/\\\x00-\x1f\x7f]{1,100}", name) is not None


# ---- patterns ----


def _match(patterns: Sequence[_Pattern], where: str) -> None:
    """Match patterns with the names of usual modules. UsageError if one is no pattern, or if it takes too long."""
    path, pattern = "", ""
    try:
        with limited(MATCHING):
            for path, pattern, is_pattern in patterns:
                try:
                    compiled = re.compile(pattern)
                except (re.error, OverflowError, RecursionError) as error:
                    if is_pattern:
                        raise UsageError(
                            f"{where}: {path} = {shown(pattern)} is no regular expression ({error})"
                        ) from None
                    continue
                for module in _MODULES:
                    compiled.fullmatch(module)
    except TimeIsUp:
        raise UsageError(
            f"{where}: {path} = {shown(pattern)} takes too long to match the names of modules; repeat no group that "
            "repeats a part of itself"
        ) from None
