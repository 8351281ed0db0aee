"""Small models to export, and batches to compare them on."""

import torch

from detrkit import build_model
from detrkit.checkpoints.native import Preprocessing
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.export.graph import export_program
from detrkit.inference.engines.metadata import ExportMetadata, ExportPrecision, make_metadata
from detrkit.inference.engines.torch import TorchEngine
from detrkit.models.detr import DETR
from detrkit.structures import Annotations, Batch, Sample

CATEGORIES = Categories(ids=(3, 18, 44), names=("circle", "dog <br>", "Flasche"))
PREPROCESSING = Preprocessing(image_size=64)
SIZES = [[(96, 128)], [(64, 64), (100, 70)], [(130, 97), (64, 200), (88, 88), (97, 64)], [(30, 75)], [(96, 128)]]


def small_model(name: str = "detr-tiny", **overrides: object) -> DETR:
    """Build a model with few layers, whose scores differ between queries and whose norms are not the identity."""
    torch.manual_seed(0)
    settings = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 10, **overrides}
    model = build_model(name, num_classes=len(CATEGORIES), **settings)
    with torch.no_grad():
        model.heads.class_head.weight.mul_(20)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def metadata_of(
    model: DETR,
    preprocessing: Preprocessing = PREPROCESSING,
    precision: ExportPrecision = "float32",
    postprocess: bool = False,
) -> ExportMetadata:
    return make_metadata(model.config, CATEGORIES, preprocessing, precision, postprocess)


def trace(model: DETR, postprocess: bool = False, padding_invariant: bool = True) -> torch.export.ExportedProgram:
    model.padding_invariant = padding_invariant
    return export_program(model, postprocess=postprocess)


def noise_samples(sizes: list[tuple[int, int]], channels: int = 3) -> list[Sample]:
    """Return samples of noise with these (height, width) and no annotations."""
    generator = torch.Generator().manual_seed(len(sizes) + sizes[0][0])
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    pixels = [torch.randint(0, 256, (channels, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return [Sample(image, nothing, index, size) for index, (image, size) in enumerate(zip(pixels, sizes, strict=True))]


def noise_batch(sizes: list[tuple[int, int]], channels: int = 3) -> Batch:
    return collate(noise_samples(sizes, channels))


def torch_engine(model: DETR, padding_invariant: bool = True) -> TorchEngine:
    return TorchEngine(model, torch.device("cpu"), padding_invariant)
