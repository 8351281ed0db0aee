"""Clients that stall: their connections end, and do not delay a shutdown."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from detrkit import Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.serve import connection
from detrkit.serve.config import ServeConfig
from detrkit.serve.connection import limited
from detrkit.serve.serve import bind
from tests.serve.conftest import Served, serving
from tests.serve.test_load import Running
from tests.serve.test_server import Gate, gate
from tests.waiting import PATIENCE, wait_until

__all__ = ["gate"]

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as one:
        yield one


def read_to_end(one: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    content = b""
    try:
        while piece := one.recv(65536):
            content += piece
    except ConnectionResetError:
        pass
    return content


def trickle(one: socket.socket, beginning: bytes, piece: bytes) -> None:
    """Send pieces until the server closes the connection."""
    with suppress(OSError):
        one.sendall(beginning)
        while True:
            one.sendall(piece)
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [(b"", b""), (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n"), (b"POST /predict HTTP/1.1\r\nHost: a\r\nX-", b"a")],
    ids=["nothing", "headers one by one", "a header letter by letter"],
)
def test_connection_whose_headers_are_late_is_closed(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, beginning: bytes, piece: bytes
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    with serving([detector]) as served, connected(served.url) as one:
        if piece:
            trickle(one, beginning, piece)
        else:
            assert read_to_end(one) == b""
        wait_until(lambda: not served.server.server_state.connections)


def test_second_request_of_a_connection_is_limited_too(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([detector]) as served, connected(served.url) as one:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
        trickle(one, b"GET /health HTTP/1.1\r\n", b"X-A: b\r\n")
        wait_until(lambda: not served.server.server_state.connections)


def test_stalled_upload_is_answered_408_and_closed(detector: Detector) -> None:
    with serving([detector], ServeConfig(timeout=0.4)) as served, connected(served.url) as one:
        one.sendall(HEAD + b"aaa")
        answer = read_to_end(one)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"not received within 0.4 seconds" in answer
        assert served.service.in_flight == 0


def test_slow_body_of_an_answered_request_is_cut_off(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_GRACE", 0.1)
    with serving([detector], ServeConfig(timeout=0.4)) as served, connected(served.url) as one:
        trickle(one, HEAD.replace(b"/predict", b"/elsewhere"), b"a")
        wait_until(lambda: not served.server.server_state.connections)


def test_client_that_does_not_read_its_answer_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MIN_RATE", 1e12)
    size = 50_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
            await send({"type": "http.response.body", "body": bytes(size)})

    with bind("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as pool:
        server = uvicorn.Server(uvicorn.Config(app, http=limited(0.3), lifespan="off", log_config=None))
        running = pool.submit(server.run, [listener])
        wait_until(lambda: server.started)
        with connected(f"http://127.0.0.1:{listener.getsockname()[1]}") as one:
            one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda: server.server_state.total_requests == 1)
            wait_until(lambda: not server.server_state.connections)
            assert len(read_to_end(one)) < size
        server.should_exit = True
        running.result(PATIENCE)


@pytest.mark.parametrize(
    "content", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n"], ids=["TLS", "text"]
)
def test_what_is_not_http_is_answered_with_a_sentence(served: Served, content: bytes) -> None:
    with connected(served.url) as one:
        one.sendall(content)
        head, _, body = read_to_end(one).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body) == {"error": "request: not valid HTTP/1.1; use http:// for this address"}


def stop(served: Served) -> None:
    served.server.should_exit = True


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (HEAD + b"abc", b"HTTP/1.1 503"),
        pytest.param(HEAD.replace(b"/predict", b"/explain") + b"abc", b"HTTP/1.1 503", marks=pytest.mark.slow),
        pytest.param(
            HEAD.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n") + b"--b",
            b"HTTP/1.1 503",
            marks=pytest.mark.slow,
        ),
        (b"GET /health HTTP/1.1\r\nHo", b""),
        (b"", b""),
    ],
    ids=["body", "explain", "form", "headers", "nothing"],
)
def test_stalled_upload_does_not_delay_a_shutdown(detector: Detector, sent: bytes, answer: bytes) -> None:
    config = ServeConfig(timeout=1000, shutdown_timeout=0.5)
    with serving([detector], config) as served, connected(served.url) as one:
        one.sendall(sent)
        wait_until(lambda: bool(served.server.server_state.connections))
        if answer:
            wait_until(lambda: served.service.in_flight == 1)
        stop(served)
        received = read_to_end(one)
        assert received.startswith(answer)
        assert (b"shutting down; try again" in received) is bool(answer)


def test_endless_prediction_does_not_delay_a_shutdown(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(timeout=1000, shutdown_timeout=0.5))
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(served.post, "/predict", drawn[0].read_bytes())
        wait_until(lambda: engine.given == 1)
        assert served.client.get("/health").json()["in_flight"] == 1, "health is answered during a prediction"
        stop(served)
        assert posted.result(PATIENCE).status_code == 503
        wait_until(lambda: not served.service.batcher.is_alive)
        assert any(thread.name.startswith("detrkit serve device") for thread in threading.enumerate())
        engine.may_continue.set()


@pytest.mark.slow
def test_sigterm_ends_the_command_in_spite_of_stalled_clients(detector: Detector, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    server = Running(tmp_path / "tiny.safetensors", "--timeout", "1000")
    with connected(server.url) as stalled, connected(server.url) as slow, connected(server.url) as idle:
        stalled.sendall(HEAD + b"abc")
        slow.sendall(b"GET / HT")
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        output, errors = server.process.communicate(timeout=PATIENCE)
        assert b"503" in read_to_end(stalled)[:20]
    assert server.process.returncode == 128 + signal.SIGTERM
    assert output == "stopped\n"
    assert "Traceback" not in errors
