"""The `Engine` protocol, and its PyTorch implementation.

Input: a `Batch` of preprocessed images. Output: `Predictions` of the last decoder layer.
"""

from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_iou

from detrkit.config.model import ModelConfig
from detrkit.inference.options import Precision
from detrkit.models.detr import DETR
from detrkit.models.fuse import fuse_for_inference
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.ops.compiling import compile_dynamic
from detrkit.structures import Batch, Predictions

# tolerances of precision="auto"
_MIN_SCORE, _MIN_IOU, _MAX_SCORE_CHANGE = 0.3, 0.95, 0.03
_NUM_COMPARED = 4  # batches


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
    """PyTorch on any device, with fused batch norms and channels-last memory format.

    Attributes:
        model: the given model, in eval mode; changes of its weights take effect at the next prediction.
    """

    def __init__(
        self,
        model: DETR,
        device: torch.device,
        padding_invariant: bool,
        precision: Precision = "float32",
        compile_model: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            model: the model, which is moved to the device.
            device: device to predict on.
            padding_invariant: see `DETR.padding_invariant`.
            precision: "auto" uses bfloat16 if the processor is fast at it and the detections stay the same. The first 4
                batches with detections are predicted in both precisions; if a detection with a score of 0.3 or more
                changes its class, its box (IoU below 0.95) or its score (by more than 0.03), float32 is used from then on.
            compile_model: compile the model, which takes a minute at the first prediction.
        """
        self.model = model.eval().to(device)
        self.config = model.config
        self.device = device
        model.padding_invariant = padding_invariant
        self.precision = precision if precision != "auto" or has_fast_bfloat16(device) else "float32"
        self._num_compared = 0
        self._compile = compile_model
        self._fused = model
        self._state: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"TorchEngine(device={str(self.device)!r}, precision={self.precision!r})"

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch."""
        on_device = batch.to(self.device)
        padding_mask = on_device.padding_mask if batch.is_padded else None
        images = on_device.images.contiguous(memory_format=torch.channels_last)
        if self.precision != "auto":
            return self._run(images, padding_mask, self.precision == "bfloat16")
        exact = self._run(images, padding_mask, False)
        if not (exact.probabilities >= _MIN_SCORE).any():
            return exact  # no detections to compare
        reduced = self._run(images, padding_mask, True)
        if not same_detections(exact, reduced):
            self.precision = "float32"
            return exact
        self._num_compared += 1
        if self._num_compared == _NUM_COMPARED:
            self.precision = "bfloat16"
        return reduced

    @property
    def fused_model(self) -> DETR:
        """The model with fused batch norms, compiled if requested; it follows the weights of `model`."""
        state = _state_of(self.model)
        if state != self._state:
            self._fused = fuse_for_inference(self.model)
            if self._compile:
                self._fused = cast(DETR, compile_dynamic(self._fused, self.device))
            self._state = state
        return self._fused

    def _run(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None, in_bfloat16: bool
    ) -> Predictions:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16):
            return self.fused_model(images, padding_mask)


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
    overlaps = [box_iou(first, second) for first, second in zip(boxes, other_boxes, strict=True)]
    matching &= torch.stack(overlaps) >= _MIN_IOU
    is_kept = (scores < _MIN_SCORE) | matching.any(2)
    is_known = (other_scores < _MIN_SCORE) | matching.any(1)
    return bool(is_kept.all() and is_known.all())


def _state_of(model: DETR) -> tuple[int, ...]:
    """Return a fingerprint that changes with the weights of the fused parts."""
    tensors = [*model.get_submodule("backbone").state_dict(keep_vars=True).values(), *model.neck.parameters()]
    return tuple(number for t in tensors for number in (id(t), t.data_ptr(), 0 if t.is_inference() else t._version))
