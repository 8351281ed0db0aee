"""The paper's analyses as pictures for the report: decoder layers, queries, ever more equal objects."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.evaluation.metrics import format_metric
from detrkit.evaluation.paper.instance_capacity import Count
from detrkit.evaluation.paper.layers import NMS_IOU, LayerScore, score_layers
from detrkit.evaluation.paper.queries import SMALL_SIDE, QueryMap, map_queries
from detrkit.evaluation.report.page import ReportChart
from detrkit.visualization.charts import as_png, as_svg, draw_counts, draw_layers, draw_query_map

PAPER_ANALYSES = ("by_layer", "query_map", "counting")
_MAX_PANELS = 20  # as in the paper
_OF_LEARNED = "Trained queries specialise in places and sizes; queries that all look alike have not yet."
_OF_PROPOSALS = (
    "This model chooses its queries anew on every photo: query 0 starts from the box that is likeliest to hold an object, "
    "query 1 from the next. So a query has a rank and no place of its own, and all may look alike; the first ones show "
    "what the model finds easiest."
)


@dataclass(frozen=True)
class PaperAnalysis:
    """One analysis.

    Attributes:
        name: of its PNG file, and of its entry in scores.json.
        chart: for the report.
        content: plain values.
    """

    name: str
    chart: ReportChart
    content: Any


def analyse_layers(truth: GroundTruth, layers: Sequence[DetectionArrays], max_detections: int) -> PaperAnalysis:
    """AP after every decoder layer (figure 4)."""
    scores = score_layers(truth, layers, max_detections)
    figure = draw_layers(
        [one.layer for one in scores],
        {"AP": [one.ap for one in scores], "AP50": [one.ap50 for one in scores]},
        {"AP": [one.ap_nms for one in scores], "AP50": [one.ap50_nms for one in scores]},
    )
    text = (
        f"Scores after every decoder layer, dashed after non-maximum suppression at IoU {NMS_IOU}. It helps after the "
        "first layer, whose queries cannot know of each other yet; where it still helps after the last, train longer."
    )
    return PaperAnalysis(
        "by_layer",
        ReportChart("Decoder layers", text, as_png(figure), as_svg(figure)),
        [asdict(one) for one in scores],
    )


def layers_as_text(analysis: PaperAnalysis) -> str:
    """One line a layer."""
    rows = (LayerScore(**entry) for entry in analysis.content)
    return "\n".join(
        f"decoder layer {one.layer}: AP {format_metric(one.ap)}, after NMS {format_metric(one.ap_nms)}; "
        f"AP50 {format_metric(one.ap50)}, after NMS {format_metric(one.ap50_nms)}"
        for one in rows
    )


def analyse_queries(
    truth: GroundTruth, found: DetectionArrays, num_queries: int, *, are_proposals: bool
) -> PaperAnalysis:
    """Where each query predicts (figure 7); queries that are proposals have ranks, and no places of their own."""
    chart = map_queries(truth, found, num_queries)
    chosen = chart.most_used(_MAX_PANELS).tolist()
    known, kinds = chart.is_known, {"small": chart.is_small, "wide": chart.is_wide, "tall": chart.is_tall}
    figure = draw_query_map(
        [f"query {query}" for query in chosen],
        [chart.centres[query][known[query]] for query in chosen],
        [{name: kind[query][known[query]] for name, kind in kinds.items()} for query in chosen],
    )
    text = (
        f"Every point is the centre of a box that a query predicted on a photo, whatever its score; of {num_queries} "
        f"queries, the {len(chosen)} with the highest mean score. Small: below {SMALL_SIDE:.0%} of the photo both ways. "
        + (_OF_PROPOSALS if are_proposals else _OF_LEARNED)
    )
    heading = "Where queries look"
    return PaperAnalysis("query_map", ReportChart(heading, text, as_png(figure)), _queries_as_json(chart))


def _queries_as_json(chart: QueryMap) -> list[dict[str, Any]]:
    kinds = {"small": chart.is_small, "wide": chart.is_wide, "tall": chart.is_tall}
    rows: list[dict[str, Any]] = []
    for query, known in enumerate(chart.is_known):
        row: dict[str, Any] = {"query": query, "mean_score": float(chart.scores[query].mean())}
        if known.any():  # with sigmoid scores, a query may never be part of an answer
            centres = chart.centres[query][known]
            row |= {
                "mean_centre": centres.mean(0).tolist(),
                "spread": centres.std(0).tolist(),
                "mean_size": chart.sizes[query][known].mean(0).tolist(),
                **{name: float(kind[query][known].mean()) for name, kind in kinds.items()},
            }
        rows.append(row)
    return rows


def analyse_counts(counts: Sequence[Count], num_queries: int) -> PaperAnalysis:
    """Objects found against objects present (figure 12)."""
    figure = draw_counts(
        [one.present for one in counts],
        [one.found_mean for one in counts],
        [one.found_min for one in counts],
        [one.found_max for one in counts],
    )
    text = (
        f"Equal objects on a grid, ever more of them, and how many are found. {num_queries} queries can find no more than "
        "that many; where the curve bends before, photos with many objects were rare in training."
    )
    chart = ReportChart("Many equal objects", text, as_png(figure), as_svg(figure))
    return PaperAnalysis("counting", chart, [asdict(one) for one in counts])
