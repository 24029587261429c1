"""Locks: what makes two stacks equal, and that no file of the user's is overwritten."""

import fcntl

import pytest

from harness.errors import UsageError
from harness.gate import command, locks, requirements
from harness.gate.sources import Source
from tests.wheels import wheel

HASHES = "sha256:00", "sha256:11"
RESOLVED = "peft==0.18.1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"


def test_the_key_of_releases_is_their_versions():
    assert locks.key("b==2\na==1\n") == locks.key("a==1 \\\n    --hash=sha256:00\nb==2\n") != locks.key("a==1\nb==3\n")
    assert locks.key("a==1\n") != locks.key("--no-binary a\na==1\n")


@pytest.mark.parametrize(
    "other",
    [
        "tiny @ file:///a/tiny-1.0-py3-none-any.whl \\\n    --hash=sha256:11\n",
        "tiny @ git+https://host/tiny@0123456789012345678901234567890123456789\n",
        f"tiny @ file:///a  # {requirements.CONTENT}{'1' * 64}\n",
        "tiny==1.0\n",
    ],
    ids=["another-wheel", "a-commit", "a-folder", "a-release"],
)
def test_the_key_of_what_is_elsewhere_is_its_content(other):
    one = "tiny @ file:///a/tiny-1.0-py3-none-any.whl \\\n    --hash=sha256:00\n"
    assert locks.key(one) == locks.key(one.replace("/a/", "/b/")) != locks.key(other)


def test_credentials_are_no_part_of_the_key():
    line = "tiny @ git+https://{}host/tiny@0123456789012345678901234567890123456789\n"
    assert locks.key(line.format("me:x@")) == locks.key(line.format(""))


def test_a_lock_has_the_hash_of_a_file_and_the_content_of_a_folder():
    sources = [
        Source("tiny", "file:///a/tiny.whl", "aa" * 32, False),
        Source("dir", "file:///d", "bb" * 32, folder=True),
    ]
    resolved = "tiny @ file:///a/tiny.whl\ndir @ file:///d\n"
    lock = locks.completed(resolved, sources, {}, ["built", "dir"])
    assert lock == (
        f"--no-binary built\ntiny @ file:///a/tiny.whl \\\n    --hash=sha256:{'aa' * 32}\n"
        f"dir @ file:///d  # content sha256:{'bb' * 32}\n"
    )
    assert locks.built(lock) == ["built"]


def test_hashes_that_the_user_gives_limit_the_files():
    assert (
        locks.completed(RESOLVED, [], {"peft": {HASHES[1], "sha256:22"}}, [])
        == "peft==0.18.1 \\\n    --hash=sha256:11\n"
    )
    with pytest.raises(UsageError, match=r"peft==0\.18\.1: no file on the index has a hash that the requirements give"):
        locks.completed(RESOLVED, [], {"peft": {"sha256:22"}}, [])


def test_a_lock_makes_the_same_requirements_again(tmp_path):
    (source,) = requirements.read(str(wheel(tmp_path))).sources
    path = locks.write_beside(tmp_path / "x.lock", locks.completed(f"{source}\n", [source], {}, []))
    assert requirements.read(str(path)).sources == [source]


def test_only_a_lock_of_ours_is_replaced(tmp_path):
    path, mine = tmp_path / "report.lock", tmp_path / "report-1.lock"
    path.write_text("precious==1\n")
    assert locks.write_beside(path, "peft==1\n") == mine
    assert locks.write_beside(path, "peft==2\n") == mine
    assert mine.read_text() == f"{locks.MARK}\npeft==2\n"
    assert path.read_text() == "precious==1\n"


def test_a_lock_follows_no_link_and_does_not_take_the_reports_name(tmp_path):
    (tmp_path / "precious").write_text(f"{locks.MARK}\n")
    (tmp_path / "r.lock").symlink_to("precious")
    assert locks.write_beside(tmp_path / "r.lock", "peft==1\n").name == "r-1.lock"
    assert (tmp_path / "precious").read_text() == f"{locks.MARK}\n"
    assert locks.write_beside(tmp_path / "new.lock", "peft==1\n", tmp_path / "new.lock").name == "new-1.lock"


def test_a_report_is_not_written_onto_the_requirements(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pins.txt").write_text("-r more.txt\n")
    (tmp_path / "more.txt").write_text("peft==0.18.1\n")
    (tmp_path / "link.json").symlink_to("more.txt")
    for name in ("pins.txt", "more.txt", "link.json"):
        with pytest.raises(UsageError, match="is one of the requirements files"):
            command.check_inputs(["pins.txt transformers==5.1.0", "current"], tmp_path / name)
    command.check_inputs(["pins.txt"], tmp_path / "report.json", None)


def test_the_gates_directory_is_no_link_and_its_gitignore_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".peft-harness").mkdir()
    (tmp_path / ".peft-harness" / ".gitignore").write_text("mine\n")
    place = (tmp_path / ".peft-harness" / "gate" / "0123").relative_to(tmp_path)
    with command._locked(place):
        assert (tmp_path / ".peft-harness" / ".gitignore").read_text() == "mine\n"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".peft-harness").rename(tmp_path / "before")
    (tmp_path / ".peft-harness").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="is a link"), command._locked(place):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_one_gate_at_a_time_has_a_directory(tmp_path, monkeypatch):
    place = tmp_path / ".peft-harness" / "gate" / "0123"
    with command._locked(place):
        with pytest.raises(UsageError, match="another gate of the same stacks is running here"), command._locked(place):
            pass
    flock, deleted = fcntl.flock, []

    def ended_just_now(descriptor, operation):
        """The gate before deletes its directory when the next one has opened the file in it."""
        flock(descriptor, operation)
        if not deleted:
            deleted.append(command._delete(place))

    monkeypatch.setattr(fcntl, "flock", ended_just_now)
    with command._locked(place):
        assert deleted and (place / "lock").exists() and [place] == list(place.parent.iterdir())
        with pytest.raises(UsageError, match="another gate"), command._locked(place):
            pass


def test_a_lock_beside_a_report_has_no_password_of_an_index(tmp_path):
    lines = "--index-url https://me:pass@a.example/simple\n--extra-index-url https://${TOKEN}@b.example/simple\npeft==0.18.1\n"
    written = locks.write_beside(tmp_path / "x.lock", lines).read_text()
    assert "--index-url https://a.example/simple\n--extra-index-url https://${TOKEN}@b.example/simple\n" in written
