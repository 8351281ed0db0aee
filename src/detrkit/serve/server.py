"""The loop that serves an application until a signal comes."""

import math
import socket

import uvicorn
from fastapi import FastAPI


def run_app(app: FastAPI, listener: socket.socket, seconds: float) -> None:
    """Serve until SIGTERM or Ctrl-C; then take no more, finish what is being answered, and end.

    Args:
        app: the application.
        listener: a socket with an address.
        seconds: that what is being answered gets to end.
    """
    server_of(app, seconds).run(sockets=[listener])


def server_of(app: FastAPI, seconds: float) -> uvicorn.Server:
    """Put a server before an application; it does not run yet."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=math.ceil(seconds),
        )
    )
