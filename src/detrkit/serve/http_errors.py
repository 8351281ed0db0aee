"""HTTP errors of the server: a status and one sentence."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from detrkit.errors import CheckpointError, ConfigError, DetrkitError

_RETRY_AFTER = {"Retry-After": "1"}  # seconds


class HttpError(HTTPException):
    """An answer with a status of 400 or more, whose detail is a sentence of this server."""


def error_response(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an answer of a status of 400 or more, whose body is {"error": sentence}."""
    return JSONResponse({"error": message}, status, headers)


def queue_full(max_queue: int) -> HttpError:
    """Return the answer to more requests than the queue holds."""
    waiting = "1 image is" if max_queue == 1 else f"{max_queue} images are"
    return HttpError(503, f"server: {waiting} already in progress; try again in a moment", _RETRY_AFTER)


def too_many_connections(maximum: int) -> HttpError:
    """Return the answer to more connections than the server accepts."""
    return HttpError(503, f"server: {maximum} connections are open already; try again in a moment", _RETRY_AFTER)


def too_many_requests(maximum: int) -> HttpError:
    """Return the answer to more connections or requests of one address than the server accepts."""
    return HttpError(
        429,
        f"server: {maximum} connections or requests of this address are in progress; use fewer at a time",
        _RETRY_AFTER,
    )


def cannot_decode() -> HttpError:
    """Return the answer while no process that decodes images can be started."""
    return HttpError(503, "server: cannot start a process that reads images; try again in a moment", _RETRY_AFTER)


def shutting_down() -> HttpError:
    """Return the answer to requests that a shutdown interrupts."""
    return HttpError(503, "server: shutting down; try again in a moment", _RETRY_AFTER)


def http_error_for(error: Exception) -> HttpError:
    """Map an exception to an answer: 400 for a wrong request, 422 for an unreadable image, 500 for a failed model."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, CheckpointError) or not isinstance(error, DetrkitError):
        message = str(error) if isinstance(error, DetrkitError) else "server: internal error; see the server's log"
        return HttpError(500, " ".join(message.split()))
    return HttpError(400 if isinstance(error, ConfigError) else 422, " ".join(str(error).split()))
