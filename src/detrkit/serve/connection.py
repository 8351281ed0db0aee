"""A connection with time limits, so that slow and stalled clients do not keep it open.

uvicorn limits the time between requests, not the time in which a request arrives or an answer is taken. `app` answers 408
to an image that is late; here, connections are closed whose headers are late, whose body is still late after that answer,
or which do not take their answer. The number of connections is limited by `connection_limits`.
"""

import asyncio
import socket
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from detrkit.serve.connection_limits import ConnectionLimits
from detrkit.serve.http_errors import HttpError, error_response

HEADER_SECONDS = 10.0
_BACKLOG = 2048
_GRACE = 5.0  # seconds between the answer to a late body and the end of its connection
_MIN_RATE = 20_000  # bytes per second at which an answer has to be taken


class LimitedConnection(H11Protocol):
    """A connection of HTTP/1.1 that ends if its client is too slow.

    Attributes:
        body_seconds: time in which a body has to arrive; `limited` sets it.
        limits: of the number of connections; None is no limit.
    """

    body_seconds = 30.0
    limits: ConnectionLimits | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the headers of the first request."""
        super().connection_made(transport)
        self._phase: Any = None
        self._late: asyncio.TimerHandle | None = None
        self._unsent: asyncio.TimerHandle | None = None
        self._is_refused = False
        self._limit_phase()
        error = self.limits.add(self) if self.limits is not None else None
        if error is not None:
            self._refuse(error)

    @property
    def address(self) -> str | None:
        """Address of the client."""
        return self.client[0] if self.client else None

    @property
    def waits_since(self) -> float | None:
        """Seconds of the monotonic clock since which the client is waited for; None while the server works."""
        return self._since if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) else None

    @property
    def is_receiving_body(self) -> bool:
        """Return whether the rest of a body is waited for."""
        return self.conn.their_state is h11.SEND_BODY

    def evict(self) -> None:
        """Close the connection in favour of another one."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if not self._is_refused:
            super().data_received(data)
            self._limit_phase()

    def on_response_complete(self) -> None:
        """Limit the time in which the client takes an answer."""
        super().on_response_complete()
        self._since = time.monotonic()
        _cancel(self._unsent)
        seconds = self.body_seconds + self.transport.get_write_buffer_size() / _MIN_RATE
        self._unsent = self.loop.call_later(seconds, self._abort_if_unsent)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the limits."""
        super().connection_lost(exc)
        if self.limits is not None:
            self.limits.remove(self)
        _cancel(self._late)
        _cancel(self._unsent)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, such as TLS, with one sentence."""
        self._answer_and_close(HttpError(400, "request: not valid HTTP/1.1; use http:// for this address"))

    def _refuse(self, error: HttpError) -> None:
        """Answer a connection that is one too many, whatever it asks for."""
        self._is_refused = True
        self._answer_and_close(error)

    def _answer_and_close(self, error: HttpError) -> None:
        body = bytes(error_response(error.detail, error.status_code).body)
        headers = {
            "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close",
            **(error.headers or {}),
        }  # fmt: skip
        head = h11.Response(status_code=error.status_code, headers=list(headers.items()))
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _limit_phase(self) -> None:
        """Start the time for headers or for a body once; further parts do not renew it."""
        phase = self.conn.their_state
        if phase is self._phase:
            return
        self._phase = phase
        self._since = time.monotonic()
        _cancel(self._late)
        seconds = {h11.IDLE: HEADER_SECONDS, h11.SEND_BODY: self.body_seconds + _GRACE}.get(phase)
        self._late = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _abort_if_unsent(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()


class LimitedServer(uvicorn.Server):
    """A server that accepts a few connections at a time, so that their number can be limited in between."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the system keeps further connections, which asyncio would limit to what it accepts at a time."""
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)


def limited(seconds: float, limits: ConnectionLimits | None = None) -> type[LimitedConnection]:
    """Return connections whose bodies have to arrive within some seconds, and whose number is limited."""
    return type("LimitedConnection", (LimitedConnection,), {"body_seconds": seconds, "limits": limits})


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
