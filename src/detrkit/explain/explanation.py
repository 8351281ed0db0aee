"""The result of `detrkit.explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int64
from PIL.Image import Image
from torch import Tensor

from detrkit._internal.files import write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.text import plural
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import ConfigError, arg
from detrkit.explain.edges import QueryEdges, query_edges
from detrkit.explain.masks import Masks
from detrkit.explain.matching import MatchingExplanation, ObjectOutcome
from detrkit.explain.stages import StageIO
from detrkit.inference.batches import MinScores
from detrkit.inference.options import Threshold
from detrkit.models.attention.recording import RecordedAttention, check_indices
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs, SamplingPoints
from detrkit.models.queries.selection import QuerySelection
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Annotations, PanopticSegments

if TYPE_CHECKING:
    import matplotlib.figure

FigureName = Literal["encoder", "decoder", "layers", "distributions", "selection", "matching"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """A prediction for one image, with what it was computed from.

    Attributes:
        image: the original image, EXIF orientation applied.
        image_name: its file name.
        model_name: name of the model's source.
        config: configuration of the model.
        categories: classes of the model.
        threshold: minimum score of a detection; of every class, if it is "auto" (thresholds stored by evaluation).
        attention: recorded attention; its maps are computed when requested.
        stages: input and output shapes of every part of the model.
        annotations: ground truth, boxes in xyxy pixels of the image; None if not given.
        matching: matching of the predictions to the ground truth; None without ground truth.
        masks: masks of the queries, computed when requested; None if the model has no mask head.
        segments: panoptic segmentation; None without masks, or if the categories are not divided into things and stuff.
    """

    image: Image
    image_name: str
    model_name: str
    config: ModelConfig
    categories: Categories
    threshold: MinScores
    attention: RecordedAttention
    stages: tuple[StageIO, ...]
    annotations: Annotations | None
    matching: MatchingExplanation | None
    masks: Masks | None = None
    segments: PanopticSegments | None = None

    def __repr__(self) -> str:
        count = plural(len(self.detected_queries()), "detection")
        text = f"{self.image_name!r}, model={self.model_name!r}, {count} at {self.given_threshold}"
        if self.matching is not None:
            num_objects = len(self.matching.outcomes)
            text += f", {num_objects - len(self.missed_objects())} of {plural(num_objects, 'object')} detected"
        return f"Explanation({text})"

    def _repr_png_(self) -> bytes | None:
        """Show the decoder attention of the detections in a notebook."""
        if not self.detected_queries():
            return None
        buffer = BytesIO()
        self.figure("decoder").savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()

    @property
    def layer_boxes(self) -> Float[Tensor, "T Q 4"]:
        """Boxes of all queries after every decoder layer, xyxy in pixels of the image."""
        height, width = self.attention.grid.original
        boxes = cxcywh_to_xyxy(self.attention.predictions.layer_boxes[:, 0].float())
        return boxes * torch.tensor([width, height, width, height])

    @property
    def layer_probabilities(self) -> Float[Tensor, "T Q K"]:
        """Class probabilities of all queries after every decoder layer, without "no object"."""
        return self.attention.predictions.layer_probabilities[:, 0]

    @property
    def boxes(self) -> Float[Tensor, "Q 4"]:
        """Boxes of all queries after the last decoder layer, xyxy in pixels of the image."""
        return self.layer_boxes[-1]

    @property
    def scores(self) -> Float[Tensor, "Q"]:
        """Score of the best class of every query after the last decoder layer."""
        return self.layer_probabilities[-1].amax(-1)

    @property
    def labels(self) -> Int64[Tensor, "Q"]:
        """Best class of every query after the last decoder layer, 0..K-1."""
        return self.layer_probabilities[-1].argmax(-1)

    @property
    def given_threshold(self) -> Threshold:
        """The threshold as it was given: a number or "auto"."""
        return "auto" if isinstance(self.threshold, tuple) else self.threshold

    def threshold_of(self, label: int) -> float:
        """Return the minimum score of a class."""
        return self.threshold[label] if isinstance(self.threshold, tuple) else self.threshold

    def sampling_points(
        self, queries: Sequence[int] | None = None, *, layer: int = -1, head: int | None = None
    ) -> SamplingPoints:
        """Return the sampling points of queries in the cross-attention of a decoder layer, and their references.

        Args:
            queries: queries to return; None for all.
            layer: from 0; negative numbers count from the last.
            head: from 0; None for all heads.

        Raises:
            ConfigError: the model attends densely, or there is no such query, layer or head.
        """
        self._check_queries(queries or ())
        inputs = self.attention.inputs("decoder_cross", layer)
        if not isinstance(inputs, DeformableAttentionInputs):
            raise ConfigError(
                f"{self.model_name} has no sampling points: its decoder attends to all cells; explain a model with "
                "deformable attention, such as Deformable DETR, RT-DETR or D-FINE."
            )
        heads = None if head is None else [head]
        check_indices("head", heads, inputs.module.num_heads)
        return inputs.sampling_points(heads, queries)

    def edge_distributions(self, query: int) -> QueryEdges:
        """Return the distributions of the four edges of a query's box after every decoder layer (D-FINE).

        Raises:
            ConfigError: the model predicts boxes without distributions, or there is no such query.
        """
        self._check_queries([query])
        distributions = self.attention.predictions.distributions
        if distributions is None:
            raise ConfigError(
                f"{self.model_name} has no distributions of edges: its boxes are predicted directly; explain a model of "
                "D-FINE, DEIM or RT-DETRv4."
            )
        return query_edges(distributions, query, self.attention.grid.original)

    def selected_cells(self) -> QuerySelection:
        """Return the encoder's cells that the queries are from, with their scores, anchors and boxes.

        Raises:
            ConfigError: the queries of the model are learned.
        """
        if self.attention.selection is None:
            raise ConfigError(
                f"{self.model_name} selects no cells: its queries are learned, the same for every image; explain a "
                "two-stage model, such as RT-DETR or D-FINE."
            )
        return self.attention.selection

    def missed_objects(self) -> list[ObjectOutcome]:
        """Return the objects of the ground truth that are not detected at the threshold; none without ground truth."""
        outcomes = () if self.matching is None else self.matching.outcomes
        return [outcome for outcome in outcomes if not outcome.is_detected(self.threshold_of(outcome.label))]

    def ranked_queries(self) -> list[int]:
        """Return all queries, highest score first."""
        return list(map(int, self.scores.argsort(descending=True, stable=True)))

    def detected_queries(self, threshold: float | None = None) -> list[int]:
        """Return the queries with a score of at least `threshold` (default: the explanation's), highest score first."""
        scores, labels = self.scores.tolist(), self.labels.tolist()
        minima = [self.threshold_of(label) if threshold is None else threshold for label in labels]
        return [query for query in self.ranked_queries() if scores[query] >= minima[query]]

    def to_html(self, path: Path | str, *, queries: Sequence[int] = ()) -> None:
        """Write an interactive page as one HTML file that opens without a network.

        Args:
            path: file to write, .html.
            queries: queries whose attention must be included even if the page becomes too large for those of all.

        Raises:
            ConfigError: there is no such query, or the file was not written by detrkit and would be overwritten.
        """
        from detrkit.explain.document import page_document
        from detrkit.explain.page import build_page

        self._check_queries(queries)
        refuse_foreign_overwrite(Path(path))
        write_text(Path(path), build_page(page_document(self, queries=queries)))

    def figure(
        self,
        name: FigureName,
        *,
        points: Sequence[tuple[float, float]] = (),
        queries: Sequence[int] = (),
        layer: int = -1,
        head: int | None = None,
    ) -> "matplotlib.figure.Figure":
        """Draw a figure for print with matplotlib.

        Args:
            name: "encoder" (self-attention of points; paper, figure 3), "decoder" (cross-attention of detections; paper,
                figure 6), "layers" (attention, sampling points, reference and box of one query in every decoder layer),
                "distributions" (of the edges of one query's box after every decoder layer; D-FINE), "selection" (cells that
                the queries are from, by feature level; two-stage models) or "matching" (ground truth, matched queries and
                matching costs).
            points: for "encoder": (x, y) in pixels of the image. Default: the centers of the detections.
            queries: queries to show; one for "layers" and "distributions". Default: the detections, or the best query.
            layer: from 0; negative numbers count from the last; for "encoder" and "decoder".
            head: from 0; None averages all heads; for "encoder", "decoder" and "layers".

        Raises:
            ConfigError: there is nothing to show, the model does not have what the figure shows, or there is no such point,
                query, layer or head.
        """
        from detrkit.explain.figure_parts import FigureOptions
        from detrkit.explain.figures import draw_figure

        self._check_queries(queries)
        return draw_figure(self, name, FigureOptions(tuple(points), tuple(queries), layer, head))

    def save_figure(
        self,
        name: FigureName,
        path: Path | str,
        *,
        points: Sequence[tuple[float, float]] = (),
        queries: Sequence[int] = (),
        layer: int = -1,
        head: int | None = None,
    ) -> None:
        """Draw a figure and write it as .svg, .png or .pdf; other arguments as in `figure`.

        Raises:
            ConfigError: see `figure`; or the file has another suffix, or was not written by detrkit.
        """
        from detrkit.explain.figures import write_figure

        write_figure(self.figure(name, points=points, queries=queries, layer=layer, head=head), Path(path))

    def _check_queries(self, queries: Sequence[int]) -> None:
        num_queries = len(self.scores)
        for query in queries:
            if not 0 <= query < num_queries:
                raise ConfigError(f"{arg('queries', query)} is out of range; expected 0 to {num_queries - 1}.")
