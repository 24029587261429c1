"""Environment variables of the processes that run a stack under judgement, and of uv.

The code of a judged release is somebody else's. So it gets the variables of `STACK` and those of --env, and a home
directory of its own in the harness's cache, in which no tokens or keys lie. `current` gets the same, so that both sides
of a gate are comparable.
"""

from __future__ import annotations

import contextlib
import os
import re
import site
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from harness.errors import UsageError
from harness.paths import cache_directory

#: (name, value) of variables that --env adds.
Named = Sequence[tuple[str, str]]

#: The variables that a judged stack inherits, as globs, each group with its reason.
STACK: Mapping[str, str] = {
    "PATH": "programs: compilers, ninja, git",
    "LANG LANGUAGE LC_*": "the encoding of files and output",
    "TZ": "dates in file names and logs",
    "TMPDIR TMP TEMP": "where temporary files have room",
    "USER LOGNAME": "names of temporary directories, for a user id without a name",
    "TERM COLUMNS LINES NO_COLOR FORCE_COLOR": "how `check --with` prints",
    "CUDA_* NVIDIA_* NCCL_* CUBLAS* CUDNN_* HIP_* ROCR_* ROCM_* HSA_*": "which GPUs are used, and how",
    "LD_LIBRARY_PATH LD_PRELOAD": "the driver's libraries, and an allocator that the machine uses",
    "OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* NVPL_* BLIS_* NUMEXPR_* VECLIB_* DNNL_* ONEDNN_* ATEN_*": "numbers and threads",
    "TORCH* PYTORCH_* TRITON_* BNB_* GLOO_*": "settings and compile caches of torch, triton and bitsandbytes",
    "MALLOC_* GLIBC_TUNABLES PYTHONMALLOC": "memory, which decides the time of a step",
    "CC CXX CFLAGS CXXFLAGS LDFLAGS CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH LIBRARY_PATH MAX_JOBS": "compilers",
    "DS_*": "which extensions DeepSpeed builds: none that it has already",
    "HF_HUB_OFFLINE HF_HUB_CACHE TRANSFORMERS_OFFLINE TOKENIZERS_PARALLELISM USE_TF USE_FLAX": "no case needs a network",
    "PEFT_HARNESS_* PYTEST_*": "the harness's own, and pytest's between its processes",
    "PYTHONHASHSEED PYTHONUTF8 PYTHONIOENCODING PYTHONFAULTHANDLER PYTHONUNBUFFERED": "how Python runs",
    "PYTHONPYCACHEPREFIX PYTHONDONTWRITEBYTECODE": "where bytecode is, so that nothing is compiled anew (current only)",
}

#: What uv inherits besides. Index URLs and proxies may hold passwords.
UV: Mapping[str, str] = {
    "UV_*": "the user's settings of uv: indexes, cache, certificates",
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy": "the way to the index",
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO": "whom to trust there",
}

#: What uv inherits in addition while it runs nobody's code: where its configuration and its passwords are.
UV_ALONE: Mapping[str, str] = {
    "HOME XDG_*": "uv's own cache and configuration",
    "NETRC GIT_* SSH_AUTH_SOCK": "access to private indexes and repositories",
}

#: Settings of uv that name an index. While uv builds, they are handed to it in a file (`harness.gate.uv`).
INDEXES = "UV_DEFAULT_INDEX UV_INDEX UV_INDEX_* UV_EXTRA_INDEX_URL"

#: What --env must not change: the packages that are judged, and how the harness's processes find each other.
_REFUSED = "PYTHONPATH PYTHONHOME PYTHONUSERBASE VIRTUAL_ENV PEFT_HARNESS_*"

#: Caches below the real home directory that a judged stack shares, so that nothing is compiled or loaded anew.
_SHARED = {
    ".cache/torch_extensions": "torch_extensions",
    ".cache/huggingface/hub": "huggingface/hub",  # models; a token lies one directory above
    ".triton": None,
    ".nv": None,
}


def named(words: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the variables that --env adds. words: NAME, which takes the value that is set here, or NAME=VALUE.

    Raises UsageError for a name that is not set, or that must not be changed.
    """
    found: dict[str, str] = {}
    for word in words:
        name, given, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
            raise UsageError(f"--env {word!r}: expected NAME or NAME=VALUE")
        if matches(name, _REFUSED):
            raise UsageError(f"--env {name}: decides which packages are judged, or is the harness's own; leave it out")
        if not given and name not in os.environ:
            raise UsageError(f"--env {name}: is not set here; set it, or write --env {name}=VALUE")
        found[name] = value if given else os.environ[name]
    return tuple(found.items())


def for_stack(key: str, added: Named = (), user_site: bool = False) -> dict[str, str]:
    """Return the variables for a process that runs a stack under judgement.

    - key: of the environment; its processes share a home directory.
    - added: the variables of --env.
    - user_site: whether packages that were installed with pip's --user belong to the stack.
    """
    variables = _inherited(STACK) | {"HOME": str(_home(key)), "PEFT_HARNESS_CACHE": str(cache_directory().absolute())}
    if user_site and site.ENABLE_USER_SITE:
        variables["PYTHONUSERBASE"] = site.getuserbase()
    return variables | dict(added)


def for_uv(builds: bool, added: Named = ()) -> dict[str, str]:
    """Return the variables for uv.

    - builds: whether it may run the code of packages, to build them. That code inherits what uv has.
    - added: the variables of --env.
    """
    variables = _inherited(STACK, UV) | dict(added)
    if not builds:
        return variables | _inherited(UV_ALONE)
    caches = _cache_home()
    cache = os.environ.get("UV_CACHE_DIR") or (caches and str(caches / "uv"))
    secret = [name for name in variables if matches(name, INDEXES) or re.search(r"PASSWORD|TOKEN|USERNAME", name)]
    kept = {name: value for name, value in variables.items() if name not in secret or name in dict(added)}
    return kept | {"HOME": str(_home("builds"))} | ({"UV_CACHE_DIR": cache} if cache else {})


def matches(name: str, globs: str) -> bool:
    """Return whether the name of a variable matches one of several globs, which spaces separate."""
    return any(fnmatchcase(name, glob) for glob in globs.split())


def _inherited(*tables: Mapping[str, str]) -> dict[str, str]:
    globs = " ".join(globs for table in tables for globs in table)
    return {name: value for name, value in os.environ.items() if matches(name, globs)}


def _cache_home() -> Path | None:
    """Return the user's own directory of caches. None if the user has no home directory."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(chosen) if chosen else Path.home() / ".cache"
    except RuntimeError:
        return None


def _home(key: str) -> Path:
    """Return the home directory for the processes of a stack, and make it. It has links to the shared caches."""
    home = cache_directory().absolute() / "homes" / key
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{home}: a judged stack has its home directory there, which cannot be made ({error.strerror}); set "
            "PEFT_HARNESS_CACHE to a directory that you can write to"
        ) from None
    caches = _cache_home()
    if caches is None:
        return home
    hub = os.environ.get("HF_HOME")
    for name, below in _SHARED.items():
        target = caches / below if below else Path.home() / name
        if below == "huggingface/hub" and hub:
            target = Path(hub) / "hub"
        link = home / name
        # If the user has no such cache, the stack makes one of its own.
        with contextlib.suppress(OSError):
            if target.is_dir() and not os.path.lexists(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target.absolute())
    return home
