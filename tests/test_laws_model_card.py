"""Tests of harness/laws/model_card.py on made-up cards."""

import pytest

from harness.laws import model_card
from tests.checkpoints import says

CARD = """---
library_name: peft
pipeline_tag: text-generation
tags:
- lora
- mine
---

# Model Card

- load_in_4bit: True

### Framework versions

- PEFT 1.2.3
"""


def card(**changes):
    """Return the cards of a checkpoint: CARD, with each key of `changes` replaced by its value."""
    text = CARD
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return {"checkpoint-2/README.md": text}


def test_a_card_of_peft_holds_every_law():
    assert model_card.names_peft(card(), "1.2.3").holds
    assert model_card.tagged(card(), {"lora"}, "text-generation").holds
    assert model_card.has_tags(card(), ("mine", "lora")).holds
    assert model_card.names_quantization(card(), {"load_in_4bit": True}).holds
    assert model_card.absent({"checkpoint-2/README.md": ""}).holds


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (model_card.names_peft(card(peft="transformers"), "1.2.3"), "library_name is 'transformers', expected 'peft'"),
        (model_card.names_peft(card(), "1.2.4"), "no line '- PEFT 1.2.4' below 'Framework versions'"),
        (model_card.names_peft(card(Framework="Other"), "1.2.3"), "no line '- PEFT 1.2.3'"),
        (model_card.names_peft({"here": "no front matter"}, "1.2.3"), "here: library_name is None"),
        (model_card.has_tags(card(), ("yours",)), "checkpoint-2/README.md: no tag 'yours' among ['lora', 'mine']"),
        (model_card.tagged(card(lora="ia3"), {"lora"}, "text-generation"), "no tag 'lora'"),
        (model_card.tagged(card(), {"lora"}, "fill-mask"), "pipeline_tag is 'text-generation', expected 'fill-mask'"),
        (model_card.names_quantization(card(), {"load_in_4bit": False}), "no line '- load_in_4bit: False'"),
        (model_card.absent(card()), "checkpoint-2/README.md is there"),
        (model_card.absent({}), "no checkpoint was written"),
        (model_card.names_peft({}, "1.2.3"), "no checkpoint"),
        (model_card.has_tags({"here": ""}, ()), "here is missing"),
    ],
)
def test_what_a_card_lacks_is_named(verdict, words):
    says(verdict, words)
