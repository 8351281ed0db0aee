"""Protection of browser users: other origins may not post, and answers carry restrictive headers.

A server on the loopback interface is reachable from every web page that its user opens. Starlette's TrustedHostMiddleware,
added in `app`, rejects foreign host names that resolve to this machine (DNS rebinding). It does not look at the origin of a
request; that is done here.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class BrowserSecurityMiddleware:
    """Rejects cross-origin posts, and adds security headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        if scope["method"] in _SAFE_METHODS or _is_same_origin(headers):
            await self.app(scope, receive, send_with_headers)
            return
        message = f"origin: found {headers.get('origin')!r}, expected this server's own; other sites may not post here"
        await JSONResponse({"error": message}, 403)(scope, receive, send_with_headers)


def _is_same_origin(headers: Headers) -> bool:
    """Return whether a request comes from this server's own page, or from a program that is not a browser."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.lower().partition("://")[2] == headers.get("host", "").lower()
