"""Classification losses and matching costs: softmax cross-entropy, sigmoid focal loss, IoU-aware sigmoid losses.

Softmax scores choose among K classes and "no object" (DETR, equation 2); sigmoid scores are independent for every class
(focal loss, arXiv:1708.02002, equation 5; in Deformable DETR, arXiv:2010.04159, section 5 and published code).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.config.setting_groups import ClassLoss
from detrkit.errors import ConfigError, arg
from detrkit.structures import ClassScores, Target

MIN_SOFT_TARGET = 0.01  # lower bound of the IoU-aware target of a matched query, as in Align-DETR's code
_EPS = 1e-8  # added before logarithms in costs, as published


@runtime_checkable
class Classification(Protocol):
    """Classification loss and matching cost of one kind of class scores.

    L is the number of logits: K + 1 for softmax, K for sigmoid scores.
    """

    @property
    def name(self) -> str:
        """Published name of the loss in logs: loss_ce, loss_vfl or loss_mal."""

    @property
    def default_coef(self) -> float:
        """Published weight of the classification loss."""

    @property
    def default_cost(self) -> float:
        """Published weight of the matching cost."""

    @property
    def is_iou_aware(self) -> bool:
        """True if `query_losses` uses the IoU of the queries' boxes."""

    def query_losses(
        self, logits: Float[Tensor, "*N L"], target_classes: Int64[Tensor, "*N"], iou: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Compute the loss of each query, before normalisation.

        Args:
            logits: class logits.
            target_classes: 0 .. K-1, or K for "no object".
            iou: of each query's box with that of its matched object; None stands for 1.
        """

    def query_weights(self, target_classes: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Return the weight of each query in the loss."""

    def costs(self, logits: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
        """Compute the matching cost of every query for every label."""

    def is_object(self, logits: Float[Tensor, "*N L"]) -> Bool[Tensor, "*N"]:
        """Return True for queries that predict an object."""

    def predicted_labels(self, logits: Float[Tensor, "*N L"]) -> Int64[Tensor, "*N"]:
        """Return the predicted class in 0 .. K-1, or K for "no object"."""


@dataclass(frozen=True)
class SoftmaxClassification:
    """Softmax cross-entropy over K classes and "no object", which is weighted down because most queries are unmatched.

    Attributes:
        num_classes: K.
        eos_coef: weight of the "no object" class.
        name: loss_ce.
        default_coef: published weight of the loss.
        default_cost: published weight of the matching cost.
        is_iou_aware: False.
    """

    num_classes: int
    eos_coef: float = 0.1
    name: str = "loss_ce"
    default_coef: float = 1.0
    default_cost: float = 1.0
    is_iou_aware: bool = False

    def query_losses(
        self, logits: Float[Tensor, "*N L"], target_classes: Int64[Tensor, "*N"], iou: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Compute weighted cross-entropies."""
        entropy = F.cross_entropy(logits.movedim(-1, 1), target_classes, reduction="none")
        return self.query_weights(target_classes) * entropy

    def query_weights(self, target_classes: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Return 1, or `eos_coef` for "no object"."""
        return torch.where(target_classes != self.num_classes, 1.0, self.eos_coef)

    def costs(self, logits: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
        """Return minus the probability of the label."""
        return -_gather_labels(logits.softmax(-1), labels)

    def is_object(self, logits: Float[Tensor, "*N L"]) -> Bool[Tensor, "*N"]:
        """Return True where "no object" is not the most probable class."""
        return self.predicted_labels(logits) != self.num_classes

    def predicted_labels(self, logits: Float[Tensor, "*N L"]) -> Int64[Tensor, "*N"]:
        """Return the most probable class, K for "no object"."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class SigmoidFocalClassification:
    """Sigmoid focal loss, summed over the classes (as in Deformable DETR).

    Attributes:
        num_classes: K.
        alpha: weight of positives; 1 - alpha that of negatives.
        gamma: focusing exponent.
        name: loss_ce.
        default_coef: published weight of the loss.
        default_cost: published weight of the matching cost.
        is_iou_aware: False.
    """

    num_classes: int
    alpha: float = 0.25
    gamma: float = 2.0
    name: str = "loss_ce"
    default_coef: float = 2.0
    default_cost: float = 2.0
    is_iou_aware: bool = False

    def query_losses(
        self, logits: Float[Tensor, "*N L"], target_classes: Int64[Tensor, "*N"], iou: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Compute focal losses, summed over the classes."""
        from torchvision.ops import sigmoid_focal_loss  # imported here, because it takes seconds

        targets = F.one_hot(target_classes, self.num_classes + 1)[..., :-1].to(logits.dtype)
        return sigmoid_focal_loss(logits, targets, self.alpha, self.gamma).sum(-1)

    def query_weights(self, target_classes: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Return 1 for every query."""
        return torch.ones(target_classes.shape, device=target_classes.device)

    def costs(self, logits: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
        """Return the focal loss of the label as a positive minus that as a negative."""
        probability = logits.sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + _EPS).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + _EPS).log()
        return _gather_labels(positive - negative, labels)

    def is_object(self, logits: Float[Tensor, "*N L"]) -> Bool[Tensor, "*N"]:
        """Return True where any class has a probability above 1/2."""
        return logits.amax(-1) > 0

    def predicted_labels(self, logits: Float[Tensor, "*N L"]) -> Int64[Tensor, "*N"]:
        """Return the most probable class."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class IoUAwareClassification(SigmoidFocalClassification):
    """Cross-entropy with the soft target score^a * IoU^(1 - a) for the object's class (Align-DETR, arXiv:2304.07527).

    The target lies between the predicted score and the IoU of the predicted box, so that scores rank boxes by their IoU.
    Other classes have the focal loss without alpha. Matching costs are those of the focal loss.

    Attributes:
        score_exponent: a; 0.25 as published.
    """

    is_iou_aware: bool = True
    score_exponent: float = 0.25

    def query_losses(
        self, logits: Float[Tensor, "*N L"], target_classes: Int64[Tensor, "*N"], iou: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Compute cross-entropies, summed over the classes."""
        is_target = F.one_hot(target_classes, self.num_classes + 1)[..., :-1] > 0
        probability = logits.sigmoid()
        with torch.no_grad():
            ious = torch.ones_like(logits) if iou is None else iou[..., None].to(logits.dtype)
            soft_target = probability**self.score_exponent * ious ** (1 - self.score_exponent)
            targets = torch.where(is_target, soft_target.clamp(min=MIN_SOFT_TARGET), 0.0)
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return torch.where(is_target, entropy, probability**self.gamma * entropy).sum(-1)


@dataclass(frozen=True)
class IABCEClassification(IoUAwareClassification):
    """The same loss with the published weight of LW-DETR (arXiv:2406.03459) and RF-DETR ("IA-BCE").

    Attributes:
        default_coef: published weight of the loss, half that of the matching cost.
    """

    default_coef: float = 1.0


@dataclass(frozen=True)
class VarifocalClassification(SigmoidFocalClassification):
    """Varifocal loss: the target of the object's class is the IoU of the box (arXiv:2008.13367; RT-DETR, section 4.3).

    Other classes have the target 0, weighted by `negative_alpha` and their score to the power of `gamma`. The object's
    class is weighted by its target. Matching costs are those of the focal loss.

    Attributes:
        name: loss_vfl.
        default_coef: published weight of the loss, half that of the matching cost.
        negative_alpha: weight of negatives.
    """

    name: str = "loss_vfl"
    default_coef: float = 1.0
    is_iou_aware: bool = True
    negative_alpha: float = 0.75

    def query_losses(
        self, logits: Float[Tensor, "*N L"], target_classes: Int64[Tensor, "*N"], iou: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Compute weighted cross-entropies, summed over the classes."""
        targets, negatives = _soft_targets(logits, target_classes, iou)
        weights = negatives * self.negative_alpha * logits.detach().sigmoid() ** self.gamma + targets
        return (weights * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(-1)


@dataclass(frozen=True)
class MatchabilityAwareClassification(SigmoidFocalClassification):
    """Matchability-aware loss of DEIM (arXiv:2412.04234, section 3.3): the target of the object's class is IoU^gamma.

    Other classes have the target 0, weighted by their score to the power of `loss_gamma`; the object's class has the weight
    1, so that matches of low IoU count as much as others. Matching costs are those of the focal loss.

    Attributes:
        name: loss_mal.
        default_coef: published weight of the loss, half that of the matching cost.
        loss_gamma: exponent of the IoU and of the scores.
    """

    name: str = "loss_mal"
    default_coef: float = 1.0
    is_iou_aware: bool = True
    loss_gamma: float = 1.5

    def query_losses(
        self, logits: Float[Tensor, "*N L"], target_classes: Int64[Tensor, "*N"], iou: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Compute weighted cross-entropies, summed over the classes."""
        targets, negatives = _soft_targets(logits, target_classes, iou, self.loss_gamma)
        weights = negatives * logits.detach().sigmoid() ** self.loss_gamma + (1 - negatives)
        return (weights * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(-1)


def _soft_targets(
    logits: Float[Tensor, "*N L"],
    target_classes: Int64[Tensor, "*N"],
    iou: Float[Tensor, "*N"] | None,
    exponent: float = 1.0,
) -> tuple[Float[Tensor, "*N L"], Float[Tensor, "*N L"]]:
    """Return the targets, IoU^exponent for the object's class and 0 for the others, and 1 for each of the others."""
    targets, negatives = torch.zeros_like(logits), torch.ones_like(logits)
    classes = target_classes.clamp(max=logits.shape[-1] - 1)[..., None]
    is_object = (target_classes < logits.shape[-1])[..., None].to(logits.dtype)
    iou = is_object if iou is None else is_object * iou[..., None].to(logits.dtype).clamp(min=0) ** exponent
    return targets.scatter(-1, classes, iou), negatives.scatter(-1, classes, 1 - is_object)


def classification_for(
    class_scores: ClassScores, num_classes: int, eos_coef: float = 0.1, *, cls_loss: ClassLoss = "default"
) -> Classification:
    """Return the classification loss of a kind of scores; all but "default" need sigmoid scores."""
    if cls_loss != "default":
        return _IOU_AWARE[cls_loss](num_classes)
    if class_scores == "sigmoid":
        return SigmoidFocalClassification(num_classes)
    return SoftmaxClassification(num_classes, eos_coef)


_IOU_AWARE: Mapping[ClassLoss, Callable[[int], Classification]] = {
    "align": IoUAwareClassification,
    "ia_bce": IABCEClassification,
    "vfl": VarifocalClassification,
    "mal": MatchabilityAwareClassification,
}


def check_class_scores(model_scores: ClassScores, criterion_scores: ClassScores) -> None:
    """Check that the criterion was made for the model's kind of class scores.

    Raises:
        ConfigError: it was not.
    """
    if model_scores != criterion_scores:
        raise ConfigError(
            f"{arg('class_scores', criterion_scores)} of the criterion does not fit the model, which has {model_scores} "
            f"scores. Pass {arg('class_scores', model_scores)} to SetCriterion."
        )


def target_classes_of(
    shape: Sequence[int], index: tuple[Int64[Tensor, "P"], ...], labels: Int64[Tensor, "P"], num_classes: int
) -> Int64[Tensor, "*shape"]:
    """Return the target class of every query: the label at the matched indices, "no object" (K) elsewhere."""
    target_classes = torch.full(tuple(shape), num_classes, dtype=torch.int64, device=labels.device)
    target_classes[index] = labels
    return target_classes


@torch.no_grad()
def class_error(
    predicted_labels: Int64[Tensor, "T B Q"], index: tuple[Int64[Tensor, "TP"], ...], labels: Int64[Tensor, "TP"]
) -> Float[Tensor, ""]:
    """Return the percentage of the last layer's matched queries with a wrong class; NaN without any (published: 100).

    Args:
        predicted_labels: of all queries.
        index: layer, image and query of the matched pairs.
        labels: of the matched objects.
    """
    num_pairs = len(labels) // len(predicted_labels)  # of each layer, the last layer's last
    is_wrong = predicted_labels[index] != labels
    return 100 * is_wrong[len(labels) - num_pairs :].float().mean()


def class_agnostic(targets: Sequence[Target]) -> list[Target]:
    """Replace all labels by 0, the only class of the encoder's proposals."""
    return [Target(target.boxes, torch.zeros_like(target.labels)) for target in targets]


def _gather_labels(values: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
    num_layers, _, num_queries, _ = values.shape
    return values.gather(-1, labels[None, :, None].expand(num_layers, -1, num_queries, -1))
