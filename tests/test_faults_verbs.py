"""Put faults into upstream under which the checks of verbs beside training must fail."""

from harness.runs.verb_table import rows
from harness.suites import test_api_weighted as weighted
from harness.suites import test_ckpt_loading as loading
from harness.suites import test_verbs as verbs
from tests.faults import assert_seen, each, mutant, replace


def row(begins):
    """Return the first case whose name begins like that."""
    return {"row": next(one for name, one in rows("").items() if name.startswith(begins))}


def always_with_little_memory(original, *args, low_cpu_mem_usage=False, **options):
    """The flag low_cpu_mem_usage=True loads the adapter as is_trainable=False."""
    options["is_trainable"] = options.get("is_trainable", False) and not low_cpu_mem_usage
    return original(*args, low_cpu_mem_usage=low_cpu_mem_usage, **options)


FAULTS = {
    "API-15/again": (
        verbs.test_what_is_merged_computes_the_same,
        row("linear/lora/merge-again"),
        mutant("merged-once-more"),
        "merged twice: layer 0 weight differs by",
    ),
    "API-15/safely": (
        verbs.test_what_is_merged_computes_the_same,
        row("linear/lora/merge-again"),
        mutant("merged-unsafely"),
        "safe_merge merged an adapter of NaN without an error",
    ),
    "API-13": (
        verbs.test_what_is_taken_out_leaves_the_base,
        row("linear/lora/unload"),
        mutant("merged-when-unloaded"),
        "unloaded: logits differs by",
    ),
    "API-23": (
        verbs.test_a_verb_leaves_what_it_is_not_about,
        row("linear/lora/modes"),
        mutant("evaluating-after-a-merge"),
        "merging and unmerging in training mode: training of",
    ),
    "API-24/alone": (
        weighted.test_one_adapter_with_weight_one_is_that_adapter,
        {"spec": weighted.FIRST},
        mutant("combined-twice-as-large"),
        "combined: logits differs by",
    ),
    "API-24/ties": (
        weighted.test_two_adapters_are_combined_as_the_type_says,
        {"kind": "ties", "weights": (0.7, 0.4)},
        mutant("minority-elected"),
        "what ties adds differs by",
    ),
    "API-25": (
        weighted.test_several_active_adapters_merge_into_what_they_compute,
        {"method": "lora"},
        mutant("one-of-two-merged"),
        "merged: logits differs by",
    ),
    "API-26": (
        verbs.test_what_is_converted_computes_the_same,
        row("linear/loha/convert"),
        mutant("converted-too-large"),
        "as a LoRA: logits differs by",
    ),
    "CKPT-29/hotswap": (
        verbs.test_what_is_loaded_is_what_was_saved,
        row("linear/lora/load/hotswap"),
        mutant("not-swapped"),
        "differs by",
    ),
    "CKPT-29/low-cpu-mem-usage": (
        loading.test_loading_with_little_memory_loads_the_same,
        {"spec": loading.LOW["low-cpu-mem-usage/plain/float32"]},
        replace("peft:PeftModel", "from_pretrained", always_with_little_memory),
        "requires_grad of base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight is False",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)
