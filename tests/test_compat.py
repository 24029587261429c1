"""compat: what releases have by name, and that nothing else branches on releases."""

import ast
import dataclasses
import functools
import types
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from harness import compat, subjects
from harness.environment import satisfies
from harness.errors import UsageError
from harness.fixtures import models
from harness.fixtures.methods import METHODS, Method
from harness.fixtures.models import FAMILIES
from harness.laws import checkpoint, resume
from harness.paths import ROOT
from harness.runs.scenarios import PLAIN, saving, spec_for
from harness.subjects.hf_trainer import HFTrainer, adapter_config, inject
from harness.suites.test_tables import redrawn
from harness.tensors.names import is_adapter

# ---- names of arguments and fields ----


def test_an_argument_that_no_release_has_is_a_mistake_and_names_the_nearest():
    words = "no release of transformers has the argument 'max_gradnorm'; did you mean 'max_grad_norm'?"
    for subject in ("hf-trainer", "reference"):
        with pytest.raises(UsageError) as caught:
            subjects.load(subject).unsupported(PLAIN.but(max_gradnorm=0.1))
        assert str(caught.value) == words


def test_a_field_that_no_release_has_is_a_mistake():
    with pytest.raises(
        UsageError, match="no release of peft has the field LoraConfig 'lora_alhpa'; did you mean 'lora_alpha'"
    ):
        HFTrainer().unsupported(PLAIN.but(lora={"lora_alhpa": 1}))
    # It is a field of another type.
    with pytest.raises(UsageError, match="no release of peft has the field LoraConfig 'oft_block_size'"):
        HFTrainer().unsupported(PLAIN.but(lora={"oft_block_size": 8}))
    others = PLAIN.but(adapter={"others": {"second": {"lora_alhpa": 1}}})
    with pytest.raises(UsageError, match="lora_alhpa"):
        HFTrainer().unsupported(others)


def test_a_type_that_no_release_has_is_a_mistake():
    with pytest.raises(UsageError, match="no release of peft has the adapter type 'LORAA'; did you mean 'LORA'"):
        HFTrainer().unsupported(PLAIN.but(adapter={"peft_type": "LORAA"}))


def test_a_name_that_is_like_no_other_is_refused_without_a_guess():
    with pytest.raises(UsageError) as caught:
        compat.check_arguments(["xyzzy"])
    assert str(caught.value) == "no release of transformers has the argument 'xyzzy'"


@pytest.mark.parametrize(
    ("releases", "name"), [(releases, name) for releases, names in compat.ARGUMENTS.items() for name in names]
)
def test_an_argument_of_some_releases_is_skipped_by_the_others(releases, name):
    assert (name in compat._argument_names()) == satisfies(releases)
    spec = PLAIN.but(**{name: True})
    if satisfies(releases) or name in compat._OLDER_NAMES:
        assert HFTrainer().unsupported(spec) is None
    else:
        reason = HFTrainer().unsupported(spec)
        assert reason.startswith("transformers ") and reason.endswith(
            f"TrainingArguments.{name}, which needs {releases}"
        )


@pytest.mark.parametrize(
    ("releases", "peft_type", "name"),
    [
        (releases, peft_type, name)
        for releases, types, names in compat.FIELDS
        for peft_type in types or ("LORA",)
        for name in names
    ],
)
def test_a_field_of_some_releases_is_skipped_by_the_others(releases, peft_type, name):
    reason = compat.missing_adapter_field(peft_type, [name])
    assert (reason is None) == satisfies(releases)
    assert reason is None or f".{name}, which needs {releases}" in reason


@pytest.mark.parametrize(
    ("releases", "peft_type"), [(releases, kind) for releases, types in compat.TYPES.items() for kind in types]
)
def test_a_type_of_some_releases_is_skipped_by_the_others(releases, peft_type):
    reason = compat.missing_adapter_field(peft_type, [])
    assert (reason is None) == satisfies(releases)
    assert reason is None or f"adapter type {peft_type!r}, which needs {releases}" in reason


def test_a_schedule_of_newer_releases_is_skipped(monkeypatch):
    import transformers
    from transformers import optimization

    kinds: Any = vars(optimization)["SchedulerType"]
    older = types.SimpleNamespace(SchedulerType=list(kinds)[:9], get_wsd_schedule=lambda steps: 0)
    monkeypatch.setattr(transformers, "optimization", older)
    for kind, reason in (
        ("greedy", "has no lr_scheduler_type 'greedy'"),
        ("warmup_stable_decay", "has a warmup_stable_decay with other options"),
        ("nonsense", None),
        ("linear", None),
    ):
        said = HFTrainer().unsupported(PLAIN.but(lr_scheduler_type=kind))
        assert (said is None) if reason is None else reason in said, kind


# ---- names of adapters' tensors ----


@functools.cache
def base(family):
    return models.build(dataclasses.replace(PLAIN.model, family=family))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_of_a_base_model_has_a_name_of_an_adapters(family):
    assert [name for name, _ in base(family).named_parameters() if is_adapter(name)] == []


@pytest.mark.parametrize("prefix", ["", "_", "l", "model", None, 3])
def test_a_prefix_that_would_take_in_the_base_model_is_not_believed(monkeypatch, prefix):
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, "IA3", type("Tuner", (), {"prefix": prefix}))
    assert compat.tensor_prefix("IA3") is None
    with pytest.raises(UsageError, match="does not say how the names of IA3's tensors begin, so they cannot be told"):
        adapter_config("IA3", {})


def test_a_base_model_with_a_name_of_an_adapters_is_refused(monkeypatch):
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    # A prefix that looks right, but takes in the base's attention.
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, "IA3", type("Tuner", (), {"prefix": "self_"}))
    compat._tensor_prefixes.cache_clear()
    try:
        with pytest.raises(UsageError, match="weight of the base model is named like an adapter's"):
            inject(models.build(PLAIN.model), PLAIN.adapter)
    finally:
        compat._tensor_prefixes.cache_clear()


@pytest.mark.parametrize(
    ("peft_type", "prefix"),
    [("LORA", "lora_"), ("ADALORA", "lora_"), ("LOHA", "hada_"), ("VERA", "vera_"), ("P_TUNING", None)],
)
def test_prefixes_of_types(peft_type, prefix):
    assert compat.tensor_prefix(peft_type) == prefix
    assert compat.missing_tensor_names(peft_type) is None


@pytest.fixture
def beft(monkeypatch):
    """The table of methods with a row for a type of adapters that nothing else in the harness names."""
    if reason := compat.missing_adapter_field("BEFT", []):
        pytest.skip(reason)
    monkeypatch.setitem(METHODS, "beft", Method("BEFT", conv1d=False, mergeable=False))
    return saving(spec_for("llama", "beft"))


def test_a_row_in_the_table_is_all_that_a_method_takes(beft, runs):
    trace = runs.train(beft.but(save_steps=1))
    assert trace.trainable and all(name.endswith(".beft_bias") for name in trace.trainable)
    saved, resumed = checkpoint.adapter_only(trace), runs.train(redrawn(trace.spec))
    restored = resume.restored(resumed, trace, 1, len(trace.trainable))
    assert saved.holds, saved.seen
    assert restored.holds, restored.seen
    # Both laws see that one tensor is missing from the checkpoint.
    name = trace.trainable[0]
    first = trace.checkpoint(1)
    del first.adapter[name]
    assert any(name in sentence for sentence in resume.restored(resumed, trace, 1, len(trace.trainable)).seen)
    file = Path(first.path) / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[f"base_model.model.{name}"]
    save_file(tensors, file)
    assert any(name in sentence for sentence in checkpoint.adapter_only(trace).seen)


# ---- nothing else branches on releases ----

#: Packages whose releases are judged.
UPSTREAM = {"accelerate", "bitsandbytes", "deepspeed", "numpy", "peft", "torch", "transformers"}

#: What looks as if it branched on a release, by file, and why it does not.
ALLOWED = {
    ("harness/patches.py", "getattr(torch, name, None)"): "kinds of devices that this build of torch has",
    ("harness/throughput/counters.py", "hasattr(torch.ops.aten, f'_scaled_dot_product_{kind}{way}')"): "its kernels",
    ("fixtures/models.py", "getattr(torch, spec.dtype, None)"): "a dtype that a spec names",
    (
        "fixtures/architectures.py",
        "getattr(transformers, AUTO_CLASSES[one][1], ())",
    ): "a task that an older release lacks",
    ("fixtures/architectures.py", "getattr(transformers, table, ())"): "a task that an older release lacks",
}


def upstream_names(tree):
    """Return the names that a module's imports bind to upstream's modules and their contents."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.asname or alias.name) for alias in node.names]
        else:
            continue
        found |= {bound.partition(".")[0] for name, bound in names if name.partition(".")[0] in UPSTREAM}
    return found


def root(node):
    """Return the name that an attribute chain starts with, such as "torch" of torch.ops.aten."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def reads_version(node):
    """Return whether an expression reads the version of upstream, by `version("torch")` or `torch.__version__`."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part.attr == "__version__":
            return True
        if not (isinstance(part, ast.Call) and ast.unparse(part.func).rpartition(".")[2] == "version"):
            continue
        if part.args and isinstance(part.args[0], ast.Constant) and part.args[0].value in UPSTREAM:
            return True
    return False


def branches_on_releases(source):
    """Return the expressions of a module that ask which release of upstream is installed.

    Looked for are: a requirement with a version, given to `satisfies`; a comparison with a version other than "is it
    installed"; `hasattr`, `getattr` with a default, and `inspect.signature` of something of upstream's.
    """
    tree = ast.parse(source)
    ours = upstream_names(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            installed = isinstance(node.ops[0], (ast.Is, ast.IsNot))
            found += [ast.unparse(node)] if reads_version(node) and not installed else []
        if not (isinstance(node, ast.Call) and node.args):
            continue
        name, first = ast.unparse(node.func).rpartition(".")[2], node.args[0]
        requires = name == "satisfies" and isinstance(first, ast.Constant) and set(first.value) & set("<>=!~")
        looks = name in ("hasattr", "signature") or (name == "getattr" and len(node.args) == 3)
        found += [ast.unparse(node)] if requires or (looks and root(first) in ours) else []
    return found


def test_only_compat_branches_on_releases():
    files = [file for folder in ("harness", "suites", "fixtures") for file in (ROOT / folder).rglob("*.py")]
    # The mutants replace parts of the newest release, and look for these parts by name.
    files = [file for file in files if "mutants" not in file.parts and file.name not in ("compat.py", "lacking.py")]
    found = {
        (str(file.relative_to(ROOT)), branch)
        for file in files
        for branch in branches_on_releases(file.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('satisfies("peft>=0.16")', 1),
        ('environment.satisfies("peft<1")', 1),
        ('satisfies("ray")', 0),
        ("satisfies(requirement)", 0),
        ('version("torch") == "2.11.0"', 1),
        ('Version(version("torch")) < Version("2.11")', 1),
        ('version("torch") is None', 0),
        ('transformers.__version__ >= "5"', 1),
        ("import transformers\nhasattr(transformers, 'AttentionInterface')", 1),
        ("from transformers import PreTrainedModel as Base\nhasattr(Base.load_adapter, 'x')", 1),
        ("import torch\ngetattr(torch.backends, 'fp32_precision', None)", 1),
        ("import torch\ngetattr(torch, name)", 0),
        ("import inspect, peft\ninspect.signature(peft.get_peft_model)", 1),
        ("hasattr(model, 'merge_and_unload')", 0),
    ],
)
def test_a_branch_on_a_release_is_found(source, count):
    assert len(branches_on_releases(source)) == count
