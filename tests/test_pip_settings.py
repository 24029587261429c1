"""pip's settings of indexes, as uv is told them."""

import os

import pytest

from harness.errors import UsageError
from harness.gate import pip_settings, resolver
from harness.gate.asked import Asked, Index

CONFIGURATION = """
[global]
index-url = https://global.example/simple
extra-index-url =
    https://one.example/simple
    https://two.example/simple
find-links = /wheels /more-wheels
[install]
index_url = https://install.example/simple
trusted-host = a.example b.example
"""


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No settings but those of a test."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    monkeypatch.setattr(pip_settings, "_files", lambda: [tmp_path / "pip.conf", tmp_path / "later.conf"])


def test_without_settings_uv_is_told_nothing():
    assert pip_settings.for_uv() == {} and not pip_settings.no_index()


def test_files_are_read_as_pip_reads_them(tmp_path, monkeypatch):
    (tmp_path / "pip.conf").write_text(CONFIGURATION)
    assert pip_settings.for_uv() == {
        "UV_DEFAULT_INDEX": "https://install.example/simple",
        "UV_EXTRA_INDEX_URL": "https://one.example/simple https://two.example/simple",
        "UV_FIND_LINKS": "/wheels,/more-wheels",
        "UV_INSECURE_HOST": "a.example b.example",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    (tmp_path / "later.conf").write_text("[install]\nindex-url = https://later.example/simple\nno-index = true\n")
    assert pip_settings.for_uv()["UV_DEFAULT_INDEX"] == "https://later.example/simple" and pip_settings.no_index()
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.example/simple")
    assert pip_settings.for_uv()["UV_DEFAULT_INDEX"] == "https://variable.example/simple"


def test_what_is_set_for_uv_goes_first(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://more.example/simple")
    monkeypatch.setenv("UV_INDEX_URL", "https://uv.example/simple")
    assert "UV_DEFAULT_INDEX" not in pip_settings.for_uv() and "UV_EXTRA_INDEX_URL" in pip_settings.for_uv()
    monkeypatch.setenv("UV_INDEX", "https://uv.example/more")
    assert pip_settings.for_uv() == {}


def test_a_configuration_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "pip.conf").write_text("index-url = x\n")
    with pytest.raises(UsageError, match=r"pip\.conf: is pip's configuration, and cannot be read"):
        pip_settings.for_uv()


def test_a_lock_keeps_its_indexes():
    given = Asked(
        options=["--index-url https://${TOKEN}@a.example/simple", "--only-binary :all:", "--trusted-host b.example"]
    )
    given.indexes.append(Index("named", "https://b.example/simple"))
    given.indexes.append(Index("tied", "https://c.example/simple", explicit=True))
    given.pinned["torch"] = "https://c.example/simple"
    lock = resolver.kept(given)
    assert lock.splitlines() == [
        "--index-url https://${TOKEN}@a.example/simple",
        "--trusted-host b.example",
        "--extra-index-url https://b.example/simple",
        "--extra-index-url https://c.example/simple",
    ]
    assert resolver.index_words(lock) == ["--allow-insecure-host", "b.example", "--index-strategy", "unsafe-best-match"]
    assert "--trusted-host" not in resolver.index_lines(lock) and "--index-url" in resolver.index_lines(lock)


def test_without_an_index_pip_s_setting_goes_into_the_file(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert resolver.index_lines("") == "--no-index\n"
