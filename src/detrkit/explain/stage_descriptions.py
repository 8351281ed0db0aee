"""What each stage does, in a sentence, and where to read it: as the model's settings have it.

Input: a `ModelConfig`. Output: sentences, by the names of the parts.
"""

from collections.abc import Callable

from detrkit._internal.text import plural
from detrkit.config.model import TIMM, ModelConfig


def describe_part(part: str, config: ModelConfig) -> str:
    """Say what a part of the model does."""
    meanings: dict[str, Callable[[ModelConfig], str]] = {
        "backbone": _backbone,
        "input_projection": _input_projection,
        "positions": _positions,
        "encoder": _encoder,
        "query_source": _queries,
        "decoder": _decoder,
        "heads.class_head": _class_head,
        "heads.box_head": _box_head,
        "mask_head": lambda _: "one mask per query, from its attention and the finer feature maps",
    }
    return meanings[part](config)


def describe_outputs(config: ModelConfig) -> str:
    """Say how scores and boxes become detections."""
    if config.class_scores == "softmax":
        best = "best class of every query but no object"
    else:
        best = f"the {config.detections_per_image} best pairs of query and class, so that a query may answer twice"
    return f"{best}; those above the threshold are shown; no suppression of neighbours"


def code_of(part: str, config: ModelConfig) -> str:
    """Say where a part is written down."""
    kind = {"dense": "transformer", "conditional": "conditional", "deformable": "deformable"}
    return {
        "backbone": "models/backbones/timm.py" if config.backbone.startswith(TIMM) else "models/backbones/resnet.py",
        "input_projection": "models/feature_maps.py",
        "positions": "models/positions.py",
        "encoder": f"models/{kind[config.encoder]}.py",
        "query_source": "models/queries/two_stage.py" if config.queries == "two_stage" else "models/queries/sources.py",
        "decoder": f"models/{kind[config.decoder]}.py",
        "heads.class_head": "models/heads/detection.py: ClassHead",
        "heads.box_head": "models/heads/detection.py: BoxHead",
        "mask_head": "models/heads/panoptic.py",
    }[part]


def _backbone(config: ModelConfig) -> str:
    count = config.num_backbone_levels
    last = "the last one goes on" if count == 1 else f"the last {count} go on"
    return f"a convolutional network turns pixels into feature maps, coarser and richer stage by stage; {last}"


def _input_projection(config: ModelConfig) -> str:
    further = config.num_feature_levels - config.num_backbone_levels
    made = f"{plural(further, 'coarser map')} made of the last; " if further else ""
    every = "each cell" if config.num_feature_levels == 1 else f"each cell of all {config.num_feature_levels} maps"
    return f"convolutions bring the channels to the transformer's width; {made}{every} becomes a token"


def _positions(config: ModelConfig) -> str:
    uses = []
    added = {"attention": "added to {}", "input": "added once, to its input", "none": "not used"}
    if config.encoder_layers:
        readers = "queries and keys" if config.encoder == "dense" else "what chooses the points"
        uses.append(f"in the encoder {added[config.encoder_positions].format(readers)}")
    if config.decoder == "conditional":
        uses.append("in the decoder compared with the places of the queries")
    elif config.decoder == "dense":
        uses.append(f"in the decoder {added[config.decoder_positions].format('keys')}")
    if config.position_embedding == "none":
        return "nothing here: the model is not told where its cells lie"
    where = "where each cell lies" if config.num_feature_levels == 1 else "where each cell lies, and in which map"
    if not uses:
        return f"{where}; without encoder layers nothing reads it, for sampled points are places themselves"
    return f"{where}: {', '.join(uses)}, since a set of tokens has no order"


def _encoder(config: ModelConfig) -> str:
    if not config.encoder_layers:
        return "no layers in this model: the tokens themselves are the memory"
    if config.encoder == "dense":
        return "every token looks at every other; what comes out is called memory"
    return f"every token looks at {_points(config)}; what comes out is called memory"


def _queries(config: ModelConfig) -> str:
    if config.queries != "two_stage":
        kind = {"learned": "vectors", "points": "vectors, each with a point", "anchors": "boxes"}[config.queries]
        return f"one per object that can be found: learned {kind}, the same for every photo"
    held = "sines of that box"
    if config.two_stage_content == "memory":
        held += ", what its cell held, and a learned vector of its rank"
    return (
        "every cell of the memory proposes a box and says how likely an object is there; the best become queries, "
        f"chosen anew for every photo, query 0 from the best. Each holds {held}"
    )


def _decoder(config: ModelConfig) -> str:
    starts_empty = config.queries == "learned" and config.query_positions != "input"
    starts_empty |= config.queries == "anchors" or (config.queries == "points" and config.decoder != "deformable")
    looks = {
        "dense": "the memory",
        "conditional": "the memory, by content and by place",
        "deformable": f"{_points(config)} of the memory",
    }[config.decoder]
    start = "the queries, starting from zero," if starts_empty else "the queries"
    refines = "each layer moves the boxes of the one before; " if config.with_box_refine else ""
    return f"{start} look at each other and at {looks}; {refines}asked after every layer"


def _class_head(config: ModelConfig) -> str:
    if config.class_scores == "softmax":
        scores = "a score per class and, last, one for no object, which share a softmax"
    else:
        scores = "a score per class, each a yes or no for itself; no object is when all say no"
    return f"after every layer, for every query: {scores}"


def _box_head(config: ModelConfig) -> str:
    if config.queries == "learned":
        return "after every layer, for every query: centre, width and height; a sigmoid makes them 0 .. 1"
    if config.with_box_refine:
        return "after every layer, for every query: how its box differs from that before; a sigmoid makes it 0 .. 1"
    start = "point" if config.queries == "points" else "box"
    return f"after every layer, for every query: a box, counted from the query's {start}; a sigmoid makes it 0 .. 1"


def _points(config: ModelConfig) -> str:
    maps = "" if config.num_feature_levels == 1 else f" in each of {config.num_feature_levels} maps"
    return f"{plural(config.num_points, 'sampled point')}{maps} per head"
