"""Files that somebody else wrote: what is read, and the one sentence about what is not."""

import json
import os
import socket
import time

import pytest

from harness import reading
from harness.errors import UsageError
from harness.reading import parse_json, read_bytes, read_json, read_json_lines, read_text, shown, shown_path
from harness.spec import LIMIT


def refused(read, *words):
    """Check that a read ends in a second (two on a busy machine) with one sentence that has these words."""
    began = time.process_time()
    with pytest.raises(UsageError) as caught:
        read()
    assert time.process_time() - began < 2
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 5000
    for word in words:
        assert word in sentence


def in_file(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- files ----


def pipe(path):
    os.mkfifo(path)


def listening(path):
    # The name of a socket may have some 100 characters only.
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


KINDS = {
    "a directory": (lambda path: path.mkdir(), "is a directory; name a regular file"),
    "a pipe": (pipe, "is a pipe; name a regular file"),
    "a socket": (listening, "is a socket; name a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device; name a regular file"),
    "nothing": (lambda path: None, "no such file"),
    "a link to nothing": (lambda path: path.symlink_to("gone"), "no such file"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
    "a sparse file of 100 MB": (lambda path: os.truncate(in_file(path, ""), 10**8), "too large (100,000,000 bytes;"),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [read_bytes, read_text, read_json])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind, read):
    make, words = KINDS[kind]
    make(tmp_path / "x")
    refused(lambda: read(tmp_path / "x"), f"{tmp_path}/x: ", words)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nul\x00", "nul\\x00: not a file name"),
        ("\ud800", "not a file name"),
        ("x" * 300, "cannot be read (File name too long)"),
        (f"{__file__}/x", "cannot be read (Not a directory)"),
        ("clear\x1b[2J\n", "clear\\x1b[2J\\n: no such file"),
    ],
)
def test_a_name_that_no_file_has_is_refused(path, words):
    refused(lambda: read_bytes(path), words)
    refused(lambda: list(read_json_lines(path)), words)


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    in_file(tmp_path / "x", "{}").chmod(0)
    refused(lambda: read_json(tmp_path / "x"), "cannot be read (Permission denied)")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
def test_a_file_that_hides_its_size_is_read_up_to_the_limit():
    assert os.path.getsize("/proc/self/maps") == 0
    assert read_text("/proc/self/maps").count("\n") > 1
    refused(lambda: read_text("/proc/self/maps", limit=100), "too large (more; 100 bytes are allowed)")


def test_a_limit_is_a_number_of_bytes(tmp_path):
    file = in_file(tmp_path / "x", "é" * 5)
    assert read_text(file, limit=10) == "é" * 5
    refused(lambda: read_text(file, limit=9), "too large (10 bytes; 9 bytes are allowed)")


# ---- text ----


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    assert read_json(in_file(tmp_path / "x", b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}
    assert list(read_json_lines(in_file(tmp_path / "x", b"\xef\xbb\xbf1\n2\n"))) == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": "\xff"}', "not UTF-8 text (invalid start byte at byte 7); save it as UTF-8"),
        (b'\xef\xbb\xbf{"a": "\xff"}', "at byte 10)"),
        ("{}".encode("utf-16"), "at byte 0)"),
        ("é".encode()[:1], "unexpected end of data at byte 0"),
        (b"\xed\xa0\x80", "at byte 0)"),  # half of a surrogate pair
    ],
)
def test_text_that_is_no_utf_8_is_refused_with_its_place(tmp_path, content, words):
    file = in_file(tmp_path / "x", content)
    refused(lambda: read_text(file), f"{file}: ", words)
    refused(lambda: list(read_json_lines(file)), f"{file}, line 1: ", words)


# ---- JSON ----

BAD = {
    "nothing": ("", "not JSON (it is empty)"),
    "white space": (" \n", "not JSON (it is empty)"),
    "half an object": ('{"a":\n [1,', "not JSON (Expecting value, line 2, column 5)"),
    "two values": ("{} {}", "not JSON (Extra data, line 1, column 4)"),
    "a control character": ('"a\nb"', "line 1, column 3"),
    "NaN": ('["NaN",\n NaN]', "NaN is no JSON number (line 2, column 2)"),
    "Infinity": ('{"a": -Infinity}', "-Infinity is no JSON number (line 1, column 7)"),
    "a float that overflows": ("[1e400]", "'1e400' is too large for a float (line 1, column 2)"),
    "a float of many digits": ("[" + "9" * 400 + ".5]", "is too large for a float"),
    "a long integer": ('{"a": [1, ' + "9" * 5000 + "]}", "an integer of 5000 digits (line 1, column 11); 300 are"),
    "a long negative integer": ("-" + "1" * 301, "an integer of 301 digits"),
    "a key twice": ('{"a": 1, "b": 2, "b": 3}', "an object has the key 'b' twice"),
    "a key twice, inside": ('[{"c": {"a": 1, "a": 1}}]', "an object has the key 'a' twice"),
    "half a pair": (r'{"a": "\ud800"}', "half of a surrogate pair (line 1, column 8)"),
    "half a pair in a key": (r'{"\udfff": 1}', "half of a surrogate pair"),
    "deep lists": ("[" * 100_000 + "]" * 100_000, "nested too deep, in more than 64 levels (line 1, column 65)"),
    "deep objects": ('{"a":' * 65 + "1" + "}" * 65, "nested too deep"),
    "deep and open": ("[" * 4_000_000, "nested too deep"),
    "deep behind brackets in a string": ('["' + "[" * 100 + '", ' + "[" * 64 + "]" * 65, "nested too deep"),
    "many open brackets": ("[[]," * 1000, "nested too deep"),
    "a string without its end": ('"' + "\\" * 1_000_001, "not JSON (Unterminated string"),
    "an escape sequence": ('"\x1b[2J"', "not JSON (Invalid control character at, line 1, column 2)"),
}

GOOD = {
    "[" * 64 + "]" * 64: None,
    '["' + "[" * 100 + '"]': ["[" * 100],
    "[[], [], {}]" + " " * 100: [[], [], {}],
    json.dumps([[]] * 100): [[]] * 100,
    r'"\ud83d\ude00"': "😀",
    r'"\\ud800"': r"\ud800",
    "9" * 300: 10**300 - 1,
    '"' + "9" * 5000 + '"': "9" * 5000,
    '["1e400", 1e300, 1E+007]': ["1e400", 1e300, 1e7],
}


@pytest.mark.parametrize("name", BAD)
def test_the_sentence_about_bad_json_says_what_and_where(tmp_path, name):
    text, words = BAD[name]
    refused(lambda: parse_json(text, "x.json"), "x.json: ", words)


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
def test_json_is_read_as_python_reads_it(text):
    assert parse_json(text, "x") == (json.loads(text) if GOOD[text] is None else GOOD[text])


def test_nan_is_read_where_it_is_asked_for():
    assert [repr(value) for value in parse_json("[NaN, -Infinity, 1e400]", "x", nan=True)] == ["nan", "-inf", "inf"]


@pytest.mark.parametrize("part", ["1,", "[],", '{"a":1},'])
def test_as_much_json_as_a_spec_may_have_takes_a_second(part):
    text = "[" + part * ((LIMIT - 3) // len(part)) + "1]"
    assert LIMIT - 20 < len(text) <= LIMIT
    began = time.process_time()
    assert len(parse_json(text, "x")) > 100_000
    # Ten times what an idle machine takes: other processes share its caches.
    assert time.process_time() - began < 5


# ---- lines ----


def test_lines_are_numbered_and_blank_ones_left_out(tmp_path):
    file = in_file(tmp_path / "x", '1\r\n\n  \n"\u2028 is no end of a line"\n[3]')
    assert list(read_json_lines(file)) == [(1, 1), (4, "\u2028 is no end of a line"), (5, [3])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{}\n{"a": 1,}\n', "line 2: not JSON (Illegal trailing comma"),
        ("{}\n\n[1 2]\n", "line 3: not JSON (Expecting ',' delimiter, column 4)"),
        ('{}\n{"a": NaN}\n', "line 2: NaN is no JSON number (column 7)"),
        ('1\n{"a": 1, "a": 2}', "line 2: an object has the key 'a' twice"),
        ("1\n" + "[" * 5000, "line 2: JSON nested too deep"),
        (b"1\n\xff\n", "line 2: not UTF-8 text (invalid start byte at byte 0)"),
        (b"1\n" + b" " * (reading.LINE_LIMIT + 1), "line 2: has more than 8,388,608 bytes"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, words):
    words = words.replace("Illegal trailing comma", "") if "Illegal" in words else words  # its words depend on Python
    refused(lambda: list(read_json_lines(in_file(tmp_path / "x", text))), words)


def test_lines_before_a_bad_one_are_read(tmp_path):
    lines = read_json_lines(in_file(tmp_path / "x", "1\n2\nthree\n"))
    assert [next(lines), next(lines)] == [(1, 1), (2, 2)]
    refused(lambda: next(lines), "line 3: not JSON")


def test_lines_have_a_limit_together(tmp_path):
    file = in_file(tmp_path / "x", "1\n" * 50)
    assert len(list(read_json_lines(file, limit=100))) == 50
    refused(lambda: list(read_json_lines(file, limit=99)), "too large (100 bytes; 99 bytes are allowed)")


# ---- messages ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a" * 1000, repr("a" * 77 + "...")),
        (10**5000, "an integer of 16610 bits"),
        (list(range(1000)), "a list of 1000 entries"),
        ({"a": "b" * 1000}, "{'a': '" + "b" * 150 + "..."),
        ("\x1b[2J\n", r"'\x1b[2J\n'"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (True, "True"),
    ],
    ids=range(8),
)
def test_a_value_in_a_message_is_short_and_printable(value, text):
    assert shown(value) == text
    assert len(shown(value)) <= 160
    assert shown(value).isprintable()


def test_a_value_in_a_message_may_be_deep():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list"


def test_a_path_in_a_message_is_printable():
    assert shown_path("/home/é x") == "/home/é x"
    assert shown_path("/home/\x1b[2J\ud800") == r"/home/\x1b[2J\ud800"
