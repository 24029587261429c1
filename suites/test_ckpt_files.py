"""CKPT: when checkpoints are written, which are kept, and what save_only_model and save_model leave out."""

from pathlib import Path

import pytest

from harness.compat import tokenizer_places
from harness.laws import rotation
from harness.runs.scenarios import PLAIN, SAVING, by_route, cases, continued, over, saving
from harness.spec import ADD, GET
from harness.verdict import both, same

EVALUATED = PLAIN.but(data={"eval_rows": 8}, eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_loss")
#: The loss falls, so "greater is better" makes the first evaluation the best.
BEST_FIRST = EVALUATED.but(greater_is_better=True)
#: Four batches an epoch.
EPOCHS = PLAIN.but(data={"rows": 16}, max_steps=None, save_strategy="epoch")

STRATEGIES = {
    "steps": saving(PLAIN, every=3),
    "share-of-the-steps": saving(PLAIN, every=0.25),
    "epoch": EPOCHS.but(num_train_epochs=2),
    "epoch-cut-short": EPOCHS.but(num_train_epochs=1.5),
    "epoch-of-accumulated-batches": EPOCHS.but(num_train_epochs=2, gradient_accumulation_steps=3),
    "best-is-each": EVALUATED.but(save_strategy="best"),
    "best-is-the-first": BEST_FIRST.but(save_strategy="best"),
    "no": PLAIN,
}

LIMITS = {
    "limit-1": saving(PLAIN).but(save_total_limit=1),
    "limit-2": saving(PLAIN).but(save_total_limit=2),
    "limit-2/best-first": saving(BEST_FIRST, every=2).but(save_total_limit=2),
    "limit-3/best-first": saving(BEST_FIRST, every=2).but(save_total_limit=3),
    "limit-2/best-last": saving(EVALUATED, every=2).but(save_total_limit=2),
    "limit-1/best-first": saving(BEST_FIRST, every=2).but(save_total_limit=1),
    "no-limit": saving(PLAIN),
}


@pytest.mark.clause("CKPT-12")
@over(by_route({"steps": STRATEGIES["steps"], "epoch": STRATEGIES["epoch"]}) | STRATEGIES)
def test_checkpoints_are_written_when_due(trace, judge):
    judge(rotation.saved_when_due(trace))


@pytest.mark.clause("CKPT-13")
@over(LIMITS)
def test_newest_and_best_checkpoints_stay(trace, judge):
    judge(rotation.rotated(trace))


@pytest.mark.clause("CKPT-13")
@pytest.mark.parametrize(("name", "left"), [("limit-1/best-first", [2]), ("limit-2/best-first", [2, 10])])
def test_limit_of_one_leaves_the_best_at_the_end(name, left, train, judge):
    judge(same("checkpoints left when training has ended", rotation.left_at_the_end(train(LIMITS[name])), left))


@pytest.mark.clause("CKPT-14")
@pytest.mark.parametrize("route", [GET, ADD])
def test_save_only_model_leaves_out_what_resumes(upstream, route, train, judge):
    spec = SAVING["plain"].but(adapter={"route": route})
    only, whole = train(spec.but(save_only_model=True)), train(spec)
    resuming = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    judge(
        both(
            rotation.saved_when_due(only),
            *[
                same(f"files of checkpoint-{c.step}", set(c.files), set(whole.checkpoint(c.step).files) - resuming)
                for c in only.checkpoints
            ],
        )
    )


@pytest.mark.clause("CKPT-14")
@cases({"resumed-at-6": continued(PLAIN, 6, save_only_model=True)})
def test_resuming_a_model_only_starts_optimizer_and_schedule_anew(upstream, spec, train, judge):
    trace = train(spec)
    rates = {step.number: step.learning_rates for step in trace.steps}
    counted = {name: float(state.get("step", -1)) for name, state in trace.optimizer_state.items()}
    # Ten steps in total: steps 7 to 10 get the schedule's first four rates.
    judge(
        both(
            same("learning rates, by step", rates, {7 + n: [1e-2 * ((10 - n) / 10)] * 2 for n in range(4)}),
            same("AdamW's count of steps", counted, dict.fromkeys(trace.trainable, 4.0)),
        )
    )


class Tokenizer:
    """The part of a tokenizer that the Trainer uses when it saves."""

    def save_pretrained(self, directory):
        Path(directory, "tokenizer.json").write_text("{}", encoding="utf-8")


class Collator:
    """A data collator, which may have a tokenizer."""

    tokenizer = None

    def __call__(self, rows):
        from transformers import default_data_collator

        return default_data_collator(rows)


@pytest.mark.clause("CKPT-19")
@pytest.mark.parametrize("place", [None, *tokenizer_places()], ids=str)
@pytest.mark.parametrize(("route", "own"), [(GET, "README.md"), (ADD, "generation_config.json")], ids=[GET, ADD])
def test_save_model_writes_the_adapter_and_no_state(upstream, route, own, place, judge, tmp_path):
    trainer = upstream.build(PLAIN.but(adapter={"route": route}), tmp_path / "run")
    trainer.data_collator = Collator()
    if place is not None:
        where, _, attribute = f"trainer.{place}".rpartition(".")
        setattr({"trainer": trainer, "trainer.data_collator": trainer.data_collator}[where], attribute, Tokenizer())
    trainer.save_model(str(tmp_path / "saved"))
    expected = {"adapter_model.safetensors", "adapter_config.json", "training_args.bin", own}
    seen = {path.name for path in (tmp_path / "saved").iterdir()}
    judge(same("files of save_model", seen, expected | ({"tokenizer.json"} if place else set())))
