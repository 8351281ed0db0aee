"""Findings about a dataset: what the readers left out, and what the doctor found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detrkit._internal.text import printable

Severity = Literal["error", "warning", "note"]
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Location:
    """Location of a finding: as text, and, if known, the image and the box (xyxy in pixels)."""

    text: str
    image: Path | None = None
    box: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Finding:
    """Something found in a dataset.

    Attributes:
        severity: "error" if training would fail or go wrong; "warning" if the model would be worse than possible; "note"
            for information.
        title: what was found.
        advice: what to do.
        locations: where; empty if it concerns the dataset as a whole.
    """

    severity: Severity
    title: str
    advice: str
    locations: tuple[Location, ...]

    @property
    def line(self) -> str:
        """The finding in one line, with its number of locations and the first of them."""
        count = f" ({len(self.locations)})" if self.locations else ""
        first = f"; first {printable(str(self.locations[0]))}" if self.locations else ""
        return f"{self.severity}: {self.title}{count}: {self.advice}{first}"


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort by severity, then by frequency."""
    return tuple(sorted(findings, key=lambda one: (_ORDER[one.severity], -len(one.locations))))
