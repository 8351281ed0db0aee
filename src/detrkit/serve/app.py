"""The web application.

`/` is the live page, `/predict` and `/explain` take an image, `/health` and `/metrics` report the server's state.
Errors are answered with a status and `{"error": MESSAGE}`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from detrkit._version import __version__
from detrkit.errors import DetrkitError
from detrkit.inference.options import Threshold, parse_threshold
from detrkit.serve.browser_security import BrowserSecurityMiddleware
from detrkit.serve.connection_limits import ClientLimitMiddleware, ConnectionLimits, affordable_connections
from detrkit.serve.hosts import Access
from detrkit.serve.http_errors import HttpError, error_response, http_error_for, shutting_down
from detrkit.serve.metrics import MetricsMiddleware
from detrkit.serve.openapi import (
    EXPLAIN_ANSWERS,
    HEALTH_ANSWERS,
    IMAGE_BODY,
    METRICS_ANSWERS,
    PREDICT_ANSWERS,
)
from detrkit.serve.page import live_page
from detrkit.serve.routing import HeadMiddleware, RootPathMiddleware
from detrkit.serve.service import Service
from detrkit.serve.unreadable import CURL
from detrkit.serve.uploads import Upload, read_upload
from detrkit.structures import Detections

_LOG = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT")
_CLIENT_CLOSED = 499  # never sent
_HANDLES_PER_WORKER = 16  # file handles to start two processes and to send them uploads
_START_SECONDS = 30.0  # that the processes which decode images may take before the first request
_CLOSE_SECONDS = 1.0  # that running batches have at a shutdown, after their requests were answered or cancelled


def build_app(service: Service, access: Access) -> FastAPI:
    """Build the application, which closes the service when it ends.

    Args:
        service: predicts and explains.
        access: names of the server, and proxies in front of it.

    Returns:
        The application; `state.connection_limits` are the limits that its server has to keep.
    """
    config = service.config
    handles = _HANDLES_PER_WORKER * config.workers
    limits = ConnectionLimits(
        affordable_connections(config.max_connections, handles), config.max_connections_per_address, access.proxies
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.decoders.wait_until_started, _START_SECONDS)
        yield
        await asyncio.to_thread(service.close, _CLOSE_SECONDS)

    app = FastAPI(
        title="detrkit",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # its addresses would be those behind a proxy
        lifespan=lifespan,
    )
    _add_image_routes(app, service)
    _add_status_routes(app, service)
    _add_page(app, service, access.root_path)
    _add_error_handlers(app)
    app.state.connection_limits = limits
    app.add_middleware(HeadMiddleware)
    app.add_middleware(ClientLimitMiddleware, limits=limits)
    app.add_middleware(BrowserSecurityMiddleware, access=access)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)  # outside: refused requests count, too
    app.add_middleware(RootPathMiddleware, root_path=access.root_path)
    return app


def _add_image_routes(app: FastAPI, service: Service) -> None:
    @app.post("/predict", openapi_extra=IMAGE_BODY, responses=PREDICT_ANSWERS)
    async def predict(request: Request, threshold: str | None = None) -> Response:
        """Detect the objects in an image: names, category ids, scores, boxes (left, top, right, bottom in pixels)."""
        min_scores = service.detector.resolve_threshold(_choose_threshold(threshold, service.config.threshold))
        detections = await _answer(request, service, lambda upload: service.predict(upload, min_scores))
        return _json_response(detections)

    @app.post("/explain", openapi_extra=IMAGE_BODY, responses=EXPLAIN_ANSWERS, response_class=Response)
    async def explain(request: Request, threshold: str | None = None) -> Response:
        """Explain the detections in an image: the page's document as JSON, then bytes from X-Document-Bytes on."""
        if not service.can_explain:
            raise HttpError(
                501, f"{service.name}: an exported model cannot be explained; serve the checkpoint it was exported from"
            )
        chosen = _choose_threshold(threshold, service.config.threshold)
        service.detector.resolve_threshold(chosen)
        packed, length = await _answer(request, service, lambda upload: service.explain(upload, chosen))
        headers = {"Content-Encoding": "gzip", "X-Document-Bytes": str(length)}
        return Response(packed, media_type="application/octet-stream", headers=headers)


def _add_status_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=HEALTH_ANSWERS)
    async def health() -> Response:
        """Report whether images are answered, and by what."""
        is_ready = service.batcher.is_alive and service.decoders.is_able
        content = {
            "status": "ready" if is_ready else "not ready",
            "model": service.name,
            "devices": list(service.devices),
            "queue": len(service.batcher),
            "in_flight": service.in_flight,
            "decoders": service.decoders.to_json(),
            "explains": service.can_explain,
            "version": __version__,
        }
        return JSONResponse(content, 200 if is_ready else 503)

    @app.get("/metrics", responses=METRICS_ANSWERS, response_class=Response)
    async def metrics() -> Response:
        """Report metrics in Prometheus' text format."""
        return Response(service.metrics.to_text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, service: Service, root_path: str) -> None:
    for path, (media_type, content) in live_page(service.name, service.config, service.can_explain, root_path).items():
        app.add_api_route(path, _file_route(media_type, content), include_in_schema=False)


def _file_route(media_type: str, content: bytes) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def send() -> Response:
        return Response(content, media_type=media_type)

    return send


def _add_error_handlers(app: FastAPI) -> None:
    async def answer_error(_request: Request, error: Exception) -> Response:
        answer = http_error_for(error)
        if answer.status_code == 500:
            _LOG.error("%s", answer.detail, exc_info=error)
        return error_response(answer.detail, answer.status_code, answer.headers)

    async def answer_wrong_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {str(error.detail).lower()}; to send an image: {CURL}"
        return error_response(message, error.status_code, error.headers)

    async def answer_wrong_query(request: Request, _error: Exception) -> Response:
        return error_response(f"{request.url.path}: its query cannot be read; expected ?threshold=0.5", 400)

    for kind in (DetrkitError, HttpError):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(HTTPException, answer_wrong_path)
    app.add_exception_handler(RequestValidationError, answer_wrong_query)


async def _answer(
    request: Request, service: Service, work: Callable[[Upload], Coroutine[Any, Any, AnswerT]]
) -> AnswerT:
    """Read the image of a request and work on it, while its client is connected and within the timeout.

    Raises:
        HttpError: the queue is full, the upload is empty, too large or too slow, or the answer is too slow.
        DetrkitError: the image cannot be read.
    """
    seconds = service.config.timeout
    _check_query(request)
    try:
        slow_upload = HttpError(
            408, f"image: not received within {seconds:g} seconds; send a smaller one", {"Connection": "close"}
        )
        slow_answer = HttpError(504, f"server: no answer within {seconds:g} seconds; try again, or raise the timeout")
        with service.in_progress():
            upload = await _within(seconds, read_upload(request, service.config.max_upload_bytes), slow_upload)
            # a place in the queue is taken when the image is there: uploads that stall keep none from others
            with closing(upload.file), service.admit():
                return await _within(seconds, _while_connected(request, work(upload)), slow_answer)
    except asyncio.CancelledError:  # by the server, at a shutdown
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        raise shutting_down() from None
    except ClientDisconnect:
        raise HttpError(_CLIENT_CLOSED, "the client disconnected") from None
    except (HttpError, DetrkitError):
        raise
    except Exception as error:
        raise http_error_for(error) from error


def _check_query(request: Request) -> None:
    for name in request.query_params:
        if name != "threshold":
            raise HttpError(400, f"query: found {name[:40]!r}, expected only threshold, as in ?threshold=0.5")


async def _within(seconds: float, work: Awaitable[AnswerT], otherwise: HttpError) -> AnswerT:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise otherwise from None


async def _while_connected(request: Request, work: Coroutine[Any, Any, AnswerT]) -> AnswerT:
    """Run `work`, and cancel it if the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _choose_threshold(text: str | None, default: Threshold) -> Threshold:
    return default if not text else parse_threshold(text)


def _json_response(detections: Detections) -> Response:
    """Answer detections in the format of the JSON lines of `predict_files`."""
    assert detections.size is not None
    height, width = detections.size
    content = {"image": detections.path, "width": width, "height": height, **detections.to_dict()}
    return Response(
        json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace"), media_type="application/json"
    )
