"""save_model() in the middle of a run: what is saved is what is live then, and nothing else changes.

`saving` makes a Trainer class that saves at every event. `saved_live` judges what its run left. `evaluation_weights` and
`saved_for_evaluation` are about optimizers that train other weights than those to be used, such as schedule-free ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.laws.checkpoint import ADAPTER_FILE, load_adapter_file
from harness.laws.equal import differences, equal_runs
from harness.laws.verbs import changed_modes, modes
from harness.tensors import names
from harness.trace import Tensors, Trace
from harness.verdict import Verdict, both, verdict


def saving(trainer_class: type) -> type:
    """Return a subclass of a Trainer class that calls save_model() at every event of a run. `saved` judges each call."""
    from transformers import TrainerCallback

    class Saves(TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("on_"):
                return super().__getattribute__(name)
            return lambda args, state, control, **given: _save(self.trainer, name.removeprefix("on_"))

    class SavesAlways(trainer_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.saved: list[tuple[str, list[str]]] = []
            self.add_callback(Saves(self))

    return SavesAlways


def _save(trainer: Any, event: str) -> None:
    where, before = f"{event} after step {trainer.state.global_step}:", modes(trainer.model)
    directory = Path(trainer.args.output_dir, "always", str(len(trainer.saved)))
    trainer.save_model(str(directory))
    findings = changed_modes(where, trainer.model, before)
    trainer.saved.append((event, findings + _differences(directory, trained(trainer.model), where)))


def trained(model: Any) -> Tensors:
    """Return canonical name -> trained parameter of a model with one adapter, "default"."""
    return {names.canonical(name): one.detach() for name, one in model.named_parameters() if one.requires_grad}


def _differences(directory: Path, live: Tensors, when: str) -> list[str]:
    file = directory / ADAPTER_FILE
    if not file.is_file():
        return [f"{when} there is no {ADAPTER_FILE}"]
    saved = {names.canonical(name): tensor for name, tensor in load_adapter_file(file).items()}
    return differences({name: saved[name] for name in live if name in saved}, live, 0.0, when)


def saves(trainer: Any) -> list[Any]:
    """Return what a Trainer of `saving` has saved: for each call the event, and what was wrong."""
    return [list(one) for one in trainer.saved]


def saved_live(trace: Trace, plain: Trace) -> Verdict:
    """Check that each save held the live adapter and left the modes alone, and that the run is the one without them.

    - trace: of a Trainer of `saving`, with `saves` called afterwards.
    - plain: the same run, in which nothing is saved.
    """
    made = trace.distributed.get("afterwards", [])
    events = sorted({event for event, _ in made})
    findings = [] if len(events) > 8 else [f"it saved at {', '.join(events) or 'no event'} only"]
    findings += [sentence for _, wrong in made for sentence in wrong][:5]
    words = "save_model() at any event saves the live adapter, and changes nothing"
    return both(verdict(words, findings, saves=len(made)), equal_runs(trace, plain))


# ---- weights for training, weights for evaluation ----


def evaluation_weights(trainer: Any, beta: float = 0.9) -> Tensors:
    """Return canonical name -> the weights that `harness.fixtures.optimizers:schedule_free` has for evaluation."""
    inner = trainer.optimizer.optimizer
    training = inner.param_groups[0]["train_mode"]
    named = {id(one): names.canonical(name) for name, one in trainer.model.named_parameters()}
    return {
        named[id(one)]: one.detach().lerp(inner.state[one]["z"], 1 - 1 / beta) if training else one.detach().clone()
        for group in inner.param_groups
        for one in group["params"]
    }


def saved_for_evaluation(saved: list[tuple[str, Path, Tensors]]) -> Verdict:
    """Check that what was saved are the weights for evaluation.

    - saved: for each save what it was, its directory, and the weights for evaluation then.
    """
    findings = [] if saved else ["nothing was saved"]
    for what, directory, expected in saved:
        findings += _differences(directory, expected, what)[:1]
    return verdict("what is saved are the weights for evaluation", findings)
