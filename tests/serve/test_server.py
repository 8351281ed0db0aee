"""Answers of the server: detections, explanations, errors, health and metrics."""

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
from detrkit.explain.explain import explain_sample
from detrkit.inference.engines.torch import TorchEngine
from detrkit.serve.config import ServeConfig
from detrkit.serve.hosts import Access
from detrkit.structures import Batch, Predictions
from tests.serve.conftest import Served, serving
from tests.waiting import PATIENCE, wait_until


def assert_same_detections(answer: dict[str, Any], expected: Detections) -> None:
    assert expected.size is not None
    assert [answer["height"], answer["width"]] == list(expected.size)
    objects = answer["objects"]
    assert [one["name"] for one in objects] == list(expected.class_names)
    assert [one["category_id"] for one in objects] == expected.category_ids.tolist()
    np.testing.assert_allclose([one["score"] for one in objects], expected.scores, atol=1e-4)
    boxes = np.array([one["box"] for one in objects]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-4 * max(expected.size) + 1e-3)


def error_of(response: httpx.Response) -> str:
    content = response.json()
    assert list(content) == ["error"]
    assert content["error"]
    assert "\n" not in content["error"]
    return str(content["error"])


class GatedEngine:
    """An engine that waits for `may_continue`, and counts its images."""

    def __init__(self, detector: Detector) -> None:
        self.config = detector.engine.config
        self._inner = detector.engine
        self.may_continue = threading.Event()
        self.given = 0
        self.error: Exception | None = None

    def predict(self, batch: Batch) -> Predictions:
        self.given += len(batch.sizes)
        assert self.may_continue.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self._inner.predict(batch)


Gate = Callable[..., tuple[Served, GatedEngine]]


@pytest.fixture
def gate(detector: Detector) -> Iterator[Gate]:
    """Start servers whose engine waits."""
    entered: list[Any] = []
    engines: list[GatedEngine] = []

    def start(config: ServeConfig, access: Access = Access()) -> tuple[Served, GatedEngine]:  # noqa: B008
        engine = GatedEngine(detector)
        engines.append(engine)
        entered.append(serving([Detector(engine, detector.categories, detector.preprocessing)], config, access))
        return entered[-1].__enter__(), engine

    yield start
    for engine in engines:
        engine.may_continue.set()
    for one in entered:
        one.__exit__(None, None, None)


def test_image_as_body_form_or_chunks_gets_the_detections_of_predict(
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
            assert_same_detections(answer, expected)


def test_threshold_of_the_request_is_used(served: Served, detector: Detector, drawn: list[Path]) -> None:
    scores = detector.predict(drawn[0], 0).scores
    middle = float(scores[3] + scores[4]) / 2
    answer = served.post("/predict", drawn[0].read_bytes(), params={"threshold": middle}).json()
    assert_same_detections(answer, detector.predict(drawn[0], middle))
    assert len(answer["objects"]) == 4


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ("2", "between 0 and 1"),
        ("high", "threshold='high' is not a score"),
        ("nan", "between 0 and 1"),
        ("auto", "needs thresholds stored in the model"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_invalid_threshold_is_rejected(served: Served, path: str, threshold: str, message: str) -> None:
    response = served.client.post(path, params={"threshold": threshold}, content=b"x")
    assert response.status_code == 400
    assert message in error_of(response)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({}, 400, "found none in the request"),
        ({"files": {"image": ("a.png", b"")}}, 400, "found none in the request"),
        ({"files": {"image": (None, "text")}}, 400, "found none in the request"),
        ({"files": [("image", b"a"), ("image", b"b")]}, 400, "Too many files"),
        ({"content": b"abc", "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"--b\r\nhm", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "form"),
        ({"data": {"image": "x" * 50_000}, "files": {"a": b"a"}}, 400, "exceeded maximum size"),
        ({"content": b"not an image"}, 422, "image: cannot be read as an image (its content is in no known format)"),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, 422, "no known form"),
        ({"files": {"image": ("../../etc/<x>\n.png", b"not an image")}}, 422, "x"),
        ({"files": {"image": ("a.npy", b"\x93NUMPY\x01\x00")}}, 422, "a.npy: cannot be read as an array"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_invalid_upload_is_rejected(
    served: Served, path: str, options: dict[str, Any], status: int, message: str
) -> None:
    response = served.client.post(path, **options)
    assert response.status_code == status
    assert message in error_of(response)
    assert "../" not in response.text
    assert "object at 0x" not in response.text


def test_foreign_hosts_and_origins_are_rejected(served: Served, drawn: list[Path]) -> None:
    content = drawn[0].read_bytes()
    port = served.url.rsplit(":", 1)[1]

    def post(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return served.client.post("/predict", content=content, headers=named).status_code

    assert post(Host=f"attacker.example:{port}") == 400
    assert post(Host="[::1") == 400
    assert post(Origin="https://attacker.example") == post(Origin="null") == post(Sec_Fetch_Site="cross-site") == 403
    assert post(Origin=f"http://127.0.0.1:{int(port) + 1}") == 403, "another server on this machine"
    assert post(Origin=served.url, Sec_Fetch_Site="same-origin") == 200
    assert post(Host=f"localhost:{port}") == 200
    assert post(Host=f"[::1]:{port}") == 200
    assert served.client.get("/health", headers={"Host": "attacker.example"}).status_code == 400


def test_unknown_paths_are_rejected(served: Served) -> None:
    assert "not found" in error_of(served.client.get("/docs"))
    assert served.client.get("/predict").status_code == 405
    schema = served.client.get("/openapi.json").json()
    assert {"/predict", "/explain", "/health", "/metrics"} == set(schema["paths"])


def test_explanation_equals_the_document_of_the_page(served: Served, detector: Detector, drawn: list[Path]) -> None:
    response = served.post("/explain", drawn[1].read_bytes(), drawn[1].name)
    assert response.status_code == 200
    end = int(response.headers["X-Document-Bytes"])
    sample = unannotated(read_image(drawn[1]))
    explained = explain_sample(detector, sample, threshold=0.0, image_name=drawn[1].name, model_name="tiny")
    expected = page_document(explained)
    assert json.loads(response.content[:end]) == json.loads(json.dumps(expected.document))
    assert response.content[end:] == expected.block
    packed = served.client.stream("POST", "/explain", files={"image": drawn[1].read_bytes()})
    with packed as raw:
        assert len(gzip.decompress(b"".join(raw.iter_raw()))) > 1000


def test_array_is_accepted_as_image(served: Served, detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "image.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    assert_same_detections(served.post("/predict", path.read_bytes(), path.name).json(), detector.predict(path, 0))


def test_upload_size_is_limited_while_it_arrives(detector: Detector, drawn: list[Path]) -> None:
    with serving([detector], ServeConfig(max_upload_mb=0.1)) as served:
        large = b"x" * 300_000
        pieces = (large[start : start + 1000] for start in range(0, len(large), 1000))
        for response in (
            served.client.post("/predict", content=large),
            served.client.post("/predict", content=pieces),
            served.post("/explain", large),
        ):
            assert response.status_code == 413
            assert error_of(response) == "image: the upload is larger than 0.1 MB; send a smaller one"
        assert served.post("/predict", drawn[0].read_bytes()).status_code == 200
        assert served.service.in_flight == 0


def test_image_size_is_limited_before_decoding(detector: Detector, drawn: list[Path], tmp_path: Path) -> None:
    with serving([detector], ServeConfig(max_megapixels=0.01)) as served:
        Image.new("RGB", (101, 100)).save(tmp_path / "large.png")
        content = (tmp_path / "large.png").read_bytes()
        cut = content[:60]  # the header alone; decoding it would raise another error
        for one in (content, cut):
            response = served.post("/predict", one, "large.png")
            assert response.status_code == 422
            assert "large.png: the image has 101 x 100 pixels, more than the maximum of 10000" in error_of(response)
        np.save(tmp_path / "large.npy", np.zeros((200, 100, 3), np.uint8))
        assert served.post("/predict", (tmp_path / "large.npy").read_bytes(), "large.npy").status_code == 422
        assert served.post("/predict", drawn[0].read_bytes()).status_code == 200


def test_requests_beyond_the_queue_are_answered_503(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(max_queue=3, batch_size=1))
    content = drawn[0].read_bytes()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(served.post, "/predict", content) for _ in range(3)]
        wait_until(lambda: len(served.service.batcher) == 2)  # the third one is being predicted
        refused = served.post("/predict", content)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert "3 images are already in progress" in error_of(refused)
        health = served.client.get("/health").json()
        assert (health["queue"], health["in_flight"]) == (2, 3)
        engine.may_continue.set()
        assert [one.result().status_code for one in waiting] == [200, 200, 200]
    assert served.post("/predict", content).status_code == 200


def test_slow_predictions_are_answered_504(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(timeout=0.5, batch_size=1))
    content = drawn[0].read_bytes()
    with ThreadPoolExecutor(2) as pool:
        late = [one.result() for one in [pool.submit(served.post, "/predict", content) for _ in range(2)]]
    for response in late:
        assert response.status_code == 504
        assert "no answer within 0.5 seconds" in error_of(response)
    wait_until(lambda: served.service.in_flight == 0)
    engine.may_continue.set()
    wait_until(lambda: len(served.service.batcher) == 0)
    assert engine.given == 1, "the waiting image was predicted"
    wait_until(lambda: served.post("/predict", content).status_code == 200)  # on a slow machine, not at once


def test_slow_uploads_are_answered_408(gate: Gate) -> None:
    served, _ = gate(ServeConfig(timeout=0.5))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 900\r\n\r\nabc".encode())
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"not received within 0.5 seconds" in answer
    wait_until(lambda: served.service.in_flight == 0)


def test_images_of_disconnected_clients_are_not_predicted(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(batch_size=1))
    content = drawn[0].read_bytes()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(served.post, "/predict", content)
        wait_until(lambda: engine.given == 1)
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            wait_until(lambda: len(served.service.batcher) == 1)
        wait_until(lambda: served.service.in_flight == 1)
        engine.may_continue.set()
        assert running.result().status_code == 200
    assert engine.given == 1
    assert b'status="499"' in served.client.get("/metrics").content


def test_failing_model_is_answered_500_and_logged(
    gate: Gate, drawn: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    served, engine = gate(ServeConfig(threshold=0))
    engine.may_continue.set()
    engine.error = RuntimeError("secret of the machine")
    response = served.post("/predict", drawn[0].read_bytes())
    assert response.status_code == 500
    assert error_of(response) == "server: internal error; see the server's log"
    assert any("secret of the machine" in str(record.exc_info) for record in caplog.records)
    engine.error = None
    assert served.post("/predict", drawn[0].read_bytes()).status_code == 200
    assert served.client.get("/health").json()["status"] == "ready"


def test_exported_engine_predicts_and_cannot_explain(gate: Gate, drawn: list[Path]) -> None:
    served, engine = gate(ServeConfig(threshold=0))
    engine.may_continue.set()
    assert not isinstance(served.service.detector.engine, TorchEngine)
    assert served.post("/predict", drawn[0].read_bytes()).status_code == 200
    response = served.post("/explain", drawn[0].read_bytes())
    assert response.status_code == 501
    assert "an exported model cannot be explained" in error_of(response)
    assert served.client.get("/health").json()["explains"] is False


def test_health_and_metrics_report_the_state(detector: Detector, drawn: list[Path]) -> None:
    with serving([detector, detector]) as served:
        health = served.client.get("/health").json()
        reported = {name: health[name] for name in ("status", "model", "devices", "queue", "in_flight")}
        assert reported == {"status": "ready", "model": "tiny", "devices": ["cpu", "cpu"], "queue": 0, "in_flight": 0}
        for _ in range(3):
            served.post("/predict", drawn[0].read_bytes())
        served.client.post("/predict", content=b"not an image")
        served.client.get("/elsewhere/1")
        text = served.client.get("/metrics").text
        assert 'detrkit_requests_total{path="/predict",status="200"} 3.0' in text
        assert 'detrkit_requests_total{path="/predict",status="422"} 1.0' in text
        assert 'detrkit_requests_total{path="other",status="404"} 1.0' in text, "unknown paths share one label"
        assert 'detrkit_request_seconds_count{path="/predict"} 4.0' in text
        assert "detrkit_batch_size_sum 3.0" in text
        assert "detrkit_queue_length 0.0" in text
        served.service.batcher.close()
        gone = served.client.get("/health")
        assert (gone.status_code, gone.json()["status"]) == (503, "not ready")
        assert served.post("/predict", drawn[0].read_bytes()).status_code == 503
