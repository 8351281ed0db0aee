"""Images that are made to occupy the server: good ones are answered meanwhile, and the server ends when it is told to."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from benchmarks.hostile import hostile_images, icon, jpeg_2000, jpeg_of_scans, png, tiff_in_a_tile
from PIL import Image

from detrkit import DatasetError, Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.data.decoding import TooMuchWorkError
from detrkit.serve import decoder, decoders
from detrkit.serve.config import ServeConfig
from detrkit.serve.decoder import Decoder, DecoderEndedError, DecodeRequest
from detrkit.serve.decoders import Decoders
from tests.serve.conftest import Served, serving
from tests.serve.test_load import Running
from tests.serve.test_requests import encoded
from tests.waiting import PATIENCE, wait_until

ENDLESS = b"endless"
# decodes as usual, but what is named `ENDLESS` never; stands for a hole in a decoder that is not known yet
STUB = """
import sys, time
from detrkit.serve import decoder_process
decode_file = decoder_process.decode_file
def decode(file, *arguments):
    if file.getvalue().startswith(b"endless"):
        while True:
            pass
    if file.getvalue().startswith(b"memory"):
        bytearray(3 * 10**9)
    if file.getvalue().startswith(b"crash"):
        import os, signal
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode_file(file, *arguments)
decoder_process.decode_file = decode
"""


@pytest.fixture
def with_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the processes that decode images holes."""
    start = decoder._START.replace("from detrkit.serve.decoder_process import main;", f"exec({STUB!r});")
    monkeypatch.setattr(decoder, "_START", start.replace("main(int", "decoder_process.main(int"))


def request_of(content: bytes, name: str = "a.png", seconds: float = 10.0, max_pixels: int = 10**6) -> DecodeRequest:
    return DecodeRequest(io.BytesIO(content), name, 3, max_pixels, seconds)


@pytest.fixture
def one_decoder() -> Iterator[Decoder]:
    one = Decoder()
    one.start()
    yield one
    one.close()
    one.reap()


def test_decoder_returns_the_pixels(one_decoder: Decoder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for _ in range(2):
        assert np.array_equal(one_decoder.decode(request_of(file.getvalue()), 1e9), pixels)
    with pytest.raises(TooMuchWorkError):
        one_decoder.decode(request_of(file.getvalue()), 1e5)
    with pytest.raises(DatasetError, match="700 x 500 pixels, more than the maximum of 1000"):
        one_decoder.decode(request_of(file.getvalue(), max_pixels=1000), 1e9)
    array = io.BytesIO()
    np.save(array, pixels)
    assert np.array_equal(one_decoder.decode(request_of(array.getvalue(), "a.npy"), 1e9), pixels)


def test_decoder_imports_no_torch_and_takes_little_memory(one_decoder: Decoder) -> None:
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    status = Path(f"/proc/{one_decoder.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 100_000  # kB
    assert "torch" not in Path(f"/proc/{one_decoder.pid}/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
@pytest.mark.usefixtures("with_holes")
def test_decoder_is_limited_in_memory_and_time(one_decoder: Decoder) -> None:
    with pytest.raises(DatasetError, match="takes more memory than an image of its size should"):
        one_decoder.decode(request_of(b"memory"), 1e9)
    start = time.process_time()
    with pytest.raises(DecoderEndedError) as caught:
        one_decoder.decode(request_of(ENDLESS, seconds=0.2), 1e9)
    assert caught.value.used_up_time
    assert time.process_time() - start < 1, "the server worked"
    one_decoder.start()
    assert one_decoder.decode(request_of(png((4, 3))), 1e9).shape == (3, 4, 3)
    with pytest.raises(DecoderEndedError) as caught:
        one_decoder.decode(request_of(b"crash"), 1e9)
    assert not caught.value.used_up_time


def test_decoder_that_lies_about_its_answer_is_ended(one_decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ([10**6, 10**6, 3], [1, 1, 4], "abc"):
        one_decoder.start()
        monkeypatch.setattr(decoder, "receive", lambda pipe, shape=shape: {"shape": shape})
        with pytest.raises(DecoderEndedError):
            one_decoder.decode(request_of(b"x"), 1e9)
        monkeypatch.undo()


def test_decoder_ends_with_the_server(one_decoder: Decoder) -> None:
    process = one_decoder._process
    assert process is not None
    assert process.stdin is not None
    if sys.platform != "win32":
        for number in (signal.SIGINT, signal.SIGTERM):  # of Ctrl-C in a terminal: the server decides
            process.send_signal(number)
    assert one_decoder.decode(request_of(png((4, 3))), 1e9).shape == (3, 4, 3)
    process.stdin.close()  # as at the end of the server, however it ends
    assert process.wait(PATIENCE) == 0


@pytest.mark.usefixtures("with_holes")
def test_good_images_are_decoded_while_hostile_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Decoders(2)
    try:
        hostile = [pool.submit(request_of(ENDLESS, seconds=PATIENCE), len) for _ in range(6)]
        wait_until(lambda: pool.to_json()["busy"] >= 2)
        start = time.monotonic()
        good = [pool.submit(request_of(png((40, 30))), np.shape) for _ in range(3)]
        assert [one.result(PATIENCE) for one in good] == [(30, 40, 3)] * 3
        taken = time.monotonic() - start
        # 6 attempts of a quarter second on 2 processes, and the time to start them again
        assert taken < 5 or os.getloadavg()[0] > 2, taken
        numbers = pool.to_json()
        assert numbers["restarts"] >= 4
        assert not any(one.done() for one in hostile)
        for one in hostile:
            assert one.cancel()
        wait_until(lambda: pool.to_json()["busy"] == 0)
        assert pool.submit(request_of(png((4, 3))), np.shape).result(PATIENCE) == (3, 4, 3)
    finally:
        pool.close(PATIENCE)
    assert pool.pids() == []


@pytest.mark.usefixtures("with_holes")
def test_health_tells_stuck_decoders_and_restarts(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_STUCK", 0.2)
    with serving([detector], ServeConfig(timeout=PATIENCE, workers=1)) as served, ThreadPoolExecutor(2) as pool:
        late = pool.submit(served.post, "/predict", ENDLESS)
        wait_until(lambda: served.client.get("/health").json()["decoders"]["stuck"] == 1)
        assert served.client.get("/health").json()["status"] == "ready"
        assert served.post("/predict", encoded("PNG")).status_code == 200
        assert served.client.get("/health").json()["decoders"]["restarts"] >= 1
        assert "detrkit_decoder_restarts" in served.client.get("/metrics").text
        served.service.decoders.close(PATIENCE)
        assert late.result(PATIENCE).status_code == 503
        health = served.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "not ready")


@pytest.mark.skipif(sys.platform == "win32", reason="processor time is not limited there")
@pytest.mark.usefixtures("with_holes")
def test_limits_are_answered_with_sentences(detector: Detector) -> None:
    with serving([detector], ServeConfig(timeout=PATIENCE, decode_timeout=0.1, workers=1)) as served:
        answers = [served.post("/predict", content, "a.png") for content in (ENDLESS, b"crash")]
        assert [one.status_code for one in answers] == [422, 422]
        assert "takes more than 0.1 seconds of processor time to read" in answers[0].json()["error"]
        assert "its decoder ended unexpectedly" in answers[1].json()["error"]
        assert served.post("/predict", encoded("PNG")).status_code == 200


@pytest.mark.usefixtures("with_holes")
def test_request_that_ends_ends_its_decoder(detector: Detector) -> None:
    with serving([detector], ServeConfig(timeout=0.6, workers=1)) as served:
        assert served.post("/predict", ENDLESS).status_code == 504
        wait_until(lambda: served.service.decoders.to_json()["busy"] == 0)


def test_decoder_that_cannot_be_started_is_told(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_RETRY", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_START", "raise SystemExit")
        with serving([detector]) as served:
            assert served.client.get("/health").status_code == 503
            answer = served.post("/predict", encoded("PNG"))
            assert answer.status_code == 503
            assert "cannot start a process that reads images" in answer.json()["error"]
            patch.undo()
            wait_until(lambda: served.post("/predict", encoded("PNG")).status_code == 200)
            assert served.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (jpeg_of_scans((64, 64), 30_000), 422, "101 or more scans"),
        (tiff_in_a_tile((64, 64), (40_000, 40_000)), 415, "found a TIFF image; save it as JPEG, PNG, WebP, GIF or BMP"),
        (icon(png((64, 64))), 415, "found an icon"),
        (jpeg_2000((64, 64), (64, 64)), 415, "found a JPEG 2000 image"),
        (b"8BPS\0\1" + bytes(99), 415, "found a Photoshop file"),
        (b"P6\n1 1\n255\nabc", 415, "found a PPM image"),
        (b"\0\0\2\0\0\0" + bytes(99), 415, "found an icon"),
        (b"\n\1\0\1" + bytes(200), 422, "expected a JPEG, PNG, WebP, GIF or BMP file"),
    ],
)
def test_hostile_and_unusual_uploads_are_answered_with_a_sentence(
    served: Served, content: bytes, status: int, message: str
) -> None:
    answer = served.post("/predict", content, "a.png")
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_with_hostile_images_answers_good_ones_and_ends(detector: Detector, tmp_path: Path, number: int) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    server = Running(tmp_path / "tiny.safetensors", "--timeout", "1000", "--decode-timeout", "1000")
    # the slowest files that pass all checks
    slow = [jpeg_of_scans((8000, 6000), 85), png((8000, 6000)), *hostile_images().values()]
    good = encoded("JPEG")
    try:
        with ThreadPoolExecutor(24) as pool:
            before = memory_of(server.process.pid)
            uploads = [pool.submit(post_patiently, server.url, content) for content in slow * 2]
            answered = []
            while not all(one.done() for one in uploads):
                start = time.monotonic()
                assert post_patiently(server.url, good) == 200
                answered.append(time.monotonic() - start)
                assert memory_of(server.process.pid) - before < 4000  # MiB, of four images of 48 megapixels at most
            assert sorted({one.result() for one in uploads} - {200, 413, 415, 422}) == []
            assert max(answered) < 5 or os.getloadavg()[0] > 4, answered
            for content in slow[:2] * 8:
                pool.submit(post_patiently, server.url, content)
            time.sleep(0.5)
            start = time.monotonic()
            server.process.send_signal(number)
            output, errors = server.process.communicate(timeout=PATIENCE)
            taken = time.monotonic() - start
        assert taken < 5 + 5 or os.getloadavg()[0] > 4, taken
        assert server.process.returncode == 128 + number
        assert output == "stopped\n"
        assert "Traceback" not in errors
    finally:
        server.process.kill()
        server.process.communicate()


def post_patiently(url: str, content: bytes) -> int | None:
    """Return the status; None if the server ended."""
    import httpx

    try:
        return httpx.post(f"{url}/predict", content=content, timeout=PATIENCE).status_code
    except httpx.TransportError:
        return None


def memory_of(pid: int) -> float:
    """Return MiB in use of a process and its children."""
    total = 0
    children = Path(f"/proc/{pid}/task")
    pids = [str(pid)]
    for task in children.iterdir():
        pids += (task / "children").read_text().split()
    for one in pids:
        try:
            text = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        total += int(text.split("VmRSS:")[1].split()[0]) if "VmRSS:" in text else 0
    return total / 1024


def test_photo_with_a_second_image_is_accepted(served: Served) -> None:
    file = io.BytesIO()  # as phones with several lenses write it
    Image.new("RGB", (60, 40), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (600, 400))])
    answer = served.post("/predict", file.getvalue(), "a.jpg")
    assert answer.status_code == 200
    assert (answer.json()["width"], answer.json()["height"]) == (60, 40)
