"""Downloads by address: https only, bounded, checked by hash, continued after an interruption, once for all processes."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest

from detrkit.checkpoints import download, hashes
from detrkit.checkpoints.download import fetch
from detrkit.checkpoints.hashes import HashRecord
from detrkit.errors import CheckpointError, ConfigError

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"w-{DIGEST[:8]}.pth"


@dataclass
class Server:
    """A server of files, and what it was asked for."""

    address: str
    content: bytes = CONTENT
    requests: list[str | None] = field(default_factory=list)
    stop_after: int | None = None
    location: str | None = None
    has_length: bool = True
    has_ranges: bool = True

    def url(self, name: str = NAME) -> str:
        return f"{self.address}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append(wanted)
            if state.location is not None:
                self.send_response(302)
                self.send_header("Location", state.location)
                self.end_headers()
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.has_ranges else 0
            if start > len(state.content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if state.has_length:
                self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            with suppress(OSError):  # the client has seen enough
                self.wfile.write(state.content[start : state.stop_after])

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state = Server(f"http://127.0.0.1:{running.server_port}")
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(download, "_SCHEMES", ("http://127.0.0.1",))
        monkeypatch.setenv("no_proxy", "*")
        yield state
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_file_is_downloaded_once_and_announced(server: Server, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=hashes.DOWNLOADS):
        assert fetch(server.url()) == cache / NAME
        assert fetch(server.url()) == cache / NAME
    assert (cache / NAME).read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert [record.message for record in caplog.records] == [f"downloading {server.url()} (1.0 MB)"]
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize(
    "url",
    [f"http://example.invalid/{NAME}", f"file:///etc/{NAME}", f"ftp://example.invalid/{NAME}", f"HTTP://a/{NAME}"],
)
def test_only_https_is_used(url: str, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="is not an https address"):
        fetch(url)
    assert not (cache / NAME).exists()


@pytest.mark.parametrize("location", ["http://example.invalid/x", "file:///etc/passwd", "ftp://example.invalid/x"])
def test_redirect_to_another_protocol_is_refused(location: str, server: Server) -> None:
    server.location = location
    with pytest.raises(CheckpointError, match=r"not an https address|Redirection to url .* is not allowed"):
        fetch(server.url())


def test_redirect_to_https_is_followed() -> None:
    handler = download._SecureRedirects()
    request = Request(f"https://example.invalid/{NAME}")
    followed = handler.redirect_request(request, None, 302, "", {}, "https://cdn.invalid/x")
    assert followed.full_url == "https://cdn.invalid/x"
    with pytest.raises(URLError, match="not an https address"):
        handler.redirect_request(request, None, 302, "", {}, "http://cdn.invalid/x")


@pytest.mark.parametrize("has_ranges", [True, False])
def test_interrupted_download_is_continued(has_ranges: bool, server: Server, cache: Path) -> None:
    server.stop_after = 300_000
    with pytest.raises(CheckpointError, match="the connection ended after 300,000 of 1,024,000 bytes"):
        fetch(server.url())
    assert not (cache / NAME).exists()
    server.stop_after, server.has_ranges = None, has_ranges
    assert fetch(server.url()).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-"]
    assert not list(cache.glob(".*.part"))


def test_part_of_another_file_is_downloaded_again(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f".{NAME}.part").write_bytes(bytes(2_000_000))
    assert fetch(server.url()).read_bytes() == CONTENT
    (cache / NAME).unlink()
    (cache / f".{NAME}.part").write_bytes(bytes(1000))
    with pytest.raises(CheckpointError, match="the download is damaged"):
        fetch(server.url())
    assert fetch(server.url()).read_bytes() == CONTENT


@pytest.mark.parametrize("has_length", [True, False])
def test_size_is_bounded(has_length: bool, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 1_000_000)
    monkeypatch.setattr(download, "_CHUNK", 1000)
    server.has_length = has_length
    with pytest.raises(CheckpointError, match="has more than 1,000,000 bytes"):
        fetch(server.url())
    assert not (cache / NAME).exists()


def test_content_is_compared_with_the_name(server: Server, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=f"the download is damaged .*its SHA-256 is {DIGEST}, expected 00000000"):
        fetch(server.url("w-00000000.pth"))
    cache.mkdir(parents=True, exist_ok=True)
    (cache / NAME).write_bytes(b"half")
    with pytest.raises(CheckpointError, match=f"SHA-256 is [0-9a-f]{{64}}, expected {DIGEST[:8]}; remove the file"):
        fetch(server.url())


def test_known_hash_is_compared_in_full(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    other = DIGEST[:8] + "0" * 56
    monkeypatch.setitem(hashes.FILE_SHA256, NAME, other)
    with pytest.raises(CheckpointError, match=f"expected {other}"):
        fetch(server.url())
    monkeypatch.setitem(hashes.FILE_SHA256, NAME, DIGEST)
    fetch(server.url())
    assert not (cache / hashes.RECORD).exists()


@pytest.mark.parametrize("name", [NAME, "weights.pth"])
def test_unknown_hash_is_recorded_at_the_first_download(name: str, server: Server, cache: Path) -> None:
    path = fetch(server.url(name))
    assert json.loads((cache / hashes.RECORD).read_text()) == {server.url(name): DIGEST}
    path.unlink()
    server.content = CONTENT + b"other"
    if name != NAME:  # the digits in the other name are compared before
        with pytest.raises(
            CheckpointError, match=rf"but {DIGEST} was recorded in .*{hashes.RECORD} at its first download"
        ):
            fetch(server.url(name))


def test_record_of_hashes_is_not_ignored_if_it_is_damaged(tmp_path: Path) -> None:
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(CheckpointError, match="not readable as a record of hashes"):
            HashRecord(tmp_path / "a.json").read()


def test_cache_that_cannot_be_written_to_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, _text: str) -> None:
        raise ConfigError(f"{path}: cannot be written (Read-only file system)")

    monkeypatch.setattr(hashes, "write_text", fail)
    HashRecord(tmp_path / "a.json").check_or_store("w", DIGEST, tmp_path / "w")
    assert "the SHA-256 of w is not recorded" in caplog.text


def test_concurrent_downloads_are_one_download(server: Server, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, [server.url()] * 4))
    assert paths == {cache / NAME}
    assert len(server.requests) == 1


def test_concurrent_records_are_all_kept(tmp_path: Path) -> None:
    record = HashRecord(tmp_path / "a.json")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: record.store(str(number), "x"), range(12)))
    assert len(record.read()) == 12


def test_missing_network_is_one_sentence(cache: Path, server: Server) -> None:
    with pytest.raises(CheckpointError, match=rf"cannot be downloaded \(.*or put the file at {cache / NAME}") as error:
        fetch(f"http://127.0.0.1:1/{NAME}")
    assert "\n" not in str(error.value)
