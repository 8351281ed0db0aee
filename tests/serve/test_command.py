"""`detrkit serve` as a beginner meets it: one sentence for every mistake, a warning where others can listen."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from detrkit import Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.serve.settings import ServeConfig
from tests.cli.test_help_and_mistakes import run


@pytest.fixture
def weights(detector: Detector, tmp_path: Path) -> str:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    return str(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--batch-size", "0"], "--batch-size: found 0, expected at least 1"),
        (["--queue", "0"], "--queue: found 0"),
        (["--workers", "0"], "--workers: found 0"),
        (["--timeout", "0"], "--timeout: found 0.0, expected more than 0"),
        (["--upload-limit", "nan"], "--upload-limit: found nan"),
        (["--pixel-limit", "-1"], "--pixel-limit: found -1.0"),
        (["--batch-wait", "31000"], "--batch-wait: found 31000.0 milliseconds, expected 0 to 30000, the timeout"),
        (["--threshold", "2"], "--threshold: found 2, expected a score between 0 and 1"),
        (["--threshold", "auto"], "this model holds no thresholds of its own"),
        (["--port", "70000"], "--port: found 70000, expected 0 to 65535"),
        (["--host", "no.such.host.invalid"], "--host: 'no.such.host.invalid' is no address of this machine"),
        (["--device", "gpu9"], "--device gpu9 is not a device"),
        (["--device", "cpu,"], "--device is not a device"),
    ],
)
def test_a_setting_that_makes_no_sense(
    weights: str, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = [] if "--port" in options else ["--port", "0"]
    code, output, errors = run(["serve", weights, *port, *options], capsys)
    assert code == 2
    assert told in errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert output == ""


def test_a_model_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(["serve", "nowhere.safetensors", "--port", "0"], capsys)
    assert code == 2
    assert errors.startswith("error: nowhere.safetensors: found nothing")


def test_a_port_that_is_taken(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, output, errors = run(["serve", weights, "--port", str(port)], capsys)
    assert code == 2
    assert f"--port: 127.0.0.1:{port} cannot be listened on (Address already in use)" in errors
    assert output == ""


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_what_serves_is_not_installed(
    package: str, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, errors = run(["serve", weights, "--port", "0"], capsys)
    assert code == 2
    assert "pip install 'detrkit[serve]'" in errors


@pytest.mark.parametrize(("host", "is_told"), [("127.0.0.1", False), ("0.0.0.0", True), ("localhost", False)])
def test_whoever_lets_others_in_is_told_so(
    host: str, is_told: bool, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detrkit.serve.serve import serve_model

    names: list[Any] = []

    def ends_at_once(app: Any, listener: socket.socket, seconds: float) -> None:
        names.append(next(one.kwargs["hosts"] for one in app.user_middleware if "hosts" in one.kwargs))

    monkeypatch.setattr("detrkit.serve.server.run_app", ends_at_once)
    assert serve_model(weights, ServeConfig(), host=host, port=0) is None
    output, errors = capsys.readouterr()
    assert "tiny.safetensors on cpu, http://" in output
    assert ("nobody is asked for a password" in errors) is is_told
    assert (names[0] is None) is is_told, "behind a name of one's own, no name is refused"
