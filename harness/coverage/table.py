"""Which code of upstream counts, and why some of its branches are not reached (reasons.toml)."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness.coverage.find import Branch, branches
from harness.environment import satisfies
from harness.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: A condition that mentions one of these is about adapters.
ADAPTERS = r"(?i)peft|(?<!dl_)adapter|lora"

#: Files of transformers and accelerate whose conditions about adapters count.
PATH = (
    "transformers/trainer.py",
    "transformers/trainer_utils.py",
    "transformers/trainer_pt_utils.py",
    "transformers/trainer_callback.py",
    "transformers/integrations/peft.py",
    "transformers/integrations/integration_utils.py",
    "transformers/distributed/fsdp.py",
    "transformers/modeling_utils.py",
    "accelerate/utils/fsdp_utils.py",
    "accelerate/utils/modeling.py",
)

#: Files of peft, and the functions on the Trainer's path whose conditions about adapters count.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "peft/mapping_func.py": ("get_peft_model",),
    "peft/peft_model.py": (
        "PeftModel.__init__",
        "PeftModel.save_pretrained",
        "PeftModel.from_pretrained",
        "PeftModel.load_adapter",
        "PeftModel.add_adapter",
        "PeftModel.set_adapter",
        "PeftModel.disable_adapter",
        "PeftModel.create_or_update_model_card",
        "PeftModel.prepare_model_for_gradient_checkpointing",
        "PeftModelForCausalLM.forward",
    ),
    "peft/utils/save_and_load.py": ("get_peft_model_state_dict", "set_peft_model_state_dict", "load_peft_weights"),
    "peft/utils/other.py": (
        "prepare_model_for_kbit_training",
        "AuxiliaryTrainingWrapper.*",
        "ModulesToSaveWrapper.*",
        "_set_trainable",
        "_set_adapter",
        "set_adapter",
        "_get_submodules",
    ),
    "peft/tuners/tuners_utils.py": (
        "BaseTuner.inject_adapter",
        "BaseTuner._mark_only_adapters_as_trainable",
        "BaseTuner._get_adapter_state_dict",
        "BaseTuner.set_adapter",
        "BaseTuner.enable_adapter_layers",
        "BaseTuner.disable_adapter_layers",
        "BaseTunerLayer.set_adapter",
        "BaseTunerLayer.enable_adapters",
        "BaseTunerLayer._move_adapter_to_device_of_base_layer",
        "check_target_module_exists",
        "_maybe_include_all_linear_layers",
        "cast_adapter_dtype",
    ),
    "peft/tuners/lora/model.py": ("LoraModel._create_and_replace", "LoraModel._create_new_module"),
    "peft/tuners/lora/layer.py": (
        "LoraLayer.update_layer",
        "LoraLayer.reset_lora_parameters",
        "Linear.forward",
        "Embedding.forward",
    ),
}

TIERS = {
    "mp": "several processes",
    "gpu": "an accelerator",
    "dep": "a package or a release that is not in the pinned stack",
    "hub": "a network and a hub",
    "off": "a use of upstream that is no Trainer run with adapters",
}
REASONS = Path(__file__).with_name("reasons.toml")


@dataclass(frozen=True)
class Reason:
    """Why some branches are not reached.

    - file, function, condition, outcome: globs over the branches that it covers.
    - tier: what it takes to reach them, a key of TIERS.
    - reason: why no case reaches them.
    """

    file: str
    tier: str
    reason: str
    function: str = "*"
    condition: str = "*"
    outcome: str = "*"

    def covers(self, branch: Branch) -> bool:
        pairs = (
            (branch.file, self.file),
            (branch.function, self.function),
            (branch.condition, self.condition),
            (branch.outcome, self.outcome),
        )
        return all(fnmatchcase(text, glob) for text, glob in pairs)


@dataclass(frozen=True)
class Reasons:
    """The content of reasons.toml.

    - pinned: whether the installed stack is the one that the file was written for.
    - open: how many branches a whole run on that stack may leave without a reason.
    - reasons: the entries, in order.
    """

    pinned: bool
    open: int
    reasons: tuple[Reason, ...]


def load_reasons(path: Path = REASONS) -> Reasons:
    """Read the file. UsageError names the entry that is wrong."""
    body = tomllib.loads(path.read_text(encoding="utf-8"))
    reasons = []
    for number, entry in enumerate(body["unreached"], start=1):
        try:
            reasons.append(Reason(**entry))
        except TypeError as error:
            raise UsageError(f"{path.name}, entry {number}: {error}") from None
        if reasons[-1].tier not in TIERS:
            raise UsageError(f"{path.name}, entry {number}: tier {entry['tier']!r} is none of {', '.join(TIERS)}")
    return Reasons(all(map(satisfies, body["versions"])), body["open"], tuple(reasons))


def paths() -> dict[str, Path]:
    """Return the installed files that count, by their names in the table. Files that a release lacks are left out."""
    return {file: path for file in (*PATH, *FUNCTIONS) if (path := _installed(file)).is_file()}


def all_branches() -> list[Branch]:
    """Return every branch of the installed upstream that counts."""
    found: list[Branch] = []
    for file, path in paths().items():
        source = path.read_text(encoding="utf-8")
        found += branches(source, file, FUNCTIONS.get(file, ("*",)), ADAPTERS)
    return found


def _installed(file: str) -> Path:
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{package} is not installed, so its branches cannot be read")
    return Path(spec.submodule_search_locations[0]) / rest
