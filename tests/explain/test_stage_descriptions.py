"""Descriptions of the stages follow the configuration of the model."""

from pathlib import Path

import pytest
import torch

import detrkit
from detrkit import build_model
from detrkit.explain.stage_descriptions import describe_outputs, describe_part
from detrkit.explain.stages import PARTS, capture_stages
from detrkit.models.presets import PRESETS, preset_config


@pytest.mark.parametrize(
    ("part", "of_detr", "of_detrkit"),
    [
        ("backbone", "the last one is used", "the last 2 are used"),
        ("neck.projection", "each cell becomes a token", "each cell of all 2 maps becomes a token"),
        ("neck.positions", "added to queries and keys", "not used without encoder layers"),
        ("encoder", "every token attends to all tokens", "no layers in this model"),
        (
            "query_source",
            "learned embeddings, the same for every image",
            "highest scores become the queries of this image",
        ),
        (
            "decoder",
            "initialised with zeros, attend to each other and to the memory",
            "4 sampling points in each of 2 maps",
        ),
        ("heads.class_head", "a softmax over the classes and, last, no object", "an independent sigmoid score"),
        ("heads.box_head", "center, width and height", "offset from the previous box"),
    ],
)
def test_detr_and_detrkit_are_described_differently(part: str, of_detr: str, of_detrkit: str) -> None:
    detr, own = (describe_part(part, preset_config(name)) for name in ("detr-r50", "detrkit-s"))
    assert of_detr in detr
    assert of_detrkit in own
    assert of_detr not in own


@pytest.mark.parametrize(
    ("name", "part", "text"),
    [
        ("detrkit-m", "encoder", "every token attends to 4 sampling points in each of 3 maps per head"),
        ("detrkit-m", "neck.positions", "feature level of each cell: in the encoder added to the queries, since"),
        ("detrkit-m", "query_source", "the memory of its cell, and a learned embedding of its rank"),
        ("deformable-detr-r50-two-stage", "query_source", "Each query is the sine encoding of that box"),
        ("deformable-detr-r50", "neck.projection", "1 coarser map computed from the last one"),
        ("deformable-detr-r50", "query_source", "learned embeddings, each with a point"),
        ("deformable-detr-r50", "heads.box_head", "offset from its reference point"),
        (
            "deformable-detr-r50-single-scale",
            "decoder",
            "the queries attend to each other and to 4 sampling points per head",
        ),
        (
            "conditional-detr-r50",
            "decoder",
            "initialised with zeros, attend to each other and to the memory, by content and by position",
        ),
        ("conditional-detr-r50", "neck.positions", "in the decoder compared with the positions of the queries"),
        ("dab-detr-r50", "query_source", "learned boxes"),
        ("dab-detr-r50", "decoder", "each layer refines the boxes of the previous one"),
    ],
)
def test_variants_are_described_by_their_configuration(name: str, part: str, text: str) -> None:
    assert text in describe_part(part, preset_config(name))


def test_position_encodings_are_described_where_they_are_added() -> None:
    once = preset_config("detr-r50", encoder_positions="input", decoder_positions="none")
    assert "in the encoder added once, to its input, in the decoder not used" in describe_part("neck.positions", once)
    assert "no position encoding" in describe_part(
        "neck.positions", preset_config("detr-r50", position_embedding="none")
    )


def test_outputs_are_queries_for_softmax_and_pairs_for_sigmoid() -> None:
    assert describe_outputs(preset_config("detr-r50")).startswith("best class of every query, excluding no object")
    assert "the 100 best pairs of query and class" in describe_outputs(preset_config("detrkit-s"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_part_of_every_preset_has_a_description(name: str) -> None:
    config = preset_config(name)
    assert all(describe_part(part, config) for part in PARTS)


@pytest.mark.parametrize("name", ["detr-tiny", "detrkit-s", "detrkit-m"])
def test_source_files_of_all_parts_exist(name: str) -> None:
    model = build_model(name).eval()
    with capture_stages(model) as stages, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    package = Path(detrkit.__file__).parent
    files = {stage.part: stage.file for stage in stages}
    assert set(files) == set(PARTS) - {"mask_head"}
    assert all((package / file).is_file() and file.startswith("models/") for file in files.values())
    assert files["query_source"] == f"models/queries/{'sources' if name == 'detr-tiny' else 'two_stage'}.py"
