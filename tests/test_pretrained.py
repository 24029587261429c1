"""Model directories that a user brings: each broken one is refused in one sentence, and none is filled up at random."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UsageError
from harness.fixtures import models, pretrained
from harness.spec import ModelSpec
from tests.tiny import save_model

WEIGHTS, INDEX = pretrained.WEIGHTS, pretrained.INDEX


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny") / "model")


def build(directory):
    return models.build(ModelSpec(path=str(directory)))


def config(**fields):
    def change(directory):
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return change


def text(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def tensors(change):
    def save(directory):
        changed = load_file(directory / WEIGHTS)
        change(changed)
        save_file(changed, directory / WEIGHTS, metadata={"format": "pt"})

    return save


def cut(share):
    def change(directory):
        whole = (directory / WEIGHTS).read_bytes()
        (directory / WEIGHTS).write_bytes(whole[: int(share * len(whole))])

    return change


def index(places):
    def change(directory):
        names = list(load_file(directory / WEIGHTS))
        (directory / WEIGHTS).rename(directory / "a.safetensors")
        body = {"metadata": {}, "weight_map": places(names) if callable(places) else places}
        (directory / INDEX).write_text(json.dumps(body))

    return change


def renamed(to):
    return lambda directory: (directory / WEIGHTS).rename(directory / to)


def set_all(value):
    return tensors(lambda held: [tensor.fill_(value) for tensor in held.values()])


#: What is wrong with a directory -> how it is made so, and words of the sentence. No transformers is needed to see these.
AT_A_GLANCE = {
    "no config.json": (lambda d: (d / "config.json").unlink(), "no model directory (it has no config.json)"),
    "torn config.json": (text("config.json", b"{"), "not JSON"),
    "not UTF-8": (text("config.json", b'{"a": "\xe4"}'), "not UTF-8"),
    "a deep config.json": (text("config.json", b"[" * 10**5), "config.json: JSON"),
    "a list": (text("config.json", b"[]"), "expected a JSON object, found []"),
    "no model_type": (text("config.json", b"{}"), "model_type is None"),
    "an encoder-decoder": (config(is_encoder_decoder=True), "an encoder-decoder"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers = 1000000000, and 4096 are allowed"),
    "more layers than tensors": (config(num_hidden_layers=2000), "2000 layers, but the files hold 21 tensors"),
    "a kernel of the hub": (config(_attn_implementation="evil/kernel"), "is code on the hub"),
    "an adapter": (text("adapter_config.json", b"{}"), "holds an adapter"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "no weights in it"),
    "empty weights": (text(WEIGHTS, b""), "no whole safetensors file"),
    "weights cut in the header": (cut(0.001), "no whole safetensors file"),
    "weights cut in the middle": (cut(0.5), "no whole safetensors file"),
    "weights without the last bytes": (cut(0.99), "no whole safetensors file"),
    "a header that lies": (text(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "no whole safetensors file"),
    "no tensors": (text(WEIGHTS, struct.pack("<Q", 2) + b"{}"), "holds no tensor"),
    "integers": (tensors(lambda held: held.update({k: v.long() for k, v in held.items()})), "are weights of integers"),
    "a pickle": (renamed("pytorch_model.bin"), "a pickle, which can run code"),
    "GGUF": (renamed("model.gguf"), "GGUF; load it with transformers"),
    "a directory for a file": (
        lambda d: ((d / WEIGHTS).unlink(), (d / WEIGHTS).mkdir()),
        "model.safetensors: is no regular file",
    ),
    "an index that leads out": (index({"a": "../other/model.safetensors"}), "expected a safetensors file beside it"),
    "an index of pickles": (index({"a": "pytorch_model.bin"}), "expected a safetensors file beside it"),
    "an index of a missing file": (index({"a": "b.safetensors"}), "which is not there"),
    "an index of nothing": (index({}), "weight_map must be an object"),
}

#: The same, seen by transformers or in the loaded model.
LOADED = {
    "an unknown architecture": (config(model_type="nope"), "cannot make a causal model of it"),
    "remote code": (
        config(model_type="nope", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        "cannot make a causal model of it",
    ),
    "a size that is text": (config(hidden_size="wide"), "cannot make a causal model of it"),
    "no heads": (config(num_attention_heads=0), "cannot make a causal model of it"),
    "a vocabulary of a billion": (config(vocab_size=10**9), "but its files hold 107,328"),
    "other sizes": (config(intermediate_size=130), "have another shape in its files"),
    "more layers": (config(num_hidden_layers=3), "would be drawn at random"),
    "fewer layers": (config(num_hidden_layers=1), "no part of the model that config.json describes"),
    "a missing tensor": (tensors(lambda held: held.pop("model.norm.weight")), "1 weight, 'model.norm.weight' first"),
    "NaN": (set_all(float("nan")), "are NaN or infinite in torch.float32"),
    "one infinite number": (
        tensors(lambda held: held["lm_head.weight"][3].fill_(float("inf"))),
        "64 of 16,640 numbers of lm_head.weight are NaN or infinite",
    ),
    "zeros": (set_all(0.0), "every weight is 0"),
}


@pytest.mark.parametrize("wrong", [*AT_A_GLANCE, *LOADED])
def test_a_broken_directory_is_refused_in_one_sentence(tiny, tmp_path, wrong):
    spoil, words = {**AT_A_GLANCE, **LOADED}[wrong]
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    spoil(directory)
    with pytest.raises(UsageError) as raised:
        pretrained.check(directory) if wrong in AT_A_GLANCE else build(directory)
    sentence = str(raised.value)
    assert words in sentence and str(directory) in sentence
    assert "\n" not in sentence and len(sentence) < 600


def test_code_beside_the_weights_is_never_run(tiny, tmp_path):
    """A known architecture is made by transformers' own code, whatever auto_map says."""
    directory, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny, directory)
    (directory / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(directory)
    assert type(build(directory)).__name__ == "LlamaForCausalLM" and not ran.exists()


def test_a_sharded_model_and_one_in_eight_bits_are_loaded(tiny, tmp_path):
    whole = build(tiny).state_dict()
    sharded, small = tmp_path / "sharded", tmp_path / "small"
    shutil.copytree(tiny, sharded)
    shutil.copytree(tiny, small)
    index(lambda names: dict.fromkeys(names, "a.safetensors"))(sharded)
    assert all(torch.equal(whole[name], tensor) for name, tensor in build(sharded).state_dict().items())
    tensors(lambda held: held.update({k: v.to(torch.float8_e4m3fn) for k, v in held.items()}))(small)
    assert all(tensor.dtype == torch.float32 for tensor in build(small).state_dict().values())


def test_a_path_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path / "none", "no such directory"), (tmp_path / "file", "is no directory")):
        with pytest.raises(UsageError, match=words):
            build(path)
