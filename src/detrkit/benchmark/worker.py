"""Process of one benchmark case: builds the model and measures it on request."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detrkit.benchmark.cases import BenchmarkCase, BenchmarkConfig
from detrkit.checkpoints.conversion.huggingface import write_huggingface_folder
from detrkit.checkpoints.native import Checkpoint, default_preprocessing
from detrkit.errors import ConfigError, DetrkitError
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import TorchEngine
from detrkit.models.presets import PRESETS, build_model
from detrkit.postprocess.boxes import to_detections
from detrkit.structures import Batch, Predictions

_STAGES = ("backbone", "neck", "encoder", "decoder", "heads")
_SEED = 0


@dataclass(frozen=True)
class _Predictor:
    """A built case.

    Attributes:
        predict: predicts one batch.
        model: the model whose FLOPs are counted; None if they cannot be.
        stages: parts of the model that are timed.
    """

    predict: Callable[[], object]
    model: nn.Module | None
    stages: dict[str, nn.Module]


def run_worker(case: BenchmarkCase, config: BenchmarkConfig, connection: Connection) -> None:
    """Build a case and answer requests for measurements until the connection is closed.

    The reply to a request is a value, or a `DetrkitError`, after which the process ends. The first reply, None, is sent
    when the model is built.
    """
    try:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        predictor = build_case(case, config)
        device = torch.device(config.device)
        measurements: dict[str, Callable[[], Any]] = {
            "round": lambda: _time(predictor.predict, device),
            "stages": lambda: _time_stages(predictor, device),
            "memory": lambda: _peak_memory(device),
            "count": lambda: _count(predictor),
        }
        connection.send(None)
        while True:
            connection.send(measurements[connection.recv()]())
    except EOFError:
        return
    except (DetrkitError, ImportError, ValueError, RuntimeError, MemoryError) as error:
        connection.send(error if isinstance(error, DetrkitError) else DetrkitError(str(error).splitlines()[0][:160]))


def build_case(case: BenchmarkCase, config: BenchmarkConfig) -> _Predictor:
    """Build the model of a case and the batch that it predicts."""
    torch.manual_seed(_SEED)
    height, width = config.size
    images = torch.randn(config.batch_size, 3, height, width)
    padding_mask = torch.zeros(config.batch_size, height, width, dtype=torch.bool)
    sizes = [config.size] * config.batch_size
    batch = Batch(images, padding_mask, [], list(range(config.batch_size)), sizes, sizes)
    if case.kind == "faster-rcnn":
        return _build_faster_rcnn(batch, config)
    if case.kind == "transformers":
        return _build_transformers(case, batch, config)
    detector = _load_detector(case, config.device)
    engine, categories = detector.engine, detector.categories
    if engine.config.in_channels != 3:
        raise ConfigError(f"{case.source}: the model takes {engine.config.in_channels} channels, expected 3.")

    def predict() -> object:
        return to_detections(engine.predict(batch), sizes, categories.ids, categories.names, 0.5)

    if not isinstance(engine, TorchEngine):
        return _Predictor(predict, None, {})
    predict()  # fuses convolutions and batch norms
    fused_model = engine.fused_model
    return _Predictor(predict, engine.model, {name: fused_model.get_submodule(name) for name in _STAGES})


def _load_detector(case: BenchmarkCase, device: str) -> Detector:
    """Load the detector of a case; presets get random weights."""
    if case.source in PRESETS and not Path(case.source).exists():
        return Detector.from_model(build_model(case.source), device=device, precision=case.precision)
    return Detector.load(
        case.source, device, precision=case.precision, model=case.model, state_dict_key=case.state_dict_key
    )


def _build_transformers(case: BenchmarkCase, batch: Batch, config: BenchmarkConfig) -> _Predictor:
    """Build the same model with the same weights in transformers."""
    from transformers import AutoModelForObjectDetection
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    detector = _load_detector(case, "cpu")
    model, categories = detector.model, detector.categories
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(model.state_dict(), model.config, categories, default_preprocessing(model.config))
        write_huggingface_folder(Path(folder), checkpoint, native_backbone=True)
        converted: Any = AutoModelForObjectDetection.from_pretrained(folder)
    converted.eval().to(config.device)
    images = batch.images.to(config.device)
    pixel_mask = torch.ones(images.shape[0], *config.size, dtype=torch.int64, device=images.device)

    @torch.inference_mode()
    def predict() -> object:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=case.precision == "bfloat16"):
            output = converted(pixel_values=images, pixel_mask=pixel_mask)
        predictions = Predictions(
            output.logits[None].float(), output.pred_boxes[None].float(), class_scores=model.config.class_scores
        )
        return predictions.probabilities.max(-1).values.cpu(), predictions.boxes.cpu()

    return _Predictor(predict, converted, {})


def _build_faster_rcnn(batch: Batch, config: BenchmarkConfig) -> _Predictor:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    height, width = config.size
    model: nn.Module = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=min(height, width), max_size=max(height, width)
    )
    model.train(False).to(config.device)
    images = list(batch.images.sigmoid().to(config.device))

    @torch.inference_mode()
    def predict() -> object:
        return [{name: tensor.cpu() for name, tensor in output.items()} for output in model(images)]

    return _Predictor(predict, model, {})


def _count(predictor: _Predictor) -> tuple[int | None, float | None]:
    """Count parameters, and billions of floating-point operations of one batch, attention included."""
    if predictor.model is None:
        return None, None
    predictor.model.requires_grad_(False)  # the counter fails on views of parameters that require gradients
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        predictor.predict()
    return sum(p.numel() for p in predictor.model.parameters()), counter.get_total_flops() / 1e9


def _time(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


def _time_stages(predictor: _Predictor, device: torch.device) -> dict[str, float]:
    """Measure the time in each stage of the model, and in everything else: transfers, position encodings, boxes."""
    if not predictor.stages:
        return {}
    with _stage_timer(predictor.stages, device) as seconds:
        total = _time(predictor.predict, device)
    return {**seconds, "other": total - sum(seconds.values())}


@contextmanager
def _stage_timer(stages: dict[str, nn.Module], device: torch.device) -> Iterator[dict[str, float]]:
    seconds = dict.fromkeys(stages, 0.0)
    started: dict[str, float] = {}

    def start(name: str) -> None:
        _synchronize(device)
        started[name] = time.perf_counter()

    def stop(name: str) -> None:
        _synchronize(device)
        seconds[name] += time.perf_counter() - started[name]

    hooks = []
    for name, module in stages.items():
        hooks.append(module.register_forward_pre_hook(lambda _module, _inputs, name=name: start(name)))
        hooks.append(module.register_forward_hook(lambda _module, _inputs, _output, name=name: stop(name)))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> float | None:
    """Return the peak memory in MiB: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    # not getrusage, which includes the parent process before the spawn
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
