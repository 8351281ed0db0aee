"""Speed of exported models.

    python -m benchmarks.export [--images FOLDER] [--rounds 20] [--threads 2]

One image of 800 x 1066 through DETR R50 with 91 classes and 100 queries and the same weights everywhere: `transformers`
DetrForObjectDetection and detrkit in PyTorch, eager, float32; ONNX Runtime, float32; OpenVINO, float32, bfloat16 and int8,
calibrated on the images of FOLDER (synthetic ones by default). All run in one process with the same number of threads and
take turns, image by image; prints the median and the minimum time. Measured from the preprocessed image to class logits and
boxes, without reading and resizing. First prints the maximum difference of each from transformers.
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

Output = tuple[Tensor, Tensor]  # class logits, boxes
SIZE = (800, 1066)
NUM_CALIBRATION = 16


def build_transformers() -> Any:
    """Build the model of transformers with random weights."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(backbone_config=ResNetConfig(out_features=["stage4"]), num_labels=91))
    return model.eval()


def build_detrkit(converted: Any) -> DETR:
    """Build detrkit's model with the weights of that of transformers."""
    model = detrkit.build_model("detr-r50", num_classes=91)
    load_state_dict(model, huggingface_to_detrkit(converted.state_dict()))
    return model.eval()


def load_samples(folder: Path | None) -> list[Sample]:
    """Load images for the calibration; the first one, at the size of the benchmark, is the measured one."""
    if folder is not None:
        from detrkit.data.images import read_image

        paths = list_inputs([str(folder)]).images[:NUM_CALIBRATION]
        drawn = SyntheticShapes(1, 0)[0]
        blank = type(drawn.annotations)(drawn.annotations.boxes[:0], drawn.annotations.labels[:0])
        samples = [Sample(read_image(path), blank, index, (1, 1)) for index, path in enumerate(paths)]
    else:
        samples = SyntheticShapes(NUM_CALIBRATION, seed=0, style=SyntheticStyle(size=320)).draw_all()
    return [resize(samples[0], SIZE), *(EvalTransform(480)(sample) for sample in samples[1:])]


def predict_with_transformers(model: Any) -> Callable[[Batch], Output]:
    """Return a function that predicts with transformers."""

    def predict(batch: Batch) -> Output:
        with torch.inference_mode():
            output = model(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        return output.logits, output.pred_boxes

    return predict


def predict_with_engine(engine: Engine) -> Callable[[Batch], Output]:
    """Return a function that predicts with an engine."""

    def predict(batch: Batch) -> Output:
        predictions = engine.predict(batch)
        return predictions.class_logits, predictions.boxes

    return predict


def build_cases(samples: Sequence[Sample], folder: Path) -> dict[str, Callable[[Batch], Output]]:
    """Build everything that is compared."""
    converted = build_transformers()
    model = build_detrkit(converted)
    model.padding_invariant = True
    program = export_program(model, postprocess=False)

    def described(precision: ExportPrecision) -> Any:
        return make_metadata(model.config, default_categories(91), Preprocessing(), precision, postprocess=False)

    cases = {
        "transformers, eager, float32": predict_with_transformers(converted),
        "detrkit, eager, float32": predict_with_engine(TorchEngine(model, torch.device("cpu"), padding_invariant=True)),
    }
    write_onnx(program, described("float32"), folder / "model.onnx")
    cases["ONNX Runtime, float32"] = predict_with_engine(load_exported(folder / "model.onnx"))
    precisions: tuple[ExportPrecision, ...] = ("float32", "bfloat16", "int8")
    for precision in precisions:
        path = folder / precision
        path.mkdir()
        write_openvino(program, described(precision), path, samples[1:])
        cases[f"OpenVINO, {precision}"] = predict_with_engine(load_exported(path))
    return cases


def measure(predicts: dict[str, Callable[[Batch], Output]], batch: Batch, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every prediction; the cases take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in predicts}
    for _ in range(rounds):
        for name, predict in predicts.items():
            start = time.perf_counter()
            predict(batch)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Export, compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    samples = load_samples(arguments.images)
    batch = collate(samples[:1])
    with tempfile.TemporaryDirectory() as folder:
        predicts = build_cases(samples, Path(folder))
        logits, boxes = next(iter(predicts.values()))(batch)
        for name, predict in predicts.items():
            for _ in range(3):  # warm-up; after the third, engines have a network for this size
                output = predict(batch)
            differences = [float((a - b).abs().max()) for a, b in zip(output, (logits, boxes), strict=True)]
            print(f"{name:30} differs by {differences[0]:.1e} in logits, {differences[1]:.1e} in boxes")
        seconds = measure(predicts, batch, arguments.rounds)
    baseline = next(iter(seconds.values()))
    for name, times in seconds.items():
        median, minimum = statistics.median(times), min(times)
        print(
            f"{name:30} {median * 1000:7.0f} ms, {statistics.median(baseline) / median:5.2f} times as fast; "
            f"minimum {minimum * 1000:7.0f} ms, {min(baseline) / minimum:5.2f}"
        )


if __name__ == "__main__":
    main()
