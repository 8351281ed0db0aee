"""Requests that the server's OpenAPI description allows, and some that it forbids, made by schemathesis.

Answers must conform to the description, and none may say that the server has failed. `python -m tests.fuzz.server_schema
--minutes 10` sends them to a server on a socket of this machine.
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.core.failures import Failure, FailureGroup

from tests.fuzz.dataset_targets import image

# whether bytes are an image cannot be expressed in OpenAPI
_EXCLUDED = [positive_data_acceptance, negative_data_rejection]
_IMAGES = [image((24, 16), suffix) for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp")]
_DAMAGED = st.builds(lambda content, end: content[:end], st.sampled_from(_IMAGES), st.integers(1, 400))
schemathesis.openapi.media_type("image/*", st.one_of(st.sampled_from(_IMAGES), _DAMAGED, st.binary(max_size=200)))


@dataclass
class SchemaReport:
    """Requests that were sent.

    Attributes:
        statuses: number of answers by operation and status.
        failures: first message of every kind of failure.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        answers = (f"{operation}: {count} x {status}" for (operation, status), count in sorted(self.statuses.items()))
        return "\n".join(
            [*answers, f"{self.statuses.total()} requests, {len(self.failures)} failures", *self.failures.values()]
        )


def check_operations(schema: Any, report: SchemaReport, *, max_examples: int, number: int = 0) -> None:
    """Send requests to all operations of a schema.

    Args:
        schema: of schemathesis.
        report: of what is answered.
        max_examples: requests to each operation, and as many that its description forbids.
        number: seed of the requests.
    """
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            _send(operation, mode, report, max_examples, number)


def _send(operation: Any, mode: Any, report: SchemaReport, max_examples: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call()
        report.statuses[operation.label, response.status_code] += 1
        try:
            case.validate_response(response, excluded_checks=_EXCLUDED)
        except (Failure, FailureGroup) as error:
            for one in getattr(error, "exceptions", (error,)):
                key = f"{operation.label}: {response.status_code}: {type(one).__name__}"
                report.failures.setdefault(key, f"{key}: {one}"[:2000])

    with suppress(Unsatisfiable):  # without parameters there is nothing to forbid
        send()


def main() -> None:
    """Send requests to a server on a socket for some minutes."""
    from tests.detectors import small_detector
    from tests.serve.conftest import serving

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    report, started, number = SchemaReport(), time.monotonic(), 0
    with serving([small_detector()]) as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
        while time.monotonic() - started < 60 * options.minutes:
            check_operations(schema, report, max_examples=50, number=number)
            number += 1
            sys.stdout.write(f"{(time.monotonic() - started) / 60:.1f} min\n{report}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
