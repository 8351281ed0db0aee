"""A connection with time limits, so that slow and stalled clients do not keep it open.

uvicorn limits the time between requests, not the time in which a request arrives or an answer is taken. `app` answers 408
to an image that is late; here, connections are closed whose headers are late, whose body is still late after that answer,
or which do not take their answer.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
_GRACE = 5.0  # seconds between the answer to a late body and the end of its connection
_MIN_RATE = 20_000  # bytes per second at which an answer has to be taken


class LimitedConnection(H11Protocol):
    """A connection of HTTP/1.1 that ends if its client is too slow.

    Attributes:
        body_seconds: time in which a body has to arrive; `limited` sets it.
    """

    body_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the headers of the first request."""
        super().connection_made(transport)
        self._phase: Any = None
        self._late: asyncio.TimerHandle | None = None
        self._unsent: asyncio.TimerHandle | None = None
        self._limit_phase()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._limit_phase()

    def on_response_complete(self) -> None:
        """Limit the time in which the client takes an answer."""
        super().on_response_complete()
        _cancel(self._unsent)
        seconds = self.body_seconds + self.transport.get_write_buffer_size() / _MIN_RATE
        self._unsent = self.loop.call_later(seconds, self._abort_if_unsent)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the limits."""
        super().connection_lost(exc)
        _cancel(self._late)
        _cancel(self._unsent)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, such as TLS, with one sentence."""
        body = json.dumps({"error": "request: not valid HTTP/1.1; use http:// for this address"}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _limit_phase(self) -> None:
        """Start the time for headers or for a body once; further parts do not renew it."""
        phase = self.conn.their_state
        if phase is self._phase:
            return
        self._phase = phase
        _cancel(self._late)
        seconds = {h11.IDLE: HEADER_SECONDS, h11.SEND_BODY: self.body_seconds + _GRACE}.get(phase)
        self._late = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _abort_if_unsent(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def limited(seconds: float) -> type[LimitedConnection]:
    """Return connections whose bodies have to arrive within some seconds."""
    return type("LimitedConnection", (LimitedConnection,), {"body_seconds": seconds})


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
