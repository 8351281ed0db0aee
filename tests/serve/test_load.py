"""Two hundred at once, good and hostile, on a server of its own process: as a user starts it and ends it."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from detrkit import Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.errors import DatasetError
from tests.conftest import SHARED
from tests.serve.test_server import same

CROWD = 200
HOSTILE = (b"", b"no photo", b"\xff\xd8\xff\xe0" + bytes(500), b"\x89PNG\r\n\x1a\n" + bytes(500), b"GIF89a" + bytes(90))


class Running:
    """`detrkit serve` in a process of its own."""

    def __init__(self, weights: Path, *options: str) -> None:
        words = [sys.executable, "-m", "detrkit", "serve", str(weights), "--port", "0", "--threshold", "0", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", self.greeting)
        assert found, self.greeting
        self.url = found[0]
        while True:
            try:
                assert httpx.get(f"{self.url}/health", timeout=20).json()["status"] == "ready"
                break
            except httpx.ConnectError:
                assert self.process.poll() is None
                time.sleep(0.05)

    def resident(self, what: str = "VmRSS") -> float:
        """MiB; VmHWM is the most that there ever was."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]

    def end(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, output, errors


@pytest.fixture
def running(detector: Detector, tmp_path: Path) -> Iterator[Running]:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    server = Running(tmp_path / "tiny.safetensors", "--queue", "300", "--timeout", "100")
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.communicate()


async def all_at_once(url: str, uploads: list[tuple[str, bytes]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(uploads))
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=200) as client:
        posts = (client.post("/predict", files={"photo": upload}) for upload in uploads)
        return list(await asyncio.gather(*posts))


def check(uploads: list[tuple[str, bytes]], answers: list[httpx.Response], expected: dict[str, Any]) -> tuple[int, int]:
    """See that each photo got its objects and everything else a sentence; count both."""
    good = bad = 0
    for (name, _), answer in zip(uploads, answers, strict=True):
        if expected[name] is None:
            bad += 1
            assert 400 <= answer.status_code < 500, (name, answer.text)
            assert answer.json()["error"]
            assert "\n" not in answer.json()["error"]
        else:
            good += 1
            assert answer.status_code == 200, (name, answer.text)
            same(answer.json(), expected[name])
    return good, bad


def predicted(detector: Detector, path: Path) -> Any:
    try:
        return detector.predict(path, 0)
    except DatasetError:
        return None


def crowd_of(files: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """As many uploads as the crowd has, each file as often as any other."""
    named = list(files.items())
    return [named[number % len(named)] for number in range(CROWD)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["drawn", "nasty"])
def test_two_hundred_at_once(
    running: Running, detector: Detector, drawn: list[Path], tmp_path: Path, kind: str
) -> None:
    files = {path.name: path.read_bytes() for path in drawn}
    expected = {path.name: predicted(detector, path) for path in drawn}
    if kind == "nasty":
        if not SHARED.is_dir():
            pytest.skip("needs the folder ../shared, which is not part of the project")
        for path in sorted((SHARED / "data" / "nasty" / "images").iterdir()):
            if path.is_file():
                files[path.name], expected[path.name] = path.read_bytes(), predicted(detector, path)
    for number, content in enumerate(HOSTILE):
        files[f"{number}.jpg"], expected[f"{number}.jpg"] = content, None
    uploads = crowd_of(files)
    before = running.resident()
    answers = asyncio.run(all_at_once(running.url, uploads))
    good, bad = check(uploads, answers, expected)
    assert good + bad == CROWD
    assert min(good, bad) >= 10
    check(uploads, asyncio.run(all_at_once(running.url, uploads)), expected)
    # of two photos of 20 megapixels at a time, decoding takes 400 MB each
    assert running.resident("VmHWM") - before < 1200
    assert running.resident() - before < 600, "and gives it back"
    health = httpx.get(f"{running.url}/health").json()
    assert (health["status"], health["queue"], health["in_flight"]) == ("ready", 0, 0)
    last = asyncio.run(all_at_once(running.url, uploads[:1]))
    check(uploads[:1], last, expected)
    sizes = httpx.get(f"{running.url}/metrics").text
    count, total = (float(re.search(rf"detrkit_batch_size_{word} ([\d.]+)", sizes)[1]) for word in ("count", "sum"))  # type: ignore[index]
    assert total == 2 * good + 1
    assert count < total / 1.5, "they were predicted together"
    code, output, errors = running.end()
    assert (code, output, errors) == (128 + signal.SIGTERM, "stopped\n", "")


def test_what_is_being_answered_is_answered_when_the_server_is_told_to_end(
    detector: Detector, drawn: list[Path], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    # one photo waits two seconds for others that never come
    running = Running(tmp_path / "tiny.safetensors", "--batch-wait", "2000")
    upload = (drawn[0].name, drawn[0].read_bytes())

    async def post_and_end() -> httpx.Response:
        post = asyncio.ensure_future(asyncio.to_thread(httpx.post, f"{running.url}/predict", files={"photo": upload}))
        while not httpx.get(f"{running.url}/health").json()["in_flight"]:
            await asyncio.sleep(0.02)
        running.process.send_signal(signal.SIGTERM)
        return await post

    answer = asyncio.run(post_and_end())
    assert answer.status_code == 200
    same(answer.json(), detector.predict(drawn[0], 0))
    output, errors = running.process.communicate(timeout=30)
    assert (running.process.returncode, output, errors) == (128 + signal.SIGTERM, "stopped\n", "")
