"""`.pt2` files: PyTorch's outputs, and no code of an untrusted file is executed."""

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
from detrkit.export.program import write_program
from detrkit.inference.engines.program import read_program
from detrkit.models.detr import DETR
from tests.export.models import CATEGORIES, SIZES, metadata_of, noise_batch, small_model, torch_engine, trace

GRAPH = "models/model.json"


@pytest.fixture(scope="module")
def path(exported: Callable[..., Path]) -> Path:
    return exported("torch")


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> tuple[DETR, Path]:
    """A model whose backbone pads as TensorFlow does, and its file."""
    model = small_model(backbone="timm:tf_efficientnet_lite0", backbone_normalization="frozen")
    path = tmp_path_factory.mktemp("lite0") / "model.pt2"
    write_program(trace(model), metadata_of(model), path)
    return model, path


def test_logits_and_boxes_equal_pytorch(model: DETR, path: Path) -> None:
    engine = read_program(path)
    assert engine.metadata == metadata_of(model)
    for sizes in SIZES:
        batch = noise_batch(sizes)
        expected, actual = torch_engine(model).predict(batch), engine.predict(batch)
        torch.testing.assert_close(actual.class_logits, expected.class_logits, rtol=0, atol=1e-3)
        torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)


def first_node(graph: dict) -> dict:
    return next(node for node in graph["graph_module"]["graph"]["nodes"] if "conv2d" in node["target"])


def call_system(graph: dict) -> None:
    first_node(graph)["target"] = "torch.os.system"


def call_an_operator_that_opens_files(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten.from_file.default"


def call_an_unknown_operator(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten.nothing.default"


def contain_python(graph: dict) -> None:
    graph["guards_code"] = ["__import__('os').system('touch witness')"]


def contain_an_expression(graph: dict) -> None:
    text = json.dumps(graph)
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    changed = json.loads(text[:start] + "__import__('os').system('touch witness')" + text[end:])
    graph.clear()
    graph.update(changed)


def contain_a_call_in_an_expression(graph: dict) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["metadata"] = {}
    graph["range_constraints"]["breakpoint()"] = {"min_val": 1, "max_val": 2}


def contain_code_as_a_name(graph: dict) -> None:
    graph["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x=print(1)"


def contain_another_class(graph: dict) -> None:
    call = graph["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("builtins.tuple", "subprocess.Popen")


HOSTILE_GRAPHS = [
    call_system,
    call_an_operator_that_opens_files,
    call_an_unknown_operator,
    contain_python,
    contain_an_expression,
    contain_a_call_in_an_expression,
    contain_code_as_a_name,
    contain_another_class,
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
def test_hostile_graph_is_rejected(
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


def test_pickles_and_binaries_are_rejected(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_unchanged_copy_of_the_archive_is_read(model: DETR, path: Path, tmp_path: Path) -> None:
    assert read_program(rewritten(path, tmp_path / "copy.pt2", lambda _: None)).config == model.config


@pytest.mark.slow
def test_backbone_with_tensorflow_padding_is_exported_for_any_size(lite0: tuple[DETR, Path]) -> None:
    model, path = lite0
    batch = noise_batch([(97, 130), (97, 130)])
    with torch.inference_mode():
        expected = model(batch.images).class_logits
    torch.testing.assert_close(read_program(path).predict(batch).class_logits, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_small_image_is_rejected_if_padding_would_change_its_predictions(lite0: tuple[DETR, Path]) -> None:
    engine = read_program(lite0[1])
    with pytest.raises(DatasetError, match=r"100 x 40 px, .*at least 64 px"):
        engine.predict(noise_batch([(40, 100)]))
    detector = Detector(engine, CATEGORIES, Preprocessing(image_size=40))
    with pytest.raises(DatasetError, match=r"60 x 40 px, .*at least 64 px"):
        detector.predict(np.zeros((80, 120, 3), np.uint8))


def test_small_image_is_padded_for_a_padding_invariant_model(model: DETR, path: Path) -> None:
    batch = noise_batch([(40, 100)])
    expected, actual = torch_engine(model).predict(batch), read_program(path).predict(batch)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_backbone_that_pads_by_the_image_size_is_rejected() -> None:
    model = small_model(backbone="timm:tf_efficientnet_lite0", backbone_normalization="frozen")
    model.backbone.body.add_module("pool", timm.layers.AvgPool2dSame(2))
    with pytest.raises(ExportError, match="pads by each image's size"):
        export_program(model.eval(), postprocess=False)
