"""Attention on demand: which cells or queries every layer looked at, exactly as the model did.

The model keeps no attention matrix. While it is observed, the inputs of every attention are kept (tokens, not matrices: 18
times 850 x 256 numbers at most for DETR with ResNet-50), and a matrix is computed when somebody asks for it.

Input: a model and a batch. Output: one `Attention` per photo.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.errors import ConfigError
from detrkit.models.attention.deformable import DeformableAttention
from detrkit.models.attention.multi_head import ProjectedAttention
from detrkit.models.attention.recording_deformable import SamplingInputs
from detrkit.models.detr import DETR
from detrkit.ops.grid import Grid, stride_of
from detrkit.structures import Batch, Predictions

Kind = Literal["encoder", "decoder_self", "decoder_cross"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder_self", "decoder_cross")


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention layer was given for one photo; enough to compute its weights again, row by row."""

    module: ProjectedAttention
    queries: Float[Tensor, "1 N E"]
    keys: Float[Tensor, "1 S E"]
    values: Float[Tensor, "1 S D"]
    padding_mask: Bool[Tensor, "1 S"] | None
    output: Float[Tensor, "1 N D"]

    @property
    def num_rows(self) -> int:
        """How many queries can be asked for."""
        return self.queries.shape[1]

    @torch.no_grad()
    def weights(self, heads: Sequence[int] | None, rows: Sequence[int] | None) -> Float[Tensor, "M N S"]:
        """Compute the weights of some heads and rows; None takes all."""
        queries = self.queries if rows is None else self.queries[:, list(rows)]
        return self.module.weights(queries, self.keys, self.padding_mask, heads)[0].float().cpu()


@dataclass(frozen=True)
class Attention:
    """All attention of one forward pass over one photo.

    Attributes:
        grid: where the tokens lie in the photo.
        predictions: what the model said, of this photo alone (B = 1).
        layers: what each attention layer was given, by kind, first layer first.
    """

    grid: Grid
    predictions: Predictions
    layers: dict[Kind, tuple[AttentionInputs | SamplingInputs, ...]]

    def weights(
        self,
        kind: Kind,
        layer: int = -1,
        *,
        heads: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Float[Tensor, "M N S"]:
        """Compute attention weights: for every head and row, who is looked at how much; every row sums to 1.

        Of deformable attention, tokens are the grid's cells, and a row sums to what lies within them.

        Args:
            kind: "encoder" (tokens look at tokens), "decoder_self" (queries at queries), "decoder_cross" (queries at
                tokens).
            layer: from 0; negative ones count from the last.
            heads: which heads; None takes all.
            rows: which tokens or queries look; None takes all of them (in a large encoder, choose).

        Raises:
            ConfigError: there is no such layer, head or row.
        """
        inputs = self.inputs(kind, layer)
        _check(heads, inputs.module.num_heads, "head")
        _check(rows, inputs.num_rows, "token" if kind == "encoder" else "query")
        return inputs.weights(heads, rows)

    def maps(
        self,
        kind: Literal["encoder", "decoder_cross"],
        layer: int = -1,
        *,
        heads: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Float[Tensor, "M N h w"]:
        """The weights over tokens, laid out as the feature map; `grid.boxes()` has each cell's place in the photo."""
        return self.weights(kind, layer, heads=heads, rows=rows).unflatten(-1, self.grid.cells)

    def inputs(self, kind: Kind, layer: int) -> AttentionInputs | SamplingInputs:
        """What a layer was given.

        Raises:
            ConfigError: there is no such layer.
        """
        layers = self.layers[kind]
        if not -len(layers) <= layer < len(layers):
            raise ConfigError(f"attention: found layer {layer} of {kind}, which has {len(layers)} layers, from 0")
        return layers[layer]

    def mean_weights(self, kind: Kind, layer: int = -1, rows: Sequence[int] | None = None) -> Float[Tensor, "N S"]:
        """The weights averaged over the heads, one head in memory at a time."""
        num_heads = self.inputs(kind, layer).module.num_heads
        total = sum(self.weights(kind, layer, heads=[head], rows=rows)[0] for head in range(num_heads))
        assert isinstance(total, Tensor), "a layer has at least one head"
        return total / num_heads


def _check(chosen: Sequence[int] | None, count: int, what: str) -> None:
    wrong = [number for number in chosen or () if not 0 <= number < count]
    if wrong:
        raise ConfigError(f"attention: found {what} {wrong[0]}, expected 0 to {count - 1}")


def attention_modules(model: DETR) -> dict[Kind, list[ProjectedAttention | DeformableAttention]]:
    """The attention layers of a model, by kind, first layer first."""
    encoder, decoder = list(model.encoder.layers), list(model.decoder.layers)
    return {
        "encoder": [_attention_of(layer, "self_attention") for layer in encoder],
        "decoder_self": [_attention_of(layer, "self_attention") for layer in decoder],
        "decoder_cross": [_attention_of(layer, "cross_attention") for layer in decoder],
    }


def _attention_of(layer: nn.Module, name: str) -> ProjectedAttention | DeformableAttention:
    module = layer.get_submodule(name)
    assert isinstance(module, ProjectedAttention | DeformableAttention), (
        f"{name} of a transformer layer is its attention"
    )
    return module


@contextmanager
def capture_calls(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[dict[str, Any], Any]]]:
    """Note what modules are given, by the names in their signature, and what they give, until the block ends.

    Nothing stays behind: the hooks are taken off again, and a model that is not observed does nothing more than before.
    """
    calls: dict[nn.Module, tuple[dict[str, Any], Any]] = {}

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        bound = inspect.signature(module.forward).bind(*given, **named)
        bound.apply_defaults()
        calls[module] = (dict(bound.arguments), output)

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record_attention(model: DETR, batch: Batch, *, padding_invariant: bool = True) -> list[Attention]:
    """Run a model over a batch and keep what is needed to compute its attention.

    Args:
        model: in eval mode; on any device.
        batch: of prepared photos.
        padding_invariant: as in `DETR.forward`.

    Raises:
        ConfigError: all cells of several feature maps look at each other, for which there is no map to draw.
    """
    if model.config.num_feature_levels > 1 and "dense" in (
        model.config.encoder_attention,
        model.config.cross_attention,
    ):
        raise ConfigError(
            f"attention: the model attends densely to {model.config.num_feature_levels} feature maps; expected one map, or "
            "deformable attention"
        )
    device = next(model.parameters()).device
    on_device = batch.to(device)
    modules = attention_modules(model)
    observed = [model.input_projection, *(module for kind in modules.values() for module in kind)]
    with capture_calls(observed) as calls:
        padding_mask = on_device.padding_mask if batch.is_padded else None
        predictions = model(on_device.images, padding_mask, padding_invariant=padding_invariant, all_masks=False)
    _, maps = calls[model.input_projection]
    level = model.config.num_backbone_levels - 1
    cells = (maps[level].shape[-2], maps[level].shape[-1])
    first = sum(one.shape[-2] * one.shape[-1] for one in maps[:level])
    seen = []
    for index in range(len(batch.sizes)):
        grid = _grid_of(batch, index, cells, model.config.strides[level])
        layers = {
            kind: tuple(
                _inputs_of(calls[one], one, index)
                if isinstance(one, ProjectedAttention)
                else _sampling_of(calls[one], model, one, index, grid, first if kind == "encoder" else None)
                for one in found
            )
            for kind, found in modules.items()
        }
        is_cut = padding_invariant and batch.is_padded
        seen.append(Attention(grid, _of_photo(predictions, index, batch.sizes[index] if is_cut else None), layers))
    return seen


def _grid_of(batch: Batch, index: int, cells: tuple[int, int], stride: int) -> Grid:
    padded = (batch.images.shape[2], batch.images.shape[3])
    return Grid(
        cells=cells,
        stride=stride_of(padded, cells, stride),
        resized=batch.sizes[index],
        padded=padded,
        original=batch.original_sizes[index],
    )


def _of_photo(predictions: Predictions, index: int, size: tuple[int, int] | None) -> Predictions:
    """What was said about one photo; what masks are drawn from is cut to a size, or keeps its padding, as published."""
    one, inputs = slice(index, index + 1), predictions.mask_inputs
    if inputs is not None:
        mask = None if size or inputs.padding_mask is None else inputs.padding_mask[one]
        inputs = replace(inputs.of_photo(index, size or inputs.padded), padding_mask=mask)
    return replace(
        predictions,
        layer_class_logits=predictions.layer_class_logits[:, one].cpu(),
        layer_boxes=predictions.layer_boxes[:, one].cpu(),
        mask_inputs=inputs,
        proposals=None,
    )


def _inputs_of(call: tuple[dict[str, Any], Any], module: ProjectedAttention, index: int) -> AttentionInputs:
    given, output = call
    one = slice(index, index + 1)
    mask = given["key_padding_mask"]
    return AttentionInputs(
        module=module,
        queries=given["queries"][one],
        keys=given["keys"][one],
        values=given["values"][one],
        padding_mask=None if mask is None else mask[one],
        output=output[one],
    )


def _sampling_of(
    call: tuple[dict[str, Any], Any],
    model: DETR,
    module: DeformableAttention,
    index: int,
    grid: Grid,
    first_cell: int | None,
) -> SamplingInputs:
    """Keep what a layer was given; where all cells ask, `first_cell` is the first one of the grid."""
    given, output = call
    one = slice(index, index + 1)
    num_queries = given["queries"].shape[1]
    rows = range(num_queries) if first_cell is None else range(first_cell, first_cell + grid.num_tokens)
    return SamplingInputs(
        module=module,
        queries=given["queries"][one],
        references=given["references"][one],
        sizes=given["scene"].sizes,
        strides=model.config.strides,
        first_centres=model.first_centres,
        grid=grid,
        level=model.config.num_backbone_levels - 1,
        rows=rows,
        output=output[one],
    )
