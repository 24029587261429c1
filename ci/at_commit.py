"""Write the files of a git commit into a folder, for `ci/gate --since`.

    python ci/at_commit.py COMMIT FILE FOLDER

FILE is a path in the repository of the current directory. Prints its path in FOLDER. A requirements file may include
others, and name the project's own folder, so all files of the commit are written. No hook, filter or other program that
the repository's configuration names is run, so files are as git stores them.
"""

import os
import posixpath
import shutil
import subprocess
import sys
from pathlib import Path

#: Files and bytes of a commit, and bytes of one file. A checkout of transformers has 8,000 files and 200 MB.
MOST_FILES, MOST_BYTES, LARGE = 100_000, 4 * 2**30, 100 * 2**20


def main(commit: str, file: str, folder: Path) -> str:
    """Write the files, and return the path of `file` among them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written, links, large = [], [], 0
    for entry in git("ls-tree", "-r", "-z", "-l", "--full-tree", commit).split(b"\0"):
        if not entry:
            continue
        facts, path = entry.split(b"\t", 1)
        mode, kind, name, size = facts.split()
        parts = os.fsdecode(path).split("/")
        if kind != b"blob" or any(part.lower() in ("", ".", "..", ".git") for part in parts):
            continue  # a submodule, or a path that leads elsewhere
        if int(size) > LARGE:
            large += 1
            continue
        (links if mode == b"120000" else written).append((folder.joinpath(*parts), mode, name, int(size)))
    if len(written) > MOST_FILES or sum(size for *_, size in written) > MOST_BYTES:
        raise SystemExit(f"ci/gate: the commit has more than {MOST_FILES:,} files or 4 GiB; gate two files by hand")
    if large:
        print(f"ci/gate: left out at that commit: {large} files of more than 100 MB", file=sys.stderr)
    write(written)
    write_links(links, folder)
    prefix = os.fsdecode(git("rev-parse", "--show-prefix")).removesuffix("\n")
    return str(folder / posixpath.normpath(posixpath.join(prefix, file)))


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], stdout=subprocess.PIPE, check=True).stdout


def write(files: list[tuple[Path, bytes, bytes, int]]) -> None:
    """Write regular files. Links come after them, so that none is followed."""
    with subprocess.Popen(["git", "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for path, mode, name, _ in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(process, name))
            if mode == b"100755":
                path.chmod(0o755)
        process.stdin.close()


def write_links(files: list[tuple[Path, bytes, bytes, int]], folder: Path) -> None:
    """Make the links that lead to a file of the commit."""
    with subprocess.Popen(["git", "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for path, _, name, _ in files:
            target = os.fsdecode(content(process, name))
            inside = os.path.normpath(path.parent / target)
            if not os.path.isabs(target) and inside.startswith(f"{folder}{os.sep}") and not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(target)
        process.stdin.close()


def content(process: "subprocess.Popen[bytes]", name: bytes) -> bytes:
    process.stdin.write(name + b"\n")
    process.stdin.flush()
    facts = process.stdout.readline().split()
    if len(facts) != 3:
        raise SystemExit(f"ci/gate: git has no content for {name.decode()}; CI must fetch the history")
    body = process.stdout.read(int(facts[2]))
    process.stdout.read(1)
    return body


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
