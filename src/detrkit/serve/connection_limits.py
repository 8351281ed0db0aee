"""Limits of the number of connections, in all and per address of a client.

At a limit, a new connection takes the place of one that waits for its client: for headers, for a next request, for a body.
So clients that stall do not keep others out. While all others are being answered, the new one is refused. Behind a trusted
proxy, all connections have its address; there, requests in progress are counted by the address that it forwards.
"""

import ipaddress
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from detrkit.serve.hosts import TrustedProxies
from detrkit.serve.http_errors import HttpError, error_response, too_many_connections, too_many_requests

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_YOUNG = 1.0  # seconds in which a client has a chance to send its request before others take its place
_RESERVED_FILES = 16  # file handles for other things than connections and uploads
_HANDLES = 2  # of a connection: its socket, and the temporary file of a large upload
_MIN_CONNECTIONS = 4


@runtime_checkable
class Connection(Protocol):
    """A connection as the limits see it."""

    @property
    def address(self) -> str | None:
        """Address of the client."""

    @property
    def waits_since(self) -> float | None:
        """Seconds of the monotonic clock since which it waits for its client; None while the server works."""

    @property
    def is_receiving_body(self) -> bool:
        """True while it waits for the rest of a body."""

    def evict(self) -> None:
        """Close it."""


class ConnectionLimits:
    """Open connections, and the requests in progress of clients behind proxies."""

    def __init__(self, total: int, per_address: int, proxies: TrustedProxies) -> None:
        """Set the limits.

        Args:
            total: maximum number of connections.
            per_address: maximum number of connections or requests of one address; of an IPv6 network of 64 bits.
            proxies: their connections are limited by `total` only.
        """
        self.total = total
        self.per_address = per_address
        self.proxies = proxies
        self._connections: dict[Connection, str | None] = {}
        self._counts: Counter[str | None] = Counter()
        self._requests: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._connections)

    def add(self, connection: Connection) -> HttpError | None:
        """Count a new connection, and close another one if necessary; return the reason for which it is refused."""
        address = client_key(connection.address)
        if self._counts[address] >= self.per_address and connection.address not in self.proxies:
            if not self._evict(lambda other: other == address):
                return too_many_requests(self.per_address)
        elif len(self._connections) >= self.total and not self._evict(lambda other: True):
            return too_many_connections(self.total)
        self._connections[connection] = address
        self._counts[address] += 1
        return None

    def remove(self, connection: Connection) -> None:
        """Stop counting a connection."""
        if connection in self._connections:
            address = self._connections.pop(connection)
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def begin_request(self, client: str) -> bool:
        """Count a request of a client behind a proxy; return whether it may be answered."""
        if self._requests[client] >= self.per_address:
            return False
        self._requests[client] += 1
        return True

    def end_request(self, client: str) -> None:
        """Stop counting a request."""
        self._requests[client] -= 1
        if not self._requests[client]:
            del self._requests[client]

    def _evict(self, is_candidate: Callable[[str | None], bool]) -> bool:
        """Close the connection that waits longest, first of all of the address with the most connections."""
        now = time.monotonic()

        def rank(connection: Connection) -> tuple[int, int, float]:
            since = connection.waits_since or now
            order = 2 if now - since < _YOUNG else int(connection.is_receiving_body)
            return -self._counts[self._connections[connection]], order, since

        waiting = [
            connection
            for connection, address in self._connections.items()
            if is_candidate(address) and connection.waits_since is not None
        ]
        if not waiting:
            return False
        victim = min(waiting, key=rank)
        self.remove(victim)
        victim.evict()
        return True


class ClientLimitMiddleware:
    """Limits the requests in progress of each client behind a trusted proxy."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 429."""
        client = forwarded_client(scope, self.limits.proxies) if scope["type"] == "http" else None
        if client is None:
            await self.app(scope, receive, send)
        elif not self.limits.begin_request(client):
            error = too_many_requests(self.limits.per_address)
            await error_response(error.detail, error.status_code, error.headers)(scope, receive, send)
        else:
            try:
                await self.app(scope, receive, send)
            finally:
                self.limits.end_request(client)


def forwarded_client(scope: Scope, proxies: TrustedProxies) -> str | None:
    """Return the client for which a trusted proxy forwards a request: the last address that is not a proxy itself."""
    peer = (scope.get("client") or (None,))[0]
    if peer not in proxies:
        return None
    values = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    addresses = [address for value in values if (address := _without_port(value.strip()))]
    if not addresses:
        return None
    if proxies.networks is None:
        return client_key(addresses[0])
    strangers = [address for address in addresses if address not in proxies]
    return client_key(strangers[-1] if strangers else addresses[0])


def client_key(address: str | None) -> str | None:
    """Return what identifies a client: an IPv4 address, or the network of 64 bits that an IPv6 client chooses from."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return None if address is None else address[:64]
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def affordable_connections(maximum: int, reserved: int) -> int:
    """Return how many connections this process has file handles for, up to a maximum.

    Args:
        maximum: maximum number of connections.
        reserved: file handles that are needed otherwise, in addition to those that are open now.
    """
    if resource is None:
        return maximum
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return maximum
    try:
        used = len(os.listdir("/dev/fd"))  # noqa: PTH208  (names only)
    except OSError:
        used = 32
    free = (limit - used - reserved - _RESERVED_FILES) // _HANDLES
    return min(maximum, max(_MIN_CONNECTIONS, free))
