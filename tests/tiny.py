"""Make a tiny model directory such as a user has, with a tokenizer and a chat template."""

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
    """Return a tokenizer whose tokens are the bytes, and the four special tokens of the chat template."""
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
    """Write a Llama of 100,000 parameters and the tokenizer to a directory, and return the directory."""
    models.build(ModelSpec(config={"vocab_size": len(byte_tokenizer())})).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def jsonl(path, *rows):
    """Write one row in each line of a file, and return the file. Rows that are text are written unchanged."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path
