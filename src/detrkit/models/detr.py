"""DETR (Carion et al. 2020, arXiv:2005.12872) and its successors: images -> a set of objects, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import ModelConfig
from detrkit.models.backbones.resnet import ResNetBackbone
from detrkit.models.backbones.timm import TimmBackbone
from detrkit.models.feature_maps import (
    FeatureMaps,
    LastMapProjection,
    PaddingMasks,
    PyramidProjection,
    to_feature_maps,
    unpadded_cells,
)
from detrkit.models.heads.detection import Heads
from detrkit.models.heads.panoptic import PanopticHead
from detrkit.models.positions import LearnedPositions, NoPositions, SinePositions
from detrkit.models.queries.sources import (
    AnchorQueries,
    AuxiliaryQueries,
    AuxiliaryQuerySource,
    LearnedQueries,
    PointQueries,
    Queries,
    concat_queries,
)
from detrkit.models.queries.two_stage import TwoStageQueries
from detrkit.models.transformer import Decoder, Encoder
from detrkit.structures import AuxiliaryPredictions, MaskInputs, Predictions


@dataclass(frozen=True)
class DETRComponents:
    """What a DETR is put together from; `presets.build_model` fills it in."""

    backbone: ResNetBackbone | TimmBackbone
    positions: SinePositions | LearnedPositions | NoPositions
    encoder: Encoder
    decoder: Decoder
    heads: Heads
    mask_head: PanopticHead | None
    input_projection: LastMapProjection | PyramidProjection
    query_source: LearnedQueries | PointQueries | AnchorQueries | TwoStageQueries


class DETR(nn.Module):
    """Backbone, encoder, decoder over object queries, heads (paper, figure 2).

    Attributes:
        has_strides: whether the backbone's feature maps have the strides that the config expects.
        first_centres: pixels from the photo's edge to where the first cell of each feature map is taken to have its middle,
            finest first.
    """

    def __init__(self, parts: DETRComponents, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = parts.backbone
        self.input_projection = parts.input_projection
        self.positions = parts.positions
        self.encoder = parts.encoder
        self.query_source = parts.query_source
        self.decoder = parts.decoder
        self.heads = parts.heads
        self.mask_head = parts.mask_head
        used = config.num_backbone_levels
        self.has_strides = self.backbone.strides[-used:] == config.strides[:used]
        self.first_centres = _first_centres(config, parts.backbone.first_centres)

    def activation_checkpointing(self, on: bool) -> None:
        """Keep fewer activations while training, and compute them again (see `models.recompute`)."""
        self.encoder.activation_checkpointing = self.decoder.activation_checkpointing = on
        if self.mask_head is not None:
            self.mask_head.activation_checkpointing = on
        # ordinary batch norm would count every photo twice
        self.backbone.activation_checkpointing = on and self.config.backbone_normalization == "frozen"

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        padding_mask: Bool[Tensor, "B H W"] | None = None,
        *,
        padding_invariant: bool = False,
        last_layer_only: bool = False,
        all_masks: bool = True,
        extra: AuxiliaryQuerySource | None = None,
    ) -> Predictions:
        """Predict one class and one box per query.

        Args:
            images: normalised with the ImageNet mean and deviation, padded with zeros at the bottom and on the right.
            padding_mask: True on padding; None when there is none.
            padding_invariant: True makes classes and boxes of a photo independent of how far it was padded, and so of the
                other photos in its batch (not `masks`: the mask head normalises over the padding, as published; asked for
                some queries, `self.mask_head` can leave it out). Backbones of timm let padding in all the same: batches of
                photos of one size are exact with them.
                False computes what the published code does, where padding leaks into the backbone's features and the
                mask of the feature map is rounded.
            last_layer_only: leave out what the decoder layers before the last say, which only training asks for.
            all_masks: draw the mask of every query, where there is a mask head. False hands over what `self.mask_head`
                draws from, for those queries that are matched or kept: the same masks for a fraction of the work.
            extra: makes queries that are decoded beside the model's own and change nothing of theirs (training helpers).
        """
        config = self.config
        is_counted = self.has_strides and (padding_invariant or config.align_cells)  # cells of padding, by pixels
        padding = PaddingMasks(padding_mask, config.strides if is_counted else None, padding_invariant)
        levels = self.backbone(images, padding_mask if padding_invariant else None)
        maps = self.input_projection(levels, padding)

        scene = self._scene(images, maps, padding)
        scene = scene.holding(self.encoder(scene))
        queries = self.query_source(scene, for_loss=not last_layer_only)
        beside = [] if extra is None else extra(scene)
        decoded, references = self.decoder(concat_queries(queries, beside) if beside else queries, scene, self.heads)
        if last_layer_only:
            decoded, references = decoded[-1:], None if references is None else references[-1:]
        layer_class_logits, layer_boxes = self.heads(decoded, references)

        predictions = self._predictions(layer_class_logits, layer_boxes, queries, beside)
        if self.mask_head is None:
            return predictions
        last = config.num_backbone_levels - 1
        mask_of_map = None if padding_mask is None else padding.at(last, maps[last])
        padded = (images.shape[-2], images.shape[-1])
        own = decoded[-1, :, : queries.content.shape[1]]
        inputs = MaskInputs(own, scene.map_of(last), maps[last], mask_of_map, tuple(levels[-2::-1]), padded)
        if not all_masks:
            return replace(predictions, mask_inputs=inputs)
        return replace(predictions, masks=self.mask_head.draw_all(inputs))

    def _scene(
        self, images: Float[Tensor, "B C H W"], maps: Sequence[Float[Tensor, "B D _ _"]], padding: PaddingMasks
    ) -> FeatureMaps:
        """Put the maps' cells together, and tell each where it lies."""
        strides, is_padded = self.config.strides, padding.mask is not None
        masks = [padding.at(level, one) for level, one in enumerate(maps)]
        if not self.config.align_cells:
            placed = [self.positions(mask, is_padded=is_padded, level=level) for level, mask in enumerate(masks)]
            return to_feature_maps(maps, masks, placed, padding)
        cells = unpadded_cells(images, padding.mask, strides)
        firsts = tuple(centre / stride for centre, stride in zip(self.first_centres, strides, strict=True))
        placed = [
            self.positions(
                mask, is_padded=is_padded, level=level, photo_cells=cells[:, level], first_cell=firsts[level]
            )
            for level, mask in enumerate(masks)
        ]
        return to_feature_maps(maps, masks, placed, padding, cells, firsts)

    def _predictions(
        self,
        layer_class_logits: Float[Tensor, "T B Q K1"],
        layer_boxes: Float[Tensor, "T B Q 4"],
        queries: Queries,
        beside: Sequence[AuxiliaryQueries],
    ) -> Predictions:
        """Hand out what was said, to the model's own queries and to each block beside them."""
        parts = [queries, *(one.queries for one in beside)]
        sizes = [part.content.shape[1] for part in parts]
        own, *others = [
            Predictions(
                logits,
                boxes,
                class_scores=self.config.class_scores,
                max_detections=self.config.detections_per_image,
                proposals=part.proposals,
            )
            for logits, boxes, part in zip(
                layer_class_logits.split(sizes, 2), layer_boxes.split(sizes, 2), parts, strict=True
            )
        ]
        extra = [AuxiliaryPredictions(one.helper, other) for one, other in zip(beside, others, strict=True)]
        return replace(own, extra=tuple(extra))


def _first_centres(config: ModelConfig, of_backbone: Sequence[float]) -> tuple[float, ...]:
    if not config.align_cells:  # evenly over the photo, as published
        return tuple(stride / 2 for stride in config.strides)
    centres = list(of_backbone[-config.num_backbone_levels :])
    # further maps are made by convolutions that pad alike on both sides: their first cell is the one before's
    return (*centres, *[centres[-1]] * (config.num_feature_levels - len(centres)))
