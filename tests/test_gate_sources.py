"""What requirements ask for: files, folders, repositories, and requirement files that are wrong or of another kind."""

import re

import pytest

from harness.errors import UsageError
from harness.gate import requirements, sources, uv
from tests.wheels import folder, wheel

NEVER = "x-1.0-cp27-cp27m-win32.whl"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- packages that are no releases ----


@pytest.mark.parametrize(
    "asked",
    [
        "w/tiny-1.0-py3-none-any.whl",
        "./w/tiny-1.0-py3-none-any.whl",
        "tiny @ w/tiny-1.0-py3-none-any.whl",
        "tiny@file://{}/w/tiny-1.0-py3-none-any.whl",
        "file://{}/w/tiny-1.0-py3-none-any.whl peft==0.18.1",
        "sub/pins.txt",
        "-e w/tiny-1.0-py3-none-any.whl peft",
    ],
)
def test_a_local_wheel_is_read_from_words_and_files(here, asked):
    wheel(here / "w")
    (here / "sub").mkdir()
    # A relative path starts at the file that has it.
    (here / "sub" / "pins.txt").write_text("tiny @ ../w/tiny-1.0-py3-none-any.whl\n")
    (found,) = requirements.read(asked.replace("{}", str(here))).sources
    assert (found.name, found.url, found.builds) == ("tiny", (here / "w" / "tiny-1.0-py3-none-any.whl").as_uri(), False)
    assert len(found.content) == 64


@pytest.mark.parametrize("asked", ["./project", "tiny @ ./project", "-e project", "pins.txt", "file://{}/project"])
def test_a_folder_is_installed_by_its_content(here, asked):
    folder(here / "project")
    (here / "pins.txt").write_text("-e project\n")
    read = lambda: requirements.read(asked.replace("{}", str(here))).sources  # noqa: E731
    (before,) = read()
    assert before.folder and before.builds and before.name == "tiny"
    for name in ("build/x.py", ".git/index", "tiny/__pycache__/x.pyc", "tiny.egg-info/PKG-INFO"):
        (here / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "project" / name).touch()
    assert read() == [before]
    (here / "project" / "tiny" / "__init__.py").write_text("X = 2\n")
    assert read()[0].content != before.content


def test_a_folder_is_built_in_a_copy(here):
    project = folder(here / "project")
    for name in (".git/HEAD", "build/x.py", "tiny/build/x.py", ".venv/x", "tiny/__pycache__/x.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    (source,) = requirements.read("./project").sources
    copy = sources.copied(source, here / "copies")
    (place,) = (here / "copies").iterdir()
    assert (copy.name, copy.content, copy.url) == (source.name, source.content, place.as_uri())
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == {"pyproject.toml", "tiny/__init__.py", ".git/HEAD", "tiny/build/x.py"}
    (release,) = requirements.read(str(wheel(here))).sources
    assert sources.copied(release, here / "copies") == release


def test_a_repository_is_known_by_its_commit_and_needs_a_name():
    url = "git+https://github.com/huggingface/peft@v0.18.1"
    (found,) = requirements.read(f"peft[dev] @ {url} transformers").sources
    assert str(found) == f"peft[dev] @ {url}" and found.builds and not found.content
    assert requirements.read(f"{url}#egg=peft").names == ["peft"]
    with pytest.raises(UsageError, match="does not say its name; write NAME @ git"):
        requirements.read(url)


def test_two_wheels_of_one_version_have_two_contents(here):
    one, other = (wheel(here / body, body=f"X = {body}\n") for body in "12")
    (first,), (second,) = (requirements.read(str(path)).sources for path in (one, other))
    assert first.content != second.content
    with pytest.raises(UsageError, match="asks for tiny twice"):
        requirements.read(f"{one} {other}")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("gone-1.0-py3-none-any.whl", "gone-1.0-py3-none-any.whl: no such file or folder"),
        ("./gone", "gone: no such file or folder"),
        ("other @ ./tiny-1.0-py3-none-any.whl", "is the package tiny, and other was asked for"),
        ("torn-1.0-py3-none-any.whl", "torn-1.0-py3-none-any.whl: is damaged"),
        ("empty-1.0-py3-none-any.whl", "is no wheel (it has no .dist-info/METADATA)"),
        (f"https://host/{NEVER}", "does not fit Python 3"),
        ("./odd.whl", "is not the name of a wheel"),
        ("./sub", "is a directory without pyproject.toml and setup.py"),
        ("./nameless", "nameless does not say its name; write 'NAME @ file://"),
        ("./toml", "pyproject.toml: not TOML"),
        ("./pipe-1.0-py3-none-any.whl", "is no regular file"),
        ("tiny @ ftp://host/tiny-1.0-py3-none-any.whl", "expected https://, file:// or git+https://"),
        ("tiny @ file://host/tiny-1.0-py3-none-any.whl", "names another machine"),
        ("tiny @ file://{}/tiny-1.0-py3-none-any.whl#sha256=" + "0" * 64, "was asked for"),
        ("https://host/", "does not say its name"),
    ],
)
def test_a_package_that_cannot_be_installed_is_a_sentence(here, asked, words):
    import os
    import zipfile

    wheel(here)
    (here / "torn-1.0-py3-none-any.whl").write_bytes((here / "tiny-1.0-py3-none-any.whl").read_bytes()[:200])
    zipfile.ZipFile(here / "empty-1.0-py3-none-any.whl", "w").close()
    (here / "odd.whl").touch()
    for name, text in {"sub": None, "nameless": "[build-system]\n", "toml": "[[[\n"}.items():
        (here / name).mkdir()
        if text is not None:
            (here / name / "pyproject.toml").write_text(text)
    os.mkfifo(here / "pipe-1.0-py3-none-any.whl")
    with pytest.raises(UsageError, match=re.escape(words)) as raised:
        requirements.read(asked.replace("{}", str(here)))
    assert "\n" not in str(raised.value)


def test_a_folder_of_a_lock_that_has_changed_is_refused(here):
    (source,) = requirements.read(str(folder(here / "project"))).sources
    (here / "x.lock").write_text(f"{source}  # {requirements.CONTENT}{source.content}\n")
    assert requirements.read("x.lock").sources == [source]
    (here / "project" / "more.py").touch()
    with pytest.raises(UsageError, match="has changed since this lock was written"):
        requirements.read("x.lock")


def test_a_wheel_of_a_lock_that_has_changed_is_refused(here):
    (source,) = requirements.read(str(wheel(here))).sources
    (here / "x.lock").write_text(f"{source} \\\n    --hash=sha256:{source.content}\n")
    assert requirements.read("x.lock").sources == [source]
    wheel(here, body="X = 2\n")
    with pytest.raises(UsageError, match="none of the given hashes"):
        requirements.read("x.lock")


def test_a_folder_with_too_many_files_is_refused(here, monkeypatch):
    monkeypatch.setattr(sources, "_MOST_FILES", 1)
    with pytest.raises(UsageError, match="too many files for a package"):
        requirements.read(str(folder(here / "project")))


# ---- requirement files ----


def test_included_files_constraints_and_options_are_read_as_pip_reads_them(here, monkeypatch):
    monkeypatch.setenv("TOKEN", "secret")
    (here / "wheels").mkdir()
    (here / "sub").mkdir()
    (here / "pins.txt").write_bytes(
        b"\xef\xbb\xbf-r sub/base.txt\r\n-c sub/limits.txt\r\n--no-binary deepspeed, my_pkg\r\n"
        b"--find-links wheels\r\n-i https://${TOKEN}@host/simple\r\npeft >= 0.15 \\\r\n  --hash=sha256:aa\r\n"
        b"gone==1 ; python_version < '3'\r\n"
    )
    (here / "sub" / "base.txt").write_text("transformers  # newest\n-r ../pins-too.txt\n")
    (here / "pins-too.txt").write_text("accelerate\n-c sub/limits.txt\n")
    (here / "sub" / "limits.txt").write_text("transformers==4.57.6\n")
    found = requirements.read("pins.txt")
    assert found.releases == ["transformers", "accelerate", "peft >= 0.15"]
    assert "transformers==4.57.6" in found.constraints
    assert found.options == [f"--find-links {here / 'wheels'}", "--index-url https://${TOKEN}@host/simple"]
    assert found.build == ["deepspeed", "my-pkg"]
    assert found.hashes == {"peft": {"sha256:aa"}} and found.variables == {"TOKEN"}


def test_a_project_is_read_by_its_dependencies(here):
    (here / "pyproject.toml").write_text('[project]\ndependencies = ["transformers==4.57.6", "peft"]\n')
    assert requirements.read("pyproject.toml").releases == ["transformers==4.57.6", "peft"]
    (here / "pyproject.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(UsageError, match="has no list of dependencies"):
        requirements.read("pyproject.toml")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": "-r a.txt\n"}, "a.txt: includes itself (a.txt -> a.txt)"),
        ({"a.txt": "-r b.txt\n", "b.txt": "-c a.txt\n"}, "includes itself (a.txt -> b.txt -> a.txt)"),
        ({"a.txt": "peft\n-r gone.txt\n"}, "a.txt, line 2: gone.txt: no such requirements file"),
        ({"a.txt": "-r https://host/x.txt\n"}, "only files are read"),
        ({"a.txt": "-r\n"}, "--requirement without a file name"),
        ({"a.txt": "peft\n--use-feature=x\n"}, "a.txt, line 2: the option '--use-feature' is not known here"),
        ({"a.txt": "peft\n\ntransformers==\n"}, "a.txt, line 3: 'transformers==' is not a requirement"),
        ({"a.txt": "peft\x1b[2J\n"}, "a.txt, line 1: has characters that cannot be printed"),
        ({"a.txt": "peft" * 20000}, "a.txt, line 1: too long or too many requirements"),
        ({"a.txt": "peft\n" * 4000}, "too long or too many requirements"),
        ({"a.txt": "-c b.txt\n", "b.txt": "x @ https://host/x.whl\n"}, "b.txt, line 1: "),
        ({"a.txt": "-e\n"}, "--editable without a folder"),
        ({"a.txt": b"\xff\xfep\x00e\x00"}, "not UTF-8 text"),
        ({"a.txt": "peft\0"}, "not a text file"),
    ],
)
def test_a_requirements_file_that_is_wrong_is_a_sentence(here, files, words):
    for name, text in files.items():
        (here / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=re.escape(words)) as raised:
        requirements.read("a.txt")
    assert "\n" not in str(raised.value)


def test_a_circle_through_a_link_ends(here):
    (here / "sub").mkdir()
    (here / "a.txt").write_text("-r sub/b.txt\n")
    (here / "sub" / "b.txt").symlink_to("../a.txt")
    with pytest.raises(UsageError, match="includes itself"):
        requirements.read("a.txt")


def test_files_that_include_each_other_twice_are_read_once(here):
    for number in range(60):
        (here / f"{number}.txt").write_text(f"-r {number + 1}.txt\n-r {number + 1}.txt\n-c {number + 1}.txt\n")
    (here / "60.txt").write_text("peft\n")
    assert requirements.read("0.txt").names == ["peft"]


def test_only_wheels_are_installed_but_for_what_is_built():
    assert uv.only_wheels(["x"]) == ["--only-binary", ":all:", "--no-binary", "x"]
