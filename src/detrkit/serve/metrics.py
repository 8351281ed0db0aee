"""Prometheus metrics of a server, read at /metrics."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrkit.serve.hosts import ENDPOINTS
from detrkit.serve.routing import route_path

_LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)  # seconds
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_PATHS = ("/", *ENDPOINTS)
_CLIENT_CLOSED = 499  # the client disconnected; nginx's status


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("detrkit_requests", "Answered requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "detrkit_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer",
            ["path"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "detrkit_batch_size", "Images per batch", buckets=_BATCH_BUCKETS, registry=self.registry
        )
        self._gauges: list[Gauge] = []
        ProcessCollector(registry=self.registry)

    def add_gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a number that is read when the metrics are."""
        gauge = Gauge(name, description, registry=self.registry)
        gauge.set_function(read)
        self._gauges.append(gauge)

    def to_text(self) -> bytes:
        """Write the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """Counts and times all requests of an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and record its status and duration."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = _CLIENT_CLOSED
        start = time.perf_counter()

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = route_path(scope)
        path = path if path in _PATHS else "other"
        try:
            await self.app(scope, receive, record_status)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
