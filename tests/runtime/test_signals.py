"""Ctrl-C and SIGTERM at any moment of a command: one line, and one status."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rag_jax.runtime import signals

ROOT = Path(__file__).parents[2]
# A command that says where it is, on standard output, and waits there.
PROGRAM = textwrap.dedent("""
    import hashlib
    import signal
    import sys
    import time

    signal.signal(signal.SIGINT, signal.default_int_handler)
    from rag_jax.commands import main
    from rag_jax.pipeline import command
    from rag_jax.runtime import signals
    from rag_jax.runtime.errors import RagJaxError

    moment = sys.argv[1]

    def wait(place):
        if place == moment:
            print(place, flush=True)
            time.sleep(20)

    class Slow:
        def run(self):
            resumes = sys.argv[2] == "slow"
            return command.run(work, "", interrupted="stopped", resumes=resumes)

    def find(name):
        wait("importing")
        return Slow()

    def work(arguments):
        wait("starting")
        signals.begin_work()
        if moment == "stuck":
            with signals.leave_within(0.2):
                print("stuck", flush=True)
                # One call, during which Python runs no handler.
                hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**8)
        try:
            print("working", flush=True)
            time.sleep(20)
        except BaseException as error:
            if moment == "turned":
                raise RuntimeError("callback failed") from error
            if moment == "refused":
                raise RagJaxError("the disk is full") from error
            raise
        finally:
            wait("cleaning")

    main.importlib.import_module = find
    sys.exit(main.run_module(sys.argv[2]))
""")


@pytest.fixture
def stop(tmp_path):
    """Sends signals when a command says that it is at a place; its status, and what it said."""

    def stop(moment, *numbers, name="slow"):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", PROGRAM, moment, name]
        with subprocess.Popen(
            command, env=environment, cwd=tmp_path, text=True, **pipes
        ) as process:
            places = {"working", "turned", "refused", "cleaning"}
            wanted = "working" if moment in places else moment
            assert process.stdout.readline() == f"{wanted}\n"
            process.send_signal(numbers[0])
            if moment == "cleaning":
                assert process.stdout.readline() == "cleaning\n"
            for number in numbers[1:]:
                process.send_signal(number)
            _, said = process.communicate()
        return process.returncode, said

    return stop


@pytest.mark.parametrize("moment", ["importing", "working"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_cannot_continue_fails_when_it_is_stopped(stop, moment, number, status):
    assert stop(moment, number, name="ask")[0] == status


@pytest.mark.parametrize("moment", ["importing", "starting", "working", "cleaning"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_three_signals_leave_one_line_and_the_firsts_status(stop, moment, number, status):
    line = "interrupted\n" if moment == "importing" else "stopped\n"
    # Python handles signals that come together by their numbers, not in order.
    others = [signal.SIGINT, signal.SIGTERM] if moment == "cleaning" else [number, number]
    assert stop(moment, number, *others) == (status, line)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_call_that_lets_no_handler_run_is_left(stop, number, status):
    assert stop("stuck", number) == (status, "stopped\n")


def test_leaving_ends_with_its_block():
    before, threads = signal.set_wakeup_fd(-1), threading.active_count()
    with signals.leave_within(0.1):
        assert threading.active_count() == threads + 1
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(before) == -1


@pytest.mark.parametrize("moment", ["turned", "refused"])
def test_what_a_signal_led_to_is_no_error(stop, moment):
    assert stop(moment, signal.SIGINT) == (130, "stopped\n")
    assert stop(moment, signal.SIGTERM) == (0, "stopped\n")


LOSES = textwrap.dedent("""
    import signal
    import sys
    from rag_jax.runtime import signals

    class Dropped:
        def __del__(self):
            if sys.argv[1] == "signal":
                signal.raise_signal(signal.SIGINT)
            else:
                raise ValueError("a bug")

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    signals.start("stopped")
    signals.begin_work()
    dropped = Dropped()
    del dropped
    try:
        signals.check()
        print("nothing")
    except KeyboardInterrupt:
        print("raised again")
""")


@pytest.mark.parametrize(
    ("what", "out", "shown"), [("signal", "raised again", False), ("bug", "nothing", True)]
)
def test_a_signal_that_python_ignores_is_raised_again_without_a_word(what, out, shown):
    """Other exceptions that Python ignores are shown as ever."""
    done = subprocess.run(
        [sys.executable, "-c", LOSES, what], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout == f"{out}\n" and ("Traceback" in done.stderr) == shown
    assert bool(done.stderr) == shown


def test_a_held_signal_that_is_ignored_stays_ignored():
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.hold() as held:
            signal.raise_signal(signal.SIGINT)
            assert held == []
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, earlier)
