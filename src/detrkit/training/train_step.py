"""One update of the weights: batches -> predictions -> set loss -> gradients -> AdamW, and the running average.

Nothing here waits for a GPU but the copy of the matching's costs. An update whose gradients are not finite is left out, on
the device itself; that it was is known one step later, when the next matching has waited anyway.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from detrkit._internal.malloc import keep_freed_memory
from detrkit.config.training import TrainingConfig
from detrkit.config.validation import check_auxiliary_queries
from detrkit.distributed.collectives import average_in_place
from detrkit.errors import ConfigError, DetrkitError
from detrkit.losses.auxiliary_queries import StepNormalizers
from detrkit.losses.criterion import LossOutput, SetCriterion
from detrkit.models.detr import DETR
from detrkit.ops.compiling import compiled
from detrkit.structures import Batch
from detrkit.training.auxiliary_queries import (
    ModelWithAuxiliaryQueries,
    build_auxiliary_queries,
    with_auxiliary_queries,
)
from detrkit.training.denoising import NoisedBoxes, noised_boxes
from detrkit.training.optimizer import build_optimizer, keep_frozen_parts_still
from detrkit.training.schedule import build_schedule

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HALVINGS = 16  # of the scale of float16 gradients, from 65,536 to 1, while it is looked for: no fault of the run's


@dataclass(frozen=True)
class _Taken:
    """A step whose outcome is not known yet: whether its gradients were finite, and what to tell if not."""

    step: int
    is_finite: Tensor  # on the host, perhaps still on its way there
    image_ids: list[int]
    report: LossOutput


class TrainStep:
    """Owns what an update changes: the model, its optimizer, schedule and running average.

    Attributes:
        model: the DETR itself.
        helpers: what is learned beside it, and not shipped; None where nothing helps.
        step_number: updates taken.
        left_out: steps that were left out because something was not finite, a sentence each.
    """

    def __init__(
        self, model: DETR, loss: SetCriterion, settings: TrainingConfig, device: torch.device, num_steps: int
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        # convolutions are quicker this way, on CPU by a twentieth; the numbers stay the same up to rounding
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.padding_invariant = settings.padding_invariant
        self.model.activation_checkpointing = settings.hardware.activation_checkpointing
        check_auxiliary_queries(model.config, settings)
        if settings.loss.look_forward_twice:
            self.model.get_submodule("decoder").look_forward_twice = True
        self.helpers = build_auxiliary_queries(model, settings)
        if self.helpers is not None:
            self.helpers = self.helpers.to(device)
        self.loss = with_auxiliary_queries(loss, settings)
        self.settings = settings
        self.device = device
        self.optimizer = build_optimizer(model, settings, self.helpers)
        self.schedule = build_schedule(self.optimizer, num_steps, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.hardware.precision == "float16")
        self.average = _running_average(self.model, settings.ema.ema_decay) if settings.ema.ema_decay > 0 else None
        self.step_number = 0
        self.left_out: list[str] = []
        beside = () if self.helpers is None else self.helpers.parameters()
        self._trained = [p for p in (*model.parameters(), *beside) if p.requires_grad]
        # of ordinary batch norm, which one bad batch would spoil for good
        self._statistics = (
            [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
            if model.config.backbone_normalization == "batch"
            else []
        )
        self._streak = 0
        self._overflows = 0  # of float16 gradients, in a row
        self._last: _Taken | None = None
        self._wrapped = self._wrap()

    @property
    def best_model(self) -> DETR:
        """What to evaluate and to ship: the running average if there is one."""
        return self.model if self.average is None else cast(DETR, self.average.module)

    def train(self) -> None:
        """Switch dropout on, but for what is frozen."""
        self.model.train()
        keep_frozen_parts_still(self.model)
        if self.helpers is not None:
            self.helpers.train()

    def step(self, batches: Sequence[Batch]) -> LossOutput:
        """Learn from one or several batches with one update.

        Returns:
            The losses, added up over the batches.

        Raises:
            DetrkitError: too many steps in a row were not finite.
        """
        targets = [target for batch in batches for target in batch.targets]
        normalizers = self.loss.normalizers(targets, self.model.config.num_queries)
        self.optimizer.zero_grad()
        statistics = [buffer.clone() for buffer in self._statistics]
        reports = []
        for number, batch in enumerate(batches):
            with self._synchronised(is_last=number == len(batches) - 1):
                reports.append(self._learn_from(batch, normalizers))
        report = _added(reports)
        self._look_back()
        is_finite = self._update(report)
        for buffer, before in zip(self._statistics, statistics, strict=True):
            buffer.copy_(torch.where(is_finite, buffer, before))
        average_in_place(self._statistics)
        if self.average is not None:
            self.average.update_parameters(self.model)  # which copies the statistics
        image_ids = [image_id for batch in batches for image_id in batch.image_ids]
        self._last = _Taken(self.step_number, is_finite.to("cpu", non_blocking=True), image_ids, report)
        return report

    def finish(self) -> None:
        """Learn how the last step went.

        Raises:
            DetrkitError: too many steps in a row were not finite.
        """
        if self._last is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._look_back()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        self.finish()
        return {
            "model": self.model.state_dict(),
            "helpers": None if self.helpers is None else self.helpers.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step_number": self.step_number,
            "streak": self._streak,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        if self.helpers is not None:
            self.helpers.load_state_dict(state["helpers"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step_number = int(state["step_number"])
        self._streak = int(state["streak"])

    def _wrap(self) -> nn.Module:
        model: nn.Module = self.model if self.helpers is None else ModelWithAuxiliaryQueries(self.model, self.helpers)
        if self.settings.hardware.compile:
            if self.device.type == "cpu":
                raise ConfigError(
                    "--compile: on a CPU, compiled steps were no quicker than others where we measured, after minutes of "
                    "compiling; leave it out, or train on a GPU"
                )
            model = compiled(model, self.device)
        if not distributed.is_initialized():
            return model
        devices = [self.device.index or 0] if self.device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=devices)
        # statistics are averaged after every step; as an argument, PyTorch from 2.13 on warns of it
        parallel.broadcast_buffers = False
        return parallel

    def _synchronised(self, is_last: bool) -> AbstractContextManager[None]:
        if is_last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return cast("AbstractContextManager[None]", self._wrapped.no_sync())

    def _learn_from(self, batch: Batch, normalizers: StepNormalizers) -> LossOutput:
        precision = self.settings.hardware.precision
        with torch.autocast(self.device.type, _DTYPES[precision], enabled=precision != "float32"):
            predictions = self._wrapped(
                batch.images.contiguous(memory_format=torch.channels_last),
                batch.padding_mask if batch.is_padded else None,
                **self._noised(batch),
            )
        report = self.loss(predictions, batch.targets, normalizers)
        self.scaler.scale(report.total).backward()
        return report

    def _noised(self, batch: Batch) -> dict[str, NoisedBoxes]:
        if not self.settings.auxiliary_queries.denoising:
            return {}
        num_classes = self.model.config.num_classes
        return {"noised": noised_boxes(batch, self.settings, num_classes, self.step_number)}

    def _update(self, report: LossOutput) -> Bool[Tensor, ""]:
        """Change the weights, unless the gradient is not finite; tell whether all was well."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        most = self.settings.optimizer.clip_grad_norm or float("inf")
        is_finite = report.total.detach().isfinite()
        if self.scaler.is_enabled():
            is_finite = is_finite & torch.nn.utils.clip_grad_norm_(self._trained, most).isfinite()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
            is_finite = is_finite & norm.isfinite()
            # fused AdamW looks at both on the device: it divides gradients, and leaves the update out where found_inf is 1
            self.optimizer.grad_scale = ((norm + 1e-6) / most).clamp(min=1)  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.schedule.step()
        self.step_number += 1
        return is_finite

    def _look_back(self) -> None:
        """See how the last step went; its flag has arrived since, or is waited for."""
        last, self._last = self._last, None
        if last is None:
            return
        if bool(last.is_finite):
            self._streak = self._overflows = 0
            return
        terms = [name for name, part in last.report.losses.items() if name.startswith("loss") and not part.isfinite()]
        if self.scaler.is_enabled() and not terms and self._overflows < _HALVINGS:
            self._overflows += 1
            return
        self._streak += 1
        what = ", ".join(terms[:4]) or "the gradient"
        photos = ", ".join(map(str, last.image_ids[:8]))
        self.left_out.append(f"step {last.step} left out: {what} not finite, photos {photos}")
        if self._streak >= self.settings.optimizer.max_nonfinite_steps:
            raise DetrkitError(
                f"training: the last {self._streak} steps were not finite ({self.left_out[-1]}); the weights are those "
                "before them; lower --lr, or use --precision bfloat16 in place of float16"
            )


def _added(reports: Sequence[LossOutput]) -> LossOutput:
    if len(reports) == 1:
        return reports[0]
    means = {"class_error", *(name for name in reports[0].losses if name.startswith("cardinality_error"))}
    parts = {}
    for name in reports[0].losses:
        stacked = torch.stack([report.losses[name] for report in reports])
        parts[name] = stacked.nanmean() if name in means else stacked.sum()
    total = torch.stack([report.total for report in reports]).sum()
    return LossOutput(total, parts, reports[-1].matches)


def _running_average(model: DETR, decay: float) -> AveragedModel:
    """Average the weights over steps; the first ones count less, or the random start would stay for long."""

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        count = int(num_averaged)  # it lives on the host
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + count) / (10 + count)))

    averaged = AveragedModel(model, multi_avg_fn=average)
    averaged.requires_grad_(False)
    return averaged
