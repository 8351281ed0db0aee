"""Targets: exported models. The network is a few operations with the inputs and outputs of a detector."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from detrkit.checkpoints.export_formats import METADATA_FILE, NETWORK_FILE
from detrkit.checkpoints.native import Preprocessing
from detrkit.data.batching import collate
from detrkit.data.dataset import unannotated
from detrkit.export.program import write_program
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.metadata import METADATA_KEY, ExportMetadata, make_metadata
from detrkit.inference.engines.onnx import read_onnx
from detrkit.inference.engines.openvino import load_openvino, read_openvino
from detrkit.inference.engines.program import read_program
from tests.fuzz.checkpoint_targets import CATEGORIES, TINY, tiny_model
from tests.fuzz.dataset_targets import write_files
from tests.fuzz.target import Target

_QUERIES, _LOGITS = int(str(TINY["num_queries"])), int(str(TINY["num_classes"])) + 1
_SIDE = 64


class TinyNetwork(nn.Module):
    """A network with the inputs and outputs of an exported detector."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.randn(_QUERIES, _LOGITS))
        self.corners = nn.Parameter(torch.randn(_QUERIES, 4))

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        mean = (images * ~padding_mask[:, None]).mean((1, 2, 3))[:, None, None]
        return mean * self.classes, torch.sigmoid(mean * self.corners)


@cache
def tiny_program() -> torch.export.ExportedProgram:
    """Return the traced network, for batches of any size."""
    batch, height, width = (
        torch.export.Dim("batch"),
        torch.export.Dim("height", min=32),
        torch.export.Dim("width", min=32),
    )
    shapes = {"images": {0: batch, 2: height, 3: width}, "padding_mask": {0: batch, 1: height, 2: width}}
    inputs = torch.zeros(2, 3, _SIDE, _SIDE + 1), torch.zeros(2, _SIDE, _SIDE + 1, dtype=torch.bool)
    return torch.export.export(TinyNetwork().eval(), inputs, dynamic_shapes=shapes, strict=False)


def tiny_metadata() -> ExportMetadata:
    """Return the metadata of the network."""
    return make_metadata(tiny_model().config, CATEGORIES, Preprocessing(image_size=_SIDE), "float32", postprocess=False)


def use_engine(engine: ExportedEngine) -> None:
    """Predict an image."""
    metadata = engine.metadata
    metadata.named_categories, metadata.preprocessing.describe()
    channels = metadata.model.in_channels
    metadata.preprocessing.transform(channels)(unannotated(torch.zeros(channels, 24, 32, dtype=torch.uint8)))
    engine.predict(collate([unannotated(torch.zeros(channels, _SIDE, _SIDE, dtype=torch.uint8))]))


# metadata alone


def _metadata_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    yield [tiny_metadata().to_text().encode()]


def _metadata_run(files: Sequence[bytes], _folder: Path) -> None:
    metadata = ExportMetadata.from_text(files[0].decode("utf-8", "replace"), "model.onnx")
    metadata.named_categories, metadata.min_side, metadata.output_names, metadata.preprocessing.describe()
    metadata.to_text().encode()


# ONNX: metadata, and the network without it


@cache
def onnx_network() -> bytes:
    """Return the network as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    network = TinyNetwork()
    axes = {"images": ("batch", 3, "height", "width"), "padding_mask": ("batch", "height", "width")}
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.BOOL if name == "padding_mask" else TensorProto.FLOAT, list(shape)
        )
        for name, shape in axes.items()
    ]
    outputs = [
        helper.make_tensor_value_info("class_logits", TensorProto.FLOAT, ["batch", _QUERIES, _LOGITS]),
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", _QUERIES, 4]),
    ]
    constants = [
        numpy_helper.from_array(network.classes.detach().numpy(), "classes"),
        numpy_helper.from_array(network.corners.detach().numpy(), "corners"),
        numpy_helper.from_array(torch.tensor([1, 2, 3]).numpy(), "axes"),
        numpy_helper.from_array(torch.tensor([-1, 1, 1]).numpy(), "shape"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"]),
        helper.make_node("Reshape", ["mean", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "classes"], ["class_logits"]),
        helper.make_node("Mul", ["flat", "corners"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["boxes"]),
    ]
    graph = helper.make_graph(nodes, "network", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def with_metadata(network: bytes, text: bytes) -> bytes:
    """Append metadata to an ONNX file: files of one message can be concatenated."""
    entry = b"\x0a" + _varint(len(METADATA_KEY)) + METADATA_KEY.encode() + b"\x12" + _varint(len(text)) + text
    return network + b"\x72" + _varint(len(entry)) + entry  # metadata_props is field 14 of a model


def _varint(number: int) -> bytes:
    parts = []
    while number >= 0x80:
        parts.append(number % 0x80 | 0x80)
        number //= 0x80
    return bytes([*parts, number])


def _onnx_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    yield [tiny_metadata().to_text().encode(), onnx_network()]


def _onnx_run(files: Sequence[bytes], folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(with_metadata(files[1], files[0]))
    use_engine(read_onnx(path))


# torch.export: metadata, graph, list of weights


def _program_files(folder: Path) -> dict[str, bytes]:
    path = folder / "tiny.pt2"
    write_program(tiny_program(), tiny_metadata(), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


_PROGRAM_PARTS = (f"extra/{METADATA_FILE}", "models/model.json", "data/weights/model_weights_config.json")


def _program_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    files = _program_files(folder)
    yield [files[name] for name in _PROGRAM_PARTS]


def _program_prepare(folder: Path) -> None:
    for name, content in _program_files(folder).items():
        path = folder / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)  # one of them is empty


def _program_run(files: Sequence[bytes], folder: Path) -> None:
    buffer = io.BytesIO()
    changed = dict(zip(_PROGRAM_PARTS, files, strict=True))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(one for one in (folder / "parts").rglob("*") if one.is_file()):
            name = path.relative_to(folder / "parts").as_posix()
            archive.writestr(f"model/{name}", changed.get(name, path.read_bytes()))
    (folder / "model.pt2").write_bytes(buffer.getvalue())
    use_engine(read_program(folder / "model.pt2"))


# OpenVINO: metadata, network


def _openvino_network(folder: Path) -> tuple[bytes, bytes]:
    openvino = load_openvino()
    source = folder / "network.onnx"
    source.write_bytes(onnx_network())
    openvino.save_model(openvino.convert_model(source), folder / "saved.xml", compress_to_fp16=False)
    return (folder / "saved.xml").read_bytes(), (folder / "saved.bin").read_bytes()


def _openvino_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    yield [tiny_metadata().to_text().encode(), _openvino_network(folder)[0]]


def _openvino_prepare(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "model.bin").write_bytes(_openvino_network(folder)[1])


def _openvino_run(files: Sequence[bytes], folder: Path) -> None:
    write_files(folder, {f"model/{METADATA_FILE}": files[0], f"model/{NETWORK_FILE}": files[1]})
    use_engine(read_openvino(folder / "model"))


TARGETS = (
    Target("metadata", ("json",), _metadata_run, _metadata_seeds),
    Target("onnx", ("json", "bytes"), _onnx_run, _onnx_seeds, is_slow=True),
    Target("program", ("json", "json", "json"), _program_run, _program_seeds, _program_prepare, is_slow=True),
    Target("openvino", ("json", "xml"), _openvino_run, _openvino_seeds, _openvino_prepare, is_slow=True),
)
