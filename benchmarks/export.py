"""How fast does an exported DETR predict?

    python -m benchmarks.export [--photos FOLDER] [--rounds 20] [--threads 2]

One photo of 800 x 1066 through DETR R50 with 91 classes and 100 queries and the same weights everywhere: `transformers`
DetrForObjectDetection and detrkit in PyTorch, eager, float32; ONNX Runtime, float32; OpenVINO, float32, bfloat16 and int8,
whose ranges are measured on photos of FOLDER (drawn ones if not given). All in one process with the same number of
threads. They take turns, photo by photo; the middle time counts, and the shortest is printed beside it. Prepared photos
go in, class logits and boxes come out; reading and resizing are not counted. First the largest difference of each from
transformers is printed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import detrkit
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit
from detrkit.checkpoints.native import Preprocessing
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.data.batching import collate
from detrkit.data.categories import default_categories
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.geometry import EvalTransform, resize
from detrkit.export.graph import export_program
from detrkit.export.onnx import write_onnx
from detrkit.export.openvino import write_openvino
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.metadata import ExportPrecision, make_metadata
from detrkit.inference.engines.torch import Engine, TorchEngine
from detrkit.inference.inputs import list_inputs
from detrkit.models.detr import DETR
from detrkit.structures import Batch, Sample

Answer = tuple[Tensor, Tensor]
SIZE = (800, 1066)
NUM_CALIBRATION = 16


def build_transformers() -> Any:
    """Their model with random weights, and norms that do something."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(backbone_config=ResNetConfig(out_features=["stage4"]), num_labels=91))
    return model.eval()


def build_ours(theirs: Any) -> DETR:
    """Our model with their weights."""
    model = detrkit.build_model("detr-r50", num_classes=91)
    load_state_dict(model, huggingface_to_detrkit(theirs.state_dict()))
    return model.eval()


def prepared_photos(folder: Path | None) -> list[Sample]:
    """Photos to calibrate with; the first one, at the size of the benchmark, is what is timed."""
    if folder is not None:
        from detrkit.data.images import read_image

        paths = list_inputs([str(folder)]).photos[:NUM_CALIBRATION]
        drawn = SyntheticShapes(1, 0)[0]
        blank = type(drawn.annotations)(drawn.annotations.boxes[:0], drawn.annotations.labels[:0])
        photos = [Sample(read_image(path), blank, index, (1, 1)) for index, path in enumerate(paths)]
    else:
        photos = SyntheticShapes(NUM_CALIBRATION, seed=0, style=SyntheticStyle(size=320)).draw_all()
    return [resize(photos[0], SIZE), *(EvalTransform(480)(photo) for photo in photos[1:])]


def their_predict(model: Any) -> Callable[[Batch], Answer]:
    """One prediction of transformers."""

    def predict(batch: Batch) -> Answer:
        with torch.inference_mode():
            found = model(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        return found.logits, found.pred_boxes

    return predict


def our_predict(engine: Engine) -> Callable[[Batch], Answer]:
    """One prediction of an engine of ours."""

    def predict(batch: Batch) -> Answer:
        predictions = engine.predict(batch)
        return predictions.class_logits, predictions.boxes

    return predict


def contenders(photos: Sequence[Sample], folder: Path) -> dict[str, Callable[[Batch], Answer]]:
    """Everything that takes part."""
    theirs = build_transformers()
    ours = build_ours(theirs)
    program = export_program(ours, padding_invariant=True, postprocess=False)

    def described(precision: ExportPrecision) -> Any:
        return make_metadata(ours.config, default_categories(91), Preprocessing(), precision, postprocess=False)

    found = {
        "transformers, eager, float32": their_predict(theirs),
        "detrkit, eager, float32": our_predict(TorchEngine(ours, torch.device("cpu"), padding_invariant=True)),
    }
    write_onnx(program, described("float32"), folder / "model.onnx")
    found["ONNX Runtime, float32"] = our_predict(load_exported(folder / "model.onnx"))
    precisions: tuple[ExportPrecision, ...] = ("float32", "bfloat16", "int8")
    for precision in precisions:
        place = folder / precision
        place.mkdir()
        write_openvino(program, described(precision), place, photos[1:])
        found[f"OpenVINO, {precision}"] = our_predict(load_exported(place))
    return found


def take_turns(predicts: dict[str, Callable[[Batch], Answer]], batch: Batch, rounds: int) -> dict[str, list[float]]:
    """Seconds per prediction of each, one after the other, again and again."""
    seconds: dict[str, list[float]] = {name: [] for name in predicts}
    for _ in range(rounds):
        for name, predict in predicts.items():
            start = time.perf_counter()
            predict(batch)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Export, compare, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    photos = prepared_photos(given.photos)
    batch = collate(photos[:1])
    with tempfile.TemporaryDirectory() as folder:
        predicts = contenders(photos, Path(folder))
        logits, boxes = next(iter(predicts.values()))(batch)
        for name, predict in predicts.items():
            for _ in range(3):  # warm; the third time, a size has a network of its own
                found = predict(batch)
            off = (float((found[0] - logits).abs().max()), float((found[1] - boxes).abs().max()))
            print(f"{name:30} differs by {off[0]:.1e} in logits, {off[1]:.1e} in boxes")
        seconds = take_turns(predicts, batch, given.rounds)
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        middle, shortest = statistics.median(times), min(times)
        print(
            f"{name:30} {middle * 1000:7.0f} ms, {statistics.median(first) / middle:5.2f} times as fast; "
            f"shortest {shortest * 1000:7.0f} ms, {min(first) / shortest:5.2f}"
        )


if __name__ == "__main__":
    main()
