"""The server answers requests of all kinds as its OpenAPI description says, and never with a failure."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from detrkit import Detector
from detrkit.serve.app import build_app
from detrkit.serve.config import ServeConfig
from detrkit.serve.hosts import Access
from detrkit.serve.service import Service
from tests.detectors import small_detector
from tests.serve.conftest import serving

pytest.importorskip("schemathesis", reason="needs schemathesis, of the dependency group fuzz")

import schemathesis

from tests.fuzz.server_schema import SchemaReport, check_operations


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small_detector()


@pytest.fixture
def app(detector: Detector) -> Iterator[FastAPI]:
    service = Service([detector], "tiny", ServeConfig(threshold=0.0))
    try:
        yield build_app(service, Access())
    finally:
        service.close(1.0)


def check(report: SchemaReport) -> None:
    assert not report.failures, str(report)
    for path in ("POST /predict", "POST /explain", "GET /health", "GET /metrics"):
        assert report.statuses[path, 200] > 0, str(report)
    assert not any(status >= 500 for _, status in report.statuses)


@pytest.mark.slow
def test_answers_of_the_application_conform_to_its_description(app: FastAPI) -> None:
    report = SchemaReport()
    check_operations(schemathesis.openapi.from_asgi("/openapi.json", app), report, max_examples=30)
    check(report)


@pytest.mark.slow
def test_answers_over_a_socket_conform_to_the_description(detector: Detector) -> None:
    report = SchemaReport()
    with serving([detector]) as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
        check_operations(schema, report, max_examples=15)
    check(report)
