"""`.pt2` files: the numbers of PyTorch, and nothing in a file from anyone is ever run but arithmetic."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from detrkit import Detector
from detrkit.checkpoints.native import Preprocessing
from detrkit.errors import CheckpointError, DatasetError, ExportError
from detrkit.export.graph import export_program
from detrkit.export.program_file import write_program
from detrkit.inference.engines.program import read_program
from detrkit.models.detr import DETR
from tests.export.models import CATEGORIES, SIZES, batch_of, described, eager, small_model, traced

GRAPH = "models/model.json"


@pytest.fixture(scope="module")
def model() -> DETR:
    return small_model(decoder_layers=1)


@pytest.fixture(scope="module")
def path(model: DETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    write_program(traced(model), described(model), path)
    return path


def test_logits_and_boxes_are_those_of_pytorch(model: DETR, path: Path) -> None:
    engine = read_program(path)
    assert engine.metadata == described(model)
    for sizes in SIZES:
        batch = batch_of(sizes)
        expected, found = eager(model).predict(batch), engine.predict(batch)
        torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)


def first_node(graph: dict) -> dict:
    return next(node for node in graph["graph_module"]["graph"]["nodes"] if "conv2d" in node["target"])


def call_system(graph: dict) -> None:
    first_node(graph)["target"] = "torch.os.system"


def call_a_file_opener(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten.from_file.default"


def call_something_unknown(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten.nothing.default"


def hold_python(graph: dict) -> None:
    graph["guards_code"] = ["__import__('os').system('touch witness')"]


def hold_an_expression(graph: dict) -> None:
    text = json.dumps(graph)
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    changed = json.loads(text[:start] + "__import__('os').system('touch witness')" + text[end:])
    graph.clear()
    graph.update(changed)


def hold_a_call_in_an_expression(graph: dict) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["metadata"] = {}
    graph["range_constraints"]["breakpoint()"] = {"min_val": 1, "max_val": 2}


def hold_a_name_that_is_code(graph: dict) -> None:
    graph["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x=print(1)"


def hold_another_class(graph: dict) -> None:
    call = graph["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("builtins.tuple", "subprocess.Popen")


HOSTILE_GRAPHS = [
    call_system,
    call_a_file_opener,
    call_something_unknown,
    hold_python,
    hold_an_expression,
    hold_a_call_in_an_expression,
    hold_a_name_that_is_code,
    hold_another_class,
]


def rewritten(path: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Copy an archive with its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return target


@pytest.mark.parametrize("change", HOSTILE_GRAPHS, ids=lambda change: change.__name__)
def test_a_hostile_graph_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict], None]
) -> None:
    def in_archive(members: dict[str, bytes]) -> None:
        graph = json.loads(members[GRAPH])
        change(graph)
        members[GRAPH] = json.dumps(graph).encode()

    monkeypatch.chdir(tmp_path)
    hostile = rewritten(path, tmp_path / "hostile.pt2", in_archive)
    with pytest.raises(CheckpointError, match=r"hostile\.pt2: not readable as a \.pt2 file \((unexpected|it contains)"):
        read_program(hostile)
    assert not (tmp_path / "witness").exists()


class _Witness:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("witness"),)  # type: ignore[return-value]


def test_pickles_are_never_opened(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def as_examples(members: dict[str, bytes]) -> None:
        members["data/sample_inputs/model.pt"] = pickle.dumps(_Witness())

    def as_weight(members: dict[str, bytes]) -> None:
        content = json.loads(members["data/weights/model_weights_config.json"])
        next(iter(content["config"].values()))["use_pickle"] = True
        members["data/weights/model_weights_config.json"] = json.dumps(content).encode()

    def as_another_file(members: dict[str, bytes]) -> None:
        members["data/aotinductor/model/model.so"] = b"\x7fELF"

    for change in (as_examples, as_weight, as_another_file):
        with pytest.raises(CheckpointError, match=r"pickled|unexpected"):
            read_program(rewritten(path, tmp_path / "hostile.pt2", change))
    assert not (tmp_path / "witness").exists()


def test_an_unchanged_copy_is_read(model: DETR, path: Path, tmp_path: Path) -> None:
    """So that the refusals above are for what was changed."""
    assert read_program(rewritten(path, tmp_path / "copy.pt2", lambda _: None)).config == model.config


def test_a_backbone_that_padded_as_tensorflow_does_is_exported_for_any_size(tmp_path: Path) -> None:
    model = small_model(backbone="timm:tf_efficientnet_lite0", backbone_normalization="frozen").eval()
    write_program(traced(model), described(model), tmp_path / "model.pt2")
    engine, batch = read_program(tmp_path / "model.pt2"), batch_of([(97, 130), (97, 130)])
    with torch.inference_mode():
        expected = model(batch.images).class_logits
    torch.testing.assert_close(engine.predict(batch).class_logits, expected, rtol=0, atol=1e-4)


def test_a_photo_that_a_leaking_network_would_have_to_pad_is_refused(tmp_path: Path) -> None:
    model = small_model(backbone="timm:tf_efficientnet_lite0", backbone_normalization="frozen").eval()
    write_program(traced(model), described(model), tmp_path / "model.pt2")
    engine = read_program(tmp_path / "model.pt2")
    sentence = (
        f"resized to 100 x 40 px, expected at least 64 px per side for {tmp_path / 'model.pt2'}, which is not padding"
    )
    with pytest.raises(DatasetError, match=sentence):
        engine.predict(batch_of([(40, 100)]))
    detector = Detector(engine, CATEGORIES, Preprocessing(image_size=40))
    with pytest.raises(DatasetError, match=r"resized to 60 x 40 px, expected at least 64 px per side"):
        detector.predict(np.zeros((80, 120, 3), np.uint8))


def test_a_small_photo_is_padded_where_padding_stays_out(model: DETR, path: Path) -> None:
    batch = batch_of([(40, 100)])
    expected, found = eager(model).predict(batch), read_program(path).predict(batch)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_a_backbone_that_pads_by_the_photos_size_is_refused_at_once() -> None:
    model = small_model(backbone="timm:tf_efficientnet_lite0", backbone_normalization="frozen")
    model.backbone.body.add_module("pool", timm.layers.AvgPool2dSame(2))
    with pytest.raises(ExportError, match="pads by each photo's size"):
        export_program(model.eval(), padding_invariant=False, postprocess=False)
