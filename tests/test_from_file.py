"""What a spec from a file says of launches and reporters becomes a run that can be judged here, or one sentence."""

import json

import pytest

from harness import compat
from harness.errors import UsageError
from harness.runs.scenarios import PLAIN
from harness.spec import RunSpec
from harness.subjects import launch_arguments
from harness.subjects.from_file import as_run


def run(**arguments):
    return as_run(PLAIN.but(**arguments), "spec.json")


def test_a_plain_spec_stays_as_it_is():
    assert as_run(PLAIN, "spec.json") == (PLAIN, [])


def test_where_a_run_writes_and_reports_to_is_left_out():
    given = {
        "output_dir": "/elsewhere",
        "logging_dir": "/elsewhere",
        "run_name": "mine",
        "push_to_hub": True,
        "hub_model_id": "someone/it",
        "hub_token": "secret",
        "report_to": ["wandb", "tensorboard"],
        "overwrite_output_dir": False,
    }
    spec, notes = run(**given)
    assert spec == PLAIN.but(report_to=["tensorboard"])
    assert len(notes) == 7 and not any("secret" in note for note in notes)
    assert run(report_to="all")[0] == PLAIN


def test_the_first_leg_writes_nowhere_else_either():
    spec, _ = as_run(PLAIN.resumed(2, first_leg={"output_dir": "/elsewhere", "max_steps": 4}), "spec.json")
    assert spec.resume.first_leg == {"max_steps": 4}


def test_a_run_of_an_old_release_reports_to_nobody(monkeypatch):
    monkeypatch.setattr(compat, "reports_everywhere", lambda: True)
    assert as_run(RunSpec(arguments={"max_steps": 1}), "spec.json")[0].arguments["report_to"] == "none"


@pytest.mark.parametrize(
    ("arguments", "launch"),
    [
        ({"fsdp": True, "fsdp_config": {"version": 2}}, {"strategy": "fsdp2", "ranks": 2}),
        (
            {"fsdp": "shard_grad_op auto_wrap offload", "fsdp_config": {"fsdp_version": 2}},
            {"strategy": "fsdp2", "ranks": 2, "cpu_offload": True, "options": {"reshard_after_forward": False}},
        ),
        (
            {
                "fsdp": ["full_shard", "auto_wrap"],
                "fsdp_config": {
                    "version": 1,
                    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
                    "activation_checkpointing": "true",
                    "min_num_params": 0,
                    "xla": False,
                    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
                },
            },
            {
                "strategy": "fsdp1",
                "ranks": 2,
                "state_dict_type": "SHARDED_STATE_DICT",
                "activation_checkpointing": True,
                "options": {
                    "reshard_after_forward": "full_shard",
                    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
                },
            },
        ),
        ({"fsdp": "", "fsdp_config": {"min_num_params": 0, "xla": False}}, {}),
        (
            {"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}},
            {
                "strategy": "zero3",
                "ranks": 2,
                "cpu_offload": True,
                "options": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            },
        ),
    ],
)
def test_fsdp_and_deepspeed_become_the_launch(arguments, launch):
    spec, notes = run(**arguments)
    assert spec == PLAIN.but(launch=launch)
    assert len(notes) == bool(launch)


def test_options_are_read_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, "steps_per_print": 7}))
    (tmp_path / "fsdp.json").write_text(json.dumps({"version": 2}))
    (tmp_path / "loader.json").write_text(json.dumps({"split_batches": True}))
    spec, _ = run(deepspeed="zero.json", accelerator_config="loader.json")
    assert (spec.launch.strategy, spec.launch.options["steps_per_print"]) == ("zero1", 7)
    assert spec.arguments["accelerator_config"] == {"split_batches": True}
    assert run(fsdp="full_shard", fsdp_config="fsdp.json")[0].launch.strategy == "fsdp2"


def test_ranks_that_the_launch_names_stay():
    spec, _ = as_run(PLAIN.but(launch={"strategy": "fsdp2", "ranks": 3}, fsdp=True), "spec.json")
    assert spec.launch.ranks == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"deepspeed": "gone.json"}, "spec.json, deepspeed: gone.json: no such file"),
        ({"deepspeed": [1]}, "spec.json, deepspeed: expected a JSON object of options"),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, "only stages 1, 2 and 3 can be run here, not 0"),
        ({"deepspeed": {"zero_optimization": 3}}, "zero_optimization: expected a JSON object"),
        ({"fsdp": "full_shart"}, "unknown field 'full_shart'; known are full_shard"),
        ({"fsdp": "hybrid_shard"}, "hybrid_shard cannot be run here"),
        ({"fsdp": True, "fsdp_config": {"xla": True}}, "FSDP of XLA cannot be run here"),
        ({"fsdp": True, "fsdp_config": {"version": 3}}, "version: expected 1 or 2, found 3"),
        ({"fsdp": 7}, "expected true, words or a list of words, found 7"),
    ],
)
def test_what_cannot_be_run_here_gets_one_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        run(**arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_two_strategies_exclude_each_other():
    with pytest.raises(UsageError, match=r"asks for fsdp2, but launch\.strategy is ddp"):
        as_run(PLAIN.but(launch={"strategy": "ddp", "ranks": 2}, fsdp=True, fsdp_config={"version": 2}), "spec.json")


def test_what_the_config_does_not_say_is_as_under_the_strategy():
    spec, _ = run(deepspeed={"zero_optimization": {"stage": 3, "overlap_comm": False}})
    zero = launch_arguments.arguments(spec.launch)["deepspeed"]["zero_optimization"]
    assert zero["overlap_comm"] is False and zero["stage3_param_persistence_threshold"] == 0


def test_an_adapter_for_inference_is_refused_with_a_sentence():
    with pytest.raises(UsageError, match=r"spec\.json: nothing is trained: adapter\.config\.inference_mode is true"):
        as_run(PLAIN.but(lora={"inference_mode": True}), "spec.json")
    assert as_run(PLAIN.but(lora={"inference_mode": False}), "spec.json")[0]
