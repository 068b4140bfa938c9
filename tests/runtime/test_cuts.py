"""Texts that are cut: a warning a call, or the first and the sums of a piece of work."""

import logging
import threading

import pytest

from rag_jax.runtime.cuts import report_cut, sum_cuts

LOGGER = logging.getLogger("rag_jax.tests")


def report(cut, count, unit="texts", max_length=8):
    report_cut(LOGGER, unit, cut=cut, count=count, max_length=max_length)


def test_every_call_has_its_warning(caplog):
    report(1, 3)
    report(0, 3)
    report(2, 3)
    assert caplog.messages == [f"{n} of 3 texts were cut to 8 tokens" for n in (1, 2)]
    assert {record.name for record in caplog.records} == {"rag_jax.tests"}


def test_work_has_the_first_and_the_sums(caplog):
    with sum_cuts():
        report(0, 4)  # nothing was cut, and its texts count
        report(1, 3)
        assert caplog.messages == ["1 of 3 texts were cut to 8 tokens"]
        thread = threading.Thread(target=report, args=(2, 3))
        thread.start()
        thread.join()
        report(5, 5, max_length=16)  # a single call, which has been said
        report(0, 9, unit="pairs")
        report(0, 9, unit="pairs")
    single = "5 of 5 texts were cut to 16 tokens"
    assert caplog.messages[1:] == [single, "3 of 10 texts were cut to 8 tokens"]
    report(1, 2)
    assert caplog.messages[3:] == ["1 of 2 texts were cut to 8 tokens"]


def test_work_within_work_ends_by_itself(caplog):
    with sum_cuts():
        with sum_cuts():
            pass
        report(1, 3)
        report(1, 3)
    assert caplog.messages == [f"{n} of {n * 3} texts were cut to 8 tokens" for n in (1, 2)]


def test_work_that_fails_says_what_it_has(caplog):
    with pytest.raises(KeyboardInterrupt), sum_cuts():
        report(1, 3)
        report(1, 3)
        raise KeyboardInterrupt
    report(2, 3)
    expected = ["1 of 3", "2 of 6", "2 of 3"]
    assert caplog.messages == [f"{share} texts were cut to 8 tokens" for share in expected]
