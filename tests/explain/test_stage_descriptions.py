"""What is said of every stage follows from the model's settings."""

import pytest

from detrkit.explain.stage_descriptions import code_of, describe_outputs, describe_part
from detrkit.explain.stages import PARTS
from detrkit.models.presets import PRESETS, preset_config


@pytest.mark.parametrize(
    ("part", "of_detr", "of_own"),
    [
        ("backbone", "the last one goes on", "the last 2 go on"),
        ("input_projection", "each cell becomes a token", "each cell of all 2 maps becomes a token"),
        ("positions", "added to queries and keys", "without encoder layers nothing reads it"),
        ("encoder", "every token looks at every other", "no layers in this model"),
        (
            "query_source",
            "learned vectors, the same for every photo",
            "the best become queries, chosen anew for every photo",
        ),
        ("decoder", "starting from zero, look at each other and at the memory", "4 sampled points in each of 2 maps"),
        ("heads.class_head", "one for no object, which share a softmax", "each a yes or no for itself"),
        ("heads.box_head", "centre, width and height", "how its box differs from that before"),
    ],
)
def test_plain_detr_and_our_own_are_told_apart(part: str, of_detr: str, of_own: str) -> None:
    plain, own = (describe_part(part, preset_config(name)) for name in ("detr-r50", "detrkit-s"))
    assert of_detr in plain
    assert of_own in own
    assert of_detr not in own


@pytest.mark.parametrize(
    ("name", "part", "says"),
    [
        ("detrkit-m", "encoder", "every token looks at 4 sampled points in each of 3 maps per head"),
        ("detrkit-m", "positions", "and in which map: in the encoder added to what chooses the points, since"),
        ("detrkit-m", "query_source", "sines of that box, what its cell held, and a learned vector of its rank"),
        ("deformable-detr-r50-two-stage", "query_source", "Each holds sines of that box"),
        ("deformable-detr-r50", "input_projection", "1 coarser map made of the last"),
        ("deformable-detr-r50", "query_source", "learned vectors, each with a point"),
        ("deformable-detr-r50", "heads.box_head", "a box, counted from the query's point"),
        (
            "deformable-detr-r50-single-scale",
            "decoder",
            "the queries look at each other and at 4 sampled points per head",
        ),
        (
            "conditional-detr-r50",
            "decoder",
            "starting from zero, look at each other and at the memory, by content and by",
        ),
        ("conditional-detr-r50", "positions", "in the decoder compared with the places of the queries"),
        ("dab-detr-r50", "query_source", "learned boxes"),
        ("dab-detr-r50", "decoder", "each layer moves the boxes of the one before"),
    ],
)
def test_successors_are_told_as_they_are(name: str, part: str, says: str) -> None:
    assert says in describe_part(part, preset_config(name))


def test_positions_elsewhere_are_told_where_they_are() -> None:
    once = preset_config("detr-r50", encoder_positions="input", decoder_positions="none")
    assert "in the encoder added once, to its input, in the decoder not used" in describe_part("positions", once)
    assert "not told" in describe_part("positions", preset_config("detr-r50", position_embedding="none"))


def test_the_answer_is_of_queries_or_of_pairs() -> None:
    assert describe_outputs(preset_config("detr-r50")).startswith("best class of every query but no object")
    assert "the 100 best pairs of query and class" in describe_outputs(preset_config("detrkit-s"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_part_of_every_preset_has_a_sentence_and_a_place(name: str) -> None:
    config = preset_config(name)
    for part in PARTS:
        assert describe_part(part, config)
        assert code_of(part, config).startswith("models/")


def test_a_backbone_of_timm_is_found_where_it_is_written_down() -> None:
    own = preset_config("detrkit-s")
    assert code_of("backbone", own) == "models/backbones/resnet.py"
    assert code_of("backbone", own.model_copy(update={"backbone": "timm:resnet18"})) == "models/backbones/timm.py"
