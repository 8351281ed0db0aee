"""Training helpers: queries beside the model's own, which make it learn sooner and are not part of it.

They are decoded with the model's own queries in one pass, in blocks that do not see each other, so that the model is the
same with and without them. What they need besides (further groups' queries, what a label looks like as a query) is kept
here: a checkpoint knows nothing of it. Input: a batch, with the model in the middle. Output: `Predictions` with `extra`.
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
from detrkit.models.build import build_query_source
from detrkit.models.detr import DETR
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import mlp
from detrkit.models.positions import encode_coordinates
from detrkit.models.queries.queries import MAX_LOGIT, AuxiliaryQueries, Queries, QueryGroup
from detrkit.models.queries.two_stage import TwoStageQueries
from detrkit.structures import Predictions
from detrkit.training.denoising import NoisedBoxes


class AuxiliaryQueryGenerator(nn.Module):
    """Makes extra queries, and owns what is learned for them alone."""

    def __init__(self, config: ModelConfig, settings: TrainingConfig) -> None:
        """Build what the settings ask for.

        Args:
            config: of the model.
            settings: which helpers.
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
        self.labels = nn.Embedding(config.num_classes, width) if settings.auxiliary_queries.denoising else None
        # anchors tell positions by themselves, and proposals have a projection for it
        tells = config.queries in ("anchors", "two_stage")
        self.position_head = (
            mlp(2 * width, width, width) if settings.auxiliary_queries.denoising and not tells else None
        )
        self.kind = config.queries

    def forward(self, memory: FeatureMaps, noised: NoisedBoxes | None, own: nn.Module) -> list[AuxiliaryQueries]:
        """Make the queries.

        Args:
            memory: after the encoder.
            noised: objects to mend, where that is asked for.
            own: what the model's own queries start from.
        """
        extra = []
        for group in self.groups:
            queries = group(memory)
            extra.append(AuxiliaryQueries(queries, "group", QueryGroup(queries.content.shape[1])))
        if self.hybrid is not None:
            queries = self.hybrid(memory)
            extra.append(AuxiliaryQueries(queries, "hybrid", QueryGroup(queries.content.shape[1])))
        if noised is not None:
            block = QueryGroup(noised.size, noised.copies, noised.fillers)
            extra.append(AuxiliaryQueries(self._noised_queries(noised, memory.tokens.dtype, own), "denoising", block))
        return extra

    def _noised_queries(self, noised: NoisedBoxes, kind: torch.dtype, own: nn.Module) -> Queries:
        """Queries that hold a label and stand at a box."""
        assert self.labels is not None, "objects are noised where denoising is on"
        content = self.labels(noised.labels).to(kind)
        reference = torch.logit(noised.boxes).clamp(-MAX_LOGIT, MAX_LOGIT)
        if isinstance(own, TwoStageQueries):
            return Queries(content, own.encode_boxes(reference, kind)[0], reference)
        if self.position_head is None:
            return Queries(content, torch.zeros_like(content), reference)
        sine = encode_coordinates(noised.boxes, content.shape[-1] // 2)
        positions = self.position_head(sine.to(kind)).to(kind)
        return Queries(content, positions, reference[..., :2] if self.kind == "points" else None)


class ModelWithAuxiliaryQueries(nn.Module):
    """A DETR and its helpers: what several processes wrap together."""

    def __init__(self, model: DETR, helpers: AuxiliaryQueryGenerator) -> None:
        super().__init__()
        self.model = model
        self.helpers = helpers

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        padding_mask: Bool[Tensor, "B H W"] | None = None,
        *,
        noised: NoisedBoxes | None = None,
    ) -> Predictions:
        """Predict as the model does, and with the extra queries beside it."""

        def extra(memory: FeatureMaps) -> Sequence[AuxiliaryQueries]:
            made: Sequence[AuxiliaryQueries] = self.helpers(memory, noised, self.model.query_source)
            return made

        predictions: Predictions = self.model(images, padding_mask, auxiliary_queries=extra)
        return predictions


def build_auxiliary_queries(model: DETR, settings: TrainingConfig) -> AuxiliaryQueryGenerator | None:
    """Build what the settings ask for; None where that is nothing."""
    if not (
        settings.auxiliary_queries.denoising
        or settings.auxiliary_queries.query_groups > 1
        or settings.auxiliary_queries.hybrid_queries
    ):
        return None
    return AuxiliaryQueryGenerator(model.config, settings)


def with_auxiliary_queries(loss: SetCriterion, settings: TrainingConfig) -> AuxiliaryCriterion:
    """The loss, with what the helpers add."""
    return AuxiliaryCriterion(
        loss,
        copies=settings.auxiliary_queries.denoising,
        has_negatives=settings.auxiliary_queries.contrastive_denoising,
        hybrid_queries=settings.auxiliary_queries.hybrid_queries,
        hybrid_repeats=settings.auxiliary_queries.hybrid_repeats,
    )
