"""The application: which address answers what.

`/` is the live page, `/predict` and `/explain` take a photo, `/health` and `/metrics` tell how the server is. Whatever goes
wrong is answered by a status and `{"error": SENTENCE}`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from detrkit._version import __version__
from detrkit.errors import ConfigError, DetrkitError
from detrkit.inference.options import Threshold
from detrkit.serve.http_errors import HttpError, http_error_for
from detrkit.serve.metrics import Counted
from detrkit.serve.origin_check import OriginCheck
from detrkit.serve.page import live_page
from detrkit.serve.service import Service
from detrkit.serve.uploads import Upload, read_upload
from detrkit.structures import Detections

_LOG = logging.getLogger(__name__)
Answer = TypeVar("Answer")
_GONE = 499  # nobody reads it
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"photo": {"type": "string", "format": "binary"}}}
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def build_app(service: Service, hosts: Iterable[str] | None = None) -> FastAPI:
    """Put the application together; when it ends, so does the service.

    Args:
        service: what answers.
        hosts: names that it may be called by; None lets all pass.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="detrkit", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _add_photos(app, service)
    _add_status(app, service)
    _add_page(app, service)
    _add_errors(app)
    app.add_middleware(OriginCheck, hosts=hosts)
    app.add_middleware(Counted, metrics=service.metrics)  # outermost: it counts what the guard refuses, too
    return app


def _add_photos(app: FastAPI, service: Service) -> None:
    @app.post("/predict", openapi_extra=_BODY)
    async def predict(request: Request, threshold: str | None = None) -> Response:
        """Find the objects in a photo: names, category ids, scores, boxes (left, top, right, bottom in its pixels)."""
        least = service.detector.resolve_threshold(_threshold(threshold, service.settings.threshold))
        found = await _answered(request, service, lambda upload: service.predict(upload, least))
        return _json_of(found)

    @app.post("/explain", openapi_extra=_BODY)
    async def explain(request: Request, threshold: str | None = None) -> Response:
        """Look into a photo: what the page shows, as JSON followed by bytes; X-Document-Bytes says where they begin."""
        if not service.explains:
            raise HttpError(
                501, f"{service.name}: to look inside takes PyTorch weights; serve what it was exported from"
            )
        asked = _threshold(threshold, service.settings.threshold)
        service.detector.resolve_threshold(asked)
        least = 0.5 if isinstance(asked, str) else asked  # the page has one threshold for all classes
        packed, length = await _answered(request, service, lambda upload: service.explain(upload, least))
        headers = {"Content-Encoding": "gzip", "X-Document-Bytes": str(length)}
        return Response(packed, media_type="application/octet-stream", headers=headers)


def _add_status(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Tell whether photos are answered, and by what."""
        is_ready = service.batcher.is_alive
        content = {
            "status": "ready" if is_ready else "not ready",
            "model": service.name,
            "devices": list(service.devices),
            "queue": len(service.batcher),
            "in_flight": service.in_flight,
            "explains": service.explains,
            "version": __version__,
        }
        return JSONResponse(content, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Tell what has been done, as Prometheus reads it."""
        return Response(service.metrics.to_text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, service: Service) -> None:
    for path, (kind, content) in live_page(service.name, service.settings, service.explains).items():
        app.add_api_route(path, _sending(kind, content), include_in_schema=False)


def _sending(kind: str, content: bytes) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def send() -> Response:
        return Response(content, media_type=kind)

    return send


def _add_errors(app: FastAPI) -> None:
    async def refuse(_request: Request, error: Exception) -> Response:
        refusal = http_error_for(error)
        if refusal.status == 500:
            _LOG.error("%s", refusal.sentence, exc_info=error)
        return JSONResponse({"error": refusal.sentence}, refusal.status, refusal.headers)

    async def refuse_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = f"{request.method} {request.url.path}: {str(error.detail).lower()}; photos are posted to /predict"
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    async def refuse_query(request: Request, _error: Exception) -> Response:
        return JSONResponse({"error": f"{request.url.path}: its query cannot be read; expected ?threshold=0.5"}, 400)

    for kind in (DetrkitError, HttpError):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(HTTPException, refuse_path)
    app.add_exception_handler(RequestValidationError, refuse_query)


async def _answered(
    request: Request, service: Service, work: Callable[[Upload], Coroutine[Any, Any, Answer]]
) -> Answer:
    """Read a request's photo and work on it, while its sender waits and for as long as patience lasts.

    Raises:
        HttpError: too many wait, the upload is none or too large or too slow, or the answer is.
        DetrkitError: the photo cannot be read.
    """
    seconds = service.settings.timeout
    try:
        with service.admitted():
            slow = HttpError(408, f"photo: it had not come after {seconds:g} seconds; send a smaller one")
            upload = await _within(seconds, read_upload(request, service.settings.max_bytes), slow)
            late = HttpError(
                504, f"server: no answer after {seconds:g} seconds; try again, or serve with a longer --timeout"
            )
            return await _within(seconds, _unless_gone(request, work(upload)), late)
    except ClientDisconnect:
        raise HttpError(_GONE, "the caller has gone") from None
    except (HttpError, DetrkitError):
        raise
    except Exception as error:
        raise http_error_for(error) from error


async def _within(seconds: float, work: Awaitable[Answer], otherwise: HttpError) -> Answer:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise otherwise from None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Give up when nobody waits for the answer any more.

    Raises:
        ClientDisconnect: so it is.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _threshold(text: str | None, default: Threshold) -> Threshold:
    if text is None or text == "auto":
        return "auto" if text else default
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"threshold: found {text!r}, expected a score between 0 and 1, or auto") from None


def _json_of(found: Detections) -> Response:
    """As the lines of `detrkit predict` have it."""
    assert found.size is not None
    height, width = found.size
    content = {"image": found.path, "width": width, "height": height, **found.to_dict()}
    return Response(
        json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace"), media_type="application/json"
    )
