# ruff: noqa: E501 -- lines of tables and of files
"""Requirement files as people have them: each input, and the stack or the sentence that comes of it. Nothing is resolved."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.gate import environments, requirements
from tests.wheels import folder, wheel

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

#: Files that inputs refer to.
BESIDE = {
    "base.txt": "transformers\naccelerate\n",
    "limits.txt": "transformers==4.57.6\n",
    "deep/one.txt": "-r two/two.txt\npeft\n",
    "deep/two/two.txt": "-r ../../base.txt\n-c limits.txt\n",
    "deep/two/limits.txt": "accelerate<2\n",
    "indexed.txt": "--index-url https://private.example/simple\ntransformers\n",
}

#: A file -> what it asks for: the releases, and after "|" the constraints, the packages from elsewhere, options and notes.
PIP = {
    # includes
    "-r base.txt\npeft": "transformers accelerate peft",
    "-rbase.txt": "transformers accelerate",
    "--requirement=base.txt": "transformers accelerate",
    "-r base.txt\n-c limits.txt\npeft>=0.15": "transformers accelerate peft>=0.15 | transformers==4.57.6",
    "-r deep/one.txt": "transformers accelerate peft | accelerate<2",
    "-r indexed.txt\npeft": "transformers peft | --index-url https://private.example/simple",
    "-r ${FOLDER}/one.txt": "transformers accelerate peft | accelerate<2",
    # lines
    "# all of it\n\npeft==0.18.1  # pinned\n  \n": "peft==0.18.1",
    "peft \\\n  >=0.15, \\\n  <0.19": "peft >=0.15, <0.19",
    "peft==0.18.1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb": "peft==0.18.1",
    "peft==0.18.1 ; sys_platform == 'win32'\ntransformers": "transformers",
    "peft==0.18.1 ; python_version >= '3.8' and sys_platform == 'linux'": "peft==0.18.1 ; python_version >= '3.8' and "
    "sys_platform == 'linux'",
    "peft ; extra == 'test'\ntransformers": "transformers",
    "transformers[torch, sentencepiece]==4.57.6": "transformers[torch, sentencepiece]==4.57.6",
    "peft==${PEFT_VERSION}": "peft==0.18.1",
    "peft==0.18.1\r\ntransformers\r\n": "peft==0.18.1 transformers",
    "peft==0.18.1\npeft==0.18.1": "peft==0.18.1 peft==0.18.1",
    "peft==0.18.1\npeft>=0.15": "peft==0.18.1 peft>=0.15",
    "torch==2.6.0\ntorch==2.6.0+cu124": "torch==2.6.0 torch==2.6.0+cu124",
    # options
    "-i https://a.example/simple --extra-index-url https://b.example/simple\npeft": "peft | --index-url "
    "https://a.example/simple --extra-index-url https://b.example/simple",
    "--find-links wheels\n--no-index\npeft": "peft | --find-links {}/wheels --no-index",
    "--find-links=https://a.example/wheels.html\npeft": "peft | --find-links https://a.example/wheels.html",
    "--trusted-host a.example\n--prefer-binary\npeft": "peft | --trusted-host a.example",
    "--extra-index-url https://${TOKEN}@a.example/simple\npeft": "peft | --extra-index-url https://${TOKEN}@a.example/simple",
    # constraints
    "-c limits.txt": " | transformers==4.57.6",
    "peft\n-c extras.txt": "peft | transformers<5",
    # elsewhere
    "peft @ git+https://github.com/huggingface/peft@v0.18.1": " | peft @ git+https://github.com/huggingface/peft@v0.18.1",
    "git+https://github.com/huggingface/peft#egg=peft[quality]": " | peft[quality] @ "
    "git+https://github.com/huggingface/peft#egg=peft",
    "peft[quality] @ https://a.example/peft-0.18.1-py3-none-any.whl": " | peft[quality] @ "
    "https://a.example/peft-0.18.1-py3-none-any.whl",
    "https://a.example/peft-0.18.1-py3-none-any.whl ; sys_platform == 'win32'\ntorch": "torch",
    "x @ https://a.example/x-1.0.tar.gz ; python_version < '3'\ntorch": "torch",
    "./w/tiny-1.0-py3-none-any.whl": " | tiny @ file://{}/w/tiny-1.0-py3-none-any.whl",
    "-e project": " | mine @ file://{}/project",
    "-e ./project[train]\n": " | mine[train] @ file://{}/project",
    "project/": " | mine @ file://{}/project",
    "-e .": " | here @ file://{}",
    # pip freeze
    "-e git+https://github.com/me/x@0123456789abcdef0123456789abcdef01234567#egg=x": " | x @ "
    "git+https://github.com/me/x@0123456789abcdef0123456789abcdef01234567#egg=x",
    "-e git+ssh://git@github.com/me/x.git@main#egg=x&subdirectory=python": " | x @ "
    "git+ssh://git@github.com/me/x.git@main#egg=x&subdirectory=python",
    "# Editable install with no version control (mine==1.0)\n-e {}/project": " | mine @ file://{}/project",
}

#: A file -> the sentence.
PIP_WRONG = {
    "-r gone.txt": "pins.txt, line 1: gone.txt: no such requirements file",
    "peft\n-c ${NO_FOLDER}/x.txt": "pins.txt, line 2: refers to ${NO_FOLDER}, and no such environment variable is set; set it",
    "peft==${NO_VERSION}": "refers to ${NO_VERSION}, and no such environment variable is set",
    "-c https://a.example/limits.txt": "--constraint https://a.example/limits.txt: only files are read; download it",
    "peft==0.18.1\npeft==0.19.0": "pins.txt, line 2: 'peft==0.19.0' contradicts 'peft==0.18.1' (pins.txt, line 1); keep one",
    "-c limits.txt\ntransformers==5.1.0": "'transformers==5.1.0' contradicts 'transformers==4.57.6' (limits.txt, line 1)",
    "peft==0.18.1\npeft>=0.19": "'peft>=0.19' contradicts 'peft==0.18.1'",
    "-r indexed.txt\n--index-url https://b.example/simple": "names a second --index-url; write --extra-index-url for one",
    "--find-links none\npeft": "--find-links none: no such folder",
    "--no-binary :all:": "--no-binary :all: would build every package; name those that must be built",
    "--use-feature=fast-deps": "the option '--use-feature' is not known here; remove it",
    "packaging @ file:///home/conda/feedstock_root/build_artifacts/packaging_1/work": "packaging is named by a folder in "
    "which conda built it, which is not here; write packaging==VERSION (`pip list --format=freeze` prints it)",
    "-e /home/somebody/x": "pins.txt, line 1: /home/somebody/x: no such file or folder",
    "peft ~= 0.18.1 and more": "is not a requirement",
    "import torch": "pins.txt, line 1: 'import torch' is not a requirement",
    "peft; python_version = '3'": "is not a requirement",
    "git+https://github.com/huggingface/peft": "does not say its name; write NAME @ git+https://github.com/huggingface/peft",
}

PROJECT = """
[project]
name = "mine"
version = "1"
requires-python = ">=3.8"
dependencies = ["transformers==4.57.6", "peft>=0.18,<0.19"]
[project.optional-dependencies]
train = ["accelerate==1.13.0", "windows-only==1; sys_platform == 'win32'"]
all = ["mine[train]", "bitsandbytes"]
round = ["mine[round-too]"]
round-too = ["mine[round]"]
[dependency-groups]
dev = ["pytest>=8", {include-group = "lint"}]
lint = ["ruff"]
circle = [{include-group = "circle"}]
lost = [{include-group = "gone"}]
odd = [1]
"""

UV_PROJECT = """
[project]
name = "mine"
dependencies = ["torch==2.6.0", "peft[quality]", "tool", "member", "transformers"]
[dependency-groups]
dev = ["accelerate"]
[tool.uv]
constraint-dependencies = ["numpy<3"]
override-dependencies = ["tokenizers==0.22.1"]
dev-dependencies = ["ruff"]
[[tool.uv.index]]
name = "cu"
url = "https://download.pytorch.org/whl/cu124"
explicit = true
[[tool.uv.index]]
name = "private"
url = "https://private.example/simple"
[tool.uv.sources]
torch = [{ index = "cu", marker = "sys_platform == 'linux'" }, { index = "none", marker = "sys_platform == 'win32'" }]
peft = { git = "https://github.com/huggingface/peft", rev = "v0.18.1" }
tool = { path = "packages/tool", editable = true }
member = { workspace = true }
[tool.uv.workspace]
members = ["packages/*"]
"""

POETRY = """
[tool.poetry]
name = "mine"
[tool.poetry.dependencies]
python = "^3.8"
transformers = "^4.57.6"
peft = "~0.18"
accelerate = {version = ">=1.0", extras = ["testing"]}
windows-only = {version = "*", markers = "sys_platform == 'win32'"}
old = {version = "1.0", python = "<3.8"}
torch = {version = "2.6.0", source = "cpu"}
bitsandbytes = {version = "0.49.0", optional = true}
from-git = {git = "https://github.com/me/x.git", tag = "v1"}
[tool.poetry.extras]
quant = ["bitsandbytes"]
[tool.poetry.group.dev.dependencies]
pytest = "*"
[[tool.poetry.source]]
name = "cpu"
url = "https://download.pytorch.org/whl/cpu"
priority = "explicit"
"""

UV_LOCK = """
version = 1
requires-python = ">=3.8"
[[package]]
name = "mine"
version = "1"
source = { editable = "." }
dependencies = [
    { name = "transformers" },
    { name = "windows-only", marker = "sys_platform == 'win32'" },
    { name = "torch", version = "2.6.0", source = { registry = "https://pypi.org/simple" }, marker = "sys_platform == 'darwin'" },
    { name = "torch", version = "2.6.0+cpu", source = { registry = "https://download.pytorch.org/whl/cpu" }, marker = "sys_platform == 'linux'" },
]
[package.optional-dependencies]
train = [{ name = "peft", extra = ["quality"] }]
[package.dev-dependencies]
dev = [{ name = "pytest" }]
[[package]]
name = "transformers"
version = "4.57.6"
source = { registry = "https://pypi.org/simple" }
dependencies = [{ name = "tokenizers" }]
wheels = [{ url = "https://x/transformers-4.57.6-py3-none-any.whl", hash = "sha256:aa" }]
[[package]]
name = "tokenizers"
version = "0.22.1"
source = { registry = "https://pypi.org/simple" }
[[package]]
name = "windows-only"
version = "1"
source = { registry = "https://pypi.org/simple" }
[[package]]
name = "torch"
version = "2.6.0"
source = { registry = "https://pypi.org/simple" }
[[package]]
name = "torch"
version = "2.6.0+cpu"
source = { registry = "https://download.pytorch.org/whl/cpu" }
[[package]]
name = "peft"
version = "0.18.1"
source = { git = "https://github.com/huggingface/peft?rev=v0.18.1#0123456789012345678901234567890123456789" }
[package.optional-dependencies]
quality = [{ name = "ruff" }]
[[package]]
name = "ruff"
version = "0.9.0"
source = { registry = "https://pypi.org/simple" }
[[package]]
name = "pytest"
version = "8.0.0"
source = { registry = "https://pypi.org/simple" }
"""

#: Extras that exclude each other: uv writes them into the markers.
UV_LOCK_CONFLICT = """
version = 1
[[package]]
name = "mine"
version = "1"
source = { virtual = "." }
[package.optional-dependencies]
cpu = [{ name = "torch", version = "2.6.0+cpu", marker = "extra == 'extra-4-mine-cpu'" }]
cu = [{ name = "torch", version = "2.6.0", marker = "extra == 'extra-4-mine-cu' or extra != 'extra-4-mine-cpu'" }]
[[package]]
name = "torch"
version = "2.6.0"
[[package]]
name = "torch"
version = "2.6.0+cpu"
"""

POETRY_LOCK = """
[[package]]
name = "transformers"
version = "4.57.6"
optional = false
python-versions = ">=3.8.0"
groups = ["main"]
files = [{file = "transformers-4.57.6-py3-none-any.whl", hash = "sha256:aa"}]
[[package]]
name = "windows-only"
version = "1.0"
optional = false
python-versions = "*"
groups = ["main"]
markers = "sys_platform == \\"win32\\""
files = []
[[package]]
name = "bitsandbytes"
version = "0.49.0"
optional = true
python-versions = ">=3.8"
groups = ["main"]
markers = "extra == \\"quant\\""
files = []
[[package]]
name = "pytest"
version = "8.0.0"
optional = false
python-versions = ">=3.8"
groups = ["dev"]
files = []
[package.source]
type = "git"
url = "https://github.com/pytest-dev/pytest.git"
reference = "main"
resolved_reference = "0123456789012345678901234567890123456789"
[extras]
quant = ["bitsandbytes"]
[metadata]
lock-version = "2.1"
python-versions = ">=3.8,<4.0"
content-hash = "x"
"""

#: Before Poetry 2.0 a package that others need on another platform only has no marker of its own.
POETRY_LOCK_OLD = """
[[package]]
name = "transformers"
version = "4.57.6"
optional = false
python-versions = ">=3.8"
files = []
[package.dependencies]
colorama = {version = "*", markers = "sys_platform == \\"win32\\""}
[[package]]
name = "colorama"
version = "0.4.6"
optional = false
python-versions = "*"
files = []
[metadata]
lock-version = "2.0"
python-versions = "^3.8"
"""

PYLOCK = """
lock-version = "1.0"
requires-python = ">=3.8"
extras = ["train"]
dependency-groups = ["dev", "docs"]
default-groups = ["dev"]
created-by = "x"
[[packages]]
name = "transformers"
version = "4.57.6"
wheels = [{ name = "transformers-4.57.6-py3-none-any.whl", url = "https://x/t.whl", hashes = { sha256 = "aa" } }]
[[packages]]
name = "peft"
version = "0.18.1"
marker = "'train' in extras"
[[packages]]
name = "pytest"
version = "8.0.0"
marker = "'dev' in dependency_groups"
[[packages]]
name = "windows-only"
version = "1"
marker = "sys_platform == 'win32'"
[[packages]]
name = "from-git"
vcs = { type = "git", url = "https://github.com/me/x", commit-id = "0123456789012345678901234567890123456789" }
"""

PDM_LOCK = """
[metadata]
groups = ["default", "train", "dev"]
lock_version = "4.5.0"
[[metadata.targets]]
requires_python = ">=3.8"
[[package]]
name = "transformers"
version = "4.57.6"
requires_python = ">=3.8"
groups = ["default"]
files = [{file = "t.whl", hash = "sha256:aa"}]
[[package]]
name = "peft"
version = "0.18.1"
groups = ["train"]
[[package]]
name = "windows-only"
version = "1"
groups = ["default"]
marker = "sys_platform == 'win32'"
"""

PIPFILE = """
[[source]]
url = "https://pypi.org/simple"
name = "pypi"
[[source]]
url = "https://download.pytorch.org/whl/cpu"
name = "cpu"
[packages]
transformers = "==4.57.6"
torch = {version = "==2.6.0", index = "cpu"}
peft = "*"
windows-only = {version = "*", sys_platform = "== 'win32'"}
[dev-packages]
pytest = "*"
"""

PIPFILE_LOCK = """
{"_meta": {"requires": {}, "sources": [{"name": "pypi", "url": "https://pypi.org/simple", "verify_ssl": true}]},
 "default": {"transformers": {"hashes": ["sha256:aa"], "index": "pypi", "version": "==4.57.6"},
             "windows-only": {"version": "==1", "markers": "sys_platform == 'win32'"}},
 "develop": {"pytest": {"version": "==8.0.0"}}}
"""

CONDA = """
name: x
channels: [conda-forge]
dependencies:
  - python=PYTHON
  - pytorch=2.6
  - conda-forge::numpy>=1.26
  - cudatoolkit
  - pip
  - pip:
    - transformers==4.57.6
    - -r base.txt
    - --extra-index-url https://a.example/simple
"""

#: (file name, its text, what is named after it) -> as for PIP.
OTHERS = [
    ("pyproject.toml", PROJECT, "", "transformers==4.57.6 peft>=0.18,<0.19"),
    ("pyproject.toml", PROJECT, "[train]", "transformers==4.57.6 peft>=0.18,<0.19 accelerate==1.13.0"),
    ("pyproject.toml", PROJECT, "[all]", "transformers==4.57.6 peft>=0.18,<0.19 accelerate==1.13.0 bitsandbytes"),
    ("pyproject.toml", PROJECT, ":dev", "transformers==4.57.6 peft>=0.18,<0.19 pytest>=8 ruff"),
    ("pyproject.toml", PROJECT, "[Train]:lint", "transformers==4.57.6 peft>=0.18,<0.19 accelerate==1.13.0 ruff"),
    ("pyproject.toml", PROJECT, " torch==2.6.0", "transformers==4.57.6 peft>=0.18,<0.19 torch==2.6.0"),
    (
        "pyproject.toml",
        PROJECT,
        "[train, all] torch",
        "transformers==4.57.6 peft>=0.18,<0.19 accelerate==1.13.0 bitsandbytes torch",
    ),
    ("pyproject.toml", '[dependency-groups]\ndev = ["peft"]\n', ":dev", "peft"),
    (
        "pyproject.toml",
        '[project]\nname = "x"\ndynamic = ["dependencies"]\n[tool.setuptools.dynamic]\ndependencies = {file = ["base.txt"]}\n',
        "",
        "transformers accelerate",
    ),
    (
        "pyproject.toml",
        UV_PROJECT,
        "",
        "torch==2.6.0 transformers | numpy<3 peft[quality] @ git+https://github.com/huggingface/peft@v0.18.1 tool @ "
        "file://{}/packages/tool member @ file://{}/packages/member torch<-https://download.pytorch.org/whl/cu124",
    ),
    (
        "pyproject.toml",
        POETRY,
        "",
        "transformers>=4.57.6,<5 peft>=0.18,<0.19 accelerate[testing]>=1.0 torch==2.6.0 | from-git @ "
        "git+https://github.com/me/x.git@v1 torch<-https://download.pytorch.org/whl/cpu",
    ),
    (
        "pyproject.toml",
        POETRY,
        "[quant]:dev",
        "transformers>=4.57.6,<5 peft>=0.18,<0.19 accelerate[testing]>=1.0 torch==2.6.0 bitsandbytes==0.49.0 pytest | "
        "from-git @ git+https://github.com/me/x.git@v1 torch<-https://download.pytorch.org/whl/cpu",
    ),
    (
        "uv.lock",
        UV_LOCK,
        "",
        "transformers==4.57.6 torch==2.6.0+cpu tokenizers==0.22.1 | torch<-https://download.pytorch.org/whl/cpu",
    ),
    (
        "uv.lock",
        UV_LOCK,
        "[train]:dev",
        "pytest==8.0.0 transformers==4.57.6 torch==2.6.0+cpu tokenizers==0.22.1 ruff==0.9.0 | peft @ "
        "git+https://github.com/huggingface/peft@0123456789012345678901234567890123456789 "
        "torch<-https://download.pytorch.org/whl/cpu",
    ),
    ("uv.lock", '[[package]]\nname = "transformers"\nversion = "4.57.6"\n', "", "transformers==4.57.6"),
    ("uv.lock", UV_LOCK_CONFLICT, "[cpu]", "torch==2.6.0+cpu"),
    ("uv.lock", UV_LOCK_CONFLICT, "[cu]", "torch==2.6.0"),
    ("poetry.lock", POETRY_LOCK, "", "transformers==4.57.6"),
    ("poetry.lock", POETRY_LOCK, "[quant]", "transformers==4.57.6 bitsandbytes==0.49.0"),
    (
        "poetry.lock",
        POETRY_LOCK,
        ":dev",
        "transformers==4.57.6 | pytest @ git+https://github.com/pytest-dev/pytest.git@0123456789012345678901234567890123456789",
    ),
    ("poetry.lock", POETRY_LOCK_OLD, "", "transformers==4.57.6"),
    (
        "pylock.toml",
        PYLOCK,
        "",
        "transformers==4.57.6 pytest==8.0.0 | from-git @ git+https://github.com/me/x@0123456789012345678901234567890123456789",
    ),
    (
        "pylock.gpu.toml",
        PYLOCK,
        "[train]:docs",
        "transformers==4.57.6 peft==0.18.1 | from-git @ "
        "git+https://github.com/me/x@0123456789012345678901234567890123456789",
    ),
    ("pdm.lock", PDM_LOCK, "", "transformers==4.57.6"),
    ("pdm.lock", PDM_LOCK, ":train", "transformers==4.57.6 peft==0.18.1"),
    ("Pipfile", PIPFILE, "", "transformers==4.57.6 torch==2.6.0 peft | torch<-https://download.pytorch.org/whl/cpu"),
    (
        "Pipfile",
        PIPFILE,
        ":dev",
        "transformers==4.57.6 torch==2.6.0 peft pytest | torch<-https://download.pytorch.org/whl/cpu",
    ),
    ("Pipfile.lock", PIPFILE_LOCK, "", "transformers==4.57.6"),
    ("Pipfile.lock", PIPFILE_LOCK, ":dev", "transformers==4.57.6 pytest==8.0.0"),
    (
        "environment.yml",
        CONDA.replace("PYTHON", PYTHON),
        "",
        "transformers==4.57.6 transformers accelerate | --extra-index-url https://a.example/simple environment.yml: packages "
        "of conda are not installed: cudatoolkit, numpy, pytorch; to judge those of the stack, name them as well: "
        "'environment.yml torch==2.6.*'",
    ),
    (
        "conda.yaml",
        "dependencies: [python=3.5, pip: [peft]]\n",
        "",
        f"peft | conda.yaml: is for Python 3.5, and the stack gets Python {PYTHON}",
    ),
]

#: (file name, its text, what is named after it, the sentence)
OTHERS_WRONG = [
    (
        "pyproject.toml",
        PROJECT,
        "[trian]",
        "pyproject.toml[trian]: has no extra trian; its extras are all, round, round-too, train",
    ),
    (
        "pyproject.toml",
        PROJECT,
        ":test",
        "pyproject.toml:test: has no group test; its groups are circle, dev, lint, lost, odd",
    ),
    ("pyproject.toml", PROJECT, "[round]", "the extra round includes itself (round -> round-too -> round)"),
    ("pyproject.toml", PROJECT, ":circle", "the group circle includes itself (circle -> circle); remove one of them"),
    ("pyproject.toml", PROJECT, ":lost", "has no group gone (the group lost includes it)"),
    ("pyproject.toml", PROJECT, ":odd", "the group odd has 1; write a requirement or {include-group = ...}"),
    (
        "pyproject.toml",
        '[project]\nrequires-python = ">=99"\n',
        "",
        "is for Python >=99 (requires-python), and this is Python 3",
    ),
    (
        "pyproject.toml",
        '[project]\nname = "x"\n',
        "",
        "has no list of dependencies in [project]; name a requirements file",
    ),
    (
        "pyproject.toml",
        '[dependency-groups]\ndev = ["peft"]\n',
        "",
        "has no list of dependencies in [project], and was named without an extra or a group (there are :dev)",
    ),
    (
        "pyproject.toml",
        '[project]\ndynamic = ["dependencies"]\n',
        "",
        "its dependencies are dynamic: the project's own build",
    ),
    (
        "pyproject.toml",
        '[project]\ndependencies = ["peft", "torch=2"]\n',
        "",
        "pyproject.toml, line 2: 'torch=2' is not a requirement",
    ),
    ("pyproject.toml", '[project]\ndependencies = "peft"\n', "", "[project] dependencies is no list of requirements"),
    (
        "pyproject.toml",
        '[project]\ndependencies = ["torch"]\n[tool.uv.sources]\ntorch = {index = "cu"}\n',
        "",
        "[tool.uv.sources] torch: there is no [[tool.uv.index]] with the name 'cu'",
    ),
    (
        "pyproject.toml",
        '[tool.poetry.dependencies]\npeft = "^0.17 || ^0.18"\n',
        "",
        "line 2: '^0.17 || ^0.18' has alternatives",
    ),
    ("pyproject.toml", '[tool.poetry.dependencies]\npython = "^2.7"\npeft = "*"\n', "", "is for Python >=2.7,<3"),
    ("pyproject.toml", "[[[", "", "pyproject.toml: not TOML"),
    ("uv.lock", "version = 1\n", "", "uv.lock: has no packages; make it anew: uv lock"),
    ("uv.lock", UV_LOCK, "[quant]", "uv.lock[quant]: has no extra quant; its extras are train"),
    ("uv.lock", 'requires-python = ">=99"\n', "", "uv.lock: is for Python >=99 (requires-python)"),
    ("poetry.lock", POETRY_LOCK, ":docs", "poetry.lock:docs: has no group docs; its groups are dev"),
    (
        "pylock.toml",
        PYLOCK.replace("'train' in", "'train' on"),
        "",
        "pylock.toml, line 13: \"'train' on extras\" is no marker",
    ),
    ("pdm.lock", PDM_LOCK, ":docs", "has no group docs; its groups are dev, train"),
    ("Pipfile", PIPFILE, "[dev]", "Pipfile[dev]: has no extra dev; it has no extras; leave [dev] out"),
    ("Pipfile.lock", "[]", "", "has no packages in its part default"),
    (
        "environment.yml",
        "dependencies: [pytorch=2.6, transformers=4.57.6]\n",
        "",
        "has no pip part, and packages of conda are not installed here; name the packages by their names on PyPI: "
        "'torch==2.6.* transformers==4.57.6'",
    ),
    ("settings.yml", "a: 1\n", "", "is no environment.yml of conda (it has no list of dependencies)"),
    ("environment.yml", CONDA, "[gpu]", "environment.yml[gpu]: such a file has no extras or groups"),
    (
        "pins.txt",
        "peft\n",
        "[gpu]",
        "pins.txt[gpu]: such a file has no extras or groups; leave [gpu] out, or name a pyproject",
    ),
    ("conda-lock.yml", "x", "", "conda-lock.yml: is no requirements file; make one: pip list --format=freeze"),
    ("setup.py", "x", "", "setup.py: is no requirements file; name its folder, as ./FOLDER"),
    ("package.json", "{}", "", "package.json: is no requirements file; write one requirement a line"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOLDER", "deep")
    monkeypatch.setenv("PEFT_VERSION", "0.18.1")
    monkeypatch.setenv("TOKEN", "secret")
    for name, text in {**BESIDE, "extras.txt": "transformers[torch]<5\n"}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("wheels").mkdir()
    wheel("w")
    folder(tmp_path / "project", name="mine")
    for name in ("member", "tool"):
        folder(tmp_path / "packages" / name, name=name)
    return tmp_path


def outcome(asked):
    """What requirements ask for, in the words of the tables."""
    found = requirements.read(asked)
    more = [*found.constraints, *map(str, found.sources), *found.options]
    more += [f"{name}<-{url}" for name, url in found.pinned.items() if name in found.names]
    more += found.notes
    return " ".join(found.releases) + (f" | {' '.join(more)}" if more else "")


@pytest.mark.parametrize("text", PIP)
def test_a_requirements_file_as_pip_has_it(here, text):
    if text == "-e .":
        (here / "pyproject.toml").write_text('[project]\nname = "here"\n')
    Path("pins.txt").write_text(text.replace("{}", str(here)))
    assert outcome("pins.txt") == PIP[text].replace("{}", str(here))


@pytest.mark.parametrize("text", PIP_WRONG)
def test_a_requirements_file_that_pip_would_not_take_either(text):
    Path("pins.txt").write_text(text)
    refused("pins.txt", PIP_WRONG[text])


@pytest.mark.parametrize(("name", "text", "choice", "expected"), OTHERS)
def test_a_file_of_another_kind(here, name, text, choice, expected):
    Path(name).write_text(text)
    assert outcome(f"{name}{choice}") == expected.replace("{}", str(here))


@pytest.mark.parametrize(("name", "text", "choice", "said"), OTHERS_WRONG)
def test_a_file_of_another_kind_that_cannot_be_read(name, text, choice, said):
    Path(name).write_text(text)
    refused(f"{name}{choice}", said)


def refused(asked, said):
    with pytest.raises(UsageError, match=re.escape(said)) as raised:
        requirements.read(asked)
    assert "\n" not in str(raised.value)


def test_hashes_of_a_lock_are_kept():
    Path("uv.lock").write_text(UV_LOCK)
    assert requirements.read("uv.lock").hashes == {"transformers": {"sha256:aa"}}
    for name, text in (
        ("poetry.lock", POETRY_LOCK),
        ("pylock.toml", PYLOCK),
        ("pdm.lock", PDM_LOCK),
        ("Pipfile.lock", PIPFILE_LOCK),
    ):
        Path(name).write_text(text)
        assert requirements.read(name).hashes["transformers"] == {"sha256:aa"}


def test_paths_start_at_the_file_that_has_them(here, monkeypatch):
    Path("pyproject.toml").write_text(UV_PROJECT)
    Path("deep/more.txt").write_text("-e ../project\n--find-links ../wheels\n")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    found = requirements.read("../deep/more.txt")
    assert found.options == [f"--find-links {here}/wheels"] and found.sources[0].url == (here / "project").as_uri()
    assert (here / "packages/member").as_uri() in [made.url for made in requirements.read("../pyproject.toml").sources]


def test_a_release_that_is_too_old_is_named_with_its_line():
    Path("pins.txt").write_text("peft\ntransformers==4.40.0\n")
    said = "pins.txt, line 2: transformers==4.40.0 is older than transformers 4.45.2"
    with pytest.raises(UsageError, match=re.escape(said)):
        environments.resolve("pins.txt")


def test_settings_of_uv_are_read():
    Path("pyproject.toml").write_text(UV_PROJECT)
    found = requirements.read("pyproject.toml")
    assert found.overrides == ["tokenizers==0.22.1"]
    assert [(index.url, index.explicit) for index in found.indexes] == [
        ("https://download.pytorch.org/whl/cu124", True),
        ("https://private.example/simple", False),
    ]
    assert requirements.read("pyproject.toml:dev").names[-1] == "peft" or "ruff" in requirements.names(
        "pyproject.toml:dev"
    )


def test_a_poetry_project_with_standard_dependencies_has_its_groups_and_sources_too():
    text = POETRY.replace(
        "[tool.poetry]\n", '[project]\nname = "mine"\ndependencies = ["torch==2.6.0"]\n[tool.poetry]\n', 1
    )
    Path("pyproject.toml").write_text(text)
    found = requirements.read("pyproject.toml:dev")
    assert set(found.releases) == {"torch==2.6.0", "pytest"}
    assert found.pinned == {"torch": "https://download.pytorch.org/whl/cpu"}


def test_of_two_versions_in_a_lock_that_both_apply_neither_is_taken():
    one = '[[package]]\nname = "transformers"\nversion = "4.57.6"\n'
    for name, text in (("poetry.lock", POETRY_LOCK), ("pdm.lock", PDM_LOCK), ("uv.lock", one)):
        Path(name).write_text(text + one.replace("4.57.6", "5.1.0"))
        refused(name, "both apply here; make the lock anew")


@pytest.mark.network
@pytest.mark.parametrize("name", ["base.txt", "constraints.txt", "environment.yml", "pyproject.toml", "uv.lock"])
def test_inputs_resolve(here, name):
    texts = {
        "base.txt": "transformers\naccelerate\n",
        "constraints.txt": "-r base.txt\n-c limits.txt\n",
        "environment.yml": CONDA.replace("PYTHON", PYTHON).replace(
            "    - --extra-index-url https://a.example/simple\n", ""
        ),
        "pyproject.toml": PROJECT,
        "uv.lock": '[[package]]\nname = "transformers"\nversion = "4.57.6"\n',
    }
    Path(name).write_text(texts[name])
    code = "import sys; from harness.gate import environments; print(environments.resolve(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^transformers==", done.stdout, re.MULTILINE)
