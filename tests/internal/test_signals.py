"""Signals that ask to stop: what hears of them, and when."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from detrkit._internal.signals import StopSignal, hold_interrupts, release_interrupts


@pytest.fixture(autouse=True)
def interrupts_raise() -> Iterator[None]:
    """Handle SIGINT as in a terminal: jobs that a script started in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_announced_at_once_and_recorded(number: signal.Signals) -> None:
    heard: list[int | None] = []
    stop = StopSignal()
    stop.on_signal = lambda: heard.append(stop.received)
    with stop:
        os.kill(os.getpid(), number)
        assert heard == [number]
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert heard == [number]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot hold signals back")
def test_interrupt_is_held_back_here_and_in_new_processes() -> None:
    script = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGINT})"
    with StopSignal() as stop:
        with hold_interrupts():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # another thread would not hold it back
            assert stop.received is None
            assert subprocess.check_output([sys.executable, "-c", script], text=True) == "True\n"
        assert stop.received == signal.SIGINT
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot hold signals back")
def test_released_interrupt_is_received() -> None:
    def held_in_a_new_process() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    held_in_a_new_process()
    with pytest.raises(KeyboardInterrupt):
        release_interrupts()
