"""Whose saves `peft-harness crash` judges: the Trainer's, those of a subclass of it, or those of `SafeCheckpoints`."""

from __future__ import annotations

from harness import subjects
from harness.errors import UsageError
from harness.fixtures import models
from harness.subjects.hf_trainer import HFTrainer

UPSTREAMS = "hf-trainer"


def trainer(name: str, safe: bool) -> HFTrainer:
    """Return the subject whose saves are judged. Upstream has been imported.

    - name: "hf-trainer", "trl-sft", "module:Class" of a subclass of transformers.Trainer, or "module:factory" of a subject
      that is built on one (HFTrainer, TrainerSubject).
    - safe: whether it is `harness.SafeCheckpoints` over transformers.Trainer. Then `name` is "hf-trainer".

    Raises UsageError for a subject that is not built on the Trainer.
    """
    if safe:
        if name != UPSTREAMS:
            raise UsageError(
                f"--safe is SafeCheckpoints over transformers.Trainer; for {name!r} make a class of both, such as "
                "class Safe(harness.SafeCheckpoints, MyTrainer), and name it with --subject"
            )
        from harness.crash.safe_trainer import SafeTrainer

        return HFTrainer(SafeTrainer)
    if ":" in name:
        from transformers import Trainer

        found = models.load_object(name)
        if isinstance(found, type) and issubclass(found, Trainer):
            return HFTrainer(found)
    found = subjects.load(name)
    if not isinstance(found, HFTrainer):
        raise UsageError(
            f"--subject {name!r} is not built on transformers.Trainer, whose saves are judged here; for another saver "
            "call harness.crash.explore(save, load)"
        )
    return found
