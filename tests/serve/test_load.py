"""Concurrent valid and invalid uploads to a server in its own process."""

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
from benchmarks.hostile import hostile_images

from detrkit import Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.data.decoding import UPLOAD_FORMATS, decode_file
from detrkit.errors import DatasetError
from tests.conftest import SHARED
from tests.serve.test_server import assert_same_detections
from tests.waiting import PATIENCE

NUM_REQUESTS = 200
INVALID = (
    b"",
    b"not an image",
    b"\xff\xd8\xff\xe0" + bytes(500),
    b"\x89PNG\r\n\x1a\n" + bytes(500),
    b"GIF89a" + bytes(90),
)


class Running:
    """`detrkit serve` in its own process."""

    def __init__(self, weights: Path, *options: str, prefix: tuple[str, ...] = ()) -> None:
        words = [
            *prefix,
            sys.executable,
            "-m",
            "detrkit",
            "serve",
            str(weights),
            "--port",
            "0",
            "--threshold",
            "0",
            *options,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", self.first_line)
        assert found, self.first_line
        self.url = found[0]
        while True:
            try:
                assert httpx.get(f"{self.url}/health", timeout=PATIENCE).json()["status"] == "ready"
                break
            except httpx.ConnectError:
                assert self.process.poll() is None
                time.sleep(0.05)

    def resident(self, field: str = "VmRSS") -> float:
        """Return MiB in use; VmHWM is the peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


@pytest.fixture
def running(detector: Detector, tmp_path: Path) -> Iterator[Running]:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    server = Running(
        tmp_path / "tiny.safetensors", "--max-queue", "300", "--timeout", str(PATIENCE), "--batch-wait-ms", "2000"
    )
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.communicate()


async def post_concurrently(url: str, uploads: list[tuple[str, bytes]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(uploads))
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE) as client:
        posts = (client.post("/predict", files={"image": upload}) for upload in uploads)
        return list(await asyncio.gather(*posts))


def check(uploads: list[tuple[str, bytes]], answers: list[httpx.Response], expected: dict[str, Any]) -> tuple[int, int]:
    """Check that each image got its detections and everything else an error; count both."""
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
            assert_same_detections(answer.json(), expected[name])
    return good, bad


def predicted(detector: Detector, path: Path) -> Any:
    """Return the detections in an image, None if it is damaged or of a format that is not uploaded."""
    try:
        with path.open("rb") as file:
            decode_file(file, path.name, formats=UPLOAD_FORMATS)
        return detector.predict(path, 0)
    except DatasetError:
        return None


def repeat_files(files: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """Repeat the files up to the number of requests."""
    named = list(files.items())
    return [named[number % len(named)] for number in range(NUM_REQUESTS)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_concurrent_uploads_get_their_own_answers_in_bounded_memory(
    running: Running, detector: Detector, drawn: list[Path]
) -> None:
    files = {path.name: path.read_bytes() for path in drawn}
    expected = {path.name: predicted(detector, path) for path in drawn}
    if SHARED.is_dir():  # malformed images, in addition to the invalid uploads
        for path in sorted((SHARED / "data" / "nasty" / "images").iterdir()):
            if path.is_file():
                files[path.name], expected[path.name] = path.read_bytes(), predicted(detector, path)
    hostile = {name: content for name, content in hostile_images().items() if len(content) < 10**6}
    for name, content in (*((f"{number}.jpg", content) for number, content in enumerate(INVALID)), *hostile.items()):
        files[name], expected[name] = content, None
    uploads = repeat_files(files)
    before = running.resident()
    answers = asyncio.run(post_concurrently(running.url, uploads))
    good, bad = check(uploads, answers, expected)
    assert good + bad == NUM_REQUESTS
    assert min(good, bad) >= 10
    check(uploads, asyncio.run(post_concurrently(running.url, uploads)), expected)
    # decoding takes 400 MB for each of two images of 20 megapixels at a time
    assert running.resident("VmHWM") - before < 1200
    assert running.resident() - before < 600, "memory was not returned"
    health = httpx.get(f"{running.url}/health", timeout=PATIENCE).json()
    assert (health["status"], health["queue"], health["in_flight"]) == ("ready", 0, 0)
    last = asyncio.run(post_concurrently(running.url, uploads[:1]))
    check(uploads[:1], last, expected)
    sizes = httpx.get(f"{running.url}/metrics", timeout=PATIENCE).text
    count, total = (float(re.search(rf"detrkit_batch_size_{word} ([\d.]+)", sizes)[1]) for word in ("count", "sum"))  # type: ignore[index]
    assert total == 2 * good + 1
    assert count < total / 1.5, "images were not batched"
    # a request that waits for its batch is answered after SIGTERM
    answer = asyncio.run(post_and_terminate(running, uploads[0]))
    check(uploads[:1], [answer], expected)
    output, errors = running.process.communicate(timeout=PATIENCE)
    assert (running.process.returncode, output, errors) == (128 + signal.SIGTERM, "stopped\n", "")


async def post_and_terminate(running: Running, upload: tuple[str, bytes]) -> httpx.Response:
    """Post an image, and terminate the server while it waits for others."""
    post = asyncio.ensure_future(
        asyncio.to_thread(httpx.post, f"{running.url}/predict", files={"image": upload}, timeout=PATIENCE)
    )
    while not post.done() and not httpx.get(f"{running.url}/health", timeout=PATIENCE).json()["in_flight"]:
        await asyncio.sleep(0.02)
    running.process.send_signal(signal.SIGTERM)
    return await post
