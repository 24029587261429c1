"""A file that somebody sent runs no code, and writes, deletes and reads as a pickle nothing outside of its run."""

import json
import os
import signal
import sys
import time

import pytest

from harness import compat, trust
from harness.cli import main
from harness.errors import UsageError
from harness.fixtures.models import load_object
from harness.runs.scenarios import PLAIN, SCENARIOS
from harness.spec import MOVED, LaunchSpec, RunSpec
from harness.subjects import NAMES

#: A module of the sender's. Whatever is imported or called in it leaves a mark.
EVIL = """
import pathlib
pathlib.Path("precious/marker").write_text("imported")

def factory(*arguments, **options):
    pathlib.Path("precious/marker").write_text("called")
    from harness.fixtures.models import build
    from harness.spec import ModelSpec
    return build(ModelSpec())

def subject():
    pathlib.Path("precious/marker").write_text("called")
    from harness.subjects.hf_trainer import HFTrainer
    return HFTrainer()
"""

TWO_STEPS = PLAIN.but(max_steps=2, save_strategy="steps", save_steps=1)
NAMES_OF_CODE = ("evil:factory", "evil", "os:system", "harness.fixtures.models:load_object", "harness.paths:os.system")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory of the user's with something precious, a module that must not run, and its own TMPDIR."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("the only copy\n")
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = _files(tmp_path)
    yield tmp_path
    sys.modules.pop("evil", None)
    changed = {name for name, state in _files(tmp_path).items() if before.get(name) != state}
    assert changed <= {"spec.json", "case.json", "precious/marker"} and set(before) <= set(_files(tmp_path))
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "the only copy\n"


def _files(directory):
    found = {}
    for folder, names, files in os.walk(directory):
        names[:] = [name for name in names if name != "__pycache__"]
        for name in files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, directory)] = (os.lstat(path).st_size, os.lstat(path).st_mtime_ns)
    return found


def command(monkeypatch, *words):
    """Run the command line in this process, and return its exit code."""
    monkeypatch.setattr("sys.argv", ["peft-harness", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code


# ---- code ----


def _namings(name):
    """Return every field in which a spec can name code -> the spec that does."""
    return {
        "model.family": PLAIN.but(model={"family": name if ":" in name else f"{name}:factory"}),
        "trainer.callbacks": PLAIN.but(trainer={"callbacks": [name]}),
        "trainer.compute_metrics": PLAIN.but(trainer={"compute_metrics": name}),
        "trainer.compute_loss_func": PLAIN.but(trainer={"compute_loss_func": name}),
        "trainer.data_collator": PLAIN.but(trainer={"data_collator": name}),
        "trainer.data_collator ": PLAIN.but(trainer={"data_collator": [name, {"length": 8}]}),
        "trainer.optimizers": PLAIN.but(trainer={"optimizers": name}),
        "trainer.preprocess_logits_for_metrics": PLAIN.but(trainer={"preprocess_logits_for_metrics": name}),
        "trainer.optimizer_cls_and_kwargs": PLAIN.but(trainer={"optimizer_cls_and_kwargs": name}),
        "trainer.callbacks ": PLAIN.but(trainer={"callbacks": [[name, {"name": "os:system"}]]}),
        "resume.writer": TWO_STEPS.resumed(1, writer=name if ":" in name else f"{name}:subject"),
        "resume.first_leg": TWO_STEPS.resumed(1, first_leg={"trainer": {"data_collator": name}}),
    }


@pytest.mark.parametrize("name", NAMES_OF_CODE)
@pytest.mark.parametrize("field", _namings("evil:factory"))
def test_a_spec_names_no_code(name, field):
    spec = _namings(name)[field]
    with pytest.raises(UsageError, match="--trust-code") as refused:
        trust.check(spec, "spec.json")
    assert name in str(refused.value) and field.strip() in str(refused.value)
    assert "\n" not in str(refused.value)
    trust.check(spec, "spec.json", trusted=True)


def test_our_own_names_are_known():
    """Each name that a spec of the suites has, in the field that has it. They are functions of the file that they name."""
    ours = set().union(*trust.OURS.values())
    assert set(MOVED.values()) <= ours
    assert set(NAMES) < trust.SUBJECTS
    for name in ours - {*NAMES, "early_stopping"}:
        assert load_object(name).__module__ == name.partition(":")[0]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenarios_may_be_sent(scenario):
    trust.check(RunSpec.from_json(SCENARIOS[scenario].to_json()), scenario)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_factory_runs_only_if_it_is_trusted(place, monkeypatch, capfd, trusted):
    (place / "spec.json").write_text(json.dumps(TWO_STEPS.but(model={"family": "evil:factory"}).to_json()))
    code = command(monkeypatch, "repro", place / "spec.json", *["--trust-code"] * trusted)
    said = capfd.readouterr()
    assert (place / "precious" / "marker").exists() is trusted
    assert code == (0 if trusted else 2), said
    if not trusted:
        assert said.err == (
            f"peft-harness: {place}/spec.json: model.family = 'evil:factory' is refused: it names code that this file "
            "asks to run; if you trust the file, repeat the command with --trust-code\n"
        )


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("field", ["subject", "preload"])
def test_a_case_file_names_code_only_if_it_is_trusted(place, monkeypatch, capfd, field, trusted):
    own = {"subject": "evil:subject", "preload": []} if field == "subject" else {"preload": ["evil"]}
    body = {
        "subject": "hf-trainer",
        "device": "cpu",
        **own,
        "clause": "FRZ-01",
        "spec": PLAIN.but(max_steps=1).to_json(),
    }
    (place / "case.json").write_text(json.dumps(body))
    code = command(monkeypatch, "repro", place / "case.json", *["--trust-code"] * trusted)
    assert (place / "precious" / "marker").exists() is trusted
    assert code == (0 if trusted else 2), capfd.readouterr()


@pytest.mark.parametrize("own", [{"subject": "evil:subject"}, {"preload": ["evil"]}])
def test_a_case_of_the_suites_names_code_only_if_it_is_trusted(place, monkeypatch, capsys, own):
    body = {"test": "test_rng.py::test_x", "subject": "hf-trainer", "device": "cpu", "preload": [], **own}
    (place / "case.json").write_text(json.dumps(body))
    path = "harness.session.case_file.path_of"
    monkeypatch.setattr(path, lambda case: "test")
    asked = []
    monkeypatch.setattr("harness.cli.judge_commands.run_pytest", lambda *words: asked.append(words) or 0)
    assert command(monkeypatch, "repro", place / "case.json") == 2
    assert "--trust-code" in capsys.readouterr().err and not asked
    assert command(monkeypatch, "repro", place / "case.json", "--trust-code") == 0
    subject, _, _, preloads = asked[0][1:5]
    assert {"subject": subject, "preload": preloads}[next(iter(own))] == next(iter(own.values()))
    # A subject that the user names takes the place of the file's.
    if "subject" in own:
        assert command(monkeypatch, "repro", place / "case.json", "--subject", "reference") == 0


# ---- files ----


@pytest.mark.parametrize(
    "damage",
    ["delete {}", "truncate {} 0", "delete ../../../precious/thesis.txt", "torn after ../../precious/thesis.txt"],
)
def test_a_spec_damages_no_file_of_the_users(place, monkeypatch, capfd, damage):
    act = damage.format(place / "precious" / "thesis.txt")
    (place / "spec.json").write_text(json.dumps(TWO_STEPS.resumed(1, damage=(act,)).to_json()))
    assert command(monkeypatch, "repro", place / "spec.json") == 2
    assert "damage" in capfd.readouterr().err


#: What would write, delete, send or unpickle something elsewhere -> the spec, and whether --trust-code allows it.
ELSEWHERE = {
    "output_dir": (PLAIN.but(output_dir="precious"), False),
    "logging_dir": (PLAIN.but(logging_dir="precious", report_to="tensorboard"), False),
    "push_to_hub": (PLAIN.but(push_to_hub=True), False),
    "report_to": (PLAIN.but(report_to="wandb"), False),
    "report_to ": (PLAIN.but(report_to=["tensorboard", "mlflow"]), False),
    "resume_from_checkpoint": (PLAIN.but(resume_from_checkpoint="precious"), True),
    "deepspeed": (PLAIN.but(deepspeed="precious/thesis.txt"), True),
    "fsdp_config": (PLAIN.but(fsdp_config="precious/thesis.txt"), True),
    "hub_model_id": (PLAIN.but(hub_model_id="somebody/x"), True),
    "a_field_of_tomorrow": (PLAIN.but(a_field_of_tomorrow="evil:factory"), True),
    "tensorboard": (PLAIN.but(deepspeed={"tensorboard": {"enabled": True, "output_path": "precious"}}), False),
    "csv_monitor": (PLAIN.but(launch={"strategy": "zero1", "options": {"csv_monitor": {"enabled": True}}}), False),
    "nvme_path": (
        PLAIN.but(
            launch={"strategy": "zero3", "options": {"zero_optimization": {"offload_param": {"nvme_path": "precious"}}}}
        ),
        False,
    ),
    "device": (PLAIN.but(deepspeed={"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}), False),
    "debug_log": (PLAIN.but(deepspeed={"compile": {"deepcompile": True, "debug_log": True}}), False),
    "output_file": (PLAIN.but(deepspeed={"flops_profiler": {"output_file": "precious/thesis.txt"}}), False),
    "lower_precision_safe_modules": (
        PLAIN.but(deepspeed={"torch_autocast": {"lower_precision_safe_modules": ["evil.factory"]}}),
        True,
    ),
    "auto_map": (PLAIN.but(model={"config": {"auto_map": {"AutoConfig": "evil.factory"}}}), True),
    "attn_implementation": (PLAIN.but(model={"config": {"attn_implementation": "somebody/kernel"}}), True),
    "quantization_config": (PLAIN.but(model={"config": {"quantization_config": {"load_in_4bit": True}}}), True),
    "model.quantization.dataset": (
        PLAIN.but(model={"quantization": {"quant_method": "gptq", "dataset": "somebody/rows"}}),
        True,
    ),
    "trainer.optimizers": (
        PLAIN.but(trainer={"optimizers": ["harness.fixtures.optimizers:loraplus", {"x": "evil:factory"}]}),
        True,
    ),
    "megatron_core": (PLAIN.but(lora={"megatron_core": "evil"}), True),
    "megatron_config": (PLAIN.but(lora={"megatron_config": {"x": 1}}), True),
    "auto_mapping": (PLAIN.but(lora={"auto_mapping": {"parent_library": "evil", "base_model_class": "x"}}), True),
    "cache_file": (PLAIN.but(lora={"corda_config": {"cache_file": "precious/thesis.txt"}}), False),
    "covariance_file": (PLAIN.but(lora={"corda_config": {"covariance_file": "precious/thesis.txt"}}), True),
    "tokenizer_kwargs": (PLAIN.but(lora={"tokenizer_kwargs": {"trust_remote_code": True}}), True),
    "prompt_tuning_init_state_dict_path": (PLAIN.but(lora={"prompt_tuning_init_state_dict_path": "x.bin"}), True),
    "adapters": (PLAIN.but(lora={"adapters": {"0": "precious"}}), True),
    "adapter.name": (PLAIN.but(adapter={"name": "../../precious"}), False),
    "adapter.name ": (PLAIN.but(adapter={"others": {"/elsewhere/x": {}}}), False),
    "adapter.name  ": (PLAIN.but(adapter={"name": ".."}), False),
    "adapter.name   ": (PLAIN.but(adapter={"name": "a\0"}), False),
    "resume.damage": (TWO_STEPS.resumed(1, damage=("newest delete /some/file",)), False),
    "resume.damage ": (TWO_STEPS.resumed(1, damage=("truncate a/../../../x 0",)), False),
    "resume.first_leg": (TWO_STEPS.resumed(1, first_leg={"adapter": {"name": "../x"}}), False),
}


@pytest.mark.parametrize("field", ELSEWHERE)
def test_a_spec_reaches_nothing_outside_of_its_run(field):
    spec, allowed = ELSEWHERE[field]
    with pytest.raises(UsageError) as refused:
        trust.check(spec, "spec.json")
    assert field.strip() in str(refused.value)
    assert ("--trust-code" in str(refused.value)) is allowed
    if allowed:
        trust.check(spec, "spec.json", trusted=True)
    else:
        with pytest.raises(UsageError):
            trust.check(spec, "spec.json", trusted=True)


def test_the_default_reporters_of_old_releases_are_refused(monkeypatch):
    monkeypatch.setattr(compat, "reports_everywhere", lambda: True)
    with pytest.raises(UsageError, match="report_to"):
        trust.check(RunSpec(arguments={"max_steps": 1}), "spec.json")
    trust.check(RunSpec(), "spec.json")


HARMLESS = {
    "an adapter as peft saves it": PLAIN.but(
        lora={"megatron_core": "megatron.core", "base_model_name_or_path": "org/base", "peft_version": "0.21.2"}
    ),
    "a pattern": PLAIN.but(lora={"target_modules": r"model\.(\w+\.)*(q|v)_proj", "rank_pattern": {r".*\.0\..*": 4}}),
    "rotary embeddings": PLAIN.but(model={"config": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}}),
    "words": PLAIN.but(optim="adamw_torch_fused", lr_scheduler_type="cosine_with_min_lr", log_level="error"),
    "DeepSpeed": RunSpec(
        launch=LaunchSpec(
            strategy="zero3", options={"zero_optimization": {"offload_param": {"device": "cpu"}}, "fp16": "auto"}
        )
    ),
    "nothing is refused by being off": PLAIN.but(push_to_hub=False, logging_dir=""),
    "text": PLAIN.but(run_name="a/b: c", model={"config": {"id2label": {"0": "yes/no: maybe"}}}),
    "an architecture": PLAIN.but(model={"family": "config:qwen3_moe"}),
    "a quantization_config": PLAIN.but(
        model={
            "quantization": {
                "quant_method": "bitsandbytes",
                "load_in_8bit": True,
                "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp"],
                "bnb_4bit_compute_dtype": "bfloat16",
            }
        }
    ),
    "what real runs hand to the Trainer": PLAIN.but(
        trainer={
            "optimizers": ["harness.fixtures.optimizers:loraplus", {"loraplus_lr_ratio": 16}],
            "data_collator": ["harness.fixtures.collators:padding_free", {"return_position_ids": True}],
            "callbacks": [["early_stopping", {"early_stopping_patience": 2}]],
            "model_init": True,
        }
    ),
    "a checkpoint": TWO_STEPS.resumed(1, writer="reference"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_usual_specs_are_not_refused(kind):
    trust.check(HARMLESS[kind], kind)


# ---- patterns ----


@pytest.mark.parametrize("pattern", ["(.+)+!", r"(\w+\.?)+!", ".*.*.*.*.*.*.*.*!", "(a|.)*(b|.)*(c|.)*(d|.)*(e|.)*!"])
def test_a_slow_pattern_is_refused(pattern):
    for spec in (PLAIN.but(lora={"target_modules": pattern}), PLAIN.but(lora={"rank_pattern": {pattern: 4}})):
        began = time.monotonic()
        with pytest.raises(UsageError, match="takes too long"):
            trust.check(spec, "spec.json")
        assert time.monotonic() - began < 4 * trust.MATCHING


def test_a_broken_pattern_is_named():
    with pytest.raises(UsageError, match=r"target_modules.*no regular expression"):
        trust.check(PLAIN.but(lora={"target_modules": "(q_proj"}), "spec.json")
    # In a list it is a name.
    trust.check(PLAIN.but(lora={"target_modules": ["(q_proj"]}), "spec.json")


def test_an_alarm_of_the_callers_goes_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(UsageError):
            trust.check(PLAIN.but(lora={"target_modules": "(.+)+!"}), "spec.json")
        time.sleep(0.05)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung
