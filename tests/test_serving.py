"""`peft-harness adapter`: files of every kind of damage, each rule of a server, and what is left of a known effect."""

import json
import os

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

from harness.checkpoints import adapter_directory
from harness.errors import UsageError
from harness.fixtures import models
from harness.paths import PACKAGE
from harness.processes.imports import import_upstream
from harness.serving import command, effect, rules, servers
from harness.spec import ModelSpec

SCHEMA = json.loads((PACKAGE / "serving/adapter_schema.json").read_text())
PREFIX = "base_model.model.model.layers.0.self_attn"
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
}


def matrices(names=("q_proj", "v_proj"), rank=4, layers=2, scale=0.05):
    """Return the tensors of a LoRA for the harness's tiny Llama, drawn from a seed."""
    draw = torch.Generator().manual_seed(3)
    made = {}
    for layer in range(layers):
        for name in names:
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            outputs = 64 if name == "q_proj" else 32
            made[f"{path}.lora_A.weight"] = torch.randn(rank, 64, generator=draw) * 0.1
            made[f"{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * scale
    return made


def written(path, config=CONFIG, tensors=None, **changes):
    """Write an adapter's directory, and return it. changes: fields of the config; None leaves one out."""
    path.mkdir()
    fields = {name: value for name, value in {**config, **changes}.items() if value is not None}
    (path / "adapter_config.json").write_text(json.dumps(fields))
    save_file(matrices() if tensors is None else tensors, path / "adapter_model.safetensors")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    import_upstream()
    path = tmp_path_factory.mktemp("base")
    models.build(ModelSpec()).save_pretrained(path)
    return path


def run(path, tmp_path, capsys, model=None, tokens=None):
    """Return the exit code, what was printed, and the report, which must fit its schema."""
    code = command.run(path, model, tokens, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    return code, capsys.readouterr().out, report


# ---- file ----


def cut(path):
    file = path / "adapter_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def longer(path):
    with (path / "adapter_model.safetensors").open("ab") as file:
        file.write(b"\0" * 7)


def emptied(path):
    save_file({}, path / "adapter_model.safetensors")


def zero_filled(path):
    file = path / "adapter_model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))


def overlapping(path):
    file = path / "adapter_model.safetensors"
    body = file.read_bytes()
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    first, second, *_ = header
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    file.write_bytes(body[:8] + text[:length] + body[8 + length :])


def half_a_config(path):
    file = path / "adapter_config.json"
    file.write_text(file.read_text()[:20])


#: What is done to a whole directory -> words of the finding.
DAMAGE = {
    "cut": (cut, "bytes, but its header describes"),
    "longer": (longer, "bytes, but its header describes"),
    "no-tensor": (emptied, "holds no tensor"),
    "zero-filled": (zero_filled, "which are no header"),
    "overlapping": (overlapping, "which are not its own"),
    "an-empty-file": (lambda path: (path / "adapter_model.safetensors").write_bytes(b""), "has 0 bytes"),
    "no-tensors-file": (lambda path: (path / "adapter_model.safetensors").unlink(), "has a config and no tensors"),
    "no-config": (lambda path: (path / "adapter_config.json").unlink(), "nobody can load the tensors"),
    "half-a-config": (half_a_config, "not JSON"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_directory_is_torn(name, tmp_path, capsys):
    damage, words = DAMAGE[name]
    path = written(tmp_path / "adapter")
    damage(path)
    code, out, report = run(path, tmp_path, capsys)
    assert (code, report["file"]["verdict"], report["servers"]) == (1, "torn", [])
    assert words in out and any(words in one["why"] for one in report["file"]["files"])


def without(end):
    return {name: tensor for name, tensor in matrices().items() if not name.endswith(end)}


def with_nan():
    tensors = matrices()
    tensors[f"{PREFIX}.q_proj.lora_A.weight"][1, 2] = torch.nan
    return tensors


#: Changes of the config, the tensors -> words of the finding.
MISFITS = {
    "another-rank": ({"r": 8}, None, "matrices of another rank"),
    "another-rank-by-pattern": ({"rank_pattern": {"v_proj": 2}}, None, "matrices of another rank"),
    "half-a-pair": ({}, without("layers.1.self_attn.v_proj.lora_B.weight"), "has one of two matrices"),
    "another-module": ({"target_modules": ["q_proj"]}, None, "none of target_modules"),
    "no-magnitude": ({"use_dora": True}, None, "no magnitude of DoRA"),
    "no-head": ({"modules_to_save": ["lm_head"]}, None, "was trained whole"),
    "nan": ({}, with_nan(), "NaN or infinite"),
    "nothing-of-lora": ({}, {"base_model.model.lm_head.weight": torch.ones(2, 2)}, "no lora_A and no lora_B"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_tensors_that_do_not_fit_the_config_are_torn(name, tmp_path, capsys):
    changes, tensors, words = MISFITS[name]
    code, out, _ = run(written(tmp_path / "adapter", tensors=tensors, **changes), tmp_path, capsys)
    assert code == 1 and words in out


def test_a_pattern_that_fits_is_whole(tmp_path, capsys):
    tensors = {**matrices(["q_proj"]), **matrices(["v_proj"], rank=2)}
    code, out, _ = run(written(tmp_path / "a", tensors=tensors, rank_pattern={"v_proj": 2}), tmp_path, capsys)
    assert code == 0, out


def test_an_untrained_adapter_is_whole_and_said(tmp_path, capsys):
    code, out, report = run(written(tmp_path / "a", tensors=matrices(scale=0.0)), tmp_path, capsys)
    assert code == 0 and "every lora_B is zero" in out
    assert report["file"]["notes"] == [next(note for note in report["file"]["notes"] if "lora_B" in note)]


def test_the_newest_checkpoint_is_taken(tmp_path, capsys):
    for step in (2, 10):
        written(tmp_path / f"checkpoint-{step}")
    code, out, _ = run(tmp_path, tmp_path, capsys)
    assert code == 0 and "checkpoint-10, the newest" in out


def test_the_base_says_what_the_file_lacks(base, tmp_path, capsys):
    path = written(tmp_path / "adapter", tensors=matrices(layers=1))
    code, out, _ = run(path, tmp_path, capsys)
    assert code == 0, out
    code, out, _ = run(path, tmp_path, capsys, model=base)
    assert code == 1 and "lacks" in out and "layers.1.self_attn.q_proj.lora_A.weight" in out


def test_a_config_that_names_code_is_refused(base, tmp_path):
    path = written(tmp_path / "adapter", megatron_config={"a": 1}, megatron_core="my_code")
    with pytest.raises(UsageError, match="megatron"):
        command.run(path, base, None, None)


# ---- servers ----

_DORA = {**matrices(), **{f"{PREFIX}.{name}.lora_magnitude_vector": torch.ones(64) for name in ("q_proj", "v_proj")}}
_HEAD = {**matrices(), "base_model.model.lm_head.weight": torch.ones(256, 64)}

_ADAPTED_HEAD = {
    "base_model.model.lm_head.lora_A.weight": torch.ones(4, 64),
    "base_model.model.lm_head.lora_B.weight": torch.ones(256, 4),
}

#: Changes of the config and the tensors -> what vLLM, SGLang and llama.cpp do with it.
SERVED = {
    "plain": ({}, None, "yes", "yes", "yes"),
    "rank-24": ({"r": 24}, matrices(rank=24), "yes", "yes", "yes"),
    "rank-600": ({"r": 600}, matrices(rank=600), "no", "yes", "yes"),
    "rslora": ({"use_rslora": True}, None, "yes", "wrongly", "wrongly"),
    "dora": ({"use_dora": True}, _DORA, "no", "no", "no"),
    "head": ({"modules_to_save": ["lm_head"]}, _HEAD, "no", "wrongly", "no"),
    "bias": ({"bias": "all"}, None, "no", "yes", "yes"),
    "pissa": ({"init_lora_weights": "pissa"}, None, "depends", "wrongly", "wrongly"),
    "gaussian": ({"init_lora_weights": "gaussian"}, None, "yes", "yes", "yes"),
    "alpha-pattern": ({"alpha_pattern": {"v_proj": 4}}, None, "depends", "wrongly", "wrongly"),
    "lora-bias": ({"lora_bias": True}, None, "no", "yes", "yes"),
    "layer-replication": ({"layer_replication": [[0, 2]]}, None, "no", "yes", "yes"),
    "alora": ({"alora_invocation_tokens": [1]}, None, "no", "yes", "yes"),
    "bdlora": ({"use_bdlora": {"a": 1}}, None, "no", "yes", "yes"),
    "qalora": ({"use_qalora": True}, None, "no", "yes", "yes"),
    "q-alone": ({"target_modules": ["q_proj"]}, matrices(["q_proj"]), "yes", "no", "yes"),
    "ia3": ({"peft_type": "IA3"}, {f"{PREFIX}.q_proj.ia3_l": torch.ones(64, 1)}, "no", "no", "no"),
    "no-alpha": ({"lora_alpha": None}, None, "no", "no", "no"),
    "resized": ({}, {**matrices(), "base_model.model.model.embed_tokens.weight": torch.ones(2, 64)}, "depends", "yes", "no"),
    "adapted-head": ({"target_modules": ["lm_head"]}, _ADAPTED_HEAD, "yes", "yes", "depends"),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_each_server_takes_what_its_source_takes(name, tmp_path):
    changes, tensors, *expected = SERVED[name]
    adapter = adapter_directory.read(written(tmp_path / "adapter", tensors=tensors, **changes))
    answers = servers.judge(adapter)
    assert [answer.takes for answer in answers] == expected, [answer.why for answer in answers]
    assert all(said["source"] for answer in answers for said in answer.why + answer.needs)
    if name == "rank-24":
        assert answers[0].needs[0]["sentence"] == "--max-lora-rank 32"


def test_each_rule_applies_somewhere(tmp_path):
    left = set(rules.RULES)
    for name, (changes, tensors, *_) in SERVED.items():
        adapter = adapter_directory.read(written(tmp_path / name, tensors=tensors, **changes))
        left -= {rule for rule in left if rule.applies(adapter)}
    assert not left


# ---- effect ----


def test_an_adapter_in_bfloat16_loses_what_rounding_takes(base, tmp_path, capsys):
    large, small = (
        run(written(tmp_path / str(scale), tensors=matrices(scale=scale)), tmp_path, capsys, model=base)[2]["effect"]
        for scale in (0.05, 1e-5)
    )
    ways = {way["way"]: way for way in large["ways"]}
    assert set(ways) == set(effect.WAYS)
    assert all(abs(way["share"] - 1) < 0.05 for way in ways.values()), ways
    # An eighth of the steps of bfloat16 are in float16's mantissa.
    assert ways["float16, merged"]["rounding"] < ways["bfloat16, merged"]["rounding"] / 4
    # A five-thousandth of the adapter is far below the last place of bfloat16.
    assert min(way["rounding"] for way in small["ways"] if way["way"].startswith("bfloat16")) > 5


def test_given_tokens_are_used(base, tmp_path, capsys):
    tokens = tmp_path / "rows.jsonl"
    tokens.write_text('{"input_ids": [1, 2, 3]}\n{"input_ids": [4, 5]}\n')
    _, out, report = run(written(tmp_path / "a"), tmp_path, capsys, model=base, tokens=tokens)
    assert report["effect"]["tokens"].startswith("2 rows of ") and "2 rows of" in out


@pytest.mark.parametrize("row", ['{"input_ids": []}', '{"input_ids": [256]}', '{"text": "a"}', "[1]", ""])
def test_tokens_that_are_none_are_refused(row, base, tmp_path):
    tokens = tmp_path / "rows.jsonl"
    tokens.write_text(row + "\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl"):
        command.run(written(tmp_path / "a"), base, tokens, None)
