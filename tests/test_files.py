"""Files are written whole."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from harness.files import write_whole


def test_threads_may_write_one_file_at_once(tmp_path, monkeypatch):
    """Both sides of a bisection can have the same stack, and store its result at once."""
    file = tmp_path / "results" / "one.json"
    met = Barrier(2)
    replace = type(file).replace

    def late(partial, target):
        met.wait(timeout=30)  # both have written before the first renames
        return replace(partial, target)

    monkeypatch.setattr(type(file), "replace", late)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda text: write_whole(file, text), ["a" * 1000, "b" * 1000]))
    assert file.read_text() in ("a" * 1000, "b" * 1000)
    assert [path.name for path in file.parent.iterdir()] == ["one.json"]
