"""What the server answers: the objects of `predict`, the page's document of `explain`, or a status and one sentence."""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from detrkit import Detections, Detector
from detrkit.data.dataset import unannotated
from detrkit.data.images import read_image
from detrkit.explain.document import page_document
from detrkit.explain.explanation import explain
from detrkit.inference.engines.torch import TorchEngine
from detrkit.serve.settings import ServeConfig
from detrkit.structures import Batch, Predictions
from tests.serve.conftest import Served, serving, wait_until


def same(answer: dict[str, Any], expected: Detections) -> None:
    assert expected.size is not None
    assert [answer["height"], answer["width"]] == list(expected.size)
    objects = answer["objects"]
    assert [one["name"] for one in objects] == list(expected.class_names)
    assert [one["category_id"] for one in objects] == expected.category_ids.tolist()
    np.testing.assert_allclose([one["score"] for one in objects], expected.scores, atol=1e-4)
    boxes = np.array([one["box"] for one in objects]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-4 * max(expected.size) + 1e-3)


def sentence_of(response: httpx.Response) -> str:
    content = response.json()
    assert list(content) == ["error"]
    assert content["error"]
    assert "\n" not in content["error"]
    return str(content["error"])


class Gated:
    """An engine that waits until it may, and counts what it is given."""

    def __init__(self, detector: Detector) -> None:
        self.config = detector.engine.config
        self._inner = detector.engine
        self.may_go = threading.Event()
        self.given = 0
        self.fault: Exception | None = None

    def predict(self, batch: Batch) -> Predictions:
        self.given += len(batch.sizes)
        assert self.may_go.wait(30)
        if self.fault is not None:
            raise self.fault
        return self._inner.predict(batch)


Gate = Callable[[ServeConfig], tuple[Served, Gated]]


@pytest.fixture
def gate(detector: Detector) -> Iterator[Gate]:
    """A server whose device is held up."""
    entered: list[Any] = []
    engines: list[Gated] = []

    def start(settings: ServeConfig) -> tuple[Served, Gated]:
        engine = Gated(detector)
        engines.append(engine)
        entered.append(serving([Detector(engine, detector.categories, detector.preprocessing)], settings))
        return entered[-1].__enter__(), engine

    yield start
    for engine in engines:
        engine.may_go.set()
    for one in entered:
        one.__exit__(None, None, None)


def test_a_photo_as_body_as_form_or_in_pieces_gets_the_objects_of_predict(
    served: Served, detector: Detector, drawn: list[Path]
) -> None:
    for path in drawn:
        content = path.read_bytes()
        expected = detector.predict(path, 0)
        as_form = served.post("/predict", content, path.name).json()
        assert as_form["image"] == path.name
        as_body = served.client.post("/predict", content=content).json()
        pieces = (content[start : start + 100] for start in range(0, len(content), 100))
        in_pieces = served.client.post("/predict", content=pieces).json()
        for answer in (as_form, as_body, in_pieces):
            assert set(answer) == {"image", "width", "height", "objects"}
            same(answer, expected)


def test_a_threshold_is_heeded(served: Served, detector: Detector, drawn: list[Path]) -> None:
    scores = detector.predict(drawn[0], 0).scores
    middle = float(scores[3] + scores[4]) / 2
    answer = served.post("/predict", drawn[0].read_bytes(), params={"threshold": middle}).json()
    same(answer, detector.predict(drawn[0], middle))
    assert len(answer["objects"]) == 4


@pytest.mark.parametrize(
    ("threshold", "told"),
    [
        ("2", "between 0 and 1"),
        ("high", "found 'high'"),
        ("nan", "between 0 and 1"),
        ("auto", "no thresholds of its own"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_a_threshold_that_makes_no_sense(served: Served, path: str, threshold: str, told: str) -> None:
    response = served.client.post(path, params={"threshold": threshold}, content=b"x")
    assert response.status_code == 400
    assert told in sentence_of(response)


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ({}, 400, "found nothing in the request"),
        ({"files": {"photo": ("a.png", b"")}}, 400, "found nothing in the request"),
        ({"files": {"photo": (None, "text")}}, 400, "found nothing in the request"),
        ({"files": [("photo", b"a"), ("photo", b"b")]}, 400, "Too many files"),
        ({"content": b"abc", "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"--b\r\nhm", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "format"),
        ({"data": {"photo": "x" * 50_000}, "files": {"a": b"a"}}, 400, "exceeded maximum size"),
        ({"content": b"no photo"}, 422, "photo: cannot be read as a photo (its content is of no known form)"),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, 422, "no known form"),
        ({"files": {"photo": ("../../etc/<x>\n.png", b"no photo")}}, 422, "x"),
        ({"files": {"photo": ("a.npy", b"\x93NUMPY\x01\x00")}}, 422, "a.npy: cannot be read as an array"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_what_is_no_photo_is_refused_in_one_sentence(
    served: Served, path: str, options: dict[str, Any], status: int, told: str
) -> None:
    response = served.client.post(path, **options)
    assert response.status_code == status
    assert told in sentence_of(response)
    assert "../" not in response.text
    assert "object at 0x" not in response.text


def test_browsers_of_others_are_refused(served: Served, drawn: list[Path]) -> None:
    content = drawn[0].read_bytes()
    port = served.url.rsplit(":", 1)[1]

    def post(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return served.client.post("/predict", content=content, headers=named).status_code

    assert post(Host=f"attacker.example:{port}") == 403
    assert post(Host="[::1") == 403
    assert post(Origin="https://attacker.example") == post(Origin="null") == post(Sec_Fetch_Site="cross-site") == 403
    assert post(Origin=f"http://127.0.0.1:{int(port) + 1}") == 403, "another server of this machine"
    assert post(Origin=served.url, Sec_Fetch_Site="same-origin") == 200
    assert post(Host=f"localhost:{port}") == 200
    assert post(Host=f"[::1]:{port}") == 200
    assert served.client.get("/health", headers={"Host": "attacker.example"}).status_code == 403


def test_addresses_that_are_none(served: Served) -> None:
    assert "not found" in sentence_of(served.client.get("/docs"))
    assert served.client.get("/predict").status_code == 405
    schema = served.client.get("/openapi.json").json()
    assert {"/predict", "/explain", "/health", "/metrics"} == set(schema["paths"])


def test_an_explanation_is_the_one_of_the_page(served: Served, detector: Detector, drawn: list[Path]) -> None:
    response = served.post("/explain", drawn[1].read_bytes(), drawn[1].name)
    assert response.status_code == 200
    end = int(response.headers["X-Document-Bytes"])
    sample = unannotated(read_image(drawn[1]))
    explained = explain(detector.model, detector.preprocessing, detector.categories, sample)
    expected = page_document(
        explained, detector.model.config, photo_name=drawn[1].name, model_name="tiny", threshold=0.0
    )
    assert json.loads(response.content[:end]) == json.loads(json.dumps(expected.document))
    assert response.content[end:] == expected.block
    packed = served.client.stream("POST", "/explain", files={"photo": drawn[1].read_bytes()})
    with packed as raw:
        assert len(gzip.decompress(b"".join(raw.iter_raw()))) > 1000


def test_an_array_is_a_photo_too(served: Served, detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "photo.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    same(served.post("/predict", path.read_bytes(), path.name).json(), detector.predict(path, 0))


def test_an_upload_is_counted_while_it_comes(detector: Detector, drawn: list[Path]) -> None:
    with serving([detector], ServeConfig(upload_limit=0.1)) as served:
        large = b"x" * 300_000
        pieces = (large[start : start + 1000] for start in range(0, len(large), 1000))
        for response in (
            served.client.post("/predict", content=large),
            served.client.post("/predict", content=pieces),
            served.post("/explain", large),
        ):
            assert response.status_code == 413
            assert sentence_of(response) == "photo: the upload is larger than 0.1 MB; send a smaller one"
        assert served.post("/predict", drawn[0].read_bytes()).status_code == 200
        assert served.service.in_flight == 0


def test_pixels_are_counted_before_they_are_decoded(detector: Detector, drawn: list[Path], tmp_path: Path) -> None:
    with serving([detector], ServeConfig(pixel_limit=0.01)) as served:
        Image.new("RGB", (101, 100)).save(tmp_path / "large.png")
        content = (tmp_path / "large.png").read_bytes()
        cut = content[:60]  # the header alone: whoever decodes it says something else
        for one in (content, cut):
            response = served.post("/predict", one, "large.png")
            assert response.status_code == 422
            assert "large.png: the photo has 101 x 100 pixels, at most 10000 are read" in sentence_of(response)
        np.save(tmp_path / "large.npy", np.zeros((200, 100, 3), np.uint8))
        assert served.post("/predict", (tmp_path / "large.npy").read_bytes(), "large.npy").status_code == 422
        assert served.post("/predict", drawn[0].read_bytes()).status_code == 200


def test_more_than_the_queue_holds_are_told_to_come_again(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(queue=3, batch_size=1))
    content = drawn[0].read_bytes()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(served.post, "/predict", content) for _ in range(3)]
        wait_until(lambda: served.service.in_flight == 3)
        refused = served.post("/predict", content)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert "3 photos are waiting already" in sentence_of(refused)
        wait_until(lambda: len(served.service.batcher) == 2)
        health = served.client.get("/health").json()
        assert (health["queue"], health["in_flight"]) == (2, 3)
        engine.may_go.set()
        assert [one.result().status_code for one in waiting] == [200, 200, 200]
    assert served.post("/predict", content).status_code == 200


def test_who_waits_too_long_is_told_so(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(timeout=0.5, batch_size=1))
    content = drawn[0].read_bytes()
    with ThreadPoolExecutor(2) as pool:
        late = [one.result() for one in [pool.submit(served.post, "/predict", content) for _ in range(2)]]
    for response in late:
        assert response.status_code == 504
        assert "no answer after 0.5 seconds" in sentence_of(response)
    wait_until(lambda: served.service.in_flight == 0)
    engine.may_go.set()
    wait_until(lambda: served.post("/predict", content).status_code == 200)
    assert engine.given <= 3, "the one that was never begun was dropped"


def test_a_photo_that_trickles_in_is_not_waited_for(gate: Gate) -> None:
    served, _ = gate(ServeConfig(timeout=0.5))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 900\r\n\r\nabc".encode())
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"had not come after 0.5 seconds" in answer
    wait_until(lambda: served.service.in_flight == 0)


def test_who_has_gone_is_not_worked_for(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(batch_size=1))
    content = drawn[0].read_bytes()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(served.post, "/predict", content)
        wait_until(lambda: engine.given == 1)
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            wait_until(lambda: len(served.service.batcher) == 1)
        wait_until(lambda: served.service.in_flight == 1)
        engine.may_go.set()
        assert held.result().status_code == 200
    assert engine.given == 1
    assert b'status="499"' in served.client.get("/metrics").content


def test_a_model_that_fails_is_a_sentence_in_the_answer_and_a_trace_in_the_log(
    gate: Gate, drawn: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    served, engine = gate(ServeConfig(threshold=0))
    engine.may_go.set()
    engine.fault = RuntimeError("secret of the machine")
    response = served.post("/predict", drawn[0].read_bytes())
    assert response.status_code == 500
    assert sentence_of(response) == "server: something failed; its log says what"
    assert any("secret of the machine" in str(record.exc_info) for record in caplog.records)
    engine.fault = None
    assert served.post("/predict", drawn[0].read_bytes()).status_code == 200
    assert served.client.get("/health").json()["status"] == "ready"


def test_another_engine_predicts_and_says_why_it_cannot_explain(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(threshold=0))
    engine.may_go.set()
    assert not isinstance(served.service.detector.engine, TorchEngine)
    assert served.post("/predict", drawn[0].read_bytes()).status_code == 200
    response = served.post("/explain", drawn[0].read_bytes())
    assert response.status_code == 501
    assert "takes PyTorch weights" in sentence_of(response)
    assert served.client.get("/health").json()["explains"] is False


def test_health_and_metrics_tell_how_the_server_is(detector: Detector, drawn: list[Path]) -> None:
    with serving([detector, detector]) as served:
        health = served.client.get("/health").json()
        told = {name: health[name] for name in ("status", "model", "devices", "queue", "in_flight")}
        assert told == {"status": "ready", "model": "tiny", "devices": ["cpu", "cpu"], "queue": 0, "in_flight": 0}
        for _ in range(3):
            served.post("/predict", drawn[0].read_bytes())
        served.client.post("/predict", content=b"no photo")
        served.client.get("/elsewhere/1")
        text = served.client.get("/metrics").text
        assert 'detrkit_requests_total{path="/predict",status="200"} 3.0' in text
        assert 'detrkit_requests_total{path="/predict",status="422"} 1.0' in text
        assert 'detrkit_requests_total{path="other",status="404"} 1.0' in text, "not a label for each address asked"
        assert 'detrkit_request_seconds_count{path="/predict"} 4.0' in text
        assert "detrkit_batch_size_sum 3.0" in text
        assert "detrkit_queue_length 0.0" in text
        served.service.batcher.close()
        gone = served.client.get("/health")
        assert (gone.status_code, gone.json()["status"]) == (503, "not ready")
        assert served.post("/predict", drawn[0].read_bytes()).status_code == 503
