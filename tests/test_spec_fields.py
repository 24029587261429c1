"""What the fields of a spec may hold: every rule of the tables at its bounds, and the sentence about what is refused."""

import dataclasses
import json
import time

import pytest

from harness import spec_fields
from harness.errors import UsageError
from harness.runs.scenarios import PLAIN
from harness.spec import RunSpec
from harness.spec_fields import (
    ADAPTER_CONFIG,
    ARGUMENTS,
    FIELDS,
    MODEL_CONFIG,
    Choice,
    ChoiceOrObject,
    Each,
    Flag,
    Number,
    Text,
)

NAN, INFINITE = float("nan"), float("inf")

#: Where the fields of each table stand in a spec.
TABLES = {
    **{part: ((part,), rules) for part, rules in FIELDS.items()},
    "arguments": (("arguments",), ARGUMENTS),
    "model.config": (("model", "config"), MODEL_CONFIG),
    "adapter.config": (("adapter", "config"), ADAPTER_CONFIG),
}
#: Fields whose lowest value is refused beside other fields: LORA has a rank, and test_fields_that_belong_together has the
#: lengths.
UPWARDS = (("adapter.config", "r"), ("adapter.config", "init_r"), ("data", "length"), ("data", "max_length"))
RULES = [(table, name) for table, (_, rules) in TABLES.items() for name in rules]


def with_field(table, name, value):
    """Return a spec as JSON with one value in it. The other fields fit every value that is allowed."""
    body = PLAIN.resumed(2).to_json()
    if name == "min_length":
        body["data"] |= {"path": "rows.jsonl", "length": 2**24}
    elif table == "data" and name != "path":
        body["data"] |= {"path": "rows.jsonl"}
    part = body
    for key in TABLES[table][0]:
        part = part[key]
    part[name] = value
    return body


def read(body):
    began = time.process_time()
    try:
        return RunSpec.from_json(body, "spec.json")
    finally:
        assert time.process_time() - began < 1


def refused(body, *words):
    """Check that a spec is refused in one sentence that has these words."""
    with pytest.raises(UsageError) as caught:
        read(body)
    assert str(caught.value).startswith("spec.json")
    assert str(caught.value).isprintable()
    for word in words:
        assert word in str(caught.value)


def outside(rule):
    """Return values that a rule does not allow."""
    wrong = [[], {"a": {}}, "", "many", True, NAN, INFINITE, -INFINITE, 10**400]
    match rule:
        case Number():
            wrong += [rule.low - 1 if rule.low >= -1 else rule.low * 2, rule.high * 2 + 1]
            wrong += [1.5] if rule.whole or rule.share else []
            wrong += [] if rule.null else [None]
        case Choice():
            wrong += ["CPU", 0, 1, " "]
            wrong = [value for value in wrong if not (isinstance(rule, ChoiceOrObject) and isinstance(value, dict))]
        case Flag():
            wrong = ["yes", "false", 0, 1, 1.0, [], {}] + ([] if rule.null else [None])
        case Each():
            wrong = ["many", True, [True], [1, "2"], {"a": NAN}, [rule.rule.high * 2], [[1]]]
        case Text():
            wrong = ["", " ", "a\x00b", 3, True, [], {}] + ([] if rule.null else [None])
    return wrong


def allowed(rule, name):
    match rule:
        case Number():
            return [rule.low, rule.high, *([None] if rule.null else []), *([0.5] if rule.share else [])]
        case Choice():
            return rule.values
        case Flag():
            return [True, False, *([None] if rule.null else [])]
        case Each():
            if name in ("shape", "prefix"):  # lists alone; rows of few tasks have a prefix
                return [[rule.rule.high]] if name == "shape" else []
            return [rule.rule.low, [rule.rule.high], {"a": rule.rule.high}, [], {}]
        case Text():
            return ["some text", *([None] if rule.null else [])]
    raise AssertionError(f"a new kind of rule: {rule}")


@pytest.mark.parametrize(("table", "name"), RULES)
def test_what_a_rule_does_not_allow_is_refused_by_name(table, name):
    for value in outside(TABLES[table][1][name]):
        if (table, name) == ("resume", "checkpoint") and value is True:
            continue  # the subject chooses the checkpoint
        refused(with_field(table, name, value), f"{name}", "expected")


@pytest.mark.parametrize(("table", "name"), RULES)
def test_what_a_rule_allows_is_read_up_to_its_bounds(table, name):
    rule = TABLES[table][1][name]
    values = allowed(rule, name)
    if (table, name) in UPWARDS:
        values = values[1:]
    for value in values:
        again = json.loads(json.dumps(read(with_field(table, name, value)).to_json()))
        part = again
        for key in TABLES[table][0]:
            part = part[key]
        assert part.get(name) == value  # a field that came later is left out at its default, null


def test_every_numeric_argument_of_upstream_has_a_rule():
    """TrainingArguments that are numbers or flags: without a rule, a text would count as true."""
    from transformers import TrainingArguments

    kinds = {"int", "float", "bool"}
    fields = {
        field.name
        for field in dataclasses.fields(TrainingArguments)
        if set(str(getattr(field.type, "__name__", field.type)).replace(" ", "").split("|")) & kinds
        and "str" not in str(field.type)
    }
    # Names that are set by nobody, or refused in a file (`harness.trust`).
    assert fields - set(ARGUMENTS) <= {"hub_private_repo", "hub_always_push", "enable_jit_checkpoint"}
    assert len(fields) > 60


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"data": {"rows": -1}}, "data, rows: expected an int, 1 to 10,000,000; found -1"),
        ({"data": {"rows": 4.0}}, "data, rows: expected int, found 4.0"),
        ({"data": {"rows": True}}, "data, rows: expected int, found True"),
        ({"data": {"rows": 10**5000}}, "data, rows: expected an int, 1 to 10,000,000; found an integer of 16610 bits"),
        ({"data": {"min_length": 17}}, "data, min_length: 17 is above length, 16"),
        ({"data": {"max_length": 1}}, "data, max_length: one token leaves nothing to predict; expected 2 or more"),
        ({"trainer": {"optimiser": "a:b"}}, "unknown field 'optimiser'"),
        ({"trainer": {"model_init": "a:b"}}, "trainer, model_init: expected true or false; found 'a:b'"),
        ({"trainer": {"callbacks": "early_stopping"}}, 'trainer, callbacks: expected a list of "NAME"'),
        ({"trainer": {"data_collator": ["a:b", 3]}}, 'trainer, data_collator: expected "module:object" or'),
        ({"model": {"quantization": {"load_in_4bit": NAN}}}, "model, quantization, load_in_4bit: expected a finite"),
        ({"data": {"rows": 10**6, "length": 100}}, "data, rows: 1,000,000 rows of 100 tokens are too many to make"),
        (
            {"data": {"rows": 10**6, "length": 1, "vocab_size": 9}},
            "data, rows: there are no 1,000,000 rows of 1 tokens",
        ),
        ({"data": {"rows": 3, "order": [0, 1, 1]}}, "data, order: expected each of 0 to 2 once; found (0, 1, 1)"),
        ({"data": {"rows": 3, "order": [0, 1, 3]}}, "data, order: expected each of 0 to 2 once"),
        ({"data": {"rows": 3, "order": [0, 1]}}, "data, order: expected each of 0 to 2 once"),
        ({"data": {"order": [0, 1.0]}}, "data, order, entry 1: expected int, found 1.0"),
        ({"data": {"order": [True]}}, "data, order, entry 0: expected int, found True"),
        ({"launch": {"device": "cpu\n"}}, r"launch, device: expected one of cpu, cuda; found 'cpu\n'"),
        ({"launch": {"options": {"a": {"b": [1, NAN]}}}}, "launch, options, a, b: expected a finite number; found NaN"),
        ({"model": {"config": {"rope_theta": 10**30}}}, "model, config, rope_theta: expected a number of 64 bits"),
        ({"model": {"config": {"attention_dropout": 1.5}}}, "attention_dropout: expected a number, 0 to 1, or null"),
        ({"model": {"config": {"hidden_act": "\x00"}}}, "model, config, hidden_act: "),
        ({"adapter": {"config": {"r": 0}}}, "adapter, config, r: expected an int, 1 to 65,536; found 0"),
        ({"adapter": {"others": {"b": 3}}}, "adapter, others, b: expected a JSON object, found 3"),
        ({"adapter": {"others": {"b": {"r": -1}}}}, "adapter, others, b, r: expected an int, 1 to 65,536; found -1"),
        (
            {"trainer": {"callbacks": [["early_stopping", {"n": NAN}]]}},
            "trainer, callbacks, n: expected a finite number",
        ),
        (
            {"arguments": {"logging_steps": 2.5}},
            "logging_steps: expected a number of steps or a share below 1, 0 to 10",
        ),
        ({"arguments": {"lr_scheduler_kwargs": {"a": 1e999}}}, "lr_scheduler_kwargs, a: expected a finite number"),
        ({"resume": {"damage": ["delete x", 3]}}, "resume, damage, entry 1: expected str, found 3"),
        ({"resume": {"damage": "delete x"}}, "resume, damage: expected tuple[str, ...], found 'delete x'"),
        ({"resume": {"checkpoint": -4}}, "resume, checkpoint: expected an int, 0 to 10,000,000; found -4"),
        ({"modle": {}}, "did you mean 'model'?"),
        ({"data": {"row": 3}}, "data: unknown field 'row'; known are rows, eval_rows, "),
        ({"data": {"lenght": 3}}, "did you mean 'length'?"),
        ({"x\x1b[2J": 1}, r"unknown field 'x\x1b[2J'"),
        ({"schema_version": True}, "schema_version True is none; expected 1 to 1"),
        ({"schema_version": -1}, "schema_version -1 is none"),
        ({"schema_version": 1.0}, "schema_version 1.0 is none"),
    ],
)
def test_the_sentence_names_the_field_the_value_and_what_is_allowed(body, words):
    refused(body, words)


FIRST_LEGS = [
    ({"model": 3}, "first_leg, model: expected a JSON object, found 3"),
    ({"model": {"bogus": 1}}, "first_leg, model: unknown field 'bogus'"),
    ({"adapter": {"name": 5}}, "first_leg, adapter, name: expected str, found 5"),
    ({"launch": {"ranks": -1}}, "first_leg, launch, ranks: expected an int, 1 to 256; found -1"),
    ({"lora": {"r": -1}}, "first_leg, adapter, config, r: expected an int"),
    ({"lora": []}, "first_leg, lora: expected a JSON object, found []"),
    ({"max_steps": "5"}, "first_leg, arguments, max_steps: expected an int"),
    ({"no_such_part": {"x": 1}}, "first_leg: unknown field 'no_such_part'"),
    ({"modell": {"x": 1}}, "did you mean 'model'?"),
    ({"resume": {"checkpoint": 1}}, "first_leg: unknown field 'resume'"),
    ({"resume": None}, "first_leg: unknown field 'resume'"),
    ({"arguments": {"max_steps": 1}}, "first_leg: unknown field 'arguments'"),
]


@pytest.mark.parametrize(("changes", "words"), FIRST_LEGS)
def test_a_first_leg_is_made_of_arguments_of_but(changes, words):
    refused({"resume": {"first_leg": changes}}, words)


def test_a_first_leg_that_is_read_can_be_made():
    changes = {"model": {"seed": 3}, "lora": {"r": 4}, "max_steps": 5, "save_steps": None, "data": {"order": [1, 0]}}
    changes["lr_scheduler_kwargs"] = {"num_cycles": 2}
    body = PLAIN.but(save_steps=2, data={"rows": 2}).resumed(2, first_leg=changes).to_json()
    leg = read(body).first_leg()
    assert (leg.model.seed, leg.adapter.config["r"], leg.data.order) == (3, 4, (1, 0))
    assert leg.arguments["max_steps"] == 5
    assert "save_steps" not in leg.arguments


def test_large_models_and_long_runs_are_legal():
    """The largest that people train, on the hosts that they have."""
    llama_405b = {
        **{"hidden_size": 16384, "num_hidden_layers": 126, "intermediate_size": 53248, "num_attention_heads": 128},
        **{"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0},
    }
    spec = PLAIN.but(
        model={"config": llama_405b, "dtype": "bfloat16"},
        lora={"r": 1024, "lora_alpha": 0.5},
        data={"path": "rows.jsonl", "rows": 5_000_000, "length": 131072, "vocab_size": 128256},
        launch={"device": "cuda", "ranks": 8, "strategy": "fsdp2", "limit": 604800.0},
        max_steps=1_500_000,
        gradient_accumulation_steps=4096,
        per_device_train_batch_size=4096,
        dataloader_num_workers=64,
        warmup_steps=0.03,
        max_grad_norm=None,
        learning_rate=1e36,
    )
    assert read(spec.to_json()) == spec


def test_a_spec_that_python_builds_is_not_checked():
    assert PLAIN.but(max_steps=10**30, data={"rows": -1}).arguments["max_steps"] == 10**30


def test_the_spec_of_a_run_that_was_made_is_read_without_bounds():
    body = PLAIN.but(max_steps=10**30).to_json()
    refused(body, "max_steps")
    assert RunSpec.from_json(body, within_bounds=False).arguments["max_steps"] == 10**30
    with pytest.raises(UsageError, match="data, rows: expected int, found 'many'"):
        RunSpec.from_json({"data": {"rows": "many"}}, within_bounds=False)


def test_choices_are_those_that_the_harness_has():
    from harness.fixtures.models import TASK_TYPES
    from harness.spec import ADD, GET
    from harness.subjects.launch_arguments import STRATEGIES

    assert FIELDS["launch"]["strategy"] == spec_fields.Choice(tuple(STRATEGIES))
    assert FIELDS["data"]["task"] == spec_fields.Choice(tuple(TASK_TYPES))
    assert FIELDS["adapter"]["route"] == spec_fields.Choice((GET, ADD))


def test_more_processes_than_a_machine_can_take_are_refused(monkeypatch):
    from harness.subjects import hf_trainer, launch_arguments

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    launch = RunSpec().but(launch={"strategy": "ddp", "ranks": 16}).launch
    assert launch_arguments.unsupported(launch) is None
    more = dataclasses.replace(launch, ranks=17)
    assert launch_arguments.unsupported(more) == "17 ranks are too many for 2 cores, which take 16"
    spec = RunSpec().but(launch={"strategy": "ddp", "ranks": 2}, dataloader_num_workers=8)
    assert hf_trainer.HFTrainer().unsupported(spec) is None
    reason = hf_trainer.HFTrainer().unsupported(spec.but(launch={"ranks": 3}))
    assert reason == "24 dataloader workers are too many for 2 cores, which take 16"
