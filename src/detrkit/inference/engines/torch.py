"""The `Engine` protocol, and its PyTorch implementation.

Input: a `Batch` of preprocessed images. Output: `Predictions` of the last decoder layer.
"""

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from detrkit.config.model import ModelConfig
from detrkit.errors import ConfigError, arg
from detrkit.inference.options import PRECISIONS, Precision
from detrkit.models.detr import DETR
from detrkit.models.fuse import fuse_for_inference, fused_weights
from detrkit.models.inference_copy import inference_copy
from detrkit.models.packed_layers import pack_layers, packed_weights
from detrkit.ops.boxes import cxcywh_to_xyxy, elementwise_iou
from detrkit.ops.compiling import compile_dynamic
from detrkit.structures import Batch, Predictions

# tolerances of precision="auto"
_MIN_SCORE, _MIN_IOU, _MAX_SCORE_CHANGE = 0.3, 0.95, 0.03
_NUM_COMPARED = 4  # batches
_MAX_SAMPLE = 4096  # elements of a weight that are compared


@runtime_checkable
class Engine(Protocol):
    """Runs a model.

    Attributes:
        config: configuration of the model.
    """

    config: ModelConfig

    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch on the CPU; the predictions may be on the engine's device."""


class TorchEngine:
    """PyTorch on any device, with fused batch norms and channels-last memory format. Safe to share between threads.

    It computes with copies of the model in eval mode that share its weights (`models.inference_copy`), so it never changes
    the model, and the model may be trained meanwhile: every prediction uses the weights of that moment.

    Attributes:
        model: the given model.
        padding_invariant: see `DETR.padding_invariant`; of the predictions, whatever the setting of the model.
        precision: "auto" until it is decided, see `__init__`.
    """

    def __init__(
        self,
        model: DETR,
        device: torch.device | None,
        padding_invariant: bool,
        precision: str = "float32",
        compile_model: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            model: the model, which is moved to the device, and not changed otherwise.
            device: device to predict on; None is that of the model.
            padding_invariant: see `DETR.padding_invariant`.
            precision: "auto" uses bfloat16 if the processor is fast at it and the detections stay the same. The first 4
                batches with detections are predicted in both precisions; if a detection with a score of 0.3 or more
                changes its class, its box (IoU below 0.95) or its score (by more than 0.03), float32 is used from then on.
            compile_model: compile the model, which takes a minute at the first prediction.

        Raises:
            ConfigError: there is no such precision.
        """
        chosen = check_precision(precision)
        self.model = model if device is None else model.to(device)
        self.config = model.config
        self.padding_invariant = padding_invariant
        self.compile_model = compile_model
        self.precision: Precision = chosen if chosen != "auto" or has_fast_bfloat16(self.device) else "float32"
        self._num_compared = 0
        self._fused: _FusedModel | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"TorchEngine(device={str(self.device)!r}, precision={self.precision!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: not the lock and the fused model, which is made anew."""
        return {**self.__dict__, "_fused": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device) -> "TorchEngine":
        """Return an engine on a device: this one, or one with a copy of the model."""
        if self.device == torch.empty(0, device=device).device:
            return self
        moved = copy.copy(self)
        moved.model = copy.deepcopy(self.model).to(device)
        return moved

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch.

        Raises:
            ConfigError: the weights are not float32, or on several devices.
        """
        check_weights(self.model)
        on_device = batch.to(self.device)
        padding_mask = on_device.padding_mask if batch.is_padded else None
        images = on_device.images.contiguous(memory_format=torch.channels_last)
        precision = self.precision  # of this call: another thread may decide on it meanwhile
        if precision != "auto":
            return self._run(images, padding_mask, precision)
        exact = self._run(images, padding_mask, "auto")
        if not (exact.probabilities >= _MIN_SCORE).any():
            return exact  # no detections to compare
        reduced = self._run(images, padding_mask, "bfloat16")
        is_same = same_detections(exact, reduced)
        with self._lock:
            if not is_same:
                self.precision = "float32"
            elif self.precision == "auto":
                self._num_compared += 1
                if self._num_compared == _NUM_COMPARED:
                    self.precision = "bfloat16"
        return reduced if is_same else exact

    def exact_model(self) -> DETR:
        """Return a copy of the model in eval mode that shares its weights, with nothing fused, for the caller alone.

        Raises:
            ConfigError: the weights are not float32, or on several devices.
        """
        check_weights(self.model)
        exact = inference_copy(self.model)
        exact.padding_invariant = self.padding_invariant
        return exact

    @property
    def fused_model(self) -> DETR:
        """The model with fused batch norms, compiled if requested; it follows the weights of `model`."""
        return self._fused_for(self.precision)

    def _fused_for(self, precision: Precision) -> DETR:
        # while the precision is not decided, the same model computes both
        is_packed = self.device.type == "cpu" and precision == "float32" and not self.compile_model
        state, fused = _ModelState.of(self.model, is_packed), self._fused
        if fused is not None and (fused.is_packed, fused.state) == (is_packed, state):
            return fused.model
        with self._lock:
            fused = self._fused
            if fused is None or (fused.is_packed, fused.state) != (is_packed, state):
                model = fuse_for_inference(self.model)
                model.padding_invariant = self.padding_invariant
                if is_packed:
                    pack_layers(model)
                if self.compile_model:
                    model = cast(DETR, compile_dynamic(model, self.device))
                self._fused = fused = _FusedModel(state, is_packed, model)
            return fused.model

    def _run(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None, precision: Precision
    ) -> Predictions:
        # without the cache, which would keep inference tensors for a training step in the caller's autocast region
        in_bfloat16 = precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16, cache_enabled=False):
            return self._fused_for(precision)(images, padding_mask)


@dataclass(frozen=True)
class _ModelState:
    """Everything that a fused model depends on.

    Attributes:
        parts: the modules, parameters and buffers, compared by identity.
        hooks: the ids of their hooks.
        versions: of each tensor, its address and how often autograd saw it change.
        contents: samples of the fused weights, because changes of `tensor.data` are not counted as versions. Changes of
            a few elements of a large weight by this way may be missed.
    """

    parts: tuple[object, ...]
    hooks: tuple[int, ...]
    versions: tuple[int, ...]
    contents: Tensor | None

    @classmethod
    def of(cls, model: DETR, is_packed: bool) -> "_ModelState":
        """Return the state of a model, whose layers are packed or only fused."""
        parts: list[object] = []
        hooks: list[int] = []
        for module in model.modules():
            parts += (module, *module._parameters.values(), *module._buffers.values())
            hooks += (*module._forward_hooks, *module._forward_pre_hooks)
        copied = [*fused_weights(model), *(packed_weights(model) if is_packed else ())]
        weights = [one for one in copied if not isinstance(one, FakeTensor)]  # fakes have no values
        numbers = [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in weights]
        versions = tuple(number for pair in numbers for number in pair)
        return cls(tuple(parts), tuple(hooks), versions, _sample_contents(weights))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ModelState) or len(self.parts) != len(other.parts):
            return False
        are_same = all(first is second for first, second in zip(self.parts, other.parts, strict=True))
        if not are_same or (self.hooks, self.versions) != (other.hooks, other.versions):
            return False
        if self.contents is None or other.contents is None:
            return self.contents is other.contents
        return torch.equal(self.contents, other.contents)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _FusedModel:
    """A fused model, and the state of the model that it was made of."""

    state: _ModelState
    is_packed: bool
    model: DETR


@torch.no_grad()
def _sample_contents(weights: Sequence[Tensor]) -> Tensor | None:
    """Return the bits of all small tensors, and of evenly spaced elements of the large ones: 2 ms for a ResNet-50.

    Reading all elements would take 10 ms, a tenth of a prediction of 320 x 416 pixels.
    """
    if not weights:
        return None
    samples = [one.detach().reshape(-1)[:: 1 + one.numel() // _MAX_SAMPLE] for one in weights]
    return torch.cat(samples).view(torch.int32)  # integers: NaN equals itself


def check_precision(name: object) -> Precision:
    """Return the precision of this name.

    Raises:
        ConfigError: no precision has this name.
    """
    for precision in PRECISIONS:
        if precision == name:
            return precision
    raise ConfigError(
        f"{arg('precision', name)} is not a precision to predict in; use one of {', '.join(PRECISIONS)}: weights are "
        "float32, and bfloat16 computes with half the bits"
    )


def check_weights(model: DETR) -> None:
    """Check that a model can predict: float32 weights on one device.

    Raises:
        ConfigError: it cannot.
    """
    parameters = list(model.parameters())
    found = {str(one.dtype).removeprefix("torch.") for one in parameters}
    if found != {"float32"}:
        raise ConfigError(
            f"model: found weights of type {', '.join(sorted(found))}, expected float32; call model.float(), and load the "
            "detector with precision='bfloat16' for speed"
        )
    devices = {str(one.device) for one in parameters}
    if len(devices) > 1 or "meta" in devices:
        raise ConfigError(
            f"model: found weights on {', '.join(sorted(devices))}, expected one device that computes; call "
            "model.to(device) with one"
        )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    capabilities: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions of torch cannot tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def same_detections(exact: Predictions, reduced: Predictions) -> bool:
    """Return whether two predictions of the same images contain the same detections, in any order of queries."""
    scores, labels = exact.probabilities.max(-1)
    other_scores, other_labels = reduced.probabilities.max(-1)
    boxes, other_boxes = (cxcywh_to_xyxy(one.boxes.float()) for one in (exact, reduced))
    matching = labels[:, :, None] == other_labels[:, None]
    matching &= (scores[:, :, None] - other_scores[:, None]).abs() <= _MAX_SCORE_CHANGE
    matching &= elementwise_iou(boxes[:, :, None], other_boxes[:, None]) >= _MIN_IOU
    is_kept = (scores < _MIN_SCORE) | matching.any(2)
    is_known = (other_scores < _MIN_SCORE) | matching.any(1)
    return bool(is_kept.all() and is_known.all())
