"""One optimizer step: batches -> predictions -> losses -> gradients -> AdamW and the moving average of the weights.

Nothing waits for the GPU except for the copy of the matching costs (benchmarks/synchronizations.py). A step with non-finite
gradients is skipped on the device; the host learns of it one step later, after the next matching.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from detrkit._internal.malloc import keep_freed_memory
from detrkit.config.setting_groups import EMAConfig
from detrkit.config.training import TrainingConfig
from detrkit.config.validation import check_auxiliary_queries
from detrkit.data.samplers import mix_seeds
from detrkit.distributed.collectives import average_in_place
from detrkit.errors import ConfigError, NonFiniteError, arg
from detrkit.losses.auxiliary_queries import StepNormalizers
from detrkit.losses.criterion import LossOutput, SetCriterion
from detrkit.models.backbones.vit import ViTBackbone
from detrkit.models.detr import DETR
from detrkit.ops.compiling import compile_dynamic
from detrkit.structures import Batch
from detrkit.training.auxiliary_queries import (
    ModelWithAuxiliaryQueries,
    build_auxiliary_queries,
    with_auxiliary_queries,
)
from detrkit.training.budget import Budget, StepBudget
from detrkit.training.denoising import NoisedBoxes, noised_boxes
from detrkit.training.multi_scale import rescale
from detrkit.training.optimizer import build_optimizer, freeze_modes, freeze_unused
from detrkit.training.schedule import build_schedule, drop_path_factor

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_OVERFLOWS = 16  # consecutive overflows while GradScaler lowers its scale from 65,536 to 1: not an error


@dataclass(frozen=True)
class _PendingStep:
    """A step whose outcome has not arrived on the host yet."""

    step: int
    is_finite: Tensor  # on the host; the copy may still be under way
    image_ids: list[int]
    output: LossOutput


class TrainStep:
    """Takes optimizer steps; holds model, optimizer, schedule and moving average.

    Attributes:
        model: the DETR itself.
        auxiliary_queries: generator of training-only queries, which is not part of the model; None without any.
        step_number: steps taken.
        skipped_steps: steps that were skipped because something was not finite, a sentence each.
    """

    def __init__(
        self, model: DETR, loss: SetCriterion, settings: TrainingConfig, device: torch.device, length: int | Budget
    ) -> None:
        """Build the optimizer of a model, which is moved to the device.

        Args:
            model: to train.
            loss: criterion.
            settings: of the run.
            device: to train on.
            length: of the run, which the learning rates follow: optimizer steps, or a budget.
        """
        if device.type == "cpu":
            keep_freed_memory()
        # faster convolutions, by 5 % on a CPU; the results stay the same up to rounding
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.padding_invariant = settings.padding_invariant
        self.model.activation_checkpointing = settings.hardware.activation_checkpointing
        check_auxiliary_queries(model.config, settings)
        if settings.loss.look_forward_twice:
            self.model.get_submodule("decoder").look_forward_twice = True
        freeze_unused(model, settings)
        self.auxiliary_queries = build_auxiliary_queries(model, settings)
        if self.auxiliary_queries is not None:
            self.auxiliary_queries = self.auxiliary_queries.to(device)
        self.loss = with_auxiliary_queries(loss, model.config, settings)
        self.settings = settings
        self.device = device
        self._matcher = loss.matcher
        budget = self._budget = StepBudget(length) if isinstance(length, int) else length
        self.optimizer = build_optimizer(model, settings, self.auxiliary_queries)
        self.schedule = build_schedule(self.optimizer, budget, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.hardware.precision == "float16")
        self.average = MovingAverage(self.model, settings.ema) if settings.ema.ema_decay > 0 else None
        self.step_number = 0
        self.skipped_steps: list[str] = []
        auxiliary = () if self.auxiliary_queries is None else self.auxiliary_queries.parameters()
        self._trained = [p for p in (*model.parameters(), *auxiliary) if p.requires_grad]
        # of batch norms, also in the encoder, which a single non-finite batch would corrupt for good
        norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        buffers = (buffer for norm in norms for buffer in (norm.running_mean, norm.running_var))
        self._statistics = [buffer for buffer in buffers if buffer is not None]
        self._nonfinite_steps = 0  # in a row
        self._overflows = 0  # of float16 gradients, in a row
        self._last: _PendingStep | None = None
        self._wrapped = self._wrap()

    @property
    def best_model(self) -> DETR:
        """The model to evaluate and save: the moving average if there is one."""
        return self.model if self.average is None else cast(DETR, self.average.module)

    def train(self) -> None:
        """Put everything into training mode, except for frozen parts."""
        self.model.train()
        freeze_modes(self.model)
        if self.auxiliary_queries is not None:
            self.auxiliary_queries.train()

    def _follow_progress(self) -> None:
        """Set what depends on the part of the run that is over, besides the learning rates."""
        progress, from_then = self._budget.fraction_after(self.step_number), self.settings.loss.quality_matching_from
        self._matcher.by_quality = from_then < 1 and progress >= from_then
        backbone = self.model.backbone
        if isinstance(backbone, ViTBackbone):
            backbone.set_drop_path(backbone.layout.drop_path * drop_path_factor(progress, self.settings.schedule))

    def step(self, batches: Sequence[Batch]) -> LossOutput:
        """Take one step with the gradients of one or several batches.

        Returns:
            The losses, summed over the batches.

        Raises:
            NonFiniteError: too many consecutive steps were not finite.
        """
        self._follow_progress()
        targets = [target for batch in batches for target in batch.targets]
        normalizers = self.loss.normalizers(targets, self.model.config.num_queries)
        self.optimizer.zero_grad()
        statistics = [buffer.clone() for buffer in self._statistics]
        outputs = []
        for number, batch in enumerate(batches):
            with self._gradient_sync(is_last=number == len(batches) - 1):
                outputs.append(self._backward(batch, normalizers))
        output = _sum_outputs(outputs)
        self._check_last_step()
        is_finite = self._update(output)
        for buffer, before in zip(self._statistics, statistics, strict=True):
            buffer.copy_(torch.where(is_finite, buffer, before))
        average_in_place(self._statistics)
        if self.average is not None:
            self.average.update_parameters(self.model)  # copies the statistics
        image_ids = [image_id for batch in batches for image_id in batch.image_ids]
        self._last = _PendingStep(self.step_number, is_finite.to("cpu", non_blocking=True), image_ids, output)
        return output

    def finish(self) -> None:
        """Wait for the outcome of the last step.

        Raises:
            NonFiniteError: too many consecutive steps were not finite.
        """
        if self._last is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._check_last_step()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        self.finish()
        return {
            "model": self.model.state_dict(),
            "auxiliary_queries": None if self.auxiliary_queries is None else self.auxiliary_queries.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step_number": self.step_number,
            "nonfinite_steps": self._nonfinite_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        if self.auxiliary_queries is not None:
            self.auxiliary_queries.load_state_dict(state["auxiliary_queries"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step_number = int(state["step_number"])
        self._nonfinite_steps = int(state["nonfinite_steps"])

    def _wrap(self) -> nn.Module:
        model: nn.Module = (
            self.model
            if self.auxiliary_queries is None
            else ModelWithAuxiliaryQueries(self.model, self.auxiliary_queries)
        )
        if self.settings.hardware.compile:
            if self.device.type == "cpu":
                raise ConfigError(
                    f"{arg('compile', True)} is for GPUs: on a CPU, compiled steps were measured to be no faster, after "
                    "minutes of compiling. Leave it out."
                )
            model = compile_dynamic(model, self.device)
        if not distributed.is_initialized():
            return model
        devices = [self.device.index or 0] if self.device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=devices)
        # statistics are averaged after every step; PyTorch >= 2.13 warns if this is an argument
        parallel.broadcast_buffers = False
        return parallel

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager[None]:
        if is_last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return cast("AbstractContextManager[None]", self._wrapped.no_sync())

    def _backward(self, batch: Batch, normalizers: StepNormalizers) -> LossOutput:
        precision = self.settings.hardware.precision
        images, padding_mask = self._rescaled(batch)
        with torch.autocast(self.device.type, _DTYPES[precision], enabled=precision != "float32"):
            predictions = self._wrapped(
                images.contiguous(memory_format=torch.channels_last),
                padding_mask,
                **self._noised(batch),
            )
        output = self.loss(predictions, batch.targets, normalizers)
        self.scaler.scale(output.total).backward()
        return output

    def _rescaled(self, batch: Batch) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"] | None]:
        """Return images and padding mask at a random size, with `multi_scale`; the same on all ranks."""
        padding_mask = batch.padding_mask if batch.is_padded else None
        repeats = self.settings.augmentation.multi_scale
        if not repeats or not batch.is_strong:
            return batch.images, padding_mask
        seed = mix_seeds(self.settings.seed, self.step_number)
        return rescale(batch.images, padding_mask, repeats, seed, self.model.config.size_divisor)

    def _noised(self, batch: Batch) -> dict[str, NoisedBoxes]:
        if not self.settings.auxiliary_queries.has_denoising:
            return {}
        return {"noised": noised_boxes(batch, self.settings, self.model.config, self.step_number)}

    def _update(self, output: LossOutput) -> Bool[Tensor, ""]:
        """Update the weights unless the gradient is not finite; return whether loss and gradient are finite."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        max_norm = self.settings.optimizer.clip_grad_norm or float("inf")
        is_finite = output.total.detach().isfinite()
        if self.scaler.is_enabled():
            is_finite = is_finite & torch.nn.utils.clip_grad_norm_(self._trained, max_norm).isfinite()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
            is_finite = is_finite & norm.isfinite()
            # fused AdamW reads both on the device: it divides gradients by one, and skips the update if the other is 1
            self.optimizer.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1)  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.schedule.step()
        self.step_number += 1
        return is_finite

    def _check_last_step(self) -> None:
        """Check whether the last step was finite; waits for its flag if it has not arrived."""
        last, self._last = self._last, None
        if last is None:
            return
        if bool(last.is_finite):
            self._nonfinite_steps = self._overflows = 0
            return
        terms = [name for name, part in last.output.losses.items() if name.startswith("loss") and not part.isfinite()]
        if self.scaler.is_enabled() and not terms and self._overflows < _MAX_OVERFLOWS:
            self._overflows += 1
            return
        self._nonfinite_steps += 1
        what = ", ".join(terms[:4]) or "the gradient"
        images = ", ".join(map(str, last.image_ids[:8]))
        self.skipped_steps.append(f"step {last.step} skipped: {what} not finite, images {images}")
        if self._nonfinite_steps >= self.settings.optimizer.max_nonfinite_steps:
            raise NonFiniteError(
                f"the last {self._nonfinite_steps} steps were not finite ({self.skipped_steps[-1]}); the weights are those "
                f"before them. Lower {arg('lr')}, or use {arg('precision', 'bfloat16')} instead of float16."
            )


def _sum_outputs(outputs: Sequence[LossOutput]) -> LossOutput:
    if len(outputs) == 1:
        return outputs[0]
    means = {"class_error", *(name for name in outputs[0].losses if name.startswith("cardinality_error"))}
    losses = {}
    for name in outputs[0].losses:
        stacked = torch.stack([output.losses[name] for output in outputs])
        losses[name] = stacked.nanmean() if name in means else stacked.sum()
    total = torch.stack([output.total for output in outputs]).sum()
    return LossOutput(total, losses, outputs[-1].matches)


class MovingAverage(AveragedModel):
    """Exponential moving average of a model's weights; `module` holds it, with a copy of the model's buffers.

    Its decay rises at first, so that the initial weights are forgotten. `AveragedModel` copies the number of averaged steps
    to the device for a function of it, which would have to wait for the device to read it. With `ema_warmup_steps`, as in
    RT-DETR and D-FINE, statistics of batch norm are averaged with the weights.

    Args:
        model: whose weights are averaged.
        settings: final decay, and course of its rise.
    """

    def __init__(self, model: DETR, settings: EMAConfig) -> None:
        super().__init__(model)
        self.requires_grad_(False)
        self.settings = settings

    def decay_after(self, count: int) -> float:
        """Return the decay after a number of averaged steps."""
        if self.settings.ema_warmup_steps:
            return self.settings.ema_decay * (1 - math.exp(-(count + 1) / self.settings.ema_warmup_steps))
        return min(self.settings.ema_decay, (1 + count) / (10 + count)) if count else 0.0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the current weights."""
        count = int(self.n_averaged)  # on the host
        averaged: list[Tensor] = [*self.module.parameters()]
        current: list[Tensor] = [*model.parameters()]
        copied = list(zip(self.module.buffers(), model.buffers(), strict=True))
        if self.settings.ema_warmup_steps:
            averaged += [buffer for buffer, _ in copied if buffer.is_floating_point()]
            current += [its for _, its in copied if its.is_floating_point()]
            copied = [(buffer, its) for buffer, its in copied if not its.is_floating_point()]
        decay = self.decay_after(count)
        if decay:
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)
        for buffer, its in copied:
            buffer.copy_(its)
        self.n_averaged += 1
