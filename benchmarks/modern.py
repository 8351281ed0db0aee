"""Speed of real-time detectors next to transformers.

    python -m benchmarks.modern [--models dfine-n dfine-s ... rfdetr-seg-nano] [--rounds 20] [--steps 8] [--threads 2]

Prediction: one image of the published size (640 x 640 pixels, or smaller), 80 classes, the same random weights everywhere:
transformers in PyTorch, eager; detrkit eager, ONNX Runtime, OpenVINO in float32, bfloat16 and int8, calibrated on drawn
images. All run in one process with the same number of threads and take turns, image by image; from the prepared image to
class logits and boxes. DEIMv2 is that of transformers, see `deimv2_huggingface`, and only its predictions are measured.

Training: seconds and peak memory per step (forward, denoising, losses of all layers, backward, clipping, AdamW) on a batch
of 4 images (ViTs: 2) of the published size with 8 objects each. Each library has its own process; they take turns, step by
step, after the losses without denoising were compared: all of RT-DETR, LW-DETR and RF-DETR; of D-FINE, those of classes.
transformers 5.24 does not have its union of matches, leaves out the next to last layer and the distributions of the last
one, and pairs the distributions of a layer with the boxes of the one before.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.export import measure
from benchmarks.training import (
    Step,
    answer_requests,
    labels_of,
    make_batch,
    measure_workers,
    start_worker,
    transformers_step,
)
from torch import Tensor

import detrkit
from detrkit.checkpoints.conversion import deimv2_huggingface
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit, write_huggingface_folder
from detrkit.checkpoints.conversion.registry import HUGGINGFACE
from detrkit.checkpoints.native import Checkpoint, default_preprocessing
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.config.training import TrainingConfig
from detrkit.data.categories import contiguous_coco_categories, default_categories
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.geometry import resize
from detrkit.export.graph import export_program
from detrkit.export.onnx import write_onnx
from detrkit.export.openvino import write_openvino
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.metadata import ExportPrecision, make_metadata
from detrkit.inference.engines.torch import Engine, TorchEngine
from detrkit.models.detr import DETR
from detrkit.models.presets import preset_config
from detrkit.structures import Batch
from detrkit.training import foundation_recipes, realtime_recipes
from detrkit.training.auxiliary_queries import with_auxiliary_queries
from detrkit.training.build import build_criterion
from detrkit.training.train_step import TrainStep

Outputs = tuple[Tensor, ...]
VITS = ("rfdetr-nano", "rfdetr-seg-nano", "lwdetr-tiny")
MODELS = ("dfine-n", "dfine-s", "rtdetr-r18", "rtdetr-r50", *VITS, "deimv2-atto", "deimv2-n")
# transformers' losses of DEIMv2 are not those of its authors, and those of masks are at random points
PREDICTIONS_ONLY = ("deimv2-atto", "deimv2-n", "rfdetr-seg-nano")
NUM_CLASSES, NUM_OBJECTS = 80, 8
# architecture, class and class of the backbone's configuration in transformers
CLASSES = {
    "rtdetr-r18": ("rtdetr", "RTDetr", "RTDetrResNetConfig"),
    "rtdetr-r50": ("rtdetr", "RTDetr", "RTDetrResNetConfig"),
    "rtdetrv2-s": ("rtdetrv2", "RTDetrV2", "RTDetrResNetConfig"),
    "dfine-n": ("dfine", "DFine", "HGNetV2Config"),
    "dfine-s": ("dfine", "DFine", "HGNetV2Config"),
    "deimv2-atto": ("deimv2", "Deimv2", "HGNetV2Config"),
    "deimv2-n": ("deimv2", "Deimv2", "HGNetV2Config"),
}
# settings with which detrkit computes what transformers does
SETTINGS = {"deimv2": deimv2_huggingface.FIELDS}
LEARNED_QUERIES = ("query_feat.weight", "reference_point_embed.weight")
# weights that move sampling points, by which rounding errors grow from layer to layer
MOVING = ("sampling_offsets", "offset_projection", "bbox_", "box_head", "output_proj")


def build_transformers(preset: str) -> Any:
    """Build transformers' model of a preset with random weights, in eval mode."""
    torch.manual_seed(0)
    model = _vit_of_transformers(preset) if preset in VITS else _realtime_of_transformers(preset)
    randomize(model)
    return model.eval()


def _vit_of_transformers(preset: str) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = detrkit.build_model(preset, num_classes=NUM_CLASSES)
    preprocessing = default_preprocessing(model.config)
    with tempfile.TemporaryDirectory() as folder:
        write_huggingface_folder(
            Path(folder), Checkpoint(model.state_dict(), model.config, default_categories(NUM_CLASSES), preprocessing)
        )
        (architecture,) = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"]
        return getattr(transformers, architecture).from_pretrained(folder, auxiliary_loss=True)


def _realtime_of_transformers(preset: str) -> Any:
    import transformers

    architecture, name, backbone = CLASSES[preset]
    config = preset_config(preset, **settings_of(preset))
    fields: dict[str, Any] = HUGGINGFACE[architecture].config_fields(config)
    own = {key: value for key, value in fields["backbone_config"].items() if key != "model_type"}
    fields["backbone_config"] = getattr(transformers, backbone)(**own)
    settings = getattr(transformers, f"{name}Config")(
        num_labels=NUM_CLASSES,
        num_queries=config.num_queries,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        decoder_ffn_dim=config.dim_feedforward,
        auxiliary_loss=True,
        **fields,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(settings)


def settings_of(preset: str) -> dict[str, Any]:
    """Return the settings of a preset that transformers computes otherwise than its authors."""
    return dict(SETTINGS.get(CLASSES[preset][0], {})) if preset in CLASSES else {}


def side_of(preset: str) -> int:
    """Return the published side of images, in pixels."""
    return int(published_settings(preset)["image_size"])


def published_settings(preset: str) -> dict[str, Any]:
    """Return the published settings of training."""
    if preset in VITS:
        settings = foundation_recipes.reference_settings(preset, preset_config(preset), TrainingConfig())
    else:
        settings = realtime_recipes.reference_settings(preset)
    return {name: value for name, (value, _) in settings.items()}


def randomize(model: torch.nn.Module) -> None:
    """Draw all weights but constants (initial zeros and ones would hide swapped names), and measure the norms' statistics.

    Features of cells have to differ, or equally good cells are selected by rounding errors. Learned contents of queries are
    the same for all, as cells of nearly equal scores may change their ranks; the tests of parity have other images.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            last = name.rpartition(".")[2]
            if last == "running_var":
                tensor.uniform_(0.5, 1.5)
            elif last == "running_mean":
                tensor.normal_(0, 0.05)
            elif last in ("up", "reg_scale", "n_points_scale", "num_points_scale") or not tensor.is_floating_point():
                continue
            elif name.endswith(LEARNED_QUERIES):
                tensor.copy_(0.1 * torch.randn_like(tensor[:1]).expand_as(tensor))
            elif tensor.ndim == 1:
                tensor.add_(0.05 * torch.randn_like(tensor))
            else:
                gain = 0.3 if any(part in name for part in MOVING) else (2.0 if tensor.ndim == 4 else 1.0) ** 0.5
                tensor.normal_(0, gain * tensor[0].numel() ** -0.5)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
        model.train()(draw_image((320, 320)))
        model.eval()


def draw_image(size: tuple[int, int]) -> Tensor:
    """Draw an image of waves and noise, in 0 .. 1."""
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    waves = torch.stack(
        [(x / 17 + color).sin() + (y / (23 + color)).cos() + (x * y / 9000).sin() for color in range(3)]
    )
    return (0.5 + 0.15 * waves + 0.1 * torch.randn(3, *size)).clamp(0, 1)[None]


def build_detrkit(preset: str, converted: Any) -> DETR:
    """Build detrkit's model with the weights of that of transformers, in eval mode."""
    model = detrkit.build_model(preset, num_classes=NUM_CLASSES, **settings_of(preset))
    load_state_dict(model, huggingface_to_detrkit(converted.state_dict()))
    return model.eval()


def differences(output: Outputs, expected: Outputs) -> list[float]:
    """Return the largest difference of a logit, a box and a mask; queries of equally good cells may be swapped."""
    rows = torch.cdist(torch.cat(expected[:2], -1)[0], torch.cat(output[:2], -1)[0]).argmin(1)
    return [float((one[0, rows] - other[0]).abs().max()) for one, other in zip(output, expected, strict=True)]


def predict_with_engine(engine: Engine) -> Callable[[Batch], Outputs]:
    """Return a function that predicts class logits, boxes and, if the model has them, the masks of all queries."""

    def predict(batch: Batch) -> Outputs:
        predictions = engine.predict(batch)
        masks = predictions.masks
        return (predictions.class_logits, predictions.boxes, *(() if masks is None else (masks,)))

    return predict


def report_predictions(preset: str, rounds: int) -> None:
    """Export, compare, measure, print."""
    converted = build_transformers(preset)
    model = build_detrkit(preset, converted)
    side = side_of(preset)
    image, size = draw_image((side, side)), [(side, side)]
    batch = Batch(image, torch.zeros(1, side, side, dtype=torch.bool), [], [0], size, size)

    def with_transformers(batch: Batch) -> Outputs:
        with torch.inference_mode():
            output = converted(pixel_values=batch.images)
        masks = getattr(output, "pred_masks", None)
        return (output.logits, output.pred_boxes, *(() if masks is None else (masks,)))

    drawn = SyntheticShapes(16, seed=0, style=SyntheticStyle(size=320)).draw_all()
    calibration = [resize(sample, (side, side)) for sample in drawn]
    program = export_program(model, postprocess=False)
    cases: dict[str, Callable[[Batch], Outputs]] = {
        "transformers, eager": with_transformers,
        "detrkit, eager": predict_with_engine(TorchEngine(model, torch.device("cpu"), padding_invariant=False)),
    }
    with tempfile.TemporaryDirectory() as folder:

        def described(precision: ExportPrecision) -> Any:
            preprocessing = default_preprocessing(model.config)
            return make_metadata(
                model.config, contiguous_coco_categories(), preprocessing, precision, postprocess=False
            )

        path = Path(folder) / "model.onnx"
        write_onnx(program, described("float32"), path)
        cases["ONNX Runtime"] = predict_with_engine(load_exported(path))
        precisions: tuple[ExportPrecision, ...] = ("float32", "bfloat16", "int8")
        for precision in precisions:
            path = Path(folder) / precision
            write_openvino(program, described(precision), path, calibration)
            cases[f"OpenVINO, {precision}"] = predict_with_engine(load_exported(path))
        expected, found = with_transformers(batch), {}
        for name, predict in cases.items():
            for _ in range(3):  # warm-up; after the third, engines have a network for this size
                output = predict(batch)
            found[name] = differences(output, expected)
        seconds = measure(cases, batch, rounds)
    baseline = next(iter(seconds.values()))
    for name, times in seconds.items():
        median, minimum = statistics.median(times), min(times)
        parts = zip(found[name], ("logits", "boxes", "masks"), strict=False)
        differing = ", ".join(f"{one:.1e} in {part}" for one, part in parts)
        print(
            f"{preset:<16}{name:20} {median * 1000:6.0f} ms, {statistics.median(baseline) / median:5.2f} times as fast "
            f"(minima {min(baseline) / minimum:5.2f}), differs by {differing}",
            flush=True,
        )


def training_settings(preset: str) -> TrainingConfig:
    """Return the published settings of a step, without a moving average of weights, which transformers has not."""
    published = {name: value for name, value in published_settings(preset).items() if not name.startswith("ema_")}
    constant = {"padding_invariant": False, "lr_scheduler": "constant", "warmup_steps": 0, "multi_scale": 0}
    return TrainingConfig(**{**published, **constant})


def check_losses(preset: str) -> None:
    """Compare the losses without denoising, with the stored statistics of the norms, and print them.

    Raises:
        AssertionError: they differ.
    """
    converted = build_transformers(preset)
    model, settings = build_detrkit(preset, converted), training_settings(preset)
    converted.train().model.config.num_denoising = 0  # all layers are evaluated in training mode only
    if preset in VITS:
        model.train()  # with all groups of queries
    for module in (*converted.modules(), *model.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = training_batch(preset, 320)
    with torch.no_grad():
        output = converted(batch.images, labels=labels_of(batch))
        criterion = with_auxiliary_queries(build_criterion(model.config, settings), model.config, settings)
        actual = criterion(model(batch.images), batch.targets)
    compared = {"sum": (float(output.loss), float(actual.total))}
    if preset.startswith("dfine"):
        compared = {
            name: (float(output.loss_dict[name]), float(actual.losses[own]))
            for name, own in dfine_names(model.config.decoder_layers).items()
        }
    for name, (expected, found) in compared.items():
        print(f"{preset:<12}{name:16} transformers {expected:.6f}, detrkit {found:.6f}")
        assert abs(found - expected) < 1e-4 * abs(expected), name


def dfine_names(num_layers: int) -> dict[str, str]:
    """Return transformers' names of classification losses of D-FINE, and detrkit's, which are the authors'."""
    layers = {f"loss_vfl_aux_{number + 1}": f"loss_vfl_aux_{number}" for number in range(num_layers - 2)}
    encoder = {f"loss_vfl_aux_{num_layers - 1}": "loss_vfl_enc_0"}
    return {"loss_vfl": "loss_vfl", "loss_vfl_aux_0": "loss_vfl_pre", **layers, **encoder}


def training_batch(preset: str, side: int) -> Batch:
    """Create a batch of drawn images with random objects."""
    batch_size = 2 if preset in VITS else 4
    batch = make_batch(batch_size, side, side, "cpu", num_objects=NUM_OBJECTS, num_classes=NUM_CLASSES)
    batch.images.copy_(torch.cat([draw_image((side, side)) for _ in range(batch_size)]))
    return batch


def make_step(preset: str, library: str) -> Step:
    """Return a function that runs one training step."""
    batch = training_batch(preset, side_of(preset))
    converted = build_transformers(preset)
    if library == "transformers":
        return transformers_step(converted.train(), batch, "float32")
    own, settings = build_detrkit(preset, converted).train(), training_settings(preset)
    train_step = TrainStep(own, build_criterion(own.config, settings), settings, torch.device("cpu"), length=1000)
    return lambda: float(train_step.step([batch]).total.detach())


def report_training(preset: str, rounds: int, threads: int) -> None:
    """Print seconds and memory per step; both libraries have their own process, and they take turns."""
    check_losses(preset)
    workers = {
        library: start_worker("benchmarks.modern", "--worker", preset, library, "--threads", str(threads))
        for library in ("transformers", "detrkit")
    }
    medians, memory = measure_workers(workers, rounds)
    for name, median in medians.items():
        print(
            f"{preset:<12}{name:<13} {median:6.3f} s per step, {medians['transformers'] / median:5.2f} times as fast, "
            f"peak memory {memory[name]} GiB",
            flush=True,
        )


def main() -> None:
    """Measure predictions, then training steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=20, help="predictions of each (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="training steps of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        answer_requests(make_step(*arguments.worker), "cpu")
        return
    for preset in arguments.models if arguments.rounds else ():
        report_predictions(preset, arguments.rounds)
    for preset in [name for name in arguments.models if name not in PREDICTIONS_ONLY] if arguments.steps else ():
        report_training(preset, arguments.steps, arguments.threads)


if __name__ == "__main__":
    main()
