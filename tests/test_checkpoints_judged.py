"""`harness.checkpoints.judge`: whole checkpoints of every kind are whole, and every kind of damage is found."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.checkpoints import CheckpointError, newest_whole
from harness.checkpoints.judge import judge
from tests import made_checkpoints as made

NEITHER_READ = ("README.md", "training_args.bin")


def several_adapters(path):
    made.adapter(made.adapter(made.adapter(path) / "second") / ".." / "third")
    return made.states(path)


def sharded(path):
    """A checkpoint of FSDP with SHARDED_STATE_DICT, saved by torch.distributed.checkpoint itself."""
    from torch.distributed.checkpoint.state_dict_saver import save

    path.mkdir()
    made.states(path, ranks=2)
    (path / "optimizer.pt").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        content = {"held": {"a": torch.randn(64, 4), "step": 4, "b": torch.randn(3)}}
        save(content, checkpoint_id=str(path / name), no_dist=True)
    return path


WHOLE = {
    "adapter": lambda path: made.states(made.adapter(path)),
    "adapter alone": lambda path: made.adapter(path.with_name("my-lora")),
    "adapter of .bin": lambda path: made.states(made.adapter(path, pickled=True)),
    "adapter alone of .bin": lambda path: made.adapter(path.with_name("bin-lora"), pickled=True),
    "adapter with arguments": lambda path: made.arguments(made.states(made.adapter(path))),
    "only model": lambda path: made.arguments(made.trainer_state(made.adapter(path)), save_only_model=True),
    "several adapters": several_adapters,
    "full model": lambda path: made.states(made.model(path), shapes=((8, 8),) * 4),
    "full model in shards": lambda path: made.states(made.model(path, shards=3), shapes=((8, 8),) * 4),
    "model alone": lambda path: made.model(path.with_name("saved-model"), shards=2),
    "fp16 with skipped steps": lambda path: made.states(made.adapter(path), scaler=True, steps=3),
    "two ranks": lambda path: made.arguments(made.states(made.adapter(path), ranks=2), ranks=2),
    "eight ranks": lambda path: made.arguments(made.states(made.adapter(path), ranks=8), ranks=8),
    "IA3": lambda path: made.states(made.adapter(path, "IA3", {"a.ia3_l": torch.randn(32)}), shapes=((32,),)),
    "VeRA": lambda path: made.states(made.adapter(path, "VERA", {"a.vera_lambda_b": torch.randn(9)}), shapes=((9,),)),
    "prompt tuning": lambda path: made.states(
        made.adapter(path, "PROMPT_TUNING", {"prompt_embeddings": torch.randn(5, 8)}), shapes=((5, 8),)
    ),
    "modules_to_save": lambda path: made.states(
        made.adapter(path, content={**made.tensors(), "base_model.model.lm_head.weight": torch.randn(9, 8)},
                     modules_to_save=["lm_head"])
    ),
    "trainable tokens": lambda path: made.states(
        made.adapter(path, content={**made.tensors(), "base_model.model.e.token_adapter.t": torch.randn(2, 8)},
                     trainable_token_indices=[1, 2])
    ),
    "save_model and save_state": lambda path: made.arguments(
        made.trainer_state(made.adapter(path.with_name("output_dir")))
    ),
    "SHARDED_STATE_DICT": sharded,
    "save_state": lambda path: made.saved_by_accelerate(path.with_name("step_4")),
    "save_state of four ranks": lambda path: made.saved_by_accelerate(path.with_name("step_5"), ranks=4),
    "save_state without schedule": lambda path: made.saved_by_accelerate(path.with_name("step_6"), scheduler=False),
}  # fmt: skip


@pytest.fixture
def at(tmp_path):
    return tmp_path / "checkpoint-4"


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_checkpoints_are_whole(kind, at):
    found = judge(WHOLE[kind](at))
    assert (found.verdict, found.why) == ("whole", "")


#: Kinds in which a file may be missing.
ALONE = ("adapter alone", "adapter alone of .bin", "model alone", "save_model and save_state")

#: Kinds of which each file is damaged in CI.
FEW = ("several adapters", "full model in shards", "two ranks", "SHARDED_STATE_DICT", "save_state")


@pytest.mark.parametrize(
    "kind", [each if each in FEW else pytest.param(each, marks=pytest.mark.slow) for each in WHOLE]
)
def test_each_damage_is_found(kind, at):
    path = WHOLE[kind](at)
    backup = shutil.copytree(path, path.with_name("backup"))
    for file in sorted(each for each in backup.rglob("*") if each.is_file()):
        name, content = file.relative_to(backup), file.read_bytes()
        for form in (b"", bytes(len(content)), content[: len(content) // 2], content[:-2]):
            (path / name).write_bytes(form)
            verdict = judge(path).verdict
            assert verdict == "torn", f"{name} with {len(form)} bytes is {verdict}"
        (path / name).unlink()
        optional = (*NEITHER_READ, "scaler.pt", "config.json", "scheduler.bin")
        if name.name not in optional and kind not in ALONE:
            assert judge(path).verdict == "torn", f"without {name}"
        shutil.copy2(file, path / name)
    assert judge(path).verdict == "whole"


def test_each_stored_byte_of_torch_is_summed(at):
    made.states(made.adapter(at))
    content = (at / "optimizer.pt").read_bytes()
    place = content.index(torch.ones(8).numpy().tobytes())
    (at / "optimizer.pt").write_bytes(content[:place] + b"\1" + content[place + 1 :])
    assert "the checksum is another" in judge(at).why


# ---- agreement between files ----


def damage_step(at):
    (at / "trainer_state.json").write_text('{"global_step": 6}')


def damage_optimizer(at):
    other = made.states(made.adapter(at.with_name("checkpoint-2")), step=8)
    shutil.copy(other / "optimizer.pt", at)


def damage_schedule(at):
    other = made.states(made.adapter(at.with_name("checkpoint-2")), step=2)
    shutil.copy(other / "scheduler.pt", at)


def damage_rank(at):
    made.states(at, shapes=((8, 32), (32, 8)) * 2)


def damage_finite(at):
    made.adapter(at, content={**made.tensors(), made.NAMES[0]: torch.full((4, 32), float("nan"))})


def damage_to_40_bytes(at):
    save_file({}, at / "adapter_model.safetensors")


def damage_end(at):
    file = at / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-705] + bytes(705))


def damage_shape(at):
    made.adapter(at, r=16)


def damage_generators(at):
    torch.save({"python": None}, at / "rng_state.pth")


AGREE = {
    "another step": (damage_step, "has global_step 6, in a directory of step 4"),
    "optimizer of another step": (damage_optimizer, "optimizer.pt counts 8 steps"),
    "schedule of another step": (damage_schedule, "counts 2 steps, and the optimizer 4"),
    "optimizer of another rank": (damage_rank, "is the state of other tensors than the adapter's"),
    "NaN": (damage_finite, "NaN or infinite"),
    "40 bytes": (damage_to_40_bytes, "holds no tensor"),
    "an end of zeros": (damage_end, "its end was not written"),
    "another rank in the config": (damage_shape, "of another rank"),
    "a generator is missing": (damage_generators, "no state of the generator 'numpy'"),
}


@pytest.mark.parametrize("name", AGREE)
def test_files_that_do_not_belong_together_are_torn(name, at):
    damage, words = AGREE[name]
    made.states(made.adapter(at))
    damage(at)
    found = judge(at)
    assert found.verdict == "torn" and words in f"{found.why}; {'; '.join(one.why for one in found.files)}"


def test_ranks_are_counted_by_the_arguments(at):
    made.arguments(made.states(made.adapter(at), ranks=4), ranks=4)
    (at / "rng_state_3.pth").unlink()
    assert judge(at).why == "rng_state_3.pth is missing"
    (at / "training_args.bin").unlink()
    assert judge(at).verdict == "whole" and "whether more than 3 processes saved it" in "".join(judge(at).not_judged)


def test_a_missing_shard_and_a_shard_without_its_tensors(at):
    made.states(made.model(at, shards=3), shapes=((8, 8),) * 4)
    first, second, _ = sorted(at.glob("model-*"))
    shutil.copy(first, second)
    assert "which the index names" in judge(at).why
    second.unlink()
    assert judge(at).why == f"{second.name} is missing"


def test_a_save_over_an_older_one_that_stopped_half_way(at):
    made.arguments(made.states(made.adapter(at)))
    order = ("adapter_model.safetensors", "adapter_config.json", "training_args.bin", "optimizer.pt", "scheduler.pt",
             "rng_state.pth", "trainer_state.json")  # fmt: skip
    for turn in range(2, len(order)):
        for place, name in enumerate(order):
            time = place + (2000 if place < turn else 1000)
            os.utime(at / name, (time, time))
        assert "they are of two saves" in judge(at).why
    for name in order:
        os.utime(at / name, (1000, 1000))
    assert judge(at).verdict == "whole"  # a copy


def test_lost_adapters_are_seen_beside_the_others(tmp_path):
    for step in (2, 4):
        path = tmp_path / f"checkpoint-{step}"
        made.states(made.adapter(made.adapter(path) / "second").parent, step=step)
    shutil.rmtree(tmp_path / "checkpoint-4/second")
    assert judge(tmp_path / "checkpoint-4").why == "second/adapter_config.json is missing"


def test_an_untrained_adapter_is_said(at):
    content = {name: torch.zeros_like(one) if "lora_B" in name else one for name, one in made.tensors().items()}
    made.states(made.adapter(at, content=content))
    assert judge(at).verdict == "whole" and "every lora_B is zero" in judge(at).notes[0]


def test_tensors_that_are_trained_and_not_saved_are_said(at):
    made.states(made.adapter(at), shapes=(*((4, 32), (32, 4)) * 2, (77,)))
    assert judge(at).verdict == "whole" and "no file of the adapter holds" in judge(at).notes[0]


# ---- what somebody else wrote ----


class Runs:
    def __reduce__(self):
        return os.system, ("touch code-was-run",)


@pytest.mark.parametrize("file", ["optimizer.pt", "training_args.bin", "rng_state.pth"])
def test_code_in_a_pickle_is_said_and_not_run(file, at, monkeypatch):
    monkeypatch.chdir(at.parent)
    made.states(made.adapter(at))
    torch.save({"state": {}, "param_groups": [], "code": Runs()}, at / file)
    found = judge(at)
    assert found.verdict == "foreign" and "names code ('posix.system'), which was not run" in found.why
    assert not os.path.exists("code-was-run")


def test_pickles_that_cost_more_than_they_have_bytes(at):
    import zipfile

    made.states(made.adapter(at))
    for content in (
        b"\x80\x02}r\xff\xff\xff\x7f.",  # an index of the memo of two billions
        b"\x96" + struct.pack("<Q", 2**40) + b".",  # a bytearray of a terabyte
        b"I" + b"9" * 100_000 + b"\n.",  # a number in digits
    ):
        with zipfile.ZipFile(at / "optimizer.pt", "w") as archive:
            archive.writestr("optimizer/data.pkl", content)
        assert judge(at).verdict in ("torn", "whole")
    with zipfile.ZipFile(at / "optimizer.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("optimizer/data.pkl", bytes(10**7))
    assert "compressed entries" in judge(at).why


BAD_HEADERS = (
    struct.pack("<Q", 2**40) + b"{}",
    struct.pack("<Q", 2**63) + b"{}",
    struct.pack("<Q", 2) + b"[]",
    struct.pack("<Q", 40) + json.dumps({"a": {"dtype": "F32"}}).encode().ljust(40),
    np.random.default_rng(0).bytes(500),
)


@pytest.mark.parametrize("content", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_bad_headers_and_binary_json(content, at):
    made.states(made.adapter(at))
    for file in ("adapter_model.safetensors", "trainer_state.json", "adapter_config.json"):
        (at / file).write_bytes(content)
    found = judge(at)
    assert {one.file for one in found.files if one.state == "torn"} == {
        "adapter_model.safetensors", "trainer_state.json", "adapter_config.json"
    }  # fmt: skip


def test_links_out_of_the_directory_are_not_followed(at, tmp_path):
    made.states(made.adapter(at))
    os.rename(at / "optimizer.pt", tmp_path / "elsewhere.pt")
    (at / "optimizer.pt").symlink_to(tmp_path / "elsewhere.pt")
    assert (judge(at).verdict, judge(at).why[:28]) == ("foreign", "optimizer.pt is a link, whic")


def downloaded(tmp_path, made_at):
    """Move the files of a directory into a cache of the hub, and return the snapshot, which has links to them."""
    repository = tmp_path / "models--me--mine"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc123"
    for file in sorted(each for each in made_at.rglob("*") if each.is_file()):
        link, blob = snapshot / file.relative_to(made_at), repository / "blobs" / f"blob-{file.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.mark.parametrize("kind", ["adapter alone", "several adapters", "model alone"])
def test_a_download_of_the_hub_is_followed_to_its_blobs_and_no_further(kind, at, tmp_path):
    snapshot = downloaded(tmp_path, WHOLE[kind](at))
    assert (judge(snapshot).verdict, judge(snapshot).why) == ("whole", "")
    name = "config.json" if kind == "model alone" else "adapter_config.json"
    (snapshot / name).resolve().rename(tmp_path / "elsewhere.json")
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(tmp_path / "elsewhere.json")
    assert (judge(snapshot).verdict, judge(snapshot).why[: len(name) + 10]) == ("foreign", f"{name} is a link")


def test_line_ends_of_windows(at):
    made.arguments(made.states(made.adapter(at)))
    for file in at.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert (judge(at).verdict, judge(at).why) == ("whole", "")


# ---- which one to use ----


def test_the_newest_whole_one_is_chosen(tmp_path, caplog):
    assert newest_whole(tmp_path / "no-run-yet") is None
    assert newest_whole(tmp_path) is None
    for step in (2, 10, 4):
        made.states(made.adapter(tmp_path / f"checkpoint-{step}"), step=step)
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10/scheduler.pt").unlink()
    assert newest_whole(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left: checkpoint-10 is torn"):
        newest_whole(tmp_path)
