"""Record the attention of a forward pass.

The model stores no attention matrix. `record_attention` keeps the inputs of every attention layer (tokens, not matrices: at
most 18 tensors of 850 x 256 values for DETR-R50), and `RecordedAttention` recomputes the weights of the requested layers,
heads and queries from them, exactly as the model computed them. The hooks that record are on a copy of the model, so that
several threads can record at once, and the layers are copied, so that later training changes no recording.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.errors import ConfigError, arg
from detrkit.models.attention.deformable import DeformableAttention
from detrkit.models.attention.multi_head import ProjectedAttention
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from detrkit.models.attention.recording_windows import WindowAttentionInputs
from detrkit.models.backbones.vit import ViTBackbone
from detrkit.models.detr import DETR
from detrkit.models.encoders.hybrid import HybridEncoder
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.panoptic import PanopticMasks
from detrkit.models.inference_copy import inference_copy, snapshot
from detrkit.models.queries.selection import QuerySelection, query_selections
from detrkit.ops.grid import Grid, stride_of
from detrkit.structures import Batch, Predictions

AttentionKind = Literal["encoder", "decoder_self", "decoder_cross"]
LayerInputs: TypeAlias = "AttentionInputs | DeformableAttentionInputs | WindowAttentionInputs"
KINDS: tuple[AttentionKind, ...] = ("encoder", "decoder_self", "decoder_cross")


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs and output of one dense attention layer for one image, from which its weights are recomputed.

    Attributes:
        module: the attention layer.
        queries: attention queries, including their position encoding where the layer adds one.
        keys: attention keys, likewise.
        values: attention values.
        padding_mask: True for keys in the padding; None without padding.
        output: output of the layer.
    """

    module: ProjectedAttention
    queries: Float[Tensor, "1 N E"]
    keys: Float[Tensor, "1 S E"]
    values: Float[Tensor, "1 S D"]
    padding_mask: Bool[Tensor, "1 S"] | None
    output: Float[Tensor, "1 N D"]

    @property
    def num_queries(self) -> int:
        """Number of attention queries N: tokens in the encoder, object queries in the decoder."""
        return self.queries.shape[1]

    @torch.no_grad()
    def weights(self, heads: Sequence[int] | None, queries: Sequence[int] | None) -> Float[Tensor, "M N S"]:
        """Compute the attention weights of some heads and queries; None selects all."""
        selected = self.queries if queries is None else self.queries[:, list(queries)]
        return self.module.weights(selected, self.keys, self.padding_mask, heads)[0].float().cpu()


@dataclass(frozen=True)
class RecordedAttention:
    """Attention of one forward pass for one image; weights are computed when requested.

    Attributes:
        grid: position of the feature map's cells in the image.
        predictions: predictions for this image (B = 1).
        layers: inputs of the attention layers by kind, first layer first.
        selection: cells that the queries are from; None if queries are learned.
    """

    grid: Grid
    predictions: Predictions
    layers: dict[AttentionKind, tuple[LayerInputs, ...]]
    selection: QuerySelection | None = None

    def weights(
        self,
        kind: AttentionKind,
        layer: int = -1,
        *,
        heads: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
    ) -> Float[Tensor, "M N S"]:
        """Compute attention weights; every row sums to 1.

        The weights of deformable attention are spread over the cells of the feature map; a row sums to the share of the
        weights that lies within the map. The rest of a row of DINOv2 is attention to the class token.

        Args:
            kind: "encoder" (self-attention of the tokens; in the blocks of the ViT, if the model has one), "decoder_self"
                (self-attention of the object queries) or "decoder_cross" (cross-attention of the object queries to the
                tokens).
            layer: from 0; negative numbers count from the last.
            heads: heads to return; None selects all.
            queries: attention queries to return: token indices for "encoder", object queries otherwise. None selects
                all, which is a large matrix for an encoder on a large image.

        Returns:
            Weights (heads, queries, keys).

        Raises:
            ConfigError: there is no such layer, head or query.
        """
        inputs = self.inputs(kind, layer)
        check_indices("heads", heads, inputs.module.num_heads)
        check_indices("queries", queries, inputs.num_queries)
        return inputs.weights(heads, queries)

    def maps(
        self,
        kind: Literal["encoder", "decoder_cross"],
        layer: int = -1,
        *,
        heads: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
    ) -> Float[Tensor, "M N h w"]:
        """Compute attention maps: `weights` reshaped to the feature map; `grid.boxes()` has the position of each cell."""
        return self.weights(kind, layer, heads=heads, queries=queries).unflatten(-1, self.grid.cells)

    def inputs(self, kind: AttentionKind, layer: int = -1) -> LayerInputs:
        """Return the recorded inputs of a layer.

        Raises:
            ConfigError: there is no such layer.
        """
        layers = self.layers[kind]
        if not -len(layers) <= layer < len(layers):
            raise ConfigError(f"{arg('layer', layer)} does not exist: {kind} has {len(layers)} layers, counted from 0.")
        return layers[layer]

    def mean_weights(
        self, kind: AttentionKind, layer: int = -1, queries: Sequence[int] | None = None
    ) -> Float[Tensor, "N S"]:
        """Compute the weights averaged over the heads, with one head in memory at a time."""
        num_heads = self.inputs(kind, layer).module.num_heads
        total = sum(self.weights(kind, layer, heads=[head], queries=queries)[0] for head in range(num_heads))
        assert isinstance(total, Tensor), "a layer has at least one head"
        return total / num_heads


def check_indices(name: str, indices: Sequence[int] | None, count: int) -> None:
    """Refuse indices that are not in 0 .. count - 1; `name` is that of the argument."""
    for index in indices or ():
        if not 0 <= index < count:
            raise ConfigError(f"{arg(name, index)} is out of range; expected 0 to {count - 1}.")


def attention_modules(model: DETR) -> dict[AttentionKind, list[ProjectedAttention | DeformableAttention]]:
    """Return the attention layers of a model by kind, first layer first."""
    decoder = list(model.get_submodule("decoder.layers").children())[: model.config.eval_decoder_layers]
    return {
        "encoder": _encoder_attention(model),
        "decoder_self": [_attention_module(layer, "self_attention") for layer in decoder],
        "decoder_cross": [_attention_module(layer, "cross_attention") for layer in decoder],
    }


def _encoder_attention(model: DETR) -> list[ProjectedAttention | DeformableAttention]:
    """Return the attention of the encoder; of a hybrid one, that within the coarsest map; of the ViT, if there is one."""
    encoder, backbone = model.get_submodule("encoder"), model.backbone
    if isinstance(backbone, ViTBackbone):
        used = backbone.blocks[: max(model.config.out_layers)]
        return [_attention_module(block, "attention") for block in used]
    if isinstance(encoder, HybridEncoder):
        layers = encoder.attention[-1].get_submodule("layers").children() if encoder.attention else ()
    else:
        layers = encoder.get_submodule("layers").children()
    return [_attention_module(layer, "self_attention") for layer in layers]


def _attention_module(layer: nn.Module, name: str) -> ProjectedAttention | DeformableAttention:
    module = layer.get_submodule(name)
    assert isinstance(module, ProjectedAttention | DeformableAttention), f"{name} is not an attention layer"
    return module


@contextmanager
def capture_calls(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[dict[str, Any], Any]]]:
    """Capture the arguments, by parameter name, and the outputs of modules while the context is active.

    Args:
        modules: of a model that nothing else runs meanwhile, such as an `inference_copy`. They get forward hooks, which
            are removed at the end.
    """
    calls: dict[nn.Module, tuple[dict[str, Any], Any]] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        calls[module] = (dict(bound.arguments), output)

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def record_attention(model: DETR, batch: Batch) -> list[RecordedAttention]:
    """Run a copy of a model in eval mode on a batch and record the inputs of its attention layers. Thread-safe.

    Args:
        model: on any device; it is not changed.
        batch: of preprocessed images.

    Returns:
        One recording per image.

    Raises:
        ConfigError: the model attends densely to several feature maps, for which there is no single map to show.
    """
    recordings = record_attention_of_copy(inference_copy(model), batch)
    return [replace(one, predictions=with_own_mask_head(one.predictions)) for one in recordings]


@torch.no_grad()
def record_attention_of_copy(model: DETR, batch: Batch) -> list[RecordedAttention]:
    """Record attention as `record_attention`, with hooks on an `inference_copy` that nothing else runs meanwhile.

    The masks of the predictions are computed by the model's own head, until `with_own_mask_head` is called.
    """
    config = model.config
    encoder = config.encoder if config.encoder_layers else None
    if config.num_feature_levels > 1 and "dense" in (encoder, config.decoder):
        raise ConfigError(
            f"The attention of this model cannot be shown: it attends densely to {config.num_feature_levels} feature "
            "maps, expected one feature map or deformable attention."
        )
    device = next(model.parameters()).device
    on_device = batch.to(device)
    modules = attention_modules(model)
    hooked = [model.get_submodule("encoder"), *(module for of_kind in modules.values() for module in of_kind)]
    with capture_calls(hooked) as calls:
        padding_mask = on_device.padding_mask if batch.is_padded else None
        # a surrounding autocast region of a training loop has no effect
        with torch.autocast(device.type, enabled=False):
            predictions = model(on_device.images, padding_mask)
    layers_of = {module: snapshot(module) for of_kind in modules.values() for module in of_kind}
    memory: FeatureMaps = calls[model.get_submodule("encoder")][1]
    level = config.num_backbone_levels - 1
    cells, stride = memory.sizes[level], config.strides[level]
    if config.is_vit:  # whose cells may be finer or coarser than those of the transformer's maps
        stride = config.patch_size
        cells = (batch.images.shape[2] // stride, batch.images.shape[3] // stride)
    first_cell = sum(height * width for height, width in memory.sizes[:level])
    selections: list[QuerySelection] | list[None] = [None] * len(batch.sizes)
    if predictions.proposals is not None:
        selections = query_selections(predictions.proposals, memory, config.num_queries, batch.original_sizes)
    recordings = []
    for index in range(len(batch.sizes)):
        grid = _grid(batch, index, cells, stride)
        layers = {
            kind: tuple(
                _inputs(calls[module], model, layers_of[module], index, grid, first_cell if kind == "encoder" else None)
                for module in of_kind
            )
            for kind, of_kind in modules.items()
        }
        size = batch.sizes[index] if model.padding_invariant and batch.is_padded else None
        recordings.append(RecordedAttention(grid, _select_image(predictions, index, size), layers, selections[index]))
    return recordings


def with_own_mask_head(predictions: Predictions) -> Predictions:
    """Give predictions, whose masks are computed on demand, a mask head that later training does not change."""
    source = predictions.mask_source
    if not isinstance(source, PanopticMasks):
        return predictions
    return replace(predictions, mask_source=replace(source, head=snapshot(source.head)))


def _grid(batch: Batch, index: int, cells: tuple[int, int], stride: int) -> Grid:
    padded = (batch.images.shape[2], batch.images.shape[3])
    return Grid(
        cells=cells,
        stride=stride_of(padded, cells, stride),
        resized=batch.sizes[index],
        padded=padded,
        original=batch.original_sizes[index],
    )


def _select_image(predictions: Predictions, index: int, size: tuple[int, int] | None) -> Predictions:
    """Select the predictions of one image; mask inputs are cropped to `size`, or keep their padding if it is None."""
    one, source, edges = slice(index, index + 1), predictions.mask_source, predictions.distributions
    return replace(
        predictions,
        layer_class_logits=predictions.layer_class_logits[:, one].cpu(),
        layer_boxes=predictions.layer_boxes[:, one].cpu(),
        mask_source=None if source is None else source.select_image(index, size),
        proposals=None,
        distributions=None if edges is None else edges.select_image(index).cpu(),
    )


def _inputs(
    call: tuple[dict[str, Any], Any],
    model: DETR,
    module: ProjectedAttention | DeformableAttention,
    index: int,
    grid: Grid,
    first_cell: int | None,
) -> LayerInputs:
    """Select the inputs of one image; in the encoder, `first_cell` is the token of the grid's first cell."""
    if isinstance(module, DeformableAttention):
        return _deformable_inputs(call, model, module, index, grid, first_cell)
    if first_cell is not None and isinstance(model.backbone, ViTBackbone):
        return _window_inputs(call, model.backbone, module, index, grid)
    return _dense_inputs(call, module, index)


def _dense_inputs(call: tuple[dict[str, Any], Any], module: ProjectedAttention, index: int) -> AttentionInputs:
    arguments, output = call
    one = slice(index, index + 1)
    mask = arguments["key_padding_mask"]
    return AttentionInputs(
        module=module,
        queries=arguments["queries"][one],
        keys=arguments["keys"][one],
        values=arguments["values"][one],
        padding_mask=None if mask is None else mask[one],
        output=output[one],
    )


def _window_inputs(
    call: tuple[dict[str, Any], Any], backbone: ViTBackbone, module: ProjectedAttention, index: int, grid: Grid
) -> WindowAttentionInputs:
    """Select the windows of one image, or its one sequence in a global block."""
    arguments, output = call
    tokens, num_windows = arguments["queries"], backbone.layout.num_windows
    others = 0 if backbone.tokens is None else len(backbone.tokens)
    in_window = grid.num_tokens // num_windows**2 + others
    count = num_windows**2 if tokens.shape[1] == in_window else 1
    windows = slice(index * count, (index + 1) * count)
    return WindowAttentionInputs(module, tokens[windows], num_windows, grid, output[windows])


def _deformable_inputs(
    call: tuple[dict[str, Any], Any],
    model: DETR,
    module: DeformableAttention,
    index: int,
    grid: Grid,
    first_cell: int | None,
) -> DeformableAttentionInputs:
    """Select the inputs of one image; in the encoder, `first_cell` is the token of the grid's first cell."""
    arguments, output = call
    one = slice(index, index + 1)
    num_queries = arguments["queries"].shape[1]
    rows = range(num_queries) if first_cell is None else range(first_cell, first_cell + grid.num_tokens)
    return DeformableAttentionInputs(
        module=module,
        queries=arguments["queries"][one],
        references=arguments["references"][one],
        features=arguments["features"].coordinates_of(index),
        strides=model.config.strides,
        first_centers=model.neck.first_cell_centers,
        grid=grid,
        level=model.config.num_backbone_levels - 1,
        rows=rows,
        output=output[one],
    )
