"""All scores of a model: of its boxes, and of its masks and segments where it has a mask head."""

from dataclasses import dataclass
from typing import Any

from detrkit.evaluation.coco import BoxScores
from detrkit.evaluation.panoptic import PanopticScores


@dataclass(frozen=True)
class Scores:
    """What an evaluation gives.

    Attributes:
        boxes: COCO's numbers.
        masks: the same of masks, where they were asked for.
        panoptic: panoptic quality, where the data has segments.
    """

    boxes: BoxScores
    masks: BoxScores | None = None
    panoptic: PanopticScores | None = None

    @property
    def ap(self) -> float:
        """Box AP averaged over IoU 0.50 to 0.95."""
        return self.boxes.ap

    @property
    def name(self) -> str:
        """What checkpoints are compared by."""
        return "PQ" if self.panoptic is not None else "mask AP" if self.masks is not None else "AP"

    @property
    def value(self) -> float:
        """The number that checkpoints are compared by; 0 where nothing could be scored."""
        value = self.numbers[self.name]
        return value if value > 0 else 0.0

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers by name: COCO's twelve of boxes, "mask AP" and the like, PQ, SQ, RQ, and PQ of things and stuff."""
        numbers = dict(self.boxes.numbers)
        if self.masks is not None:
            numbers |= {f"mask {name}": value for name, value in self.masks.numbers.items()}
        if self.panoptic is not None:
            whole = self.panoptic.overall
            numbers |= {"PQ": whole.pq, "SQ": whole.sq, "RQ": whole.rq}
            numbers |= {f"PQ {name}": group.pq for name, group in self.panoptic.groups.items() if name != "all"}
        return numbers

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: None if one is None else one.to_json() for name, one in vars(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Scores":
        """Read what `to_json` gave, or runs of before there were masks."""
        if "boxes" not in content:
            return cls(BoxScores.from_json(content))
        masks, panoptic = content["masks"], content["panoptic"]
        return cls(
            BoxScores.from_json(content["boxes"]),
            None if masks is None else BoxScores.from_json(masks),
            None if panoptic is None else PanopticScores.from_json(panoptic),
        )
