"""FRZ: what is trained, what stays frozen."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "FRZ",
    "what is trained, what stays frozen",
    (
        Clause(
            "FRZ-01",
            "After training, every tensor of model.state_dict() that is no adapter MUST be bit-identical to what it "
            "was before.",
            source="peft/tuners/tuners_utils.py:506-543 (BaseTuner._mark_only_adapters_as_trainable)",
        ),
    ),
)
