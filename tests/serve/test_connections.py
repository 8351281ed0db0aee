"""Limits of the number of connections: stalled clients do not keep others out."""

import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from detrkit import Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.serve import connection_limits
from detrkit.serve.config import ServeConfig
from detrkit.serve.connection_limits import (
    ConnectionLimits,
    affordable_connections,
    client_key,
    forwarded_client,
)
from detrkit.serve.hosts import Access, parse_forwarded_allow_ips
from tests.serve.conftest import serving
from tests.serve.test_load import Running
from tests.serve.test_requests import encoded
from tests.serve.test_server import Gate, gate
from tests.serve.test_slow_clients import HEAD, connected, read_to_end
from tests.waiting import PATIENCE, wait_until

__all__ = ["gate"]

HALF_A_HEADER = b"GET /health HTTP/1.1\r\nHo"
PROXY = Access(proxies=parse_forwarded_allow_ips("127.0.0.1"))


class FakeConnection:
    """A connection that waits for its client since a time, or works."""

    def __init__(self, address: str, waits_since: float | None = 0.0, is_receiving_body: bool = False) -> None:
        self.address = address
        self.waits_since = waits_since
        self.is_receiving_body = is_receiving_body
        self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True


@contextmanager
def stalled(url: str, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(url)) for _ in range(count)]
        for one in clients:
            one.sendall(sent)
        yield clients


def test_connection_that_waits_longest_is_closed_for_a_new_one() -> None:
    limits = ConnectionLimits(3, 10, parse_forwarded_allow_ips(()))
    old, older, body = FakeConnection("a", 2.0), FakeConnection("a", 1.0), FakeConnection("a", 0.5, True)
    for one in (old, older, body):
        assert limits.add(one) is None
    new = [FakeConnection("a", None) for _ in range(3)]
    for one, expected in zip(new, (older, old, body), strict=True):
        assert limits.add(one) is None
        assert expected.is_evicted
        assert len(limits) == 3
    error = limits.add(FakeConnection("a"))
    assert error is not None
    assert error.status_code == 503
    limits.remove(new[0])
    limits.remove(new[0])
    assert limits.add(FakeConnection("a")) is None


def test_busiest_address_loses_its_connection_first() -> None:
    limits = ConnectionLimits(4, 10, parse_forwarded_allow_ips(()))
    patient = FakeConnection("192.0.2.1", 0.0)
    crowd = [FakeConnection("192.0.2.2", float(since), True) for since in (1, 2, 3)]
    for one in (patient, *crowd):
        limits.add(one)
    assert limits.add(FakeConnection("192.0.2.3")) is None
    assert [one.is_evicted for one in (patient, *crowd)] == [False, True, False, False]


def test_connections_of_one_address_are_limited() -> None:
    limits = ConnectionLimits(100, 2, parse_forwarded_allow_ips("192.0.2.9"))
    for address in ("192.0.2.1", "2001:db8::1"):
        assert limits.add(FakeConnection(address, None)) is None
        assert limits.add(FakeConnection(address, None)) is None
    for address in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::ffff:1"):
        error = limits.add(FakeConnection(address, None))
        assert error is not None
        assert error.status_code == 429
    assert limits.add(FakeConnection("2001:db8:0:1::1", None)) is None
    for _ in range(20):  # a proxy has the connections of all its clients
        assert limits.add(FakeConnection("192.0.2.9", None)) is None


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ("127.0.0.1", "127.0.0.1", None, None),
        ("127.0.0.1", "192.0.2.1", "198.51.100.1", None),
        ("127.0.0.1", "127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "127.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the client invented the first one
        ("127.0.0.1,10.0.0.0/8", "127.0.0.1", "198.51.100.1, 10.1.2.3", "198.51.100.1"),
        ("127.0.0.1,10.0.0.0/8", "127.0.0.1", "10.1.2.3", "10.1.2.3"),
        ("*", "192.0.2.1", "198.51.100.1, 203.0.113.9", "198.51.100.1"),
        ("127.0.0.1", "127.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("127.0.0.1", "127.0.0.1", "[2001:db8::7]:80", "2001:db8::/64"),
        ("127.0.0.1", "127.0.0.1", "unknown", "unknown"),
        ("127.0.0.1", "127.0.0.1", ", ,", None),
    ],
)
def test_client_of_a_proxy(trusted: str, peer: str, forwarded: str | None, client: str | None) -> None:
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    scope = {"type": "http", "client": (peer, 1), "headers": headers}
    assert forwarded_client(scope, parse_forwarded_allow_ips(trusted)) == client


def test_unusual_addresses_are_no_error() -> None:
    assert client_key(None) is None
    assert client_key("x" * 1000) == "x" * 64
    assert client_key("::ffff:192.0.2.1") == "192.0.2.1"


@pytest.mark.skipif(sys.platform == "win32", reason="file handles are not limited there")
def test_half_of_the_file_handles_are_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection_limits.resource is not None
    monkeypatch.setattr(connection_limits.os, "listdir", lambda path: ["0"] * 20)
    monkeypatch.setattr(connection_limits.resource, "getrlimit", lambda kind: (96, 96))
    assert affordable_connections(1000, 20) == (96 - 20 - 20 - 16) // 2
    assert affordable_connections(7, 20) == 7
    assert affordable_connections(1000, 90) == 4


@pytest.mark.parametrize("sent", [b"", HALF_A_HEADER, HEAD + b"abc"], ids=["nothing", "headers", "body"])
def test_stalled_connections_give_way_to_new_ones(detector: Detector, sent: bytes) -> None:
    config = ServeConfig(max_connections=8, timeout=PATIENCE)
    with serving([detector], config) as served, stalled(served.url, sent, 30):
        for _ in range(3):
            with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
                assert client.get("/health").json()["status"] == "ready"
                assert client.post("/predict", content=encoded("PNG")).status_code == 200
        assert len(served.server.server_state.connections) <= 8


def test_connections_of_an_address_in_use_are_refused(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(max_connections_per_address=3, max_connections=100))
    content = drawn[0].read_bytes()
    request = HEAD.replace(b"900", str(len(content)).encode()) + content
    with stalled(served.url, request, 3):
        wait_until(lambda: served.service.in_flight == 3)
        with connected(served.url) as one:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            head, _, body = read_to_end(one).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert b"Retry-After: 1" in head
        assert "3 connections or requests of this address are in progress" in json.loads(body)["error"]
        engine.may_continue.set()
    wait_until(lambda: not served.server.server_state.connections)
    assert served.client.get("/health").status_code == 200


def test_requests_of_a_client_behind_a_proxy_are_limited(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(max_connections_per_address=2), PROXY)
    content = drawn[0].read_bytes()
    head = HEAD.replace(b"900", str(len(content)).encode())
    request = head[:-2] + b"X-Forwarded-For: 198.51.100.1\r\n\r\n" + content
    with stalled(served.url, request, 2):
        wait_until(lambda: served.service.in_flight == 2)

        def get(address: str) -> httpx.Response:
            return served.client.get("/health", headers={"X-Forwarded-For": address})

        refused = get("198.51.100.1")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert "X-Content-Type-Options" in refused.headers
        assert get("198.51.100.1, 203.0.113.5").status_code == 200
        assert served.client.get("/health").status_code == 200
        engine.may_continue.set()
    wait_until(lambda: get("198.51.100.1").status_code == 200)


def test_trickling_uploads_take_no_places_in_the_queue(detector: Detector) -> None:
    config = ServeConfig(max_queue=4, timeout=PATIENCE)
    with serving([detector], config) as served, stalled(served.url, HEAD + b"abc", 16):
        wait_until(lambda: served.service.in_flight == 16)
        for _ in range(5):
            assert served.post("/predict", encoded("PNG")).status_code == 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="file handles are limited by prlimit")
@pytest.mark.parametrize("sent", [HALF_A_HEADER, HEAD + b"abc", b""], ids=["headers", "body", "nothing"])
def test_few_file_handles_are_enough_in_spite_of_stalled_clients(
    detector: Detector, tmp_path: Path, sent: bytes
) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    server = Running(tmp_path / "tiny.safetensors", "--timeout", "1000", prefix=("prlimit", "--nofile=96"))
    try:
        with stalled(server.url, sent, 110):
            for _ in range(5):
                assert httpx.get(f"{server.url}/health", timeout=PATIENCE).json()["status"] == "ready"
                answer = httpx.post(f"{server.url}/predict", content=encoded("PNG"), timeout=PATIENCE)
                assert answer.status_code == 200
            server.process.send_signal(signal.SIGTERM)
            output, errors = server.process.communicate(timeout=PATIENCE)
        assert (server.process.returncode, output) == (128 + signal.SIGTERM, "stopped\n")
        assert "Traceback" not in errors
    finally:
        server.process.kill()
        server.process.communicate()
