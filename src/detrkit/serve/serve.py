"""Serving a model: an address, a detector on each device, and the application between them."""

import ipaddress
import socket
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from detrkit._internal.signals import StopSignal
from detrkit._internal.text import plain_console, printable
from detrkit.errors import ConfigError, import_optional
from detrkit.inference.detector import Detector
from detrkit.inference.engines.load import choose_inference_device
from detrkit.inference.options import Precision
from detrkit.serve.settings import ServeConfig

_EXTRA = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def serve_model(
    source: str,
    settings: ServeConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    precision: Precision = "float32",
) -> int | None:
    """Serve until a signal comes; what is being answered then is finished.

    Args:
        source: of the weights, or what `detrkit export` wrote.
        settings: limits and patience.
        host: name or address to listen on.
        port: 0 takes any that is free.
        device: or several, with commas between them; each has a copy of the model.
        precision: see `TorchEngine`.

    Returns:
        The signal.

    Raises:
        DetrkitError: the address is taken, the model cannot be read, or what serves is not installed.
    """
    for package, name in _EXTRA.items():
        import_optional(package, f"serve ({name})", "detrkit[serve]")
    from detrkit.serve.app import build_app
    from detrkit.serve.origin_check import LOOPBACK_NAMES
    from detrkit.serve.server import run_app
    from detrkit.serve.service import Service

    console = plain_console()
    with StopSignal() as stop, bound(host, port) as listener:
        with Console(stderr=True).status(Text(printable(f"loading {source}"))):
            devices = [choose_inference_device(source, name.strip()) for name in device.split(",")]
            detectors = [Detector.load(source, one, precision=precision) for one in devices]
            service = Service(detectors, Path(source).name or source, settings)
        address = listener.getsockname()[0]
        is_local = ipaddress.ip_address(address).is_loopback
        if not is_local:
            _warn(
                f"{host} is not only this machine: whoever reaches it can send photos, for nobody is asked for a password"
            )
        app = build_app(service, {*LOOPBACK_NAMES, host.strip("[]").lower(), address} if is_local else None)
        console.print(
            f"{service.name} on {', '.join(service.devices)}, {_url(listener)}; Ctrl-C ends it", soft_wrap=True
        )
        if stop.received is None:
            run_app(app, listener, settings.timeout)
    if stop.received is not None:
        console.print("stopped")
    return stop.received


def bound(host: str, port: int) -> socket.socket:
    """Take an address, before anything is loaded; nobody is listened to yet.

    Raises:
        ConfigError: it is not free, or not this machine's.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"--port: found {port}, expected 0 to {2**16 - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host: {host!r} is no address of this machine ({error}); use 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there, it would let two servers share an address
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port: {host}:{port} cannot be listened on ({error.strerror}); choose another --port, or 0 for any"
        ) from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warn(sentence: str) -> None:
    print(f"detrkit: {sentence}", file=sys.stderr)  # noqa: T201
