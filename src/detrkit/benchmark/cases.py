"""What `detrkit benchmark` compares, each in a process of its own: built, run when asked, and looked at from within."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detrkit.checkpoints.conversion.huggingface import write_folder
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.errors import ConfigError, DetrkitError
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import TorchEngine
from detrkit.inference.options import Precision
from detrkit.models.presets import PRESETS, build_model
from detrkit.postprocess.boxes import to_detections
from detrkit.structures import Batch, Predictions

Kind = Literal["detrkit", "transformers", "faster r-cnn"]
_STAGES = ("backbone", "input_projection", "encoder", "decoder", "heads")
_SEED = 0
_TO_MIB = 1 / 1024


@dataclass(frozen=True)
class BenchmarkCase:
    """What is to be measured."""

    kind: Kind
    source: str
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """What it is called in tables."""
        if self.kind == "faster r-cnn":
            return "torchvision Faster R-CNN R50-FPN"
        own = f"{Path(self.source).name} {self.precision}"
        return own if self.kind == "detrkit" else f"transformers {own}"


@dataclass(frozen=True)
class BenchmarkConfig:
    """What all of them do."""

    size: tuple[int, int]  # (height, width)
    batch_size: int
    device: str
    num_threads: int | None = None


@dataclass
class BenchmarkResult:
    """What was seen of one contender."""

    name: str
    parameters: int | None = None
    gigaflops: float | None = None
    seconds: list[float] = field(default_factory=list)  # of each round, for the whole batch
    stages: dict[str, float] = field(default_factory=dict)  # seconds of each part, in rounds of their own
    mebibytes: float | None = None
    not_run: str | None = None


@dataclass(frozen=True)
class _Running:
    """A contender that was built."""

    predict: Callable[[], object]
    model: nn.Module | None  # whose FLOPs can be counted
    parts: dict[str, nn.Module]


def run_benchmark_case(contender: BenchmarkCase, work: BenchmarkConfig, connection: Connection) -> None:
    """Answer questions until the other side has gone; each answer is a value or a sentence of what went wrong."""
    answers: dict[str, Callable[[], Any]] = {}
    try:
        if work.num_threads:
            torch.set_num_threads(work.num_threads)
        running = _build(contender, work)
        device = torch.device(work.device)
        answers = {
            "size": lambda: _count(running),
            "round": lambda: _seconds_of(running.predict, device),
            "stages": lambda: _seconds_of_parts(running, device),
            "memory": lambda: _peak_memory(device),
        }
        connection.send(None)
        while True:
            connection.send(answers[connection.recv()]())
    except EOFError:
        return
    except (DetrkitError, ImportError, ValueError, RuntimeError, MemoryError) as error:
        connection.send(error if isinstance(error, DetrkitError) else DetrkitError(str(error).splitlines()[0][:160]))


def _build(contender: BenchmarkCase, work: BenchmarkConfig) -> _Running:
    torch.manual_seed(_SEED)
    height, width = work.size
    shape = (work.batch_size, height, width)
    images = torch.randn(work.batch_size, 3, height, width)
    sizes = [work.size] * work.batch_size
    batch = Batch(images, torch.zeros(shape, dtype=torch.bool), [], list(range(work.batch_size)), sizes, sizes)
    if contender.kind == "faster r-cnn":
        return _build_faster_rcnn(batch, work)
    if contender.kind == "transformers":
        return _build_transformers(contender, batch, work)
    detector = _load(contender, work.device)
    engine, categories = detector.engine, detector.categories
    if engine.config.in_channels != 3:
        raise ConfigError(f"{contender.source}: takes {engine.config.in_channels} channels, expected 3")

    def predict() -> object:
        return to_detections(engine.predict(batch), sizes, categories.ids, categories.names, 0.5)

    if not isinstance(engine, TorchEngine):
        return _Running(predict, None, {})
    predict()  # folds
    fused_model = engine.fused_model
    return _Running(predict, engine.model, {name: fused_model.get_submodule(name) for name in _STAGES})


def _load(contender: BenchmarkCase, device: str) -> Detector:
    """Load what predicts; a preset needs no weights to be timed, and gets random ones."""
    if contender.source in PRESETS and not Path(contender.source).exists():
        return Detector.from_model(build_model(contender.source), device=device, precision=contender.precision)
    return Detector.load(contender.source, device, precision=contender.precision)


def _build_transformers(contender: BenchmarkCase, batch: Batch, work: BenchmarkConfig) -> _Running:
    from transformers import AutoModelForObjectDetection
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    detector = _load(contender, "cpu")
    model, categories = detector.model, detector.categories
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(model.state_dict(), model.config, categories, Preprocessing())
        write_folder(Path(folder), checkpoint, native_backbone=True)
        theirs: Any = AutoModelForObjectDetection.from_pretrained(folder)
    theirs.eval().to(work.device)
    images = batch.images.to(work.device)
    mask = torch.ones(images.shape[0], *work.size, dtype=torch.int64, device=images.device)

    @torch.inference_mode()
    def predict() -> object:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=contender.precision == "bfloat16"):
            found = theirs(pixel_values=images, pixel_mask=mask)
        answer = Predictions(
            found.logits[None].float(), found.pred_boxes[None].float(), class_scores=model.config.class_scores
        )
        return answer.probabilities.max(-1).values.cpu(), answer.boxes.cpu()

    return _Running(predict, theirs, {})


def _build_faster_rcnn(batch: Batch, work: BenchmarkConfig) -> _Running:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    height, width = work.size
    model: nn.Module = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=min(height, width), max_size=max(height, width)
    )
    model.train(False).to(work.device)
    images = list(batch.images.sigmoid().to(work.device))

    @torch.inference_mode()
    def predict() -> object:
        return [{name: tensor.cpu() for name, tensor in found.items()} for found in model(images)]

    return _Running(predict, model, {})


def _count(running: _Running) -> tuple[int | None, float | None]:
    """Parameters, and billions of floating-point operations of one batch, attention included."""
    if running.model is None:
        return None, None
    running.model.requires_grad_(False)  # the counter trips over views of trained parameters
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        running.predict()
    return sum(p.numel() for p in running.model.parameters()), counter.get_total_flops() / 1e9


def _seconds_of(action: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - start


def _seconds_of_parts(running: _Running, device: torch.device) -> dict[str, float]:
    """Time spent in each part of the model, and in what is left: copies, positions and boxes."""
    if not running.parts:
        return {}
    with _stopwatch(running.parts, device) as seconds:
        total = _seconds_of(running.predict, device)
    return {**seconds, "the rest": total - sum(seconds.values())}


@contextmanager
def _stopwatch(parts: dict[str, nn.Module], device: torch.device) -> Iterator[dict[str, float]]:
    seconds = dict.fromkeys(parts, 0.0)
    started: dict[str, float] = {}

    def start(name: str) -> None:
        _wait(device)
        started[name] = time.perf_counter()

    def stop(name: str) -> None:
        _wait(device)
        seconds[name] += time.perf_counter() - started[name]

    hooks = []
    for name, part in parts.items():
        hooks.append(part.register_forward_pre_hook(lambda _module, _inputs, name=name: start(name)))
        hooks.append(part.register_forward_hook(lambda _module, _inputs, _output, name=name: stop(name)))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> float | None:
    """The most memory that was held, in MiB: of the GPU, or of this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    # getrusage would count the parent's, too
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * _TO_MIB
