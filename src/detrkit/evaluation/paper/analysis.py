"""Result of an analysis of the DETR paper: a figure for the report and its values."""

from dataclasses import dataclass
from typing import Any

from detrkit.evaluation.report.page import ReportFigure

PAPER_ANALYSES = ("by_layer", "query_map", "instance_capacity")


@dataclass(frozen=True)
class PaperAnalysis:
    """One analysis.

    Attributes:
        name: of its PNG, and of its entry in scores.json.
        figure: for the report.
        content: plain values.
    """

    name: str
    figure: ReportFigure
    content: Any
