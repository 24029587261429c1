"""Put faults into upstream under which the checks of suites/test_qlora.py must fail."""

import pytest

from harness.suites import test_qlora as qlora
from tests.faults import Fault, assert_seen, each, mutant, nothing, replace, verdict_of

pytest.importorskip("bitsandbytes", reason="quantized bases need bitsandbytes")


# ---- faults ----


def default_targets(model_type, modules, says):
    """Return a fault that changes a row of peft's table of default target modules."""

    def put(monkeypatch):
        from peft.tuners.lora import LoraModel

        monkeypatch.setitem(LoraModel.target_module_mapping, model_type, modules)

    return Fault(says, put)


def the_head_too(original, config, model):
    """target_modules="all-linear" adapts the output layer, too."""
    changed = original(config, model)
    changed.target_modules.add("lm_head")
    return changed


def nameless(original, config, *args, **options):
    """adapter_config.json does not name the base."""
    config.base_model_name_or_path = None
    return original(config, *args, **options)


def another_base(original, model, *args, **options):
    """Loading an adapter changes the scale of a packed weight."""
    loaded = original(model, *args, **options)
    next(p for p in model.parameters() if hasattr(p, "quant_state")).quant_state.absmax.add_(1)
    return loaded


def ia3_refused(kind, words, says=""):
    """Return a fault with which IA3 raises an error instead of adapting a layer."""

    def refuse(original, *args, **options):
        raise kind(words)

    return replace("peft.tuners.ia3.model:IA3Model", "_create_new_module", refuse, says)


#: The error of peft 0.20.0 for OFT on a packed layer.
DOES_NOT_FIT = "Linear4bit.__init__() missing 1 required positional argument: 'config'"
IA3 = qlora.test_tables.table("get_peft_model", [("llama-nf4", "ia3")])["llama-nf4/ia3"]
NO_UPDATE = replace("torch.optim:AdamW", "step", nothing, "The optimizer updates no parameter.")

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "QLORA-01/packed": (
        qlora.test_a_prepared_nf4_base_trains_under_checkpointing,
        {"trace": qlora.SAVED},
        mutant("eight-bits-for-four"),
        "q_proj.weight is int8 [64, 64], expected uint8 [2048, 1]",
    ),
    "QLORA-01/moved": (
        qlora.test_a_prepared_nf4_base_trains_under_checkpointing,
        {"trace": qlora.SAVED},
        NO_UPDATE,
        "lora_B.weight is what it was before training",
    ),
    "QLORA-02/run": (
        qlora.test_no_target_modules_are_those_of_the_model_type,
        {"spec": qlora.BRIEF, "modules": ["q_proj", "v_proj"]},
        default_targets(
            "llama", ["q_proj", "k_proj"], "Without target_modules a Llama is adapted on q_proj and k_proj."
        ),
        "besides: ['k_proj']",
    ),
    "QLORA-02/unknown": (
        qlora.test_an_unknown_model_type_is_refused,
        {"model_type": "unheard-of"},
        default_targets(
            "unheard-of", ["q_proj"], "A model type that peft does not know is adapted without target_modules."
        ),
        "raised nothing",
    ),
    "QLORA-03": (
        qlora.test_all_linear_adapts_the_decoder_and_not_the_output_layer,
        {"trace": qlora.ALL_OF_NF4},
        replace("peft.tuners.tuners_utils", "_maybe_include_all_linear_layers", the_head_too),
        "lm_head.lora_A.weight is trained, unexpected",
    ),
    "QLORA-04/resume": (
        qlora.test_a_run_on_nf4_resumes,
        {"spec": qlora.continued(qlora.QLORA, 2)},
        mutant("generators-not-restored"),
        "step 3: gradients of",
    ),
    "QLORA-04/routes": (
        qlora.test_both_routes_are_one_run,
        {},
        mutant("routes-draw-differently"),
        "step 1: gradients of",
    ),
    "QLORA-05/cast": (
        qlora.test_preparation_casts_what_is_not_packed,
        {"spec": qlora.PREPARED_BF16, "base": "float32"},
        mutant("not-prepared"),
        "lm_head.weight is bfloat16, expected float32",
    ),
    "QLORA-05/freeze": (
        qlora.test_preparation_freezes_the_base,
        {},
        mutant("not-prepared"),
        "lm_head.weight",
    ),
    "QLORA-05/checkpointing": (
        qlora.test_preparation_switches_checkpointing_on,
        {"prepared": True, "switched": True},
        mutant("not-prepared"),
        "checkpointing: False, expected True",
    ),
    "QLORA-06": (
        qlora.test_without_preparation_a_float32_base_trains_the_same,
        {"spec": qlora.QLORA},
        mutant("preparing-scales-the-output-layer"),
        "step 1: gradients of",
    ),
    "QLORA-07/dtype": (
        qlora.test_the_file_holds_the_adapter_in_float32_alone,
        {"trace": qlora.SAVED},
        mutant("adapter-saved-in-half-precision"),
        "is F16, expected F32",
    ),
    "QLORA-07/name": (
        qlora.test_the_config_names_the_base,
        {"spec": qlora.BRIEF},
        replace("peft:LoraConfig", "save_pretrained", nameless),
        "None",
    ),
    "QLORA-08/bits": (
        qlora.test_moments_are_8_bit_from_4096_numbers_on,
        {"trace": qlora.WIDE.but(optim="adamw_bnb_8bit")},
        mutant("moments-not-in-8-bits"),
        "is float32 of 8192, expected uint8 of 8192",
    ),
    "QLORA-08/resume": (
        qlora.test_runs_with_8_bit_and_paged_optimizers_resume,
        {"spec": qlora.continued(qlora.WIDE.but(optim="adamw_bnb_8bit"), 2)},
        mutant("optimizer-not-restored"),
        "step 3: learning rates",
    ),
    "QLORA-15/trains": (
        qlora.test_a_method_trains_on_a_packed_base_or_refuses_it,
        {"spec": IA3},
        NO_UPDATE,
        "is what it was before training",
    ),
    "QLORA-15/refuses": (
        qlora.test_a_method_trains_on_a_packed_base_or_refuses_it,
        {"spec": IA3},
        ia3_refused(
            TypeError, "unsupported operand", "A method refuses a packed base with an error that does not name it."
        ),
        "TypeError names neither the packed layer nor that it is quantized: unsupported operand",
    ),
    "QLORA-15/does-not-fit": (
        qlora.test_a_method_trains_on_a_packed_base_or_refuses_it,
        {"spec": IA3},
        ia3_refused(
            TypeError, DOES_NOT_FIT, "A method refuses a packed layer by a call that does not fit the layer's class."
        ),
        "TypeError says nothing of what is supported: Linear4bit.__init__() missing",
    ),
    "QLORA-12/resume": (
        qlora.test_the_packed_base_is_the_same_in_a_continued_run,
        {"spec": qlora.continued(qlora.QLORA, 2)},
        replace("peft:PeftModel", "load_adapter", another_base),
        "absmax after the resumed run",
    ),
    "QLORA-12/save_pretrained": (
        qlora.test_the_packed_base_survives_save_pretrained,
        {},
        mutant("packed-base-saved-otherwise"),
        "absmax differs by",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


def test_a_method_that_names_the_layer_it_refuses_holds(runs, tmp_path, monkeypatch):
    words = "Target module Linear4bit(in_features=64, out_features=64, bias=False) is not supported."
    ia3_refused(ValueError, words)(monkeypatch)
    verdict = verdict_of(qlora.test_a_method_trains_on_a_packed_base_or_refuses_it, runs, tmp_path, spec=IA3)
    assert verdict.holds
    assert verdict.measured == {"refused": f"ValueError: {words}"}
