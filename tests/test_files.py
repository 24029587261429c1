"""Files are written whole."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from harness import files
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


def test_a_link_that_somebody_planted_beside_the_file_is_not_followed(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / files._partial(tmp_path / "report.json").name).symlink_to(mine)
    files.write_whole(tmp_path / "report.json", "new")
    assert (mine.read_text(), (tmp_path / "report.json").read_text()) == ("mine", "new")
    assert not (tmp_path / "report.json").is_symlink()
