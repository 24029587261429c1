"""Tests of harness/runs/lifecycle.py: lives without a fault, faults of upstream that a life must find, and repetition."""

import json

import pytest

from harness import subjects
from harness.cli import main
from harness.processes.imports import import_upstream
from harness.runs.lifecycle import CLAUSES, VERBS, Life
from harness.runs.scenarios import PLAIN
from harness.spec import ADD, GET
from tests.faults import nothing, replace

TRAINER = "transformers.trainer:Trainer"
PEFT_MODEL = "peft.peft_model:PeftModel"
BORN = PLAIN.but(
    lora={"r": 2}, data={"rows": 6, "length": 8, "eval_rows": 3}, model={"config": {"num_hidden_layers": 1}}
)


def train(steps=2, batch=2, window=1, every=1, limit=0):
    return {"do": "train", "steps": steps, "batch": batch, "window": window, "every": every, "limit": limit}


ADD_SECOND = {"do": "add", "r": 1, "seed": 3}
SECOND = {"do": "switch", "which": 1}


def live(spec, acts, directory):
    """Live a life of these actions. Return clause id -> findings, for the clauses that do not hold."""
    import_upstream()
    life = Life(subjects.load("hf-trainer"), spec, directory)
    found = {}
    for act in acts:
        for clause, judged in life.do(act["do"], **{name: value for name, value in act.items() if name != "do"}):
            if not judged.holds:
                found.setdefault(clause, []).extend(judged.seen)
    return found


@pytest.mark.parametrize("route", [GET, ADD])
def test_a_life_that_nothing_is_wrong_with(route, tmp_path):
    acts = [
        train(steps=3, window=2),
        ADD_SECOND,
        {"do": "evaluate", "batch": 2},
        {"do": "save"},
        SECOND,
        train(limit=1),
        {"do": "merge", "saving": True},
        {"do": "resume", "which": 1},
        {"do": "disable"},
        {"do": "reload", "which": 0},
        train(every=2),
        {"do": "delete", "which": 0},
        train(steps=1),
    ]
    assert {act["do"] for act in acts} == set(VERBS)
    assert live(BORN.but(adapter={"route": route}), acts, tmp_path) == {}


@pytest.mark.parametrize("route", [GET, ADD])
def test_an_adapter_takes_the_name_of_one_that_was_deleted_and_saved(route, tmp_path):
    """A drawn life found this fault of the harness: the reference was built with the later adapter's rank."""
    born = BORN.but(adapter={"route": route})
    first = {"do": "delete", "which": 0}
    acts = [train(), {"do": "save"}, ADD_SECOND, first, ADD_SECOND, {"do": "reload", "which": 0}]
    acts += [{"do": "evaluate", "batch": 1}, train(steps=1), {"do": "resume", "which": 0}]
    assert live(born, acts, tmp_path) == {}


def keeps_gradients(original, self, adapter_name, *args, **options):
    original(self, adapter_name, *args, **options)
    for name, parameter in self.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)


def a_drifting_base(original, trainer, *args, **options):
    next(trainer.model.parameters()).data.mul_(1.0001)
    return original(trainer, *args, **options)


def another_loss(original, trainer, *args, **options):
    return {name: value * 1.001 for name, value in original(trainer, *args, **options).items()}


def halved(original, model, *args, **options):
    tensors = original(model, *args, **options)
    return {name: tensor / 2 for name, tensor in tensors.items()}


def an_empty_file(original, model, tensors, *args, **options):
    return original(model, {}, *args, **options)


def double(original, layer, adapter):
    return 2 * original(layer, adapter)


#: Name -> the fault put into upstream, the actions of a life that shows it, the clause that must fail, words of its finding.
FAULTS = {
    "optimizer-not-restored": (
        replace(TRAINER, "_load_optimizer_and_scheduler", nothing),
        [train(steps=3), {"do": "resume", "which": 0}],
        "RES-01",
        "lora_B.weight differs by",
    ),
    "both-trainable-after-a-switch": (
        replace(PEFT_MODEL, "set_adapter", keeps_gradients),
        [ADD_SECOND, SECOND],
        "FRZ-11",
        "after switch: base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight requires gradients",
    ),
    "deleted-in-name-only": (
        replace(PEFT_MODEL, "delete_adapter", nothing),
        [ADD_SECOND, {"do": "delete", "which": 1}],
        "FRZ-15",
        "besides: ['second']",
    ),
    "base-drifts": (
        replace(TRAINER, "training_step", a_drifting_base),
        [train()],
        "FRZ-01",
        "model.embed_tokens.weight",
    ),
    "saved-by-half": (
        replace("peft.peft_model", "get_peft_model_state_dict", halved),
        [train(), {"do": "save"}],
        "CKPT-15",
        "file of 'default': model.layers.0.self_attn.q_proj.lora_A.weight differs by",
    ),
    "loaded-not-at-all": (
        replace("peft.peft_model", "set_peft_model_state_dict", an_empty_file),
        [train(), {"do": "save"}, {"do": "reload", "which": 0}],
        "CKPT-21",
        "lora_B.weight differs by",
    ),
    "nothing-is-rotated": (
        replace("transformers.trainer", "rotate_checkpoints", nothing),
        [train(steps=3, limit=1)],
        "CKPT-13",
        "[1, 2, 3]",
    ),
    "merged-twice": (
        replace("peft.tuners.lora.layer:Linear", "get_delta_weight", double),
        [train(), {"do": "merge", "saving": False}],
        "API-15",
        "merged: logits differs by",
    ),
    "disabled-in-name-only": (
        replace("peft.tuners.tuners_utils:BaseTunerLayer", "enable_adapters", nothing),
        [train(), {"do": "disable"}],
        "API-02",
        "disabled: logits differs by",
    ),
    "drawn-from-another-seed": (
        replace("peft.tuners.lora.layer:LoraLayer", "reset_lora_parameters", nothing),
        [ADD_SECOND],
        "API-03",
        "lora_A.weight differs by",
    ),
    "another-evaluation-loss": (
        replace(TRAINER, "evaluate", another_loss),
        [{"do": "evaluate", "batch": 2}],
        "EVAL-01",
        "5.",
    ),
    "trained-with-another-loss": (
        replace(TRAINER, "compute_loss", lambda original, *args, **options: 2 * original(*args, **options)),
        [train()],
        "GEN-01",
        "differs by",
    ),
    "an-error": (
        replace(TRAINER, "_save_checkpoint", lambda original, trainer, *args: 1 / 0),
        [train()],
        "GEN-01",
        "it raised ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_upstream_is_met_in_a_life(name, tmp_path, monkeypatch):
    fault, acts, clause, words = FAULTS[name]
    fault(monkeypatch)
    assert words in "\n".join(live(BORN, acts, tmp_path)[clause])


def test_every_clause_of_a_life_is_broken_by_a_fault():
    assert {clause for _, _, clause, _ in FAULTS.values()} == set(CLAUSES)


def test_a_life_is_lived_again_from_its_file(tmp_path, monkeypatch, capfd):
    file = tmp_path / "case.json"
    file.write_text(json.dumps({"clause": "FRZ-01", "spec": BORN.to_json(), "life": [train(), {"do": "disable"}]}))
    monkeypatch.setattr("sys.argv", ["peft-harness", "repro", str(file)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert "train(steps=2, batch=2, window=1, every=1, limit=0)" in capfd.readouterr().out
    FAULTS["base-drifts"][0](monkeypatch)
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 1
    assert "FRZ-01 fails: digests of the base" in capfd.readouterr().out


@pytest.mark.parametrize("life", [["train"], [{"do": "dance"}], [{"do": "train", "leaps": 2}]])
def test_a_file_without_a_life_is_refused(life, tmp_path, monkeypatch, capfd):
    file = tmp_path / "case.json"
    file.write_text(json.dumps({"spec": BORN.to_json(), "life": life}))
    monkeypatch.setattr("sys.argv", ["peft-harness", "repro", str(file)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert "case.json, life" in capfd.readouterr().err
