"""What a browser must not be talked into: pages of others that send photos here, or that take this server for theirs.

A server on the loopback is reachable by every page that its user opens. So a foreign name that resolves to this machine
(DNS rebinding) is refused, and so is what other origins post.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_READING = ("GET", "HEAD", "OPTIONS")


class OriginCheck:
    """Refuses foreign hosts and origins, and sends headers with every answer that keep browsers from surprises."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None) -> None:
        """Stand before an application.

        Args:
            app: the application.
            hosts: names that this server is called by; None lets all pass.
        """
        self.app = app
        self.hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        fault = self._fault(scope["method"], Headers(scope=scope))
        if fault is None:
            await self.app(scope, receive, with_headers)
        else:
            await JSONResponse({"error": fault}, 403)(scope, receive, with_headers)

    def _fault(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self.hosts is not None and _name_in(host) not in self.hosts:
            return (
                f"host: found {host!r}, expected one of {', '.join(sorted(self.hosts))}; use the address it serves on"
            )
        origin = headers.get("origin")
        is_foreign = origin is not None and origin.lower().partition("://")[2] != host.lower()
        if method not in _READING and (is_foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site")):
            return f"origin: found {origin!r}, expected this server's own; pages of others may not send photos here"
        return None


def _name_in(host: str) -> str:
    """A host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
