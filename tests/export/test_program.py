"""`.pt2` files: PyTorch's outputs, and no code of an untrusted file is executed."""

import json
import logging
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
from detrkit.export.graph import _without_pooling_guards, export_program
from detrkit.export.program import write_program
from detrkit.inference.engines.program import read_program
from detrkit.inference.engines.program_check import OPERATORS
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


def call_an_operator_that_trusts_its_indices(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten._sparse_coo_tensor_unsafe.default"


def call_a_backward_operator(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten._embedding_bag_dense_backward.default"


def call_an_operator_that_resizes_its_storage(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten.resize_.default"


def call_a_loss(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten._ctc_loss.default"


def call_an_overload_that_writes_to_another_tensor(graph: dict) -> None:
    first_node(graph)["target"] = "torch.ops.aten.conv2d.out"


def pass_an_unknown_argument(graph: dict) -> None:
    first_node(graph)["inputs"][0]["name"] = "out"


def pass_a_number_that_overflows(graph: dict) -> None:
    first_node(graph)["inputs"].append({"name": "groups", "arg": {"as_int": 2**62}, "kind": 1})


def compute_complex_numbers(graph: dict) -> None:
    first_node(graph)["inputs"].append({"name": "groups", "arg": {"as_scalar_type": 10}, "kind": 1})


def compute_on_another_device(graph: dict) -> None:
    device = {"as_device": {"type": "cuda", "index": None}}
    first_node(graph)["inputs"].append({"name": "groups", "arg": device, "kind": 1})


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


def contain_a_symbol_to_count_to(graph: dict) -> None:
    graph["range_constraints"]["u99999999999"] = {"min_val": 1, "max_val": 2}


def contain_code_as_a_name(graph: dict) -> None:
    graph["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x=print(1)"


def contain_another_class(graph: dict) -> None:
    call = graph["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("builtins.tuple", "subprocess.Popen")


HOSTILE_GRAPHS = [
    call_system,
    call_an_operator_that_opens_files,
    call_an_unknown_operator,
    call_an_operator_that_trusts_its_indices,
    call_a_backward_operator,
    call_an_operator_that_resizes_its_storage,
    call_a_loss,
    call_an_overload_that_writes_to_another_tensor,
    pass_an_unknown_argument,
    pass_a_number_that_overflows,
    compute_complex_numbers,
    compute_on_another_device,
    contain_python,
    contain_an_expression,
    contain_a_call_in_an_expression,
    contain_a_symbol_to_count_to,
    contain_code_as_a_name,
    contain_another_class,
]


def rewritten(path: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
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
    monkeypatch.chdir(tmp_path)
    hostile = rewritten(path, tmp_path / "hostile.pt2", with_changed(GRAPH, change))
    with pytest.raises(CheckpointError, match=r"hostile\.pt2: not readable as a \.pt2 file \((unexpected|it contains)"):
        read_program(hostile)
    assert not (tmp_path / "witness").exists()


def with_changed(name: str, change: Callable[[dict], None]) -> Callable[[dict[str, bytes]], None]:
    """Return a change of one JSON member of an archive."""

    def in_archive(members: dict[str, bytes]) -> None:
        content = json.loads(members[name])
        change(content)
        members[name] = json.dumps(content).encode()

    return in_archive


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [{"as_int": 10**9}], "strides": [{"as_int": 0}]}, "its file"),  # a few bytes, repeated
        ({"sizes": [{"as_int": 2**20}], "strides": [{"as_int": 1}]}, "its file"),  # beyond the end
        ({"storage_offset": {"as_int": 2**30}}, "its file"),
        ({"storage_offset": {"as_int": -1}}, "sizes"),
        ({"strides": []}, "strides"),
        ({"dtype": 10}, "scalar_type 10"),  # complex
        ({"device": {"type": "meta", "index": None}}, "unexpected device"),
    ],
)
def test_weight_that_does_not_fit_its_file_is_rejected(
    path: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    def of_first(content: dict) -> None:
        next(iter(content["config"].values()))["tensor_meta"].update(change)

    name = "data/weights/model_weights_config.json"
    with pytest.raises(CheckpointError, match=rf"not readable as a \.pt2 file \(.*{message}"):
        read_program(rewritten(path, tmp_path / "hostile.pt2", with_changed(name, of_first)))


def test_graph_that_would_fill_the_memory_is_rejected_before_it_runs(path: Path, tmp_path: Path) -> None:
    def enlarge(graph: dict) -> None:
        """Pad the input of the first convolution to a million pixels on each side."""
        padding = next(one for one in first_node(graph)["inputs"] if one["name"] == "padding")
        padding["arg"] = {"as_ints": [500_000, 500_000]}

    with pytest.raises(CheckpointError, match="which is too large"):
        read_program(rewritten(path, tmp_path / "hostile.pt2", with_changed(GRAPH, enlarge)))


FAMILIES = [
    "detr-r50-panoptic",
    "conditional-detr-r50",
    "dab-detr-r50",
    "deformable-detr-r50-two-stage",
    "detrkit-m",
    "deimv2-atto",
]


@pytest.mark.slow
@pytest.mark.parametrize("preset", FAMILIES)
def test_operators_of_every_architecture_are_allowed(preset: str) -> None:
    model = small_model(preset, backbone="resnet-tiny", hidden_dim=64, dim_feedforward=32, max_detections=10)
    targets = {node.target for node in trace(model, postprocess=True).graph.nodes if node.op == "call_function"}
    operators = {one for one in targets if isinstance(one, torch._ops.OpOverload)}
    assert {str(one).removeprefix("aten.") for one in operators} <= OPERATORS
    assert {one.__module__ for one in targets - operators} <= {"_operator"}


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


def test_nothing_is_logged_about_a_damaged_archive(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("torch.export"), "handle", logged.append)
    damaged = rewritten(path, tmp_path / "damaged.pt2", lambda members: members.pop("data/sample_inputs/model.pt"))
    with pytest.raises(CheckpointError, match=r"damaged\.pt2: not readable"):
        read_program(damaged)
    assert not logged


@pytest.mark.slow
def test_backbone_with_tensorflow_padding_is_exported_for_any_size(lite0: tuple[DETR, Path]) -> None:
    model, path = lite0
    batch = noise_batch([(97, 130), (97, 130)])
    with torch.inference_mode():
        expected = model(batch.images).class_logits
    torch.testing.assert_close(read_program(path).predict(batch).class_logits, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_pooling_is_traced_for_any_size_with_the_shape_function_of_torch_2_11(monkeypatch: pytest.MonkeyPatch) -> None:
    def division_with_a_guard(x: int, y: int) -> int:
        return x // y - 1 if x % y != 0 and (x % y < 0) != (y < 0) else x // y

    monkeypatch.setattr("torch._meta_registrations.div_rtn", division_with_a_guard)
    pool, height = torch.nn.MaxPool2d(3, stride=2, padding=1), torch.export.Dim("height", min=64, max=512)
    with _without_pooling_guards():
        program = torch.export.export(pool, (torch.zeros(1, 1, 160, 64),), dynamic_shapes=({2: height},)).module()
    for size in (64, 97, 160):
        image = torch.rand(1, 1, size, 64)
        assert torch.equal(program(image), pool(image))


@pytest.mark.slow
def test_small_image_is_rejected_if_padding_would_change_its_predictions(lite0: tuple[DETR, Path]) -> None:
    engine = read_program(lite0[1])
    with pytest.raises(DatasetError, match=r"100 x 40 px, .*at least 64 px"):
        engine.predict(noise_batch([(40, 100)]))
    detector = Detector(engine, CATEGORIES, Preprocessing(image_size=40))
    with pytest.raises(DatasetError, match=r"60 x 40 px, .*at least 64 px"):
        detector.predict(np.zeros((80, 120, 3), np.uint8))


@pytest.mark.slow
def test_small_image_is_padded_for_a_padding_invariant_model(model: DETR, path: Path) -> None:
    batch = noise_batch([(40, 100)])
    expected, actual = torch_engine(model).predict(batch), read_program(path).predict(batch)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_backbone_that_pads_by_the_image_size_is_rejected() -> None:
    model = small_model(backbone="timm:tf_efficientnet_lite0", backbone_normalization="frozen")
    model.backbone.body.add_module("pool", timm.layers.AvgPool2dSame(2))
    with pytest.raises(ExportError, match="pads by each image's size"):
        export_program(model.eval(), postprocess=False)
