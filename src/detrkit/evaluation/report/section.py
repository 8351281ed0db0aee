"""Sections of the evaluation report, rendered from templates."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from detrkit.evaluation.metrics import format_metric, metric_label
from detrkit.visualization.page import render_template


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        heading: plain text.
        body: HTML if it is `Markup`; any other string is escaped.
        is_narrow: a single chart, which is placed next to others.
    """

    heading: str
    body: str
    is_narrow: bool = False

    @classmethod
    def render(cls, heading: str, template: str, /, **context: Any) -> "Section":
        """Render a template of `detrkit.evaluation.report`."""
        return cls(heading, render_report_template(template, **context))


def render_report_template(template: str, /, **context: Any) -> Markup:
    """Render a template of `detrkit.evaluation.report`; `metric` formats a value, `label` the name of a metric."""
    formats = {"metric": format_metric, "label": metric_label}
    return render_template("detrkit.evaluation.report", template, **formats, **context)
