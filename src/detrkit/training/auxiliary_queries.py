"""Training-only queries: denoising (DN-DETR, DINO), query groups (Group DETR) and hybrid queries (H-DETR).

They are decoded together with the model's own queries, in groups that are masked from each other in self-attention, so
that the model's predictions are the same with and without them. Their parameters are kept here and are not part of a
checkpoint. The predictions are returned as `Predictions.auxiliary`.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig
from detrkit.losses.auxiliary_queries import AuxiliaryCriterion
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.realtime import RealTimeCriterion
from detrkit.models.build import build_query_source
from detrkit.models.detr import DETR
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import mlp
from detrkit.models.parts import BoxQuerySource, QuerySource
from detrkit.models.positions import encode_coordinates
from detrkit.models.queries.queries import MAX_LOGIT, AuxiliaryQueries, Queries, QueryGroup
from detrkit.structures import Predictions
from detrkit.training.denoising import NoisedBoxes


class AuxiliaryQueryGenerator(nn.Module):
    """Generates training-only queries, and holds their parameters."""

    def __init__(self, config: ModelConfig, settings: TrainingConfig, own: QuerySource) -> None:
        """Build the parameters of the enabled kinds of queries.

        Args:
            config: of the model.
            settings: of the run.
            own: query source of the model.
        """
        super().__init__()
        width = config.hidden_dim
        self.groups = nn.ModuleList(
            cast(nn.Module, build_query_source(config)) for _ in range(settings.auxiliary_queries.query_groups - 1)
        )
        self.hybrid = (
            build_query_source(config.model_copy(update={"num_queries": settings.auxiliary_queries.hybrid_queries}))
            if settings.auxiliary_queries.hybrid_queries
            else None
        )
        has_denoising = settings.auxiliary_queries.has_denoising
        of_boxes = own if isinstance(own, BoxQuerySource) else None
        has_labels = of_boxes is not None and of_boxes.denoising_labels is not None
        self.labels = nn.Embedding(config.num_classes, width) if has_denoising and not has_labels else None
        self.position_head = mlp(2 * width, width, width) if has_denoising and of_boxes is None else None
        self.has_points = config.queries == "points"

    def forward(self, memory: FeatureMaps, noised: NoisedBoxes | None, own: QuerySource) -> list[AuxiliaryQueries]:
        """Generate the queries of a batch.

        Args:
            memory: feature maps after the encoder.
            noised: noised boxes and labels; None without denoising.
            own: query source of the model.
        """
        extra = []
        for group in self.groups:
            queries = group(memory)
            extra.append(AuxiliaryQueries(queries, "group", QueryGroup(queries.content.shape[1])))
        if self.hybrid is not None:
            queries = self.hybrid(memory)
            extra.append(AuxiliaryQueries(queries, "hybrid", QueryGroup(queries.content.shape[1])))
        if noised is not None:
            block = QueryGroup(noised.size, noised.copies, noised.fillers, attends_to_own=self.labels is None)
            extra.append(AuxiliaryQueries(self._noised_queries(noised, memory.tokens.dtype, own), "denoising", block))
        return extra

    def _noised_queries(self, noised: NoisedBoxes, kind: torch.dtype, own: QuerySource) -> Queries:
        """Return queries with a label as content and a box as reference."""
        labels = cast(BoxQuerySource, own).denoising_labels if self.labels is None else self.labels
        assert labels is not None, "denoising needs label embeddings"
        content = labels(noised.labels).to(kind)
        reference = torch.logit(noised.boxes).clamp(-MAX_LOGIT, MAX_LOGIT)
        if self.position_head is None:
            return cast(BoxQuerySource, own).at_boxes(content, reference)
        sine = encode_coordinates(noised.boxes, content.shape[-1] // 2)
        positions = self.position_head(sine.to(kind)).to(kind)
        return Queries(content, positions, reference[..., :2] if self.has_points else None)


class ModelWithAuxiliaryQueries(nn.Module):
    """A DETR with its training-only queries, as one module for DistributedDataParallel."""

    def __init__(self, model: DETR, generator: AuxiliaryQueryGenerator) -> None:
        super().__init__()
        self.model = model
        self.generator = generator

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        padding_mask: Bool[Tensor, "B H W"] | None = None,
        *,
        noised: NoisedBoxes | None = None,
    ) -> Predictions:
        """Predict with the model's own and the training-only queries."""

        def extra(memory: FeatureMaps) -> Sequence[AuxiliaryQueries]:
            made: Sequence[AuxiliaryQueries] = self.generator(memory, noised, self.model.query_source)
            return made

        predictions: Predictions = self.model(images, padding_mask, auxiliary_queries=extra)
        return predictions


def build_auxiliary_queries(model: DETR, settings: TrainingConfig) -> AuxiliaryQueryGenerator | None:
    """Build the generator of a run; None if no kind of training-only queries is enabled."""
    auxiliary = settings.auxiliary_queries
    if not (auxiliary.has_denoising or auxiliary.query_groups > 1 or auxiliary.hybrid_queries):
        return None
    return AuxiliaryQueryGenerator(model.config, settings, model.query_source)


def with_auxiliary_queries(
    loss: SetCriterion, model: ModelConfig, settings: TrainingConfig
) -> AuxiliaryCriterion | RealTimeCriterion:
    """Extend the criterion with the losses of the training-only queries, and those of RT-DETR and D-FINE."""
    if model.queries == "selected":
        return RealTimeCriterion(
            loss,
            fgl_loss_coef=settings.loss.fgl_loss_coef,
            ddf_loss_coef=settings.loss.ddf_loss_coef,
            match_union=settings.loss.match_union,
        )
    return AuxiliaryCriterion(
        loss,
        has_negatives=settings.auxiliary_queries.contrastive_denoising,
        hybrid_queries=settings.auxiliary_queries.hybrid_queries,
        hybrid_repeats=settings.auxiliary_queries.hybrid_repeats,
    )
