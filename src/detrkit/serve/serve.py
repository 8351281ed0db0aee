"""Serve a model over HTTP: bind an address, load the model on each device, run the application."""

import ipaddress
import logging
import math
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit._internal.signals import StopSignal
from detrkit.errors import ConfigError, arg, import_optional
from detrkit.inference.options import Precision, parse_settings
from detrkit.serve.config import ServeConfig
from detrkit.serve.hosts import (
    LOOPBACK_ADDRESSES,
    LOOPBACK_HOSTS,
    Access,
    AllowedHosts,
    parse_allowed_hosts,
    parse_forwarded_allow_ips,
    parse_root_path,
    url_host,
)

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

_LOG = logging.getLogger(__name__)
_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


@dataclass(frozen=True)
class ServerInfo:
    """A server that is ready.

    Attributes:
        url: its address.
        model: name of the model.
        devices: devices that compute.
        is_local: whether only this machine can connect.
    """

    url: str
    model: str
    devices: tuple[str, ...]
    is_local: bool


def serve_model(
    source: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: Iterable[str] = (),
    forwarded_allow_ips: str | Iterable[str] = LOOPBACK_ADDRESSES,
    root_path: str = "",
    device: str = "auto",
    precision: Precision = "float32",
    model: str | Path | None = None,
    state_dict_key: str | None = None,
    config: ServeConfig | None = None,
    on_ready: Callable[[ServerInfo], None] | None = None,
    **settings: Any,
) -> int | None:
    """Serve a model until SIGTERM or Ctrl-C; requests in progress are finished.

    Args:
        source: see `Detector.load`.
        host: name or address to listen on.
        port: 0 chooses a free one.
        allowed_hosts: names that requests may be sent to, in addition to localhost and the address that is listened on,
            such as the name that a proxy in front publishes: `detect.example.com`; `*.example.com` is every name below
            it, `*` any name. Default: none if only this machine can connect, else any.
        forwarded_allow_ips: addresses and networks of proxies, separated by commas, whose X-Forwarded-* headers are
            believed; `*` believes everyone.
        root_path: path prefix under which a proxy publishes the server, such as `/detect`; the proxy may remove it or not.
        device: one device, or several separated by commas, each with a copy of the model.
        precision: see `TorchEngine`.
        model: see `Detector.load`.
        state_dict_key: see `Detector.load`.
        config: the settings as an object.
        on_ready: called once, before the first request is answered.
        **settings: fields of `ServeConfig`.

    Returns:
        The number of the signal that ended the server.

    Raises:
        ConfigError: a setting is wrong, the address is in use, or a package of the extra `serve` is not installed.
        CheckpointError: the model cannot be read.
    """
    config = config or parse_settings(ServeConfig, settings)
    names, proxies = parse_allowed_hosts(allowed_hosts), parse_forwarded_allow_ips(forwarded_allow_ips)
    root_path = parse_root_path(root_path)
    for package in _PACKAGES:
        import_optional(package, "serve", "detrkit[serve]")
    with StopSignal() as stop, bind(host, port) as listener, ExitStack() as started:
        from detrkit.inference.detector import Detector
        from detrkit.serve.app import build_app
        from detrkit.serve.service import Service

        detectors = [
            Detector.load(source, name.strip(), precision=precision, model=model, state_dict_key=state_dict_key)
            for name in device.split(",")
        ]
        service = Service(detectors, Path(source).name or str(source), config)
        started.callback(service.close, 0)  # also if the server does not run
        address = listener.getsockname()[0]
        is_local = ipaddress.ip_address(address).is_loopback
        if not is_local:
            _LOG.warning("%s is reachable by other machines, and the server asks for no password", host)
        own_names = (*LOOPBACK_HOSTS, url_host(host.strip("[]")), url_host(address))
        hosts = AllowedHosts(names or (() if is_local else ("*",)), own_names)
        app = build_app(service, Access(hosts, proxies, root_path))
        if on_ready is not None:
            on_ready(ServerInfo(_url(listener), service.name, service.devices, is_local))
        if stop.received is None:
            run_app(app, listener, config)
    return stop.received


def check_port(port: int) -> None:
    """Check the number of a port.

    Raises:
        ConfigError: it is out of range.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"{arg('port', port)} is out of range; use 0 to {2**16 - 1}")


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket to an address, before anything is loaded; it does not listen yet.

    Raises:
        ConfigError: the address is in use, or does not belong to this machine.
    """
    check_port(port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{arg('host', host)} is not an address of this machine ({error}); use 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there, it would let two servers share an address
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{arg('port', port)} of {host} cannot be used ({error.strerror}); choose another one, or 0 for any"
        ) from None
    return listener


def run_app(app: "FastAPI", listener: socket.socket, config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept no more connections, finish the requests in progress, and return.

    Args:
        app: the application.
        listener: a bound socket.
        config: its time limits are used.
    """
    build_server(app, config).run(sockets=[listener])


def build_server(app: "FastAPI", config: ServeConfig) -> "uvicorn.Server":
    """Build the uvicorn server of an application, without running it."""
    import uvicorn

    from detrkit.serve.connection import LimitedServer, limited

    limits = app.state.connection_limits
    return LimitedServer(
        uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # `BrowserSecurityMiddleware` reads them
            http=limited(config.timeout, limits),
            loop="asyncio",
            backlog=max(
                2, min(64, limits.total // 8)
            ),  # that are accepted at a time, before others are closed for them
            ws="none",
            timeout_graceful_shutdown=math.ceil(config.shutdown_timeout),
        )
    )


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://{url_host(address)}:{port}"
