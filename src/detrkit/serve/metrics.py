"""What the server has done, for Prometheus: counted here, read at /metrics."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)  # seconds
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_PATHS = ("/", "/predict", "/explain", "/health", "/metrics")
_GONE = 499  # of a caller that has gone, as nginx counts it


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "detrkit_requests", "Requests that were answered", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "detrkit_request_seconds",
            "From a request's first byte to its answer's last",
            ["path"],
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.batches = Histogram(
            "detrkit_batch_size", "Photos predicted at a time", buckets=_BATCHES, registry=self.registry
        )
        self._gauges: list[Gauge] = []
        ProcessCollector(registry=self.registry)

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Add a number that is asked for when somebody looks."""
        gauge = Gauge(name, meaning, registry=self.registry)
        gauge.set_function(read)
        self._gauges.append(gauge)

    def to_text(self) -> bytes:
        """Write as Prometheus reads it."""
        return generate_latest(self.registry)


class Counted:
    """Counts every request around an application; whatever happens, it was answered or its caller has gone."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = _GONE
        start = time.perf_counter()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in _PATHS else "other"
        try:
            await self.app(scope, receive, note)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
