"""Requests to stop: noted at once, counted one by one."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from pretrain.signals import StopSignals


def in_child(work: Callable[[], None]) -> int:
    """The pid of a process that does ``work`` and ends with 0."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def linger() -> None:
    with StopSignals() as signals:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.05)
        assert signals.received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_third_request_ends_at_once(number: signal.Signals) -> None:
    pid = in_child(linger)
    time.sleep(0.3)
    began = time.monotonic()
    for wait in (1.1, 1.1, 0):
        os.kill(pid, number)
        time.sleep(wait)
        if wait:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert code_of(pid) == 128 + number
    assert time.monotonic() - began < 10


def test_signals_within_a_second_are_one_request() -> None:
    def stop_soon() -> None:
        with StopSignals() as signals:
            while not signals.received:
                time.sleep(0.01)
            time.sleep(0.7)

    pid = in_child(stop_soon)
    time.sleep(0.3)
    for _ in range(10):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.03)
    assert code_of(pid) == 0


def test_earlier_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
