"""IO: model cards and trackers."""

from __future__ import annotations

from pathlib import Path

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import ARGUMENTS, LLAMA, PEFT, nothing, replace


def card_written(original, model, directory, **options):
    original(model, directory, **options)
    (Path(directory) / "README.md").write_text("---\nlibrary_name: peft\n---\n")


def tensorboard_by_default(original, arguments):
    original(arguments)
    arguments.report_to = arguments.report_to or ["tensorboard"]


MUTANTS = (
    Mutant(
        "no-model-card",
        "A checkpoint of a PeftModel has no README.md.",
        replace(PEFT, "create_or_update_model_card", nothing),
        cells=("IO-01/plain", "IO-02/the_trainers*", "CKPT-01/get_peft_model_files"),
    ),
    Mutant(
        "card-of-add-adapter",
        "A checkpoint of a model with add_adapter has a model card of peft's.",
        replace(LLAMA, "save_pretrained", card_written),
        cells=("IO-01/plain/add_adapter", "CKPT-02"),
    ),
    Mutant(
        "reported-unasked",
        "Runs are reported to TensorBoard although report_to does not name it.",
        replace(ARGUMENTS, "__post_init__", tensorboard_by_default),
        cells=("IO-03",),
    ),
)
