"""A tiny model directory as a user has one, tokenizer and chat template included, made here."""

import functools
import json

from harness.fixtures import models

from harness.spec import ModelSpec

TEMPLATE = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def byte_tokenizer():
    """A tokenizer whose tokens are bytes, and the four that the chat template writes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["</s>", "<|user|>", "<|assistant|>", "<|system|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", chat_template=TEMPLATE)


def save_model(path):
    """A Llama of 100 k parameters and the tokenizer, written to a directory, which is returned."""
    models.build(ModelSpec(config={"vocab_size": len(byte_tokenizer())})).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def jsonl(path, *rows):
    """A file of one row a line; text is written as it is."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path
