"""IO: what a run tells the world: model cards and trackers."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "IO",
    "model cards and trackers",
    (
        Clause(
            "IO-01",
            "Each checkpoint of a get_peft_model run MUST hold a model card of library peft. The card MUST name "
            "peft's version and be tagged with the task, the adapter method and the base. A checkpoint of an "
            "add_adapter run MUST hold no card.",
            source="peft/peft_model.py:299, 1680-1765 (PeftModel.save_pretrained, create_or_update_model_card)",
        ),
        Clause(
            "IO-02",
            "If a card of library peft exists, Trainer.create_model_card MUST keep its library, the version of peft "
            "and its tags, and MUST add the tags that it is called with.",
            source="transformers/trainer.py:4263-4335 (Trainer.create_model_card); "
            "peft/peft_model.py:1702-1765 (PeftModel.create_or_update_model_card)",
            profile="stack",
        ),
        Clause(
            "IO-03",
            "Without report_to, a run MUST report to no tracker, whatever is installed.",
            source="transformers/training_args.py:1059, 1594-1601 (TrainingArguments.report_to)",
            # Until 5.0 the default was every tracker that is installed.
            needs=("transformers>=5.0",),
        ),
    ),
    profile="trainer",
)
