"""``preprocessor_config.json`` of Hugging Face's DETR image processors, read and written.

What a processor of transformers would do to the pixels is done, or refused by the setting's name. Settings that do not
change pixels, such as those of annotations, are ignored, as there.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from detrkit.checkpoints.json_files import read_json
from detrkit.checkpoints.native import MAX_RESIZED_PIXELS, MAX_SIDE, REALTIME_SIZE, Preprocessing
from detrkit.config.training import MAX_IMAGE_SIZE
from detrkit.data.batching import IMAGENET_MEAN, IMAGENET_STD
from detrkit.data.transforms.geometry import EVAL_SHORT_SIDE, MAX_LONG_SIDE, Interpolation, max_long_side
from detrkit.errors import CheckpointError, short

_PROCESSORS = tuple(
    f"{architecture}{kind}"
    for architecture in ("Detr", "ConditionalDetr", "DeformableDetr", "RTDetr", "RfDetr")
    for kind in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
)
_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_ROUNDING = 1e-7  # relative: numbers that were rounded to float32 and back
_FILES = ("processor_config.json", "preprocessor_config.json")  # the former has the settings under "image_processor"


def read_preprocessing(folder: Path, default: Preprocessing | None = None) -> Preprocessing:
    """Read how a folder's image processor prepares images; the defaults of its class stand in for missing settings.

    The folders that the Trainer saves may lack the file, which is then in their parent.

    Args:
        folder: of the model.
        default: is returned if there is no file; None for the published DETR's.

    Raises:
        CheckpointError: a file is malformed, or a setting changes pixels as detrkit cannot.
    """
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    for path in [place / name for place in places for name in _FILES]:
        if path.is_file() and (settings := _settings(path)) is not None:
            return preprocessing_from_settings(settings, path)
    return (default or Preprocessing()).model_copy(update={"rounding": "transformers"})


def preprocessing_from_settings(settings: Mapping[str, Any], where: Path | str) -> Preprocessing:
    """Convert the settings of an image processor.

    Args:
        settings: by name; None counts as missing, as in transformers.
        where: their file, for messages.

    Raises:
        CheckpointError: a setting is malformed, or changes pixels as detrkit cannot; the message names it.
    """
    return _Reader({name: value for name, value in settings.items() if value is not None}, where).read()


class _Reader:
    """Reads the settings one by one."""

    def __init__(self, settings: Mapping[str, Any], where: Path | str) -> None:
        self.settings = settings
        self.where = where
        self.is_realtime = str(settings.get("image_processor_type", "")).startswith("RTDetr")

    def read(self) -> Preprocessing:
        """Return all that changes pixels."""
        self._check_unsupported()
        fields: dict[str, Any] = {"rounding": "transformers"}
        if self._flag("do_resize"):
            fields |= self._size() | {"interpolation": self._interpolation()}
        else:
            fields["resize"] = "none"
        scale = self._number("rescale_factor", 1 / 255) if self._flag("do_rescale") else 1.0
        fields["scale"] = 1 / 255 if _is_close(scale, 1 / 255) else scale
        fields["normalize"] = self._flag("do_normalize", not self.is_realtime)
        if fields["normalize"]:
            fields["mean"] = self._per_channel("image_mean", IMAGENET_MEAN)
            fields["std"] = self._per_channel("image_std", IMAGENET_STD)
        return Preprocessing(**fields)

    def _check_unsupported(self) -> None:
        for name in ("image_processor_type", "feature_extractor_type"):
            kind = self.settings.get(name)
            if kind is not None and kind not in _PROCESSORS:
                self._reject(name, f"one of {', '.join(_PROCESSORS[::4])}")
        if self._flag("do_pad", not self.is_realtime) and "pad_size" in self.settings:
            self._reject("pad_size", "none: detrkit pads images to the largest of their batch only")
        if self._flag("do_center_crop", False):
            self._reject("do_center_crop", "false: detrkit does not crop")

    def _size(self) -> dict[str, Any]:
        size, max_size = self.settings.get("size"), self.settings.get("max_size", MAX_LONG_SIDE)
        if size is None and self.is_realtime:
            size = dict(zip(("height", "width"), REALTIME_SIZE, strict=True))
        elif size is None:  # max_size alone has no effect in transformers either
            size = {"shortest_edge": EVAL_SHORT_SIDE, "longest_edge": MAX_LONG_SIDE}
        elif isinstance(size, int):
            size = {"shortest_edge": size, "longest_edge": max_size}
        elif isinstance(size, list) and len(size) == 2:
            size = {"height": size[0], "width": size[1]}
        if not isinstance(size, dict):
            self._reject("size", "a number or a dict of lengths")
        sides = {name: value for name, value in size.items() if value is not None}
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides.values()):
            self._reject("size", f"lengths of 1 to {MAX_SIDE} pixels")
        if sides.keys() == {"shortest_edge", "longest_edge"}:
            shortest, longest = sides["shortest_edge"], sides["longest_edge"]
            self._check_pixels(shortest, max(shortest, longest))
            return {"image_size": shortest, "max_size": None if longest == max_long_side(shortest) else longest}
        for names, mode in (
            (("height", "width"), "stretch"),
            (("max_height", "max_width"), "fit"),
            (("longest_edge",), "fit"),
        ):
            if sides.keys() == set(names):
                box = tuple(sides[name] for name in names) * (2 // len(names))
                self._check_pixels(*box)
                return {"resize": mode, "size": box, "image_size": min(box)}
        return self._reject(
            "size",
            "'shortest_edge' and 'longest_edge', 'height' and 'width', 'max_height' and 'max_width', or one number",
        )

    def _check_pixels(self, height: int, width: int) -> None:
        if min(height, width) > MAX_IMAGE_SIZE or height * width > MAX_RESIZED_PIXELS:
            self._reject(
                "size", f"at most {MAX_IMAGE_SIZE} pixels of the shorter side, and {MAX_RESIZED_PIXELS:,} in all"
            )

    def _interpolation(self) -> Interpolation:
        number = self.settings.get("resample", 2)
        if type(number) is not int or number not in _FILTERS:
            self._reject("resample", "0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)")
        return _FILTERS[number]

    def _per_channel(self, name: str, default: tuple[float, ...]) -> tuple[float, ...] | None:
        value = self.settings.get(name, default)
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        numbers = tuple(float(one) for one in values if _is_number(one))
        if len(numbers) != len(values) or len(values) not in (1, 3) or (name == "image_std" and 0.0 in numbers):
            self._reject(
                name, "a number for each of the 3 channels" + (", other than 0" if name == "image_std" else "")
            )
        is_default = len(numbers) == 3 and all(map(_is_close, numbers, default))
        return None if is_default else numbers

    def _number(self, name: str, default: float) -> float:
        value = self.settings.get(name, default)
        if not _is_number(value) or not value:
            self._reject(name, "a number other than 0")
        return float(value)

    def _flag(self, name: str, default: bool = True) -> bool:
        value = self.settings.get(name, default)
        if not isinstance(value, bool):
            self._reject(name, "true or false")
        return value

    def _reject(self, name: str, expected: str) -> NoReturn:
        raise CheckpointError(
            f"{self.where}: {name} is {short(self.settings.get(name))}, which is not supported; expected {expected}"
        )


def _is_close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=_ROUNDING)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _settings(path: Path) -> Mapping[str, Any] | None:
    """Read the settings of an image processor, or None if the file holds those of other processors only."""
    content = read_json(path)
    if path.name != _FILES[0]:
        return content
    settings = content.get("image_processor")
    return settings if isinstance(settings, dict) else None


def preprocessor_settings(preprocessing: Preprocessing, image_processor: str) -> dict[str, Any]:
    """Return the settings with which an image processor of transformers prepares images in the same way.

    Args:
        preprocessing: of the model.
        image_processor: name of the class.
    """
    numbers = {name: number for number, name in _FILTERS.items()}
    changes_scale = preprocessing.scale != 1.0
    return {
        "image_processor_type": image_processor,
        "do_resize": preprocessing.resize != "none",
        "size": _size_of(preprocessing),
        "resample": numbers[preprocessing.interpolation],
        "do_rescale": changes_scale,
        **({"rescale_factor": preprocessing.scale} if changes_scale else {}),
        "do_normalize": preprocessing.normalize,
        "image_mean": list(preprocessing.mean or IMAGENET_MEAN),
        "image_std": list(preprocessing.std or IMAGENET_STD),
        "do_pad": preprocessing.resize != "stretch",
        "format": "coco_detection",
    }


def _size_of(preprocessing: Preprocessing) -> dict[str, int]:
    if preprocessing.size is None:
        return {"shortest_edge": preprocessing.image_size, "longest_edge": preprocessing.longest_side}
    names = ("height", "width") if preprocessing.resize == "stretch" else ("max_height", "max_width")
    return dict(zip(names, preprocessing.size, strict=True))
