"""The saves of one process whose crash states are judged, by name."""

from __future__ import annotations

from harness.crash.trainer_ways import SavedRun
from harness.runs.scenarios import PLAIN, saving
from harness.spec import ADD, RunSpec

#: Five steps in an epoch of six, saved after the second, the fourth and the last. The save of step 4 is recorded:
#: checkpoint-2 is whole by then. A run that resumes makes one step, or three.
RUN = saving(PLAIN.but(data={"rows": 24}, lora={"target_modules": ["q_proj"]}, max_steps=5), every=2)

_EVALUATED = RUN.but(
    data={"eval_rows": 4},
    eval_strategy="steps",
    eval_steps=2,
    metric_for_best_model="eval_loss",
    load_best_model_at_end=True,
)


def _over(saved: RunSpec, earlier: RunSpec) -> SavedRun:
    return SavedRun(saved, step=4, before=earlier)


SAVES: dict[str, SavedRun] = {
    "plain": SavedRun(RUN, 4),
    "limit-1": SavedRun(RUN.but(save_total_limit=1), 4),
    # Three checkpoints are there when the third is written.
    "limit-2": SavedRun(saving(RUN, every=1).but(save_total_limit=2, max_steps=4), 3),
    "best-at-end": SavedRun(_EVALUATED, 4),
    "best-at-end/limit-1": SavedRun(_EVALUATED.but(save_total_limit=1), 4),
    "first-save": SavedRun(RUN, 2),
    "only-model": SavedRun(RUN.but(save_only_model=True), 4),
    "several-adapters": SavedRun(RUN.but(adapter={"others": {"second": {"r": 4}}}), 4),
    "modules-to-save": SavedRun(RUN.but(lora={"modules_to_save": ["lm_head"]}), 4),
    "nf4": SavedRun(RUN.but(model={"quantization": "nf4"}), 4),
    "overwritten": _over(RUN, RUN.but(learning_rate=5e-3, max_steps=4)),
    "two-saves": SavedRun(saving(RUN, every=1).but(max_steps=4), 2, until=3),
    "plain/add_adapter": SavedRun(RUN.but(adapter={"route": ADD}), 4),
    "limit-1/add_adapter": SavedRun(RUN.but(adapter={"route": ADD}, save_total_limit=1), 4),
}
