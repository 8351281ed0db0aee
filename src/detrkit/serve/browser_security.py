"""Protection of browser users: foreign names and origins are refused, and answers carry restrictive headers.

Browsers send `Origin`, the scheme, name and port of the page, with everything they post, and to https and localhost
also `Sec-Fetch-Site`, how that page relates to the address. A page cannot change either. Proxies keep `Host` (Caddy,
Traefik), drop its port (nginx: `$host`), or replace it by the address of this server (nginx without `proxy_set_header`),
and may add what the browser sent as `X-Forwarded-Host`, `-Proto` and `-Port`. These are believed if a trusted proxy sent
them, and checked like `Host`.
"""

from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrkit.errors import ConfigError, arg
from detrkit.serve.hosts import (
    DEFAULT_PORTS,
    Access,
    Authority,
    Origin,
    parse_authority,
    parse_origin,
    url_host,
)
from detrkit.serve.http_errors import HttpError, error_response

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MAX_TEXT = 80  # characters of a header that are shown
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Addressee:
    """The name that a request was sent to.

    Attributes:
        authority: name and port, as far as known; None for programs that send no name.
        is_secure: whether a trusted proxy says that the browser used https.
        may_be_replaced: whether a proxy may have replaced the name that the browser used.
    """

    authority: Authority | None
    is_secure: bool
    may_be_replaced: bool


class BrowserSecurityMiddleware:
    """Refuses foreign host names and cross-origin posts, and adds security headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.hosts = access.hosts
        self.proxies = access.proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
        except HttpError as error:
            await error_response(error.detail, error.status_code)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Check the name that a request was sent to, and the page that sent it.

        Raises:
            HttpError: one of them is foreign.
        """
        addressee = self._addressee(scope, headers)
        origin = headers.get("origin", "")[:_MAX_TEXT]
        if scope["method"] not in _SAFE_METHODS and not self._is_same_origin(headers, addressee):
            raise HttpError(
                403,
                f"origin: found {origin!r}, expected this server's own; other sites may not post here "
                "(behind a proxy: let it pass on the Host header, and name it in allowed_hosts)",
            )

    def _addressee(self, scope: Scope, headers: Headers) -> Addressee:
        address = url_host((scope.get("server") or ("",))[0])
        is_trusted = (scope.get("client") or (None,))[0] in self.proxies

        def forwarded(name: str) -> list[str]:
            values = headers.getlist(f"x-forwarded-{name}") if is_trusted else []
            return [value.strip() for value in ",".join(values).split(",") if value.strip()]

        hosts = [self._own_name(text, address) for text in headers.getlist("host")]
        if len(hosts) != 1 and not (self.hosts.allows_any and not hosts):
            raise HttpError(400, f"host: found {len(hosts)} Host headers in the request, expected one")
        # all are checked: a page that reaches a proxy by a foreign name can send such a header itself
        names = [self._own_name(text, address) for text in forwarded("host")]
        # the first one is what the browser used; further proxies append theirs
        authority = next(iter(names or hosts), None)
        if authority is not None and authority.port is None and (ports := forwarded("port")):
            # parsed as a part of a Host header, since a stranger may have sent it
            authority = parse_authority(f"{authority.host}:{ports[0]}") or authority
        return Addressee(authority, forwarded("proto")[:1] == ["https"], not names)

    def _own_name(self, text: str, address: str) -> Authority:
        authority = parse_authority(text)
        if authority is None or (authority.host not in self.hosts and authority.host != address):
            name = text[:_MAX_TEXT] if authority is None else authority.host
            advice = f"use its own address, or start it with {arg('allowed_hosts', name)}"
            raise HttpError(400, str(ConfigError(f"host: found {name!r}, which is no name of this server; {advice}")))
        return authority

    def _is_same_origin(self, headers: Headers, addressee: Addressee) -> bool:
        """Return whether a request comes from this server's own page, or from a program that is not a browser."""
        site = headers.get("sec-fetch-site", "").lower()
        if site in ("cross-site", "same-site"):
            return False
        text = headers.get("origin")
        if text is None:
            return True
        origin = parse_origin(text)
        if origin is None or (addressee.is_secure and origin.scheme != "https"):
            return False
        if _is_page_of(origin, addressee.authority):
            return True
        if site == "same-origin":  # as the browser sees it: a proxy changed the name or the port
            return origin.host in self.hosts
        return (
            addressee.may_be_replaced
            and origin.host in self.hosts.named
            and origin.port == DEFAULT_PORTS[origin.scheme]
        )


def _is_page_of(origin: Origin, authority: Authority | None) -> bool:
    """Return whether a page is of the same name and port; https may end at a proxy, so that the scheme is not compared."""
    if authority is None:
        return False
    port = DEFAULT_PORTS[origin.scheme] if authority.port is None else authority.port
    return origin.host == authority.host and origin.port == port
