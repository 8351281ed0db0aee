"""Categories of a dataset: ids and names; a label 0 .. K-1 is a position among them."""

from dataclasses import dataclass
from typing import Any

from detrkit._internal.text import valid_text


@dataclass(frozen=True)
class Categories:
    """Classes of a dataset or model; a label is a position in these tuples.

    Attributes:
        ids: category ids of the dataset.
        names: class names.
        is_thing: whether a class is a countable thing, or stuff such as sky, in COCO panoptic; None if unknown.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    is_thing: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        """Replace halves of characters, which JSON can hold and no file, page or font can."""
        object.__setattr__(self, "names", tuple(map(valid_text, self.names)))

    @property
    def things(self) -> tuple[bool, ...]:
        """`is_thing` of every class; True if unknown."""
        return getattr(self, "is_thing", None) or (True,) * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_json(cls, entries: Any) -> "Categories":
        """Read the result of `to_json`.

        Raises:
            ValueError: it is not a list of objects with an id and a name each, or an id occurs twice.
        """
        try:
            ids = tuple(int(entry["id"]) for entry in entries)
            names = tuple(str(entry["name"]) for entry in entries)
            things = [entry.get("isthing") for entry in entries]
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"expected categories with 'id' and 'name' ({type(error).__name__})") from None
        if not all(-(2**63) <= number < 2**63 for number in ids):
            raise ValueError("a category id has more than 64 bits")
        if len(set(ids)) < len(ids):
            raise ValueError("a category id occurs twice")
        return cls(ids, names, None if None in things or not ids else tuple(bool(thing) for thing in things))

    def to_json(self) -> list[dict[str, object]]:
        """List ids and names in the order of the labels, with `isthing` if known, as in COCO."""
        named = [{"id": number, "name": name} for number, name in zip(self.ids, self.names, strict=True)]
        if self.is_thing is None:
            return named
        return [{**entry, "isthing": int(thing)} for entry, thing in zip(named, self.is_thing, strict=True)]


def default_categories(num_classes: int) -> Categories:
    """Return categories for a model without names: COCO's for 91 classes, numbers otherwise."""
    ids = tuple(range(num_classes))
    if num_classes == COCO_SLOTS:
        return Categories(ids, tuple(COCO_NAMES.get(number, "N/A") for number in ids))
    return Categories(ids, tuple(f"class {number}" for number in ids))


def contiguous_coco_categories() -> Categories:
    """Return COCO's 80 categories, whose labels are 0 to 79 in the order of their ids."""
    return Categories(tuple(COCO_NAMES), tuple(COCO_NAMES.values()))


COCO_SLOTS = 91  # the published class head has an output for every category id 0 .. 90, used or not

COCO_NAMES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
