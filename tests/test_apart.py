"""A run is judged in a process of its own: what the user's code does to that process does not decide the exit code."""

import os
import signal
import time

import pytest

from harness.errors import UsageError
from harness.processes import apart


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_code_is_the_one_that_was_told(code):
    assert apart.judged(lambda: code, "a.json") == code


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: os._exit(0), "ended with exit status 0 before all laws were applied, so nothing is judged"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was ended by SIGSEGV before all laws were applied"),
    ],
)
def test_a_process_that_ends_has_judged_nothing(end, words):
    with pytest.raises(UsageError, match=rf"a\.json: the process that trained it {words}"):
        apart.judged(end, "a.json")


def test_a_fork_that_stays_does_not_hold_the_answer_up():
    def work():
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os._exit(0)

    began = time.monotonic()
    with pytest.raises(UsageError, match="ended with exit status 0"):
        apart.judged(work, "a.json")
    assert time.monotonic() - began < 20


def test_a_users_mistake_is_raised_in_the_parent():
    def work():
        apart.alive()
        raise UsageError("a.json: arguments, seed: expected an int. Not 1.5")

    with pytest.raises(UsageError, match=r"^a\.json: arguments, seed: expected an int\. Not 1\.5$"):
        apart.judged(work, "a.json")


def test_another_error_is_said_and_has_code_2(capfd):
    assert apart.judged(lambda: 1 // 0, "a.json") == 2
    assert "internal error: ZeroDivisionError" in capfd.readouterr().err


def test_silence_ends_a_run_and_signs_of_life_do_not():
    def works():
        for _ in range(8):
            time.sleep(0.1)
            apart.alive()
        return 0

    assert apart.judged(works, "a.json", limit=0.5) == 0
    with pytest.raises(UsageError, match=r"a\.json: did nothing for 0\.2 s, so it was ended"):
        apart.judged(lambda: time.sleep(30) or 0, "a.json", limit=0.2)
