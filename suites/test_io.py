"""IO: model cards and trackers."""

import pytest

from harness import lacking
from harness.environment import version
from harness.fixtures import models
from harness.laws import model_card
from harness.runs.scenarios import PLAIN, over
from harness.spec import ADD
from harness.subjects.hf_trainer import inject, recorded_warnings
from harness.verdict import both, same

SAVED = PLAIN.but(max_steps=4, save_strategy="steps", save_steps=2)
NAMED = SAVED.but(
    model={"family": "harness.fixtures.resized_embeddings:resized", "config": {"origin": "someone/their-base"}}
)
#: Tags that peft gives a LoRA on a transformers model.
TAGS = ("lora", "transformers", "base_model:adapter:someone/their-base")
PIPELINE = "text-generation"

tags_cards = pytest.mark.skipif(lacking.card_tags() is not None, reason=str(lacking.card_tags()))


@pytest.mark.clause("IO-01")
@over({"plain": SAVED, "named-base": NAMED})
def test_each_checkpoint_has_a_card_of_library_peft(trace, upstream, judge):
    judge(model_card.names_peft(model_card.cards(trace), version("peft")))


@tags_cards
@pytest.mark.clause("IO-01")
@over({"tags": NAMED})
def test_the_card_is_tagged_with_task_method_and_base(trace, upstream, judge):
    judge(model_card.tagged(model_card.cards(trace), TAGS, PIPELINE))


@pytest.mark.clause("IO-01")
@over({f"plain/{ADD}": SAVED.but(adapter={"route": ADD})})
def test_add_adapter_writes_no_card(trace, upstream, judge):
    judge(model_card.absent(model_card.cards(trace)))


@pytest.mark.clause("IO-01")
def test_a_card_that_is_written_again_stays_as_it_is(upstream, tmp_path, judge):
    model = inject(models.build(NAMED.model), NAMED.adapter)
    cards = []
    for _ in range(2):
        model.save_pretrained(tmp_path)
        cards.append((tmp_path / "README.md").read_text(encoding="utf-8"))
    judge(same("the card after a second save", cards[1].splitlines(), cards[0].splitlines()))


@pytest.mark.clause("IO-02")
def test_without_a_card_of_peft_the_trainers_is_none(upstream, tmp_path, judge):
    trainer = upstream.build(SAVED.but(adapter={"route": ADD}), tmp_path)
    trainer.create_model_card(tags=["my-tag"])
    card = {"README.md": model_card.read(tmp_path / "README.md")}
    claimed = [line for line in card["README.md"].splitlines() if line.startswith("library_name: peft")]
    judge(both(model_card.has_tags(card, ("my-tag",)), same("lines that name peft as the library", claimed, [])))


def card_of_the_trainer(upstream, directory):
    """Return the card that create_model_card(tags=["my-tag"]) writes over that of save_model()."""
    trainer = upstream.build(NAMED.but(max_steps=1, save_strategy="no"), directory)
    with recorded_warnings([]):
        trainer.train()
        trainer.save_model()
        trainer.create_model_card(tags=["my-tag"])
    return {"README.md": model_card.read(directory / "README.md")}


@pytest.mark.clause("IO-02")
def test_the_trainers_card_stays_one_of_library_peft(upstream, tmp_path, judge):
    judge(model_card.names_peft(card_of_the_trainer(upstream, tmp_path), version("peft")))


@tags_cards
@pytest.mark.clause("IO-02")
def test_the_trainers_card_keeps_the_tags_of_peft(upstream, tmp_path, judge):
    judge(model_card.tagged(card_of_the_trainer(upstream, tmp_path), TAGS, PIPELINE))


@pytest.mark.clause("IO-02")
def test_the_trainers_card_has_the_tags_it_was_given(upstream, tmp_path, judge):
    judge(model_card.has_tags(card_of_the_trainer(upstream, tmp_path), ("my-tag",)))


@pytest.mark.clause("IO-03")
def test_nothing_is_reported_unless_asked_for(upstream, tmp_path, judge):
    trainer = upstream.build(PLAIN.but(report_to=None), tmp_path)
    trackers = {
        type(callback).__name__
        for callback in trainer.callback_handler.callbacks
        if type(callback).__module__.startswith("transformers.integrations")
    }
    judge(both(same("report_to", trainer.args.report_to, []), same("callbacks of trackers", trackers, set())))
