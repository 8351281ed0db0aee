"""What a caller is told instead of an answer: a status and one sentence."""

from detrkit.errors import CheckpointError, ConfigError, DetrkitError

_RETRY_AFTER = {"Retry-After": "1"}  # seconds


class HttpError(Exception):
    """An answer of status 4xx or 5xx.

    Attributes:
        status: of HTTP.
        sentence: what is wrong, and what to do.
        headers: that go with it.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


def busy(limit: int) -> HttpError:
    """Too many wait already."""
    waiting = "a photo is" if limit == 1 else f"{limit} photos are"
    return HttpError(503, f"server: {waiting} waiting already; try again in a moment", _RETRY_AFTER)


def shutting_down() -> HttpError:
    """The server is about to end."""
    return HttpError(503, "server: it is shutting down; try again in a moment", _RETRY_AFTER)


def http_error_for(error: Exception) -> HttpError:
    """Whose fault an error is: of the photo (422), of the request (400), of the server (500)."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, CheckpointError) or not isinstance(error, DetrkitError):
        sentence = str(error) if isinstance(error, DetrkitError) else "server: something failed; its log says what"
        return HttpError(500, " ".join(sentence.split()))
    return HttpError(400 if isinstance(error, ConfigError) else 422, " ".join(str(error).split()))
