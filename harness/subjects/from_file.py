"""A spec that comes from a file, as a run that can be judged here.

`as_run` does three things, and says each in a sentence:

1. `deepspeed`, `fsdp` and `fsdp_config` become the launch of the run. Files that they name are read.
2. Arguments about where a run writes and reports to are left out: they change nothing that is judged.
3. A run that reports to all that is installed, as transformers does before release 5, reports to nothing.

It runs before `harness.trust.check`, which then sees what the files held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import compat, spec_fields
from harness.errors import UsageError
from harness.reading import read_json, shown, shown_path
from harness.spec import LIMIT, LaunchSpec, RunSpec

#: Arguments that change nothing that is judged, by the beginning of their names.
MEANINGLESS = (
    *("output_dir", "overwrite_output_dir", "logging_dir", "run_name", "project", "trackio_"),
    *("push_to_hub", "hub_"),
)

#: Reporters that write below the run's own directory only.
REPORTERS = ("none", "tensorboard")

#: Ranks of a run whose arguments ask for FSDP or DeepSpeed, and whose launch does not say how many there are.
RANKS = 2

#: What the argument `fsdp` may say of sharding -> whether FSDP2 gathers parameters again for the backward pass.
_SHARDING = {"full_shard": True, "shard_grad_op": False}

#: Words of the argument `fsdp` that need more than the ranks of one host, or shard nothing.
_ELSEWHERE = ("hybrid_shard", "hybrid_shard_zero2", "no_shard")


def as_run(spec: RunSpec, where: str) -> tuple[RunSpec, list[str]]:
    """Return the run that a spec from a file describes, and a sentence for each thing that was changed.

    - where: what messages call the file.

    Raises UsageError if a file of options cannot be read, or asks for what cannot be run here, and if nothing is trained.
    """
    if spec.adapter.config.get("inference_mode"):
        raise UsageError(
            f"{where}: nothing is trained: adapter.config.inference_mode is true; set it to false or leave it out"
        )
    notes: list[str] = []
    arguments: dict[str, Any] = {}
    for name, value in spec.arguments.items():
        if not name.startswith(MEANINGLESS):
            arguments[name] = value
        elif value not in (None, False, "", [], {}):
            notes.append(f"{name} is left out: it changes nothing that is judged")
    _report_nowhere(arguments, notes)
    if isinstance(arguments.get("accelerator_config"), str):
        arguments["accelerator_config"] = _options(arguments["accelerator_config"], f"{where}, accelerator_config")
    launch = spec.launch
    for take in (_deepspeed, _fsdp):
        launch = take(arguments, launch, where)
    if launch != spec.launch:
        notes.append(f"trained by {launch.strategy} over {launch.ranks} ranks, as its arguments say")
    first = spec.resume
    if first is not None and first.first_leg:
        kept = {name: value for name, value in first.first_leg.items() if not name.startswith(MEANINGLESS)}
        first = dataclasses.replace(first, first_leg=kept)
    return dataclasses.replace(spec, arguments=arguments, launch=launch, resume=first), notes


def _report_nowhere(arguments: dict[str, Any], notes: list[str]) -> None:
    given = arguments.get("report_to")
    names = [given] if isinstance(given, str) else list(given or ())
    if [name for name in names if name not in REPORTERS]:
        arguments["report_to"] = [name for name in names if name in REPORTERS] or "none"
        notes.append(f"report_to {shown(given)} is left out: the run reports to nobody else")
    elif given is None and compat.reports_everywhere():
        arguments["report_to"] = "none"


def _options(value: Any, where: str) -> dict[str, Any]:
    """Return an object of options: the value itself, or what the JSON file holds that it names."""
    if isinstance(value, str):
        try:
            found = read_json(Path(value), LIMIT)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        where = f"{where}, {shown_path(value)}"
    else:
        found = value
    if not isinstance(found, Mapping):
        raise UsageError(f"{where}: expected a JSON object of options, found {shown(found)}")
    return dict(found)


def _spread(launch: LaunchSpec, strategy: str, where: str, **changes: Any) -> LaunchSpec:
    """Return the launch with a strategy. UsageError if it names another one already."""
    if launch.strategy not in ("single", strategy):
        raise UsageError(f"{where} asks for {strategy}, but launch.strategy is {launch.strategy}; take one of them out")
    ranks = launch.ranks if launch.several else max(launch.ranks, RANKS)
    return dataclasses.replace(launch, strategy=strategy, ranks=ranks, **changes)


# ---- DeepSpeed ----


def _deepspeed(arguments: dict[str, Any], launch: LaunchSpec, where: str) -> LaunchSpec:
    given = arguments.pop("deepspeed", None)
    if given in (None, "", {}):
        return launch
    where = f"{where}, deepspeed"
    options = _options(given, where)
    zero = options.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise UsageError(f"{where}, zero_optimization: expected a JSON object, found {shown(zero)}")
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (1, 2, 3):
        raise UsageError(
            f"{where}, zero_optimization, stage: only stages 1, 2 and 3 can be run here, not {shown(stage)}"
        )
    offloads = [zero.get(name) for name in ("offload_optimizer", "offload_param")]
    on_cpu = any(isinstance(part, Mapping) and part.get("device") == "cpu" for part in offloads)
    return _spread(
        launch,
        f"zero{stage}",
        where,
        options={**options, **launch.options},
        cpu_offload=launch.cpu_offload or on_cpu,
    )


# ---- FSDP ----


def _fsdp(arguments: dict[str, Any], launch: LaunchSpec, where: str) -> LaunchSpec:
    given, config = arguments.pop("fsdp", None), arguments.pop("fsdp_config", None)
    if given in (None, "", False, [], "false", "False"):
        return launch  # upstream reads fsdp_config only if fsdp is set
    where = f"{where}, fsdp"
    options = _options(config or {}, f"{where}_config")
    options = {name.removeprefix("fsdp_"): value for name, value in options.items() if value is not None}
    version = options.pop("version", compat.default_fsdp_version())
    if version not in (1, 2):
        raise UsageError(f"{where}_config, version: expected 1 or 2, found {shown(version)}")
    if True in [_is_true(options.pop(name, False)) for name in ("xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt")]:
        raise UsageError(f"{where}_config: FSDP of XLA cannot be run here, only torch's")
    offload = True in [_is_true(options.pop(name, False)) for name in ("cpu_offload", "offload_params")]
    for word in _fsdp_words(given, where):
        if word == "offload":
            offload = True
        elif word in _SHARDING:
            options.setdefault("reshard_after_forward", _SHARDING[word] if version == 2 else word)
    changes: dict[str, Any] = {"cpu_offload": launch.cpu_offload or offload}
    if options.get("state_dict_type") in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        changes["state_dict_type"] = options.pop("state_dict_type")
    if "activation_checkpointing" in options:
        changes["activation_checkpointing"] = _is_true(options.pop("activation_checkpointing"))
    if options.get("min_num_params") == 0:
        del options["min_num_params"]  # upstream's default, which it writes into every saved config
    return _spread(launch, f"fsdp{version}", where, options={**options, **launch.options}, **changes)


def _is_true(value: Any) -> bool:
    """Return whether an option is on. Files of accelerate have texts for flags."""
    return str(value).lower() in ("true", "1")


def _fsdp_words(given: Any, where: str) -> list[str]:
    """Return the words of the argument `fsdp`: a text, a list, or true for none."""
    if given is True or given in ("true", "True"):
        return []
    words = given.split() if isinstance(given, str) else given
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"{where}: expected true, words or a list of words, found {shown(given)}")
    known = (*_SHARDING, "offload", "auto_wrap", *_ELSEWHERE)
    for word in words:
        if word not in known:
            raise spec_fields.unknown(where, word, known)
        if word in _ELSEWHERE:
            raise UsageError(f"{where}: {word} cannot be run here; full_shard and shard_grad_op can")
    return list(words)
