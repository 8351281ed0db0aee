"""Names of the server, origins of browsers, and addresses of trusted proxies.

A server on the loopback interface or in an intranet is reachable from every web page that one of its users opens. Two
checks in `browser_security` keep foreign pages out: a request must be sent to a name of this server (DNS rebinding), and
what a browser posts must come from a page of the same name (cross-site request forgery).
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from detrkit.errors import ConfigError, arg

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
LOOPBACK_ADDRESSES = "127.0.0.1,::1"
ENDPOINTS = ("/predict", "/explain", "/health", "/metrics")
DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = r"\[[0-9a-f:.]+\]|[a-z0-9._-]+"
_AUTHORITY = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?", re.IGNORECASE)
_ORIGIN = re.compile(rf"(https?)://({_HOST})(?::([0-9]{{1,5}}))?", re.IGNORECASE)
_ALLOWED = re.compile(rf"\*|(?:\*\.)?(?:{_HOST})", re.IGNORECASE)
_PREFIX = re.compile(r"(?:/[a-z0-9_~-][a-z0-9._~-]*)+", re.IGNORECASE)


class Authority(NamedTuple):
    """A host name in lower case, and a port if one is written."""

    host: str
    port: int | None


class Origin(NamedTuple):
    """The scheme, host name and port of a page."""

    scheme: str
    host: str
    port: int


def parse_authority(text: str) -> Authority | None:
    """Parse the value of a Host header; None if it is malformed."""
    match = _AUTHORITY.fullmatch(text.strip())
    return Authority(_normalize(match[1]), int(match[2]) if match[2] else None) if match else None


def parse_origin(text: str) -> Origin | None:
    """Parse the value of an Origin header; None if it is `null` or malformed."""
    match = _ORIGIN.fullmatch(text.strip())
    if match is None:
        return None
    scheme = match[1].lower()
    return Origin(scheme, _normalize(match[2]), int(match[3]) if match[3] else DEFAULT_PORTS[scheme])


def url_host(address: str) -> str:
    """Write an address as in a URL: IPv6 in brackets, IPv4 without the prefix that dual-stack sockets add."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _normalize(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)


def _normalize(host: str) -> str:
    return host.lower().removesuffix(".")


@dataclass(frozen=True)
class AllowedHosts:
    """Host names that requests may be sent to.

    Attributes:
        named: the names and patterns that the user allows; `*.example.com` is every name below example.com, `*` any name.
        implied: names that the server has anyway.
    """

    named: tuple[str, ...] = ()
    implied: tuple[str, ...] = LOOPBACK_HOSTS

    @property
    def allows_any(self) -> bool:
        """Return whether every name is allowed."""
        return "*" in self.named

    def __contains__(self, host: str) -> bool:
        """Return whether requests may be sent to a name."""
        return (
            self.allows_any
            or host in self.named
            or host in self.implied
            or any(name.startswith("*.") and host.endswith(name[1:]) for name in self.named)
        )


def parse_allowed_hosts(names: Iterable[str]) -> tuple[str, ...]:
    """Check names and patterns of hosts, and write them as browsers do.

    Raises:
        ConfigError: one is not a name.
    """
    return tuple(_parse_allowed_host(name) for name in ([names] if isinstance(names, str) else names))


def _parse_allowed_host(name: str) -> str:
    host = name.strip()
    if ":" in host and not host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            host = name.strip()
    try:
        host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        host = ""
    if not _ALLOWED.fullmatch(host):
        raise ConfigError(
            f"{arg('allowed_hosts', name)} is not a host name; use one without scheme, port and path, such as "
            "detect.example.com, or *.example.com for all names below it, or * for any"
        )
    return _normalize(host)


@dataclass(frozen=True)
class TrustedProxies:
    """Addresses whose X-Forwarded-* headers are believed.

    Attributes:
        networks: addresses and networks; None trusts every address.
    """

    networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] | None

    def __contains__(self, address: str | None) -> bool:
        """Return whether a client is a trusted proxy."""
        if self.networks is None:
            return True
        try:
            parsed = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self.networks)


def parse_forwarded_allow_ips(addresses: str | Iterable[str]) -> TrustedProxies:
    """Parse addresses and networks, separated by commas; `*` is every address.

    Raises:
        ConfigError: one is neither.
    """
    words = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    words = [word.strip() for word in words if word.strip()]
    if "*" in words:
        return TrustedProxies(None)
    networks = []
    for word in words:
        try:
            networks.append(ipaddress.ip_network(word, strict=False))
        except ValueError:
            raise ConfigError(
                f"{arg('forwarded_allow_ips', word)} is not an address of a proxy; use one such as 10.0.0.5, a network "
                "such as 172.16.0.0/12, or * for any"
            ) from None
    return TrustedProxies(tuple(networks))


@dataclass(frozen=True)
class Access:
    """How a server is reached.

    Attributes:
        hosts: names that requests may be sent to.
        proxies: whose X-Forwarded-* headers are believed.
        root_path: path prefix under which a proxy publishes the server.
    """

    hosts: AllowedHosts = AllowedHosts()
    proxies: TrustedProxies = TrustedProxies(())
    root_path: str = ""


def parse_root_path(prefix: str) -> str:
    """Check a path prefix; the result has no slash at its end.

    Raises:
        ConfigError: it is not a path.
    """
    path = prefix.rstrip("/")
    if path in ENDPOINTS:
        raise ConfigError(f"{arg('root_path', prefix)} is the path of an endpoint; use another prefix, such as /detect")
    if path and not _PREFIX.fullmatch(path):
        raise ConfigError(
            f"{arg('root_path', prefix)} is not a path prefix; use one such as /detect, of letters, digits and - . _ ~"
        )
    return path
