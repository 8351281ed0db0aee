"""What computes a detector's predictions: PyTorch here, other engines in rooms of their own (`export`).

Input: a `Batch` of prepared photos. Output: `Predictions` of the last decoder layer.
"""

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from detrkit.config.model import ModelConfig
from detrkit.inference.options import Precision
from detrkit.models.detr import DETR
from detrkit.models.fuse_conv_bn import fuse_conv_bn
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.ops.compiling import compiled
from detrkit.structures import Batch, Predictions

# what "the same detections" means to "auto"
_MIN_SCORE, _MIN_IOU, _LARGEST_SCORE_CHANGE = 0.3, 0.95, 0.03
_NUM_COMPARED = 4  # batches


@runtime_checkable
class Engine(Protocol):
    """An engine with a model in it.

    Attributes:
        config: of the model.
    """

    config: ModelConfig

    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch that lies on the host; the answer may lie on the engine's device."""


@runtime_checkable
class MaskEngine(Engine, Protocol):
    """An engine whose model has a mask head."""

    def compute_masks(
        self, predictions: Predictions, batch: Batch, queries: Int64[Tensor, "P"], counts: Sequence[int]
    ) -> Float[Tensor, "P _ _"]:
        """Draw mask logits of some queries of what was predicted; arguments as those of `PanopticHead`, on the host."""


class TorchEngine:
    """PyTorch, on any device, with norms folded into filters and channels last.

    Attributes:
        model: the DETR as it was given, in eval mode; when its weights change, the next prediction knows.
    """

    def __init__(
        self,
        model: DETR,
        device: torch.device,
        padding_invariant: bool,
        precision: Precision = "float32",
        compile_model: bool = False,
    ) -> None:
        """Take a model.

        Args:
            model: moved to the device.
            device: where to predict.
            padding_invariant: see `DETR.forward`.
            precision: "auto" takes bfloat16 where the processor has it and the detections stay the same: the first
                batches with objects in them are computed both ways, and one object of score 0.3 or more that changes
                its class, its box by an IoU below 0.95 or its score by 0.03 sends it back to float32 for good.
            compile_model: takes a minute at the first prediction.
        """
        self.model = model.eval().to(device)
        self.config = model.config
        self.device = device
        self.padding_invariant = padding_invariant
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
            return exact  # nothing to compare by
        rough = self._run(images, padding_mask, True)
        if not same_detections(exact, rough):
            self.precision = "float32"
            return exact
        self._num_compared += 1
        if self._num_compared == _NUM_COMPARED:
            self.precision = "bfloat16"
        return rough

    @torch.inference_mode()
    def compute_masks(
        self, predictions: Predictions, batch: Batch, queries: Int64[Tensor, "P"], counts: Sequence[int]
    ) -> Float[Tensor, "P _ _"]:
        """Draw mask logits of some queries, in the precision in which they were predicted."""
        inputs, head = predictions.mask_inputs, self.model.mask_head
        assert head is not None, "only a model with a mask head is asked for masks"
        assert inputs is not None
        in_bfloat16 = inputs.decoded.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16):
            sizes = batch.sizes if self.padding_invariant and batch.is_padded else None
            return cast(Tensor, head(inputs, queries.to(self.device), counts, sizes))

    @property
    def fused_model(self) -> DETR:
        """The model that computes, folded and perhaps compiled; it follows the weights of `model`."""
        state = _state_of(self.model)
        if state != self._state:
            self._fused = fuse_conv_bn(self.model)
            if self._compile:
                self._fused = cast(DETR, compiled(self._fused, self.device))
            self._state = state
        return self._fused

    def _run(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None, in_bfloat16: bool
    ) -> Predictions:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bfloat16):
            return self.fused_model(
                images, padding_mask, padding_invariant=self.padding_invariant, last_layer_only=True, all_masks=False
            )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether a processor multiplies bfloat16 quicker than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    capabilities: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions of torch cannot tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def same_detections(exact: Predictions, rough: Predictions) -> bool:
    """Tell whether two predictions of the same photos hold the same objects, whichever queries found them."""
    scores, labels = exact.probabilities.max(-1)
    other_scores, other_labels = rough.probabilities.max(-1)
    boxes, other_boxes = (cxcywh_to_xyxy(one.boxes.float()) for one in (exact, rough))
    alike = labels[:, :, None] == other_labels[:, None]
    alike &= (scores[:, :, None] - other_scores[:, None]).abs() <= _LARGEST_SCORE_CHANGE
    overlaps = [box_iou(first, second) for first, second in zip(boxes, other_boxes, strict=True)]
    alike &= torch.stack(overlaps) >= _MIN_IOU
    is_kept = (scores < _MIN_SCORE) | alike.any(2)
    is_known = (other_scores < _MIN_SCORE) | alike.any(1)
    return bool(is_kept.all() and is_known.all())


def _state_of(model: DETR) -> tuple[int, ...]:
    """What changes whenever the weights of the parts that are folded do."""
    tensors = [*model.backbone.state_dict(keep_vars=True).values(), *model.input_projection.parameters()]
    return tuple(number for t in tensors for number in (id(t), t.data_ptr(), 0 if t.is_inference() else t._version))
