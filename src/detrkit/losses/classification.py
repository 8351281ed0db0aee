"""How class scores are judged: as one of K classes or no object (DETR), or as a yes or no for every class (focal loss).

Input: class logits, and what they should have said. Output: losses per layer, and costs for the matching. Sources: DETR,
equation 2; focal loss, arXiv:1708.02002, equation 5; its use, Deformable DETR, arXiv:2010.04159, section 5, published code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.errors import ConfigError
from detrkit.structures import ClassScores, Target

_MIN_TRUTH = 0.01  # that a matched query should say, however bad its box: published code
_SMALLEST = 1e-8  # added before logarithms in costs, as published


@runtime_checkable
class Classification(Protocol):
    """A way to judge class logits."""

    @property
    def weight(self) -> float:
        """Of the class loss, and of its cost in the matching, as published."""

    @property
    def is_overlap_aware(self) -> bool:
        """Whether losses ask how well a query's box fits."""

    def query_losses(
        self, logits: Float[Tensor, "*N L"], wanted: Int64[Tensor, "*N"], overlap: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """What each query adds to the loss before division.

        Args:
            logits: of the queries.
            wanted: a class, or K for no object.
            overlap: IoU of the query's box with its object's; None for perfect boxes.
        """

    def query_weights(self, wanted: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """What each query counts for in the loss."""

    def costs(self, logits: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
        """What it costs a query to answer for an object of a class; less is better."""

    def finds(self, logits: Float[Tensor, "*N L"]) -> Bool[Tensor, "*N"]:
        """Whether a query says that something is there."""

    def guesses(self, logits: Float[Tensor, "*N L"]) -> Int64[Tensor, "*N"]:
        """The class that a query says, or K for no object."""


@dataclass(frozen=True)
class SoftmaxClassification:
    """Cross entropy, in which queries without an object count less, for there are many more of them."""

    num_classes: int
    eos_coef: float = 0.1
    weight: float = 1.0
    is_overlap_aware: bool = False

    def query_losses(
        self, logits: Float[Tensor, "*N L"], wanted: Int64[Tensor, "*N"], overlap: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Weighted cross entropies."""
        entropy = F.cross_entropy(logits.movedim(-1, 1), wanted, reduction="none")
        return self.query_weights(wanted) * entropy

    def query_weights(self, wanted: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """1, or less for no object."""
        return torch.where(wanted != self.num_classes, 1.0, self.eos_coef)

    def costs(self, logits: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
        """Minus the probability of the class."""
        return -_of_labels(logits.softmax(-1), labels)

    def finds(self, logits: Float[Tensor, "*N L"]) -> Bool[Tensor, "*N"]:
        """Whether no-object is not the likeliest."""
        return self.guesses(logits) != self.num_classes

    def guesses(self, logits: Float[Tensor, "*N L"]) -> Int64[Tensor, "*N"]:
        """The likeliest class, or K."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class SigmoidFocalClassification:
    """Focal loss of every class by itself: entropies to which those already right hardly add."""

    num_classes: int
    alpha: float = 0.25
    gamma: float = 2.0
    weight: float = 2.0
    is_overlap_aware: bool = False

    def query_losses(
        self, logits: Float[Tensor, "*N L"], wanted: Int64[Tensor, "*N"], overlap: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Focal losses, summed over the classes."""
        truth = F.one_hot(wanted, self.num_classes + 1)[..., :-1].to(logits.dtype)
        probability = logits.sigmoid()
        missed = torch.where(truth > 0, 1 - probability, probability)
        share = torch.where(truth > 0, self.alpha, 1 - self.alpha)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return (share * missed**self.gamma * entropy).sum(-1)

    def query_weights(self, wanted: Int64[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """1."""
        return torch.ones(wanted.shape, device=wanted.device)

    def costs(self, logits: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
        """What saying yes would cost, less what saying no would."""
        probability = logits.sigmoid()
        yes = self.alpha * (1 - probability) ** self.gamma * -(probability + _SMALLEST).log()
        no = (1 - self.alpha) * probability**self.gamma * -(1 - probability + _SMALLEST).log()
        return _of_labels(yes - no, labels)

    def finds(self, logits: Float[Tensor, "*N L"]) -> Bool[Tensor, "*N"]:
        """Whether any class is likelier than not."""
        return logits.amax(-1) > 0

    def guesses(self, logits: Float[Tensor, "*N L"]) -> Int64[Tensor, "*N"]:
        """The likeliest class."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class IoUAwareClassification(SigmoidFocalClassification):
    """Scores that learn how well the box fits: cross entropy with score^a * IoU^(1 - a) (Align-DETR, arXiv:2304.07527).

    What a query should say of its object's class lies between the score that it gives and the IoU of its box. Other classes
    count as in focal loss, without its alpha. The matching costs what it did.
    """

    is_overlap_aware: bool = True
    score_share: float = 0.25  # a, as published

    def query_losses(
        self, logits: Float[Tensor, "*N L"], wanted: Int64[Tensor, "*N"], overlap: Float[Tensor, "*N"] | None = None
    ) -> Float[Tensor, "*N"]:
        """Cross entropies, summed over the classes."""
        is_object = F.one_hot(wanted, self.num_classes + 1)[..., :-1] > 0
        probability = logits.sigmoid()
        with torch.no_grad():
            fit = torch.ones_like(logits) if overlap is None else overlap[..., None].to(logits.dtype)
            aligned = probability**self.score_share * fit ** (1 - self.score_share)
            truth = torch.where(is_object, aligned.clamp(min=_MIN_TRUTH), 0.0)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return torch.where(is_object, entropy, probability**self.gamma * entropy).sum(-1)


def classification_for(
    class_scores: ClassScores, num_classes: int, eos_coef: float = 0.1, *, iou_aware: bool = False
) -> Classification:
    """The published way to judge a kind of scores; `iou_aware` is for sigmoid scores alone."""
    if iou_aware:
        return IoUAwareClassification(num_classes)
    if class_scores == "sigmoid":
        return SigmoidFocalClassification(num_classes)
    return SoftmaxClassification(num_classes, eos_coef)


def check_scores(found: ClassScores, expected: ClassScores) -> None:
    """See that a model's scores are of the kind that a loss was made for.

    Raises:
        ConfigError: they are not.
    """
    if found != expected:
        raise ConfigError(
            f"loss: the model has {found} class scores, the loss is for {expected}; "
            f"SetCriterion(..., class_scores={found!r})"
        )


def target_classes(
    shape: Sequence[int], places: tuple[Int64[Tensor, "P"], ...], labels: Int64[Tensor, "P"], num_classes: int
) -> Int64[Tensor, "*shape"]:
    """The class that each query should say: no object (K), but at the matched places."""
    wanted = torch.full(tuple(shape), num_classes, dtype=torch.int64, device=labels.device)
    wanted[places] = labels
    return wanted


def of_one_class(targets: Sequence[Target]) -> list[Target]:
    """The same objects, all of class 0: what the encoder's proposals are judged by."""
    return [Target(target.boxes, torch.zeros_like(target.labels)) for target in targets]


def _of_labels(values: Float[Tensor, "T B Q L"], labels: Int64[Tensor, "B N"]) -> Float[Tensor, "T B Q N"]:
    num_layers, _, num_queries, _ = values.shape
    return values.gather(-1, labels[None, :, None].expand(num_layers, -1, num_queries, -1))
