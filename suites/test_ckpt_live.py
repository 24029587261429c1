"""What is saved in the middle of a run, by a callback or by the Trainer: the weights that are to be used."""

from pathlib import Path

import pytest

from harness.laws import live_saves
from harness.runs.scenarios import PLAIN, by_route, cases, saving
from harness.subjects.hf_trainer import HFTrainer, recorded_warnings

#: Two epochs of one step. Every event of a run occurs, and dropout shows each random number.
RUN = saving(
    PLAIN.but(
        data={"rows": 4, "eval_rows": 4},
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    ),
    every=1,
)


@pytest.mark.clause("CKPT-30")
@cases(
    by_route({"plain": RUN})
    | {
        "modules-to-save": RUN.but(lora={"modules_to_save": ["lm_head"]}),
        "checkpointing": RUN.but(activation_checkpointing=True, bf16=True),
        "schedule-free": RUN.but(trainer={"optimizers": "harness.fixtures.optimizers:schedule_free"}),
        "nf4": RUN.but(model={"quantization": "nf4"}),
    }
)
def test_a_callback_may_save_at_any_event(spec, upstream, train, judge):
    own = HFTrainer(live_saves.saving(upstream.trainer_class), "saves-always", afterwards=live_saves.saves)
    judge(live_saves.saved_live(train(spec, subject=own), train(spec)))


SCHEDULE_FREE = RUN.but(trainer={"optimizers": "harness.fixtures.optimizers:schedule_free"}, max_steps=3)


@pytest.mark.clause("CKPT-31")
@pytest.mark.parametrize(
    ("spec", "afterwards"),
    [
        pytest.param(SCHEDULE_FREE.but(eval_strategy="no"), False, id="checkpoints"),
        pytest.param(SCHEDULE_FREE, False, id="checkpoints-after-evaluations"),
        pytest.param(SCHEDULE_FREE.but(eval_strategy="no", save_strategy="no"), True, id="save_model-afterwards"),
    ],
)
def test_weights_for_evaluation_are_saved(spec, afterwards, upstream, tmp_path, judge):
    from transformers import TrainerCallback

    saved = []

    class Compares(TrainerCallback):
        def on_save(self, args, state, control, **given):
            directory = Path(args.output_dir, f"checkpoint-{state.global_step}")
            saved.append((f"{directory.name}:", directory, live_saves.evaluation_weights(trainer)))

    trainer = upstream.build(spec, tmp_path)
    trainer.add_callback(Compares())
    with recorded_warnings([]):
        trainer.train()
        if afterwards:
            trainer.save_model(str(tmp_path / "last"))
            saved.append(("save_model():", tmp_path / "last", live_saves.evaluation_weights(trainer)))
    judge(live_saves.saved_for_evaluation(saved))
