"""SERVE: what is loaded elsewhere, by plain peft and transformers in another process, is what was trained."""

import functools

import pytest

from harness.fixtures import named_base
from harness.fixtures.methods import METHODS
from harness.laws import served
from harness.laws.served import AUTO, FROM_PRETRAINED, LOAD_ADAPTER, MERGED, STATE_DICT
from harness.runs.elsewhere import Wanted, load
from harness.spec import ADD, RunSpec
from harness.suites.test_tables import GOTTEN, table

#: Adapters are loaded by so many at a time: each process costs as much as two adapters.
TOGETHER = 8

#: Base models that differ in the kind of layer, task and tying. Each is there with LoRA.
FAMILIES = ("gpt2", "t5", "llama-tied", "qwen3-moe", "bert-classifier", "opt")

#: Methods that do different things in half precision: add, scale, rotate, replace single weights, add tokens.
HALF = ("lora", "dora", "oft", "shira", "prompt-tuning")

#: Methods that merge into packed weights: peft/tuners/*/bnb.py.
PACKED = ("lora", "dora", "oft", "vera", "hira", "road", "randlora")


def named(spec):
    """Return the run on a base that was loaded from a directory, which adapter_config.json then names."""
    return spec.but(model={"family": named_base.FAMILY, "config": {"family": spec.model.family}})


#: Name -> (run, ways to load its adapter).
TABLE: dict[str, tuple[RunSpec, tuple[str, ...]]] = {}
for _name in [f"llama/{method}" for method in METHODS] + [f"{family}/lora" for family in FAMILIES]:
    _row = METHODS[_name.split("/")[1]]
    TABLE[_name] = (
        GOTTEN[_name],
        (FROM_PRETRAINED, STATE_DICT, *[LOAD_ADAPTER] * _row.add_adapter, *[MERGED] * _row.mergeable),
    )
for _family in ("llama", "gpt2", "t5", "bert-classifier"):
    TABLE[f"{_family}/lora/named"] = (named(GOTTEN[f"{_family}/lora"]), (AUTO, STATE_DICT))
for _name in [f"llama/{method}" for method in HALF] + ["gpt2/lora", "t5/lora"]:
    _run, _ways = TABLE[_name]
    TABLE[f"{_name}/bfloat16"] = (named(_run).but(model={"dtype": "bfloat16"}), (*_ways, AUTO))
for _method in PACKED:
    TABLE[f"llama-nf4/{_method}"] = (GOTTEN[f"llama-nf4/{_method}"], (FROM_PRETRAINED, MERGED))
TABLE["llama-int8/lora"] = (GOTTEN["llama/lora"].but(model={"quantization": "int8"}), (FROM_PRETRAINED, MERGED))
for _name, _run in table(ADD, [("llama", "lora"), ("llama", "loha"), ("gpt2", "ia3")]).items():
    TABLE[_name] = (_run, (FROM_PRETRAINED, LOAD_ADAPTER))

NAMES = list(TABLE)


def answered(name, train, runs, upstream):
    """Return (trace, answer) of a row of TABLE. Its neighbours are loaded by the same process."""
    trace = train(TABLE[name][0])
    wanted = [Wanted(trace, TABLE[name][1])]
    first = NAMES.index(name) // TOGETHER * TOGETHER
    for other in NAMES[first : first + TOGETHER]:
        spec, ways = TABLE[other]
        if other != name and upstream.unsupported(runs.on_device(spec)) is None:
            wanted.append(Wanted(runs.train(spec), ways))
    saved = [one for one in wanted if one.trace.error is None and one.trace.checkpoints]
    answers = load(saved, runs, upstream.in_each_rank)
    return trace, answers[0] if saved and saved[0].trace is trace else served.Answer()


@pytest.fixture
def elsewhere(train, runs, upstream):
    return functools.partial(answered, train=train, runs=runs, upstream=upstream)


def each(*ways):
    """Run a test once for each row of TABLE that is loaded by these ways."""
    return pytest.mark.parametrize("name", [name for name in TABLE if {*ways} <= {*TABLE[name][1]}])


LOADED = [
    pytest.param(name, way, id=f"{name}-{way}") for name, (_, ways) in TABLE.items() for way in ways if way != MERGED
]


@pytest.mark.clause("SERVE-01")
@pytest.mark.parametrize(("name", "way"), LOADED)
def test_an_adapter_computes_elsewhere_what_was_trained(name, way, elsewhere, judge):
    trace, answer = elsewhere(name)
    judge(served.computes(trace, answer, way))


@pytest.mark.clause("SERVE-02")
@each(MERGED)
def test_a_merged_model_is_the_live_one_within_rounding(name, elsewhere, judge):
    judge(served.merged(*elsewhere(name)))


@pytest.mark.clause("SERVE-03")
@each(STATE_DICT)
def test_the_config_names_what_was_trained(name, elsewhere, judge):
    judge(served.named(*elsewhere(name)))


@pytest.mark.clause("SERVE-04")
@each()
def test_loading_changes_nothing_else(name, elsewhere, judge):
    judge(served.unchanged(*elsewhere(name)))
