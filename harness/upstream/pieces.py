"""Parts of a standalone script, as Python text: rows, base model, adapter, Trainer. They follow from a RunSpec.

The rows are of the same kind as the spec's (number, lengths, labels left out), and not the same tokens: a script draws
them in one line.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

from harness import defaults, spec_fields
from harness.errors import UsageError
from harness.fixtures import models
from harness.fixtures.data import IGNORED
from harness.fixtures.resized_embeddings import FAMILY as RESIZED
from harness.reading import shown
from harness.spec import CONFIG_FAMILY, GET, AdapterSpec, DataSpec, LaunchSpec, ModelSpec, RunSpec
from harness.subjects import launch_arguments

#: Columns of a script.
WIDTH = 118

#: What Trainer prints is not needed, and a script must not ask where to report to.
_QUIET = {"report_to": "none", "use_cpu": True}

#: Newest name of a TrainingArguments field -> the name that every supported release takes.
_EVERYWHERE = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}

#: Base models of fixtures/ that are a Llama with something done to it -> the lines that do it.
_WRAPPED = {
    "harness.fixtures.wrapped_layers:checkpointed_layers": "checkpoint_wrapper(layer)",
    "harness.fixtures.wrapped_layers:compiled_layers": 'torch.compile(layer, backend="eager")',
}
_PLAIN_LOSS = "harness.fixtures.plain_loss:llama"


def call(name: str, values: Mapping[str, Any], first: str = "", indent: int = 4) -> str:
    """Return a call with keyword arguments, wrapped. first: positional arguments, as text."""
    words = [*([first] if first else []), *(f"{identifier(key)}={text(value)}" for key, value in values.items())]
    line = f"{name}({', '.join(words)})"
    if len(line) + indent <= WIDTH:
        return line
    pad = " " * (indent + 4)
    inner = textwrap.indent(joined(words, WIDTH - indent - 4), pad).rstrip(",")
    return f"{name}(\n{inner})"


def joined(words: list[str], width: int) -> str:
    """Return words with commas between them, in lines. No word is cut."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" {word},"
        else:
            lines.append(f"{word},")
    return "\n".join(lines)


def identifier(name: Any) -> str:
    """Return a name that goes into the script as code. UsageError if it is more than a name: a spec may be a stranger's."""
    if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
        raise refuse(f"{shown(name)} is no name of a field")
    return name


def text(value: Any) -> str:
    """Return a value of JSON's as Python text. Whatever a string holds stays inside its quotes."""
    if isinstance(value, str):
        return f'"{value}"' if value.isprintable() and not set(value) & {'"', "\\"} else repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text(key)}: {text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(text(item) for item in value) + "]"
    return repr(value)


def refuse(what: str) -> UsageError:
    """Return the error that says what a short script cannot hold."""
    return UsageError(f"no short script can be made of it: {what}")


# ---- rows ----


def rows(data: DataSpec) -> str:
    """Return the lines that make ROWS, and EVAL_ROWS if the spec has some."""
    check_task(data.task)
    if data.path is not None:
        raise refuse("its rows are in a file; put them into the spec, as data.inline")
    if data.inline:
        listed = joined([text(dict(row)) for row in data.inline[: data.rows]], WIDTH - 4)
        return "ROWS = [\n" + textwrap.indent(listed, "    ") + "\n]"
    lines = ["draw = random.Random(0)"]
    if short := _short(data):
        lines.append(f"ROWS = [{short} for _ in range({data.rows}))]")
    else:
        lines += [*_row(data), f"ROWS = [row() for _ in range({data.rows})]"]
    if data.eval_rows:
        lines.append(f"EVAL_ROWS = [row() for _ in range({data.eval_rows})]")
    if data.iterable:
        lines += ["", "class Stream(torch.utils.data.IterableDataset):", "    def __iter__(self):"]
        lines += ["        return iter(ROWS)"]
    elif data.augment:
        lines += ["", "class Augmented(torch.utils.data.Dataset):"]
        lines += ["    def __len__(self):", "        return len(ROWS)", "", "    def __getitem__(self, index):"]
        drawn = f"int(torch.randint(1, {data.vocab_size}, ()))"
        lines += [f'        return {{**ROWS[index], "input_ids": ROWS[index]["input_ids"][:-1] + [{drawn}]}}']
    return "\n".join(lines)


def _short(data: DataSpec) -> str:
    """Return the rows as one expression, without its end; "" if they are ragged, or more is drawn."""
    if data.ignored or data.eval_rows or (data.min_length or data.length) < data.length:
        return ""
    labels = "ids[0] % 2" if data.task == models.CLASSIFICATION else "ids"
    tokens = (
        f"[draw.randrange(1, {data.vocab_size}) for _ in range({min(data.length, data.max_length or data.length)})]"
    )
    return f'{{"input_ids": ids, "labels": {labels}}} for ids in ({tokens}'


def _row(data: DataSpec) -> list[str]:
    length = min(data.length, data.max_length or data.length)
    ragged = data.min_length is not None and data.min_length < length
    number = f"draw.randint({data.min_length}, {length})" if ragged else str(length)
    lines = ["", "def row():"]
    lines += [f"    ids = [draw.randrange(1, {data.vocab_size}) for _ in range({number})]"]
    labels = "ids"
    if data.task == models.CLASSIFICATION:
        labels = "ids[0] % 2"
    elif data.ignored:
        labels = f"[{IGNORED} if draw.random() < {data.ignored} else token for token in ids]"
    if ragged:
        padded = labels if data.task == models.CLASSIFICATION else f"{labels} + [{IGNORED}] * pad"
        mask = '"attention_mask": [1] * len(ids) + [0] * pad'
        lines += [
            f"    pad, labels = {length} - len(ids), {labels}" if data.ignored else f"    pad = {length} - len(ids)"
        ]
        padded = f"labels + [{IGNORED}] * pad" if data.ignored else padded
        lines += [f'    return {{"input_ids": ids + [0] * pad, {mask}, "labels": {padded}}}']
    else:
        lines += [f'    return {{"input_ids": ids, "attention_mask": [1] * {length}, "labels": {labels}}}']
    return [*lines, ""]


def dataset(data: DataSpec) -> str:
    """Return the expression for the training set."""
    return "Stream()" if data.iterable else "Augmented()" if data.augment else "ROWS"


# ---- the base model ----


def base(model: ModelSpec, launch: LaunchSpec) -> str:
    """Return the function base(), which makes the base model.

    If ranks load it (`ranks_load`), whole() makes the model that the first process saves.
    """
    config, made, after, before = _made(model)
    kind = made.partition("(")[0].partition(".")[0]
    path, options = 'f"{DIRECTORY}/base"', []
    lines = [*before, "def base():", f"    torch.manual_seed({model.seed})", f"    config = {config}"]
    if model.quantization is None and model.dtype != "float32":
        made += f".to(torch.{identifier(model.dtype)})"
    if ranks_load(model, launch):
        lines[-3] = "def whole():"
        lines += [f"    return {made}.eval()", "", "def base():"]
    elif model.quantization is not None:
        # The directory stays: peft looks into it at each save.
        lines += [f"    {made}.save_pretrained({path})"]
    if launch.strategy in ("loaded", "tp"):
        fields = launch_arguments.distributed_config(launch)
        lines += [f"    config = {call('DistributedConfig', fields)}"]
        options += ["distributed_config=config"]
    if model.quantization is not None:
        lines += [f"    packed = {_packing(model)}"]
        options += [f"dtype=torch.{identifier(model.dtype)}", "quantization_config=packed"]
    if options:
        made = f"{kind}.from_pretrained({', '.join([path, *options])})"
    if model.prepare_for_kbit:
        made = f"prepare_model_for_kbit_training({made})"
    if after:
        lines += [f"    model = {made}", *after, "    return model.eval()"]
    else:
        lines += [f"    return {made}.eval()"]
    return "\n".join(lines)


def ranks_load(model: ModelSpec, launch: LaunchSpec) -> bool:
    """Return whether ranks load the base from files. save_pretrained writes in the first process alone."""
    return launch.strategy in ("loaded", "tp") or (launch.several and model.quantization is not None)


#: Task -> the end of the name of the class that makes its model. Rows of other tasks are not written out.
_AUTO = {"causal": "CausalLM", "classification": "SequenceClassification", "seq2seq": "Seq2SeqLM"}


def check_task(task: str) -> None:
    """Raise UsageError if no rows of a task can be written out in a script."""
    if task not in _AUTO:
        raise refuse(f"its rows are for {task}; scripts have rows for {', '.join(_AUTO)}")


def _made(model: ModelSpec) -> tuple[str, str, list[str], list[str]]:
    """Return the expressions of the config and the model, the lines after them, and those before the function."""
    if model.path is not None:
        raise refuse("its model is in a directory; name a family of the suites, or config:MODEL_TYPE")
    attention = {} if model.attn_implementation is None else {"attn_implementation": model.attn_implementation}
    fields = {**model.config, **attention}
    if model.family.startswith(CONFIG_FAMILY):
        kind = model.family.removeprefix(CONFIG_FAMILY)
        check_task(model.task)
        auto = _AUTO[model.task]
        return call("AutoConfig.for_model", fields, text(kind)), f"AutoModelFor{auto}.from_config(config)", [], []
    after, before = [], []
    if model.family == RESIZED:
        row, fields = models.FAMILIES["llama"], {}
        if model.config.get("origin") == "directory":
            after = ['    model.save_pretrained(f"{DIRECTORY}/base")']
            after += [f'    model = {row.model_class}.from_pretrained(f"{{DIRECTORY}}/base")']
        after += [f"    model.resize_token_embeddings({int(model.config.get('vocab_size', 256))})"]
    elif model.family in _WRAPPED:
        after = ["    model.config.use_cache = False", "    for index, layer in enumerate(model.model.layers):"]
        after += [f"        model.model.layers[index] = {_WRAPPED[model.family]}"]
        row = models.FAMILIES["llama"]
    elif model.family in models.FAMILIES:
        row = models.FAMILIES[model.family]
    else:
        raise refuse(f"its model comes from {shown(model.family)}, which is code of your own")
    name = row.model_class
    if model.family == _PLAIN_LOSS:
        name = "MyLlama"
        before = ["class MyLlama(LlamaForCausalLM):", '    """A subclass with another name, and nothing else."""', ""]
    changed = defaults.changed_config(row.config_class, {**row.config, **fields})
    return call(row.config_class, changed), f"{name}(config)", after, before


def _packing(model: ModelSpec) -> str:
    fields: dict[str, Any]
    if isinstance(model.quantization, Mapping):
        fields = {key: value for key, value in model.quantization.items() if key != "quant_method"}
    elif model.quantization == "nf4":
        fields = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    else:
        fields = {"load_in_8bit": True}
    text = call("BitsAndBytesConfig", fields, indent=8)
    if model.four_bit and not isinstance(model.quantization, Mapping):
        text = text[:-1].rstrip(", ") + f", bnb_4bit_compute_dtype=torch.{identifier(model.dtype)})"
    return text


# ---- the adapter ----


def adapted(adapter: AdapterSpec) -> str:
    """Return the function adapted(model), which injects the spec's adapters."""
    for name in (adapter.name, *adapter.others):
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise refuse(f"{shown(name)} is no name of an adapter that a script can hold")
    lines = ["def adapted(model):", f"    torch.manual_seed({adapter.seed})"]
    lines += [f"    config = {_config(adapter, adapter.config)}"]
    named = {} if adapter.name == "default" else {"adapter_name": adapter.name}
    if adapter.route == GET:
        lines += [f"    model = {call('get_peft_model', {**named, **adapter.options}, 'model, config')}"]
    else:
        lines += [f"    {call('model.add_adapter', {**named, **adapter.options}, 'config')}"]
    # Before the injection, which may change a config.
    before = [
        f"    config_{number} = {_config(adapter, {**adapter.config, **other}) if other else 'copy.deepcopy(config)'}"
        for number, other in enumerate(adapter.others.values(), 2)
    ]
    lines[-1:-1] = before
    for number, name in enumerate(adapter.others, 2):
        config = f"config_{number}"
        if adapter.route == GET:
            lines += [f'    model.add_adapter("{name}", {config})']
        else:
            lines += [f'    model.add_adapter({config}, adapter_name="{name}")']
    if adapter.others and adapter.route != GET:
        lines += [f'    model.set_adapter("{adapter.name}")']
    if lines[-1].startswith("    model = get_peft_model("):
        return "\n".join([*lines[:-1], lines[-1].replace("model =", "return", 1)])
    return "\n".join([*lines, "    return model"])


def config_classes() -> dict[str, str]:
    """Return the names of peft's config classes -> the peft_type of each."""
    import peft

    return {config.__name__: str(kind.value) for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _config(adapter: AdapterSpec, values: Mapping[str, Any]) -> str:
    name = next(name for name, kind in config_classes().items() if kind == adapter.peft_type)
    plain = {key: value for key, value in values.items() if key not in ("peft_type", "peft_version")}
    return call(name, defaults.changed_adapter(adapter.peft_type, plain))


# ---- the Trainer ----


def arguments(spec: RunSpec) -> dict[str, Any]:
    """Return the TrainingArguments that differ from upstream's defaults, with names that every release takes."""
    changed = {**defaults.changed_arguments(spec), **_QUIET}
    return {_EVERYWHERE.get(name, name): value for name, value in changed.items()}


def trainer(spec: RunSpec, changes: Mapping[str, Any]) -> str:
    """Return the function trainer(model, **changes). changes: arguments that a check sets."""
    if spec.launch.strategy in ("fsdp1", "fsdp2"):
        raise refuse("accelerate shards by FSDP on GPUs only")
    values = {**arguments(spec), **changes}
    for name in ("logging", "save"):
        if values.get(f"{name}_strategy") == "no":
            values.pop(f"{name}_steps", None)
    keywords = {"train_dataset": dataset(spec.data)}
    if spec.data.eval_rows:
        keywords["eval_dataset"] = "EVAL_ROWS"
    callbacks = []
    for name, value in spec.trainer.items():
        if name != "callbacks":
            raise refuse(f"it passes {name} to the Trainer")
        for item in value:
            named = spec_fields.named(item)
            if item == "harness.fixtures.rank_allocation:AllocateRanks":
                callbacks.append("AllocateRanks()")
            elif named is not None and named[0] == "early_stopping":
                callbacks.append(call("EarlyStoppingCallback", named[1]))
            else:
                raise refuse(f"its callback {item!r} is code of your own")
    if callbacks:
        keywords["callbacks"] = f"[{', '.join(callbacks)}]"
    rest = ", ".join(f"{name}={value}" for name, value in keywords.items())
    body = call("dict", values).replace("dict(", "values = dict(", 1)
    lines = ["def trainer(model, directory=DIRECTORY, **changes):", f"    {body}"]
    lines += [f"    return Trainer(model, TrainingArguments(directory, **{{**values, **changes}}), {rest})"]
    return "\n".join(lines)


#: peft's documentation asks of a training loop that it calls this.
ALLOCATE = """class AllocateRanks(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.base_model.update_and_allocate(state.global_step)
"""
