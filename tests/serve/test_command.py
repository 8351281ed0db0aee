"""`detrkit serve`: error messages, and a warning if other machines can connect."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from detrkit import Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.serve.config import ServeConfig
from tests.cli.test_help_and_errors import run


@pytest.fixture
def weights(detector: Detector, tmp_path: Path) -> str:
    save_checkpoint(tmp_path / "tiny.safetensors", detector.to_checkpoint())
    return str(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size: found 0; input should be greater than or equal to 1"),
        (["--max-queue", "0"], "--max-queue: found 0"),
        (["--workers", "0"], "--workers: found 0"),
        (["--timeout", "0"], "--timeout 0.0 is out of range; use a number above 0"),
        (["--max-upload-mb", "nan"], "--max-upload-mb nan is out of range"),
        (["--max-megapixels", "-1"], "--max-megapixels -1.0 is out of range"),
        (
            ["--batch-wait-ms", "31000"],
            "--batch-wait-ms 31000.0 is out of range; use 0 to 30000 milliseconds",
        ),
        (["--threshold", "2"], "--threshold 2.0 is not a score"),
        (["--threshold", "auto"], "--threshold auto needs thresholds stored in the model"),
        (["--shutdown-timeout", "0"], "--shutdown-timeout 0.0 is out of range"),
        (
            ["--allowed-host", "https://a.example"],
            "--allowed-host https://a.example is not a host name; use one without",
        ),
        (
            ["--allowed-host", "a.example", "--allowed-host", "b.example:80"],
            "--allowed-host b.example:80 is not a host",
        ),
        (["--allowed-host", "a.*.example"], "--allowed-host a.*.example is not a host name"),
        (["--allowed-host", "a.example,b.example"], "--allowed-host a.example,b.example is not a host name"),
        (
            ["--forwarded-allow-ips", "proxy"],
            "--forwarded-allow-ips proxy is not an address of a proxy; use one such as",
        ),
        (["--forwarded-allow-ips", "10.0.0.5,10.0.0.0/99"], "--forwarded-allow-ips 10.0.0.0/99 is not an address"),
        (["--root-path", "detect"], "--root-path detect is not a path prefix; use one such as /detect"),
        (["--root-path", "//a.example"], "--root-path //a.example is not a path prefix"),
        (["--root-path", "/a/../b"], "--root-path /a/../b is not a path prefix"),
        (["--root-path", "/predict/"], "--root-path /predict/ is the path of an endpoint"),
        (["--port", "70000"], "--port 70000 is out of range; use 0 to 65535"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid is not an address of this machine"),
        (["--device", "gpu9"], "--device gpu9 is not a device"),
        (["--device", "cpu,"], "--device is not a device"),
    ],
)
def test_invalid_settings_are_rejected(
    weights: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = [] if "--port" in options else ["--port", "0"]
    code, output, errors = run(["serve", weights, *port, *options], capsys)
    assert code == 2
    assert message in errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert output == ""


def test_missing_model_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(["serve", "nowhere.safetensors", "--port", "0"], capsys)
    assert code == 2
    assert errors.startswith("error: nowhere.safetensors: no such file")


def test_port_in_use_is_reported(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, output, errors = run(["serve", weights, "--port", str(port)], capsys)
    assert code == 2
    assert f"--port {port} of 127.0.0.1 cannot be used (Address already in use)" in errors
    assert output == ""


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_missing_package_is_reported(
    package: str, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, errors = run(["serve", weights, "--port", "0"], capsys)
    assert code == 2
    assert "pip install 'detrkit[serve]'" in errors


@pytest.mark.parametrize(("host", "is_warned"), [("127.0.0.1", False), ("0.0.0.0", True), ("localhost", False)])
def test_warning_if_other_machines_can_connect(
    host: str, is_warned: bool, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed: list[Any] = []

    def return_at_once(app: Any, listener: socket.socket, config: ServeConfig) -> None:
        allowed.append(next(one.kwargs["access"] for one in app.user_middleware if "access" in one.kwargs))

    monkeypatch.setattr("detrkit.serve.serve.run_app", return_at_once)
    code, output, errors = run(["serve", weights, "--host", host, "--port", "0"], capsys)
    assert code == 0
    assert "tiny.safetensors on cpu, http://" in output
    assert ("the server asks for no password" in errors) is is_warned
    assert allowed[0].hosts.allows_any is is_warned, "any host name is accepted if other machines can connect"
