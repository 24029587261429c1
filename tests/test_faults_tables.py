"""Put faults into upstream under which the laws over the tables of models and methods must fail."""

import itertools

import pytest
import torch

from harness.suites import test_ckpt_adapters as adapters
from harness.suites import test_qlora as qlora
from harness.suites import test_rng as rng
from harness.suites import test_tables as tables
from tests.faults import Fault, assert_seen, each, mutant, replace, verdict_of

# ---- faults ----


def a_norm_drifts(original, trainer, *args, **options):
    """Each step changes a norm of the base."""
    with torch.no_grad():
        next(p for name, p in trainer.model.named_parameters() if "norm" in name.lower()).mul_(1.0001)
    return original(trainer, *args, **options)


def a_norm_gets_a_gradient(original, trainer, *args, **options):
    """A frozen norm holds a gradient when the optimizer steps."""
    loss = original(trainer, *args, **options)
    norm = next(p for name, p in trainer.model.named_parameters() if "norm" in name.lower())
    norm.grad = torch.ones_like(norm)
    return loss


def all_zero(original, layer, name):
    """Both factors of both products of a LoHa start at zero, so no gradient ever leaves them."""
    original(layer, name)
    for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
        torch.nn.init.zeros_(getattr(layer, part)[name])


def number_of_items_dropped(original, source, target, num_items_in_batch=None, *args, **options):
    """The loss ignores num_items_in_batch and divides by its own labels."""
    return original(source, target, None, *args, **options)


def twice(original, *args, **options):
    """The model returns twice its loss."""
    output = original(*args, **options)
    if output.get("loss") is not None:
        output["loss"] = 2 * output["loss"]
    return output


def not_saved(part, says):
    """Return a fault that leaves tensors out of the adapter file. part: what their names contain."""

    def dropped(original, *args, **options):
        return {key: tensor for key, tensor in original(*args, **options).items() if part not in key}

    return replace("peft.peft_model", "get_peft_model_state_dict", dropped, says)


def shared_again(original, *args, **options):
    """The adapter file of VeRA holds a shared tensor twice."""
    state = original(*args, **options)
    return state | {"base_model.model.model.layers.0.self_attn.q_proj.vera_A": state["base_model.vera_A"].clone()}


def not_loaded(part, says):
    """Return a fault that loads an adapter without some tensors. part: what their names contain."""

    def dropped(original, model, state, *args, **options):
        return original(model, {key: tensor for key, tensor in state.items() if part not in key}, *args, **options)

    return replace("peft.peft_model", "set_peft_model_state_dict", dropped, says)


def forgotten(original, model, *args, **options):
    """Loading a LoKr adapter leaves one of its tensors at zero."""
    result = original(model, *args, **options)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lokr_w2" in name).zero_()
    return result


def padded(original, tensors, path, *args, **options):
    """The adapter file has one more byte than its header and tensors, as an interrupted overwrite leaves it."""
    original(tensors, path, *args, **options)
    with open(path, "ab") as file:
        file.write(b"\0")


def a_prompt_of_ones(original, *args, **options):
    """Loading a prompt sets all of its numbers to one."""
    result = original(*args, **options)
    model = args[0]
    if "prompt_encoder" in dict(model.named_children()):
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight.fill_(1.0)
    return result


def rotated(original, layer, name, *args, **options):
    """A fresh OFT adapter rotates its input."""
    original(layer, name, *args, **options)
    torch.nn.init.normal_(layer.oft_R[name].weight, std=0.1)


def smaller_scale(original, layer, *args, **options):
    """An adapter is scaled by half of what its config says."""
    original(layer, *args, **options)
    layer.scaling = {name: 0.5 * value for name, value in layer.scaling.items()}


def no_peft(original):
    """The Trainer takes peft for not installed, and pushes the base with each checkpoint."""
    return False


TRAINER = "transformers.trainer:Trainer"
GOTTEN, ADDED = tables.GOTTEN, tables.ADDED

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "FRZ-01/opt": (
        tables.test_the_base_is_bit_identical,
        {"trace": GOTTEN["opt/lora"]},
        replace(TRAINER, "training_step", a_norm_drifts),
        "layer_norm.weight: digest",
    ),
    "FRZ-01/t5": (
        tables.test_the_base_is_bit_identical,
        {"trace": ADDED["t5/ia3/add_adapter"]},
        replace(TRAINER, "training_step", a_norm_drifts),
        "layer_norm.weight: digest",
    ),
    "FRZ-02/vera": (
        tables.test_the_optimizer_holds_what_requires_gradients,
        {"trace": GOTTEN["llama/vera"]},
        mutant("parameter-left-out-of-the-optimizer"),
        "vera_lambda_b requires gradients but is in no group",
    ),
    "FRZ-03": (
        tables.test_the_base_gets_no_gradient,
        {"trace": GOTTEN["bert-classifier/prefix-tuning"]},
        replace(TRAINER, "training_step", a_norm_gets_a_gradient),
        "LayerNorm.weight held a gradient",
    ),
    "FRZ-13/loha": (
        tables.test_two_steps_move_every_tensor,
        {"trace": GOTTEN["llama/loha"]},
        replace("peft.tuners.loha.layer:LoHaLayer", "reset_adapter_parameters", all_zero),
        "hada_w1_a is what it was before training",
    ),
    "LOSS-01/opt": (
        tables.test_a_step_is_the_mean_over_the_labels_of_its_window,
        {"trace": GOTTEN["opt/lora"]},
        replace("transformers.loss.loss_utils", "fixed_cross_entropy", number_of_items_dropped),
        "step 1: the gradient is 2 times what it must be",
    ),
    "LOSS-01/bert": (
        tables.test_a_step_is_the_mean_over_the_labels_of_its_window,
        {"trace": tables.ONE_BATCH["bert-classifier/lora"]},
        replace("transformers:BertForSequenceClassification", "forward", twice),
        "step 1: the gradient is 2 times what it must be",
    ),
    "LOSS-01/t5": (
        tables.test_a_step_is_the_mean_over_the_labels_of_its_window,
        {"trace": tables.ONE_BATCH["t5/prompt-tuning"]},
        replace("transformers:T5ForConditionalGeneration", "forward", twice),
        "step 1: the gradient is 2 times what it must be",
    ),
    "ACC-01/gemma": (
        tables.test_accumulated_micro_batches_train_as_the_large_batch,
        {"spec": tables.DIVIDED["gemma/lora"]},
        replace("transformers.loss.loss_utils", "fixed_cross_entropy", number_of_items_dropped),
        "step 1: the gradient is 2",
    ),
    "CKPT-04/oft": (
        tables.test_an_adapter_file_is_its_tensors_and_a_header,
        {"trace": GOTTEN["llama/oft"]},
        replace("peft.peft_model", "safe_save_file", padded),
        "file not fully covered",
    ),
    "CKPT-07/ia3": (
        tables.test_optimizer_pt_holds_the_state_of_the_trained_tensors,
        {"trace": GOTTEN["bert-classifier/ia3"]},
        mutant("first-moment-not-saved"),
        "has ['exp_avg_sq', 'step'], expected ['exp_avg', 'exp_avg_sq', 'step']",
    ),
    "CKPT-21/lokr": (
        tables.test_an_adapter_that_is_loaded_is_the_trained_one,
        {"trace": ADDED["llama/lokr/add_adapter"]},
        replace("transformers:LlamaForCausalLM", "load_adapter", forgotten),
        "lokr_w2 differs by",
    ),
    "CKPT-21/dora": (
        tables.test_an_adapter_that_is_loaded_is_the_trained_one,
        {"trace": GOTTEN["gpt2/dora"]},
        not_loaded("magnitude", "Loading a DoRA adapter ignores its magnitudes."),
        "lora_magnitude_vector differs by",
    ),
    "CKPT-21/p-tuning": (
        tables.test_an_adapter_that_is_loaded_is_the_trained_one,
        {"trace": GOTTEN["llama/p-tuning"]},
        replace("peft.peft_model", "set_peft_model_state_dict", a_prompt_of_ones),
        "logits",
    ),
    "CKPT-25/ia3": (
        tables.test_a_checkpoint_holds_exactly_the_trained_tensors,
        {"trace": GOTTEN["gpt2/ia3"]},
        not_saved("mlp.c_proj", "The adapter file of an IA3 adapter lacks those of the feed-forward layers."),
        "no tensor for transformer.h.0.mlp.c_proj.ia3_l",
    ),
    "CKPT-25/classifier": (
        tables.test_a_checkpoint_holds_exactly_the_trained_tensors,
        {"trace": GOTTEN["llama-classifier/lora"]},
        not_saved("score", "The adapter file of a classifier lacks its trained head."),
        "no tensor for score.weight",
    ),
    "CKPT-28/vera": (
        tables.test_an_adapter_file_holds_each_tensor_once,
        {"trace": GOTTEN["llama/vera"]},
        replace("peft.peft_model", "get_peft_model_state_dict", shared_again),
        "vera_A is base_model.vera_A once more",
    ),
    "RES-01/prefix-tuning": (
        tables.test_a_resumed_run_is_the_run_that_was_interrupted,
        {"spec": GOTTEN["llama/prefix-tuning"]},
        replace("peft.peft_model", "set_peft_model_state_dict", a_prompt_of_ones),
        "prompt_embeddings differs by",
    ),
    "RES-21/loha": (
        tables.test_every_tensor_is_restored_before_the_first_step,
        {"spec": GOTTEN["llama/loha"]},
        not_loaded("hada_w1_b", "Resuming a LoHa adapter restores only some of its tensors."),
        "hada_w1_b differs by",
    ),
    "API-02/oft": (
        tables.test_a_fresh_adapter_is_an_identity,
        {"spec": ADDED["llama/oft/add_adapter"]},
        replace("peft.tuners.oft.layer:OFTLayer", "reset_oft_parameters", rotated),
        "logits",
    ),
    "API-05/lokr": (
        tables.test_both_routes_train_the_same_run,
        {"spec": GOTTEN["llama/lokr"]},
        mutant("routes-draw-differently"),
        "lokr_w2 differs by",
    ),
    "GEN-01": (
        tables.test_a_run_is_the_references,
        {"spec": GOTTEN["llama/rslora"]},
        replace("peft.tuners.lora.layer:LoraLayer", "update_layer", smaller_scale),
        "step 1: gradients of",
    ),
    "CKPT-22/base": (
        adapters.test_each_save_pushes_its_adapter,
        {"spec": adapters.PUSHED},
        replace("transformers.trainer", "is_peft_available", no_peft),
        "push of checkpoint-1: model.safetensors is there",
    ),
    "CKPT-22/adapter": (
        adapters.test_each_save_pushes_its_adapter,
        {"spec": adapters.PUSHED},
        Fault(
            "The adapter file is not among the files that a push uploads.",
            lambda monkeypatch: monkeypatch.setattr(
                "transformers.trainer.ADAPTER_SAFE_WEIGHTS_NAME", "adapter_model.pt"
            ),
        ),
        "push of checkpoint-1: no file is adapter_model.safetensors of the checkpoint",
    ),
    "QLORA-11": (
        qlora.test_a_compiled_quantized_model_is_refused,
        {"adapted": True},
        mutant("purely-quantized-model-trained"),
        "raised nothing",
    ),
    "RNG-05": (
        rng.test_full_determinism_is_asked_of_torch_and_cuda,
        {},
        mutant("full-determinism-left-out"),
        "torch.are_deterministic_algorithms_enabled(): False",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    if name.startswith("QLORA"):
        pytest.importorskip("bitsandbytes", reason="quantized bases need bitsandbytes")
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


@pytest.mark.parametrize("repacks", [False, True], ids=["bytes-as-they-were", "bytes-in-another-order"])
def test_a_fresh_dora_is_an_identity_unless_an_evaluation_repacks(runs, tmp_path, monkeypatch, repacks):
    modules = pytest.importorskip("bitsandbytes.nn.modules", reason="bitsandbytes is not installed")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    monkeypatch.setattr(tables, "repacks", lambda device: False)
    calls = itertools.count(1)

    def reads(original, *args, **options):
        # DoRA reads four weights when it is set up: q_proj and v_proj of two layers. Later reads get other bytes.
        weight = original(*args, **options)
        return weight.flip(0) if next(calls) > 4 else weight

    if repacks:
        replace("peft.utils.integrations", "dequantize_bnb_weight", reads)(monkeypatch)
    test = tables.test_a_fresh_dora_on_a_packed_base_is_an_identity
    verdict = verdict_of(test, runs, tmp_path, repacked=False)
    assert verdict.holds is not repacks, verdict.seen
