"""Agreement of all processes on stopping."""

import signal

import pytest

from detrkit._internal.signals import StopSignal
from detrkit.distributed import collectives


def test_signal_that_arrives_during_the_exchange_is_answered_at_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopSignal()

    def exchange(value: int) -> int:
        stop.received = signal.SIGTERM  # the handler runs while this process waits for the others
        return value

    monkeypatch.setattr(collectives, "max_over_processes", exchange)
    assert not collectives.stop_on_any_rank(stop)  # the others have not heard of it yet
    assert stop.received == signal.SIGTERM
    assert collectives.stop_on_any_rank(stop)


def test_signal_and_request_of_another_process_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopSignal()
    monkeypatch.setattr(collectives, "max_over_processes", lambda _value: int(signal.SIGINT))
    assert collectives.stop_on_any_rank(stop)
    assert (stop.received, stop.requested) == (signal.SIGINT, True)
