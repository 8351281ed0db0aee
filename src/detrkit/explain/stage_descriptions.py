"""One-sentence descriptions of the parts of a model, depending on its configuration."""

from collections.abc import Callable

from detrkit._internal.text import plural
from detrkit.config.model import ModelConfig


def describe_part(part: str, config: ModelConfig) -> str:
    """Describe what a part of the model does; `part` is one of `stages.PARTS`."""
    descriptions: dict[str, Callable[[ModelConfig], str]] = {
        "backbone": _backbone,
        "neck.projection": _input_projection,
        "neck.positions": _positions,
        "encoder": _encoder,
        "query_source": _queries,
        "decoder": _decoder,
        "heads.class_head": _class_head,
        "heads.box_head": _box_head,
        "mask_head": _mask_head,
    }
    return descriptions[part](config)


def _mask_head(config: ModelConfig) -> str:
    if config.has_panoptic_head:
        return "one mask per query, from its attention to the memory and the finer feature maps"
    return (
        "one mask per query: its product with the features of every square of 4 x 4 pixels, which a block of convolutions "
        "per decoder layer refines"
    )


def describe_outputs(config: ModelConfig) -> str:
    """Describe how scores and boxes become detections."""
    if config.class_scores == "softmax":
        best = "best class of every query, excluding no object"
    else:
        best = f"the {config.detections_per_image} best pairs of query and class, so that a query may be detected twice"
    return f"{best}; those above the threshold are shown; no non-maximum suppression"


def _backbone(config: ModelConfig) -> str:
    if config.is_vit:
        windows = config.num_windows**2
        blocks = ", ".join(str(layer) for layer in config.global_layers)
        within = (
            f" within {windows} windows, and in blocks {blocks} among all of them" if windows > 1 and blocks else ""
        )
        return (
            f"a vision transformer computes features of patches of {config.patch_size} x {config.patch_size} pixels, which "
            f"attend to each other{within}; features after {plural(len(config.out_layers), 'block')} are used"
        )
    count = config.num_backbone_levels
    used = "the last one is used" if count == 1 else f"the last {count} are used"
    return f"a convolutional network computes feature maps of decreasing resolution; {used}"


def _input_projection(config: ModelConfig) -> str:
    if config.is_vit:
        maps = (
            "one map" if config.num_feature_levels == 1 else f"{config.num_feature_levels} maps of different resolution"
        )
        return f"convolutions fuse these into {maps} of the transformer's width; each cell becomes a token"
    further = config.num_feature_levels - config.num_backbone_levels
    mean = ", with the mean of its cells added to each" if config.fusion_block == "lite" else ""
    added = f"{plural(further, 'coarser map')} computed from the last one{mean}; " if further else ""
    cells = "each cell" if config.num_feature_levels == 1 else f"each cell of all {config.num_feature_levels} maps"
    return f"convolutions project the channels to the transformer's width; {added}{cells} becomes a token"


def _positions(config: ModelConfig) -> str:
    if config.position_embedding == "none":
        return "none: the model has no position encoding"
    uses = []
    added = {"attention": "added to {}", "input": "added once, to its input", "none": "not used"}
    if config.encoder_layers:
        targets = "queries and keys" if config.encoder == "dense" else "the queries"
        uses.append(f"in the encoder {added[config.encoder_positions].format(targets)}")
    if config.decoder == "conditional":
        uses.append("in the decoder compared with the positions of the queries")
    elif config.decoder == "dense":
        uses.append(f"in the decoder {added[config.decoder_positions].format('keys')}")
    encoding = "position of each cell" if config.num_feature_levels == 1 else "position and feature level of each cell"
    if not uses:
        return f"{encoding}; not used without encoder layers, since sampling points are positions themselves"
    return f"{encoding}: {', '.join(uses)}, since a set of tokens has no order"


def _encoder(config: ModelConfig) -> str:
    if config.is_hybrid:
        return _hybrid_encoder(config)
    if not config.encoder_layers:
        return "no layers in this model: the tokens themselves are the memory"
    if config.encoder == "dense":
        return "every token attends to all tokens; the output is called memory"
    return f"every token attends to {_points(config)}; the output is called memory"


def _hybrid_encoder(config: ModelConfig) -> str:
    steps = []
    if config.encoder_layers:
        count = config.attention_levels
        maps = "the coarsest map" if count == 1 else f"each of the {count} coarsest maps"
        steps.append(f"the cells of {maps} attend to each other, with sine encodings of their positions")
    if config.num_feature_levels > 1:
        steps.append("convolutions pass features from the coarsest map to the finest and back")
    if config.has_memory_projection:
        steps.append("each map is projected once more")
    return "; ".join([*steps, "the output is called memory"])


def _queries(config: ModelConfig) -> str:
    if config.queries == "selected":
        return (
            "every cell of the memory proposes a box with class scores; those with the highest scores become the queries "
            "of this image, query 0 from the highest. Each query is the memory of its cell, and its position is computed "
            f"from its box {_of_positions(config)}"
        )
    if config.queries == "mixed":
        return (
            "every cell of the memory proposes a box with class scores; those with the highest scores become the queries "
            "of this image, query 0 from the highest. A learned delta of its rank refines its box; its content is an "
            "embedding of its rank, and its position is computed from its box"
        )
    if config.queries != "two_stage":
        kind = {"learned": "embeddings", "points": "embeddings, each with a point", "anchors": "boxes"}[config.queries]
        return f"learned {kind}, the same for every image"
    content = "the sine encoding of that box"
    if config.two_stage_content == "memory":
        content += ", the memory of its cell, and a learned embedding of its rank"
    return (
        "every cell of the memory proposes a box with an object score; the boxes with the highest scores become the "
        f"queries of this image, query 0 from the highest. Each query is {content}"
    )


def _of_positions(config: ModelConfig) -> str:
    return (
        "in every layer of the decoder" if config.layerwise_query_positions else "once, for all layers of the decoder"
    )


def _decoder(config: ModelConfig) -> str:
    starts_at_zero = config.queries == "learned" and config.query_positions != "input"
    starts_at_zero |= config.queries == "anchors" or (config.queries == "points" and config.decoder != "deformable")
    keys = {
        "dense": "the memory",
        "conditional": "the memory, by content and by position",
    }.get(config.decoder, f"{_points(config)} of the memory")
    queries = "the queries, initialised with zeros," if starts_at_zero else "the queries"
    refines = "each layer refines the boxes of the previous one; " if config.with_box_refine else ""
    if config.decoder == "fine_grained":
        refines = "each layer refines distributions of the edges of the first layer's boxes; "
    count = config.eval_decoder_layers
    stops = "" if count in (None, config.decoder_layers) else f" (outside of training, only the first {count} are run)"
    return f"{queries} attend to each other and to {keys}; {refines}every layer has an output{stops}"


def _class_head(config: ModelConfig) -> str:
    if config.class_scores == "softmax":
        scores = "a softmax over the classes and, last, no object"
    else:
        scores = "an independent sigmoid score per class; no object is when all are low"
    return f"after every layer, for every query: {scores}"


def _box_head(config: ModelConfig) -> str:
    if config.queries == "learned":
        return "after every layer, for every query: center, width and height; a sigmoid maps them to 0 .. 1"
    if config.decoder == "fine_grained":
        return (
            "after every layer, for every query and edge: logits of distances from the first layer's box, added to those "
            "of the layers before; the expected distance moves the edge, and sharp distributions raise the scores"
        )
    if config.with_box_refine:
        return "after every layer, for every query: offset from the previous box; a sigmoid maps the sum to 0 .. 1"
    if config.queries == "mixed":
        return (
            "after every layer, for every query: offset from its box, relative to the size, and logarithm of a factor of "
            "the size; boxes may exceed the image"
        )
    start = "point" if config.queries == "points" else "box"
    return f"after every layer, for every query: offset from its reference {start}; a sigmoid maps the sum to 0 .. 1"


def _points(config: ModelConfig) -> str:
    counts = config.sampling_points
    if len(set(counts)) == 1:
        maps = "" if len(counts) == 1 else f" in each of {len(counts)} maps"
        return f"{plural(counts[0], 'sampling point')}{maps} per head"
    return f"{', '.join(map(str, counts))} sampling points in the {len(counts)} maps per head"
