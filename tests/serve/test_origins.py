"""Host names, origins and forwarded headers, as browsers and proxies send them."""

import asyncio
import json
from typing import Any

import pytest

from detrkit.errors import ConfigError
from detrkit.serve.browser_security import BrowserSecurityMiddleware
from detrkit.serve.hosts import (
    LOOPBACK_ADDRESSES,
    Access,
    AllowedHosts,
    parse_allowed_hosts,
    parse_authority,
    parse_forwarded_allow_ips,
    parse_origin,
    parse_root_path,
)

DIRECT = AllowedHosts()  # on 127.0.0.1
NAMED = AllowedHosts(parse_allowed_hosts(["detect.example.com", "*.lab.example", "detrkit"]))
ANY = AllowedHosts(("*",))  # on 0.0.0.0
SITE = "https://detect.example.com"


def send(
    hosts: AllowedHosts,
    headers: dict[str, str],
    method: str = "POST",
    client: str = "127.0.0.1",
    trusted: str = LOOPBACK_ADDRESSES,
    server: str = "127.0.0.1",
) -> tuple[int, str]:
    """Send a request to an application that answers 200; returns the status and the error."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"error": ""}'})

    async def record(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body was read")

    scope = {
        "type": "http",
        "method": method,
        "path": "/predict",
        "headers": [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()],
        "client": (client, 40_000),
        "server": (server, 8000),
    }
    access = Access(hosts, parse_forwarded_allow_ips(trusted))
    asyncio.run(BrowserSecurityMiddleware(app, access)(scope, receive, record))
    assert any(name == b"x-content-type-options" for name, _ in sent[0]["headers"])
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


FORWARDED = {"X-Forwarded-Host": "detect.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}


@pytest.mark.parametrize(
    ("hosts", "headers"),
    [
        # nginx without proxy_set_header: Host is that of proxy_pass
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": SITE}),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": "http://detect.example.com"}),
        (NAMED, {"Host": "detrkit:8000", "Origin": SITE, "Sec-Fetch-Site": "same-origin"}),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": f"{SITE}:8443", "Sec-Fetch-Site": "same-origin"}),
        (ANY, {"Host": "detrkit:8000", "Origin": SITE, "Sec-Fetch-Site": "same-origin"}),
        # nginx: proxy_set_header X-Forwarded-Host $host, or $http_host
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": SITE, **FORWARDED}),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": f"{SITE}:8443", "X-Forwarded-Host": "detect.example.com:8443"}),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": f"{SITE}:8443", **FORWARDED, "X-Forwarded-Port": "8443"}),
        # nginx: proxy_set_header Host $host drops the port
        (NAMED, {"Host": "detect.example.com", "Origin": SITE}),
        (NAMED, {"Host": "detect.example.com", "Origin": f"{SITE}:8443", "Sec-Fetch-Site": "same-origin"}),
        (NAMED, {"Host": "detect.example.com", "Origin": f"{SITE}:8443", "X-Forwarded-Port": "8443"}),
        # nginx: proxy_set_header Host $http_host; Caddy
        (NAMED, {"Host": "detect.example.com:8443", "Origin": f"{SITE}:8443"}),
        (NAMED, {"Host": "detect.example.com", "Origin": SITE, **FORWARDED, "Sec-Fetch-Site": "same-origin"}),
        # Traefik
        (
            NAMED,
            {
                "Host": "detect.example.com",
                "Origin": SITE,
                **FORWARDED,
                "X-Forwarded-Port": "443",
                "X-Forwarded-Server": "3f2a",
                "X-Real-Ip": "203.0.113.7",
            },
        ),
        # TLS ended at an outer proxy; the inner one calls it http
        (NAMED, {"Host": "detect.example.com", "Origin": SITE, **FORWARDED, "X-Forwarded-Proto": "http"}),
        (NAMED, {"Host": "detect.example.com", "Origin": SITE, "X-Forwarded-Port": "9" * 5000}),
        # two proxies
        (
            NAMED,
            {"Host": "detrkit:8000", "Origin": SITE, **FORWARDED, "X-Forwarded-Host": "detect.example.com, detrkit"},
        ),
        # written differently
        (NAMED, {"Host": "Detect.Example.COM:443", "Origin": SITE}),
        (NAMED, {"Host": "detect.example.com.", "Origin": f"{SITE}."}),
        (NAMED, {"Host": "a.lab.example", "Origin": "https://a.lab.example"}),
        (NAMED, {"Host": "a.b.lab.example", "Origin": "https://a.b.lab.example"}),
        # programs, and a container by its name
        (NAMED, {"Host": "detrkit:8000"}),
        (NAMED, {"Host": "detrkit"}),
        (ANY, {"Host": "detrkit:8000"}),
        (ANY, {}),
        # the page without a proxy
        (DIRECT, {"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}),
        (DIRECT, {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}),
        (ANY, {"Host": "192.168.1.5:8000", "Origin": "http://192.168.1.5:8000"}),
    ],
)
def test_own_page_may_post_through_proxies(hosts: AllowedHosts, headers: dict[str, str]) -> None:
    assert send(hosts, headers) == (200, "")


FOREIGN = "https://attacker.example"


@pytest.mark.parametrize(
    ("hosts", "headers", "status"),
    [
        # cross-site request forgery
        (NAMED, {"Host": "detect.example.com", "Origin": FOREIGN}, 403),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": FOREIGN}, 403),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": FOREIGN, **FORWARDED}, 403),
        (NAMED, {"Host": "detect.example.com", "Origin": "null"}, 403),
        (NAMED, {"Host": "detect.example.com", "Origin": SITE, "Sec-Fetch-Site": "cross-site"}, 403),
        (
            NAMED,
            {"Host": "detect.example.com", "Origin": "https://www.example.com", "Sec-Fetch-Site": "same-site"},
            403,
        ),
        (ANY, {"Host": "192.168.1.5:8000", "Origin": FOREIGN}, 403),
        (AllowedHosts(("*",)), {"Host": "127.0.0.1:8000", "Origin": FOREIGN}, 403),
        # a page of a similar name, another port, or one that came without encryption
        (NAMED, {"Host": "detect.example.com", "Origin": f"{SITE}.attacker.example"}, 403),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": "https://x-detect.example.com"}, 403),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": f"{SITE}@attacker.example"}, 403),
        (NAMED, {"Host": "detect.example.com", "Origin": f"{SITE}:9443"}, 403),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": f"{SITE}:9443"}, 403),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:9000"}, 403),
        (NAMED, {"Host": "detect.example.com", "Origin": "http://detect.example.com", **FORWARDED}, 403),
        (NAMED, {"Host": "a.lab.example", "Origin": "https://b.lab.example"}, 403),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": "chrome-extension://abcdef"}, 403),
        # DNS rebinding, also through a proxy that replaces Host or that adds headers
        (DIRECT, {"Host": "attacker.example:8000", "Origin": "http://attacker.example:8000"}, 400),
        (DIRECT, {"Host": "127.0.0.1.nip.example"}, 400),
        (NAMED, {"Host": "attacker.example", "Origin": "http://attacker.example"}, 400),
        (NAMED, {"Host": "attacker.example", "X-Forwarded-Host": "detect.example.com"}, 400),
        (NAMED, {"Host": "127.0.0.1:8000", "X-Forwarded-Host": "attacker.example"}, 400),
        (NAMED, {"Host": "127.0.0.1:8000", "X-Forwarded-Host": "detect.example.com, attacker.example"}, 400),
        (NAMED, {"Host": "127.0.0.1:8000", "Origin": "http://attacker.example", "Sec-Fetch-Site": "same-origin"}, 403),
        (NAMED, {"Host": "lab.example"}, 400),
        (NAMED, {"Host": "xlab.example"}, 400),
        # malformed
        (NAMED, {}, 400),
        (NAMED, {"Host": ""}, 400),
        (NAMED, {"Host": "[::1"}, 400),
        (NAMED, {"Host": "detect.example.com/@attacker.example"}, 400),
        (NAMED, {"Host": "user@detect.example.com"}, 400),
        (NAMED, {"host": "detect.example.com", "Host": "attacker.example"}, 400),
    ],
)
def test_foreign_pages_and_names_are_refused(hosts: AllowedHosts, headers: dict[str, str], status: int) -> None:
    found, error = send(hosts, headers)
    assert found == status
    assert error.startswith("origin: found" if status == 403 else "host: found")
    assert "\n" not in error


def test_forwarded_headers_of_strangers_are_ignored() -> None:
    replaced = {"Host": "127.0.0.1:8000", "Origin": "http://b.lab.example:81", "X-Forwarded-Host": "b.lab.example:81"}
    assert send(NAMED, replaced)[0] == 200
    assert send(NAMED, replaced, client="203.0.113.7")[0] == 403
    assert send(NAMED, replaced, client="172.18.0.2")[0] == 403
    assert send(NAMED, replaced, client="172.18.0.2", trusted="10.0.0.1, 172.16.0.0/12")[0] == 200
    assert send(NAMED, replaced, client="::ffff:172.18.0.2", trusted="172.16.0.0/12")[0] == 200
    assert send(NAMED, replaced, client="fd00::2", trusted="fd00::/8")[0] == 200
    assert send(NAMED, replaced, client="203.0.113.7", trusted="*")[0] == 200
    assert send(NAMED, replaced, trusted="")[0] == 403
    # a wrong name from a stranger is ignored, too
    assert send(NAMED, {"Host": "detrkit", "X-Forwarded-Host": "attacker.example"}, client="203.0.113.7")[0] == 200
    assert send(NAMED, {"Host": "attacker.example", "X-Forwarded-Host": "detrkit"}, client="203.0.113.7")[0] == 400


def test_health_checks_may_use_the_address_of_the_container() -> None:
    assert send(NAMED, {"Host": "172.18.0.5:8000"}, "GET", client="172.18.0.1", server="172.18.0.5")[0] == 200
    assert send(NAMED, {"Host": "[fd00::5]:8000"}, "GET", client="fd00::1", server="fd00::5")[0] == 200
    assert send(NAMED, {"Host": "localhost:8000"}, "HEAD", server="127.0.0.1")[0] == 200
    assert send(NAMED, {"Host": "172.18.0.6:8000"}, "GET", client="172.18.0.1", server="172.18.0.5")[0] == 400


def test_error_names_what_to_allow() -> None:
    _, error = send(DIRECT, {"Host": "detect.example.com"})
    assert error == (
        "host: found 'detect.example.com', which is no name of this server; use its own address, or start it with "
        "allowed_hosts='detect.example.com'"
    )


@pytest.mark.parametrize(
    ("given", "normalized"),
    [
        ("Detect.Example.com.", "detect.example.com"),
        ("*.Example.com", "*.example.com"),
        ("::1", "[::1]"),
        ("[FD00::1]", "[fd00::1]"),
        ("fd00:0:0::1", "[fd00::1]"),
        ("192.168.1.5", "192.168.1.5"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("my_container", "my_container"),
        ("*", "*"),
    ],
)
def test_allowed_hosts_are_written_as_browsers_send_them(given: str, normalized: str) -> None:
    assert parse_allowed_hosts(given) == parse_allowed_hosts([given]) == (normalized,)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "http://a", "a:80", "a/b", "a*", "*a.example", "*.*.a", "a,b", "ü\ud800"]
)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^allowed_hosts=.* is not a host name; use one without scheme"):
        parse_allowed_hosts([name])


def test_prefixes_and_addresses_are_checked() -> None:
    assert [parse_root_path(path) for path in ("", "/", "/detect", "/detect/", "/a/b-1/")] == [
        "",
        "",
        "/detect",
        "/detect",
        "/a/b-1",
    ]
    for path in ("detect", "//a", "/a//b", "/..", "/a?b", '/"', "/a b", "/health"):
        with pytest.raises(ConfigError, match="root_path"):
            parse_root_path(path)
    with pytest.raises(ConfigError, match=r"^forwarded_allow_ips='proxy.example' is not an address of a proxy"):
        parse_forwarded_allow_ips(["10.0.0.1", "proxy.example"])


def test_headers_are_parsed_as_urls_are() -> None:
    assert parse_authority("[FD00::1]:80") == ("[fd00::1]", 80)
    assert parse_authority("a.example") == ("a.example", None)
    assert parse_origin("HTTPS://A.example:444") == ("https", "a.example", 444)
    assert parse_origin("http://[::1]") == ("http", "[::1]", 80)
    for text in ("null", "a.example", "https://a/b", "https://u@a", "ftp://a", "https://", "https://a:b"):
        assert parse_origin(text) is None
