"""Known defects of older releases: what sweeps found there is explained there, and nowhere else."""

import pytest
from packaging.requirements import Requirement

from harness.contract import expectations
from harness.paths import SUITES
from harness.runs.scenarios import PLAIN

KNOWN = expectations.load(SUITES / "expectations")

OLD = {"transformers": "4.49.0", "peft": "0.15.2", "accelerate": "1.6.0", "bitsandbytes": "0.50.2", "torch": "2.13.0"}
LATER = {**OLD, "transformers": "5.10.4", "peft": "0.19.1", "accelerate": "1.14.0"}
NEW = {**OLD, "transformers": "5.23.0", "peft": "0.21.2", "accelerate": "1.15.0"}

SECOND = {"others": {"second": {}}}
FSDP1 = {"strategy": "fsdp1", "ranks": 2}
SMOOTHED = PLAIN.but(label_smoothing_factor=0.1, gradient_accumulation_steps=3)
#: Clause, spec, words, and the stacks on which a known defect explains them.
FOUND = [
    ("LOSS-01", PLAIN, "step 1: the model was given num_items_in_batch 16, but 14 labels are predicted", [OLD]),
    ("GEN-01", PLAIN, "step 1: gradients of model.layers.0.self_attn.v_proj.lora_B.weight differs by 0.0147", [OLD]),
    ("ACC-01", SMOOTHED, "step 1: the gradient is 3 times that of the large batch", [OLD, LATER]),
    ("LOOP-05", PLAIN.but(max_grad_norm=0.0), "no gradient norm was logged at step 1", [OLD]),
    ("CKPT-12", PLAIN.but(save_strategy="epoch"), "the checkpoint at step 4 was written twice", [OLD]),
    ("EVAL-10", PLAIN.but(eval_strategy="steps"), "no evaluation at step 9", [OLD]),
    ("FRZ-15", PLAIN, "adapter 'default': its file holds q_proj.ia3_l.bystander, which is not its own", [OLD, LATER]),
    ("CKPT-25", PLAIN.but(adapter=SECOND), "q_proj.ia3_l.second is saved, but was not trained", [OLD, LATER]),
    ("RES-01", PLAIN.but(adapter=SECOND), "step 3: gradients of v_proj.lora_B.weight differs by 0.05", [OLD, LATER]),
    ("CKPT-25", PLAIN.but(lora={"bias": "lora_only"}), "no tensor for model.q_proj.bias", [OLD, LATER]),
    ("RES-01", PLAIN.but(launch={"strategy": "fsdp2"}), "step 3: gradients of v_proj.lora_B.weight", [LATER]),
    (
        "LOOP-04",
        PLAIN.but(activation_checkpointing=True),
        "the run ended with RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
        [OLD],
    ),
    (
        "CKPT-25",
        PLAIN.but(adapter={"route": "add_adapter"}, launch=FSDP1),
        "checkpoint-1: model.layers.0.mlp.down_proj.lora_A.weight is empty",
        [OLD],
    ),
]


def explains(clause, spec, words, monkeypatch, stack):
    def satisfies(requirement):
        parsed = Requirement(requirement)
        return parsed.specifier.contains(stack[parsed.name], prereleases=True)

    monkeypatch.setattr(expectations, "satisfies", satisfies)
    return any(one.excuses(clause, "hf-trainer", spec.to_json(), words) for one in KNOWN)


@pytest.mark.parametrize(("clause", "spec", "words", "stacks"), FOUND, ids=[f"{one[0]}-{one[2][:30]}" for one in FOUND])
def test_what_sweeps_found_is_explained_where_it_is(clause, spec, words, stacks, monkeypatch):
    assert [stack for stack in (OLD, LATER, NEW) if explains(clause, spec, words, monkeypatch, stack)] == stacks
