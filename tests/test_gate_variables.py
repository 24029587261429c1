"""Environment variables of judged stacks and of uv: a few are inherited, and nothing that opens somebody's account."""

import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UsageError
from harness.gate import environments, uv, variables

SECRETS = {
    "HF_TOKEN": "hf_x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "GITHUB_TOKEN": "x",
    "WANDB_API_KEY": "x",
    "UV_INDEX_PRIVATE_PASSWORD": "x",
    "UV_DEFAULT_INDEX": "https://me:x@index.example/simple",
    "HTTPS_PROXY": "http://me:x@proxy.example",
    "NETRC": "/somewhere",
    "SSH_AUTH_SOCK": "/somewhere",
    "XDG_CONFIG_HOME": "/somewhere",
    "HF_HOME": "/somewhere",
}

PRINTS = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", str(tmp_path / "cache"))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "cache"


def test_a_candidate_that_prints_its_environment_has_no_secrets(cache, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    candidate = environments.make("current", added=[("MY_SETTING", "1")])
    seen = json.loads(candidate.run("-c", PRINTS, capture_output=True).stdout)
    assert not seen.keys() & SECRETS.keys()
    assert not [
        name for name in seen if "TOKEN" in name.replace("TOKENIZERS", "") or "PASSWORD" in name or "KEY" in name
    ]
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"], seen["MY_SETTING"]) == ("3", "7", "1")
    assert Path(seen["HOME"]).parent == cache / "homes"
    assert seen["PEFT_HARNESS_CACHE"] == str(cache)
    assert candidate.start("-c", "", stdout=-1).communicate() == ("", None)


def test_the_home_of_a_stack_has_caches_and_no_tokens(tmp_path, monkeypatch):
    real = tmp_path / "real"
    for name in (".cache/torch_extensions", ".cache/huggingface/hub", ".triton", ".aws"):
        (real / name).mkdir(parents=True)
    (real / ".cache" / "huggingface" / "token").write_text("hf_x")
    monkeypatch.setenv("HOME", str(real))
    monkeypatch.delenv("HF_HOME")
    home = Path(variables.for_stack("0123456789abcdef")["HOME"])
    found = {path.relative_to(home).as_posix() for path in home.rglob("*")}
    links = {".cache/torch_extensions", ".cache/huggingface/hub", ".triton"}
    assert found == {".cache", ".cache/huggingface", *links}
    assert all((home / name).resolve() == real / name for name in links)


def test_without_a_home_a_stack_has_one(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert Path(variables.for_stack("0123456789abcdef")["HOME"]).is_dir()


def test_named_variables_are_added(monkeypatch):
    monkeypatch.setenv("MINE", "a=b")
    assert variables.named(["MINE", "OTHER=c=d", "EMPTY="]) == (("MINE", "a=b"), ("OTHER", "c=d"), ("EMPTY", ""))


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("NOT_SET_ANYWHERE", "is not set here"),
        ("", "expected NAME or NAME=VALUE"),
        ("=x", "expected NAME or NAME=VALUE"),
        ("A-B=x", "expected NAME or NAME=VALUE"),
        ("A=x\0y", "expected NAME or NAME=VALUE"),
        ("PYTHONPATH=/x", "decides which packages are judged"),
        ("PEFT_HARNESS_CACHE=/x", "the harness's own"),
    ],
)
def test_variables_that_cannot_be_added_are_refused(word, words):
    with pytest.raises(UsageError, match=words):
        variables.named([word])


def test_env_and_build_are_for_stacks_that_are_installed():
    result = CliRunner().invoke(app, ["check", "--env", "HOME"])
    assert isinstance(result.exception, UsageError) and "name one --with" in str(result.exception)


def test_uv_alone_reads_the_users_configuration():
    found = variables.for_uv(builds=False)
    assert found["HOME"] == os.environ["HOME"]
    assert found.keys() & SECRETS.keys() == {
        "UV_INDEX_PRIVATE_PASSWORD", "UV_DEFAULT_INDEX", "HTTPS_PROXY", "NETRC", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME"
    }  # fmt: skip


def test_while_uv_builds_no_index_password_is_in_its_environment(cache):
    found = variables.for_uv(builds=True, added=[("MY_SETTING", "1")])
    assert found.keys() & SECRETS.keys() == {"HTTPS_PROXY"}
    assert found["HOME"] == str(cache / "homes" / "builds") and found["MY_SETTING"] == "1"
    # uv's own cache stays, so that nothing is downloaded again.
    assert found["UV_CACHE_DIR"].endswith("/uv")


def test_while_uv_builds_a_private_file_names_the_index(monkeypatch):
    monkeypatch.setenv("UV_INDEX", "private=https://more.example/simple")
    monkeypatch.setenv("UV_INDEX_PRIVATE_USERNAME", "you")
    monkeypatch.setenv("UV_INDEX_STRATEGY", "unsafe-best-match")
    inherited = {"UV_DEFAULT_INDEX": "https://me:x@index.example/simple", "PATH": "/bin"}
    with uv._indexes(inherited) as (option, file):
        assert option == "--config-file" and stat.S_IMODE(Path(file).parent.stat().st_mode) == 0o700
        assert Path(file).read_text().splitlines() == [
            'index-strategy = "unsafe-best-match"',
            "[[index]]", 'url = "https://me:x@index.example/simple"', "default = true",
            "[[index]]", 'url = "https://you:x@more.example/simple"', "default = false", 'name = "private"',
        ]  # fmt: skip
    assert inherited == {"PATH": "/bin"} and not Path(file).exists()


def test_each_name_has_a_reason():
    for table in (variables.STACK, variables.UV, variables.UV_ALONE):
        assert all(len(reason) > 8 for reason in table.values())
    assert not [name for name in SECRETS if variables.matches(name, " ".join(variables.STACK))]
