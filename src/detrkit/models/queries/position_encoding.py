"""Query position encodings of each decoder layer."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.layers import ActivationName, mlp
from detrkit.models.positions import encode_coordinates
from detrkit.models.queries.queries import LayerQueryPositions, Queries

_MAX_FLOAT16_RATIO = 256.0  # the maximum of float16 is 65504, and sums of products with the ratio follow


class QueryPositionEncoding(nn.Module):
    """Compute the positions of the queries before each decoder layer.

    Queries of DETR and Deformable DETR have learned positions. Conditional cross-attention compares sine encodings of the
    reference points, scaled by a function of the content, with the positions of the cells; DAB-DETR computes the
    positions from the anchors and modulates the sine encodings by the ratio of predicted to anchor size (arXiv:2201.12329,
    section 4.4).

    Args:
        width: D.
        has_anchors: positions are computed from anchor boxes.
        is_conditional: the layers are those of Conditional DETR.
    """

    def __init__(self, width: int, *, has_anchors: bool, is_conditional: bool) -> None:
        super().__init__()
        self.position_head = mlp(2 * width, width, width) if has_anchors else None
        self.content_scale = mlp(width, width, width) if is_conditional else None
        self.size_head = mlp(width, width, 2) if has_anchors and is_conditional else None

    def forward(
        self,
        layer: int,
        states: Float[Tensor, "B Q D"],
        positions: Float[Tensor, "B Q D"],
        coordinates: Float[Tensor, "B Q R"] | None,
    ) -> LayerQueryPositions:
        """Compute the positions for one layer.

        Args:
            layer: index of the layer. The first layer does not scale by the content, which is the same for all images.
            states: input of the layer.
            positions: of `Queries`.
            coordinates: of reference points or boxes, in 0 .. 1 of the image.
        """
        if coordinates is None:
            return LayerQueryPositions(positions)
        if self.position_head is None and self.content_scale is None:
            return LayerQueryPositions(positions, reference=coordinates)
        width = states.shape[-1]
        # row before column, as in the position encodings of the cells
        row_first = coordinates[..., :2].flip(-1)
        if coordinates.shape[-1] == 4:
            row_first = torch.cat([row_first, coordinates[..., 2:]], dim=-1)
        sine = encode_coordinates(row_first, width // 2).to(states.dtype)
        if self.position_head is not None:
            positions = self.position_head(sine)
        if self.content_scale is None:
            return LayerQueryPositions(positions, reference=coordinates)
        sine = sine[..., :width]
        if layer > 0:
            sine = sine * self.content_scale(states)
        if self.size_head is not None:
            sine = sine * self._size_ratio(states, coordinates)
        return LayerQueryPositions(positions, sine, coordinates)

    def _size_ratio(self, states: Float[Tensor, "B Q D"], boxes: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q D"]:
        """Ratio of predicted to anchor height for the channels of the row, of the widths for those of the column."""
        assert self.size_head is not None
        predicted = self.size_head(states).sigmoid()
        ratio = predicted / boxes[..., 2:]  # in float32: the gradient is divided by the square of the size
        if predicted.dtype == torch.float16:
            ratio = ratio.clamp(max=_MAX_FLOAT16_RATIO)
        return ratio.flip(-1).to(predicted.dtype).repeat_interleave(states.shape[-1] // 2, dim=-1)


class BoxPositionEncoding(nn.Module):
    """Compute the positions of the queries from their reference boxes by an MLP, before each decoder layer (RT-DETR).

    Args:
        width: D.
        num_layers: of the MLP: 2 as in RT-DETR, with a hidden width of 2D, or 3 as in DEIM's RT-DETRv2, with D.
        activation: between the layers.
        max_value: positions are clamped to it (D-FINE: 10).
        per_layer: positions follow the boxes of every layer; False keeps those of the initial boxes (DEIMv2).
    """

    def __init__(
        self,
        width: int,
        num_layers: int = 2,
        activation: ActivationName = "relu",
        max_value: float | None = None,
        *,
        per_layer: bool = True,
    ) -> None:
        super().__init__()
        hidden = (2 * width,) if num_layers == 2 else (width,) * (num_layers - 1)
        self.position_head = mlp(4, *hidden, width, activation=activation)
        self.max_value = max_value
        self.per_layer = per_layer

    def prepare(self, queries: Queries, boxes: Float[Tensor, "B Q 4"]) -> Queries:
        """Return queries with the positions of their initial boxes, if all layers share them."""
        return queries if self.per_layer else replace(queries, positions=self._encode(boxes, queries.content.dtype))

    def forward(
        self,
        layer: int,
        states: Float[Tensor, "B Q D"],
        positions: Float[Tensor, "B Q D"],
        coordinates: Float[Tensor, "B Q 4"],
    ) -> LayerQueryPositions:
        """Compute the positions for one layer; arguments as of `QueryPositionEncoding`."""
        encoded = self._encode(coordinates, states.dtype) if self.per_layer else positions
        return LayerQueryPositions(encoded, reference=coordinates)

    def _encode(self, boxes: Float[Tensor, "B Q 4"], dtype: torch.dtype) -> Float[Tensor, "B Q D"]:
        encoded: Tensor = self.position_head(boxes.to(dtype))
        return encoded if self.max_value is None else encoded.clamp(-self.max_value, self.max_value)
