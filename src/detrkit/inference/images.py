"""Read an image passed to `Detector.predict`: a path, bytes, open file, Pillow image, array or tensor."""

import io
import math
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile
from torch import Tensor

from detrkit.data.decoding import PILLOW_MODES, one_line
from detrkit.data.images import image_to_pixels, read_image, read_image_file, tensor_to_image
from detrkit.data.suffixes import VIDEO_SUFFIXES
from detrkit.errors import DatasetError, short
from detrkit.structures import Detections, PanopticSegments

_ARRAY_START = b"\x93NUMPY"  # of a .npy file
_MAX_FILE_BYTES = 2**30  # of an open file, which may be endless
_MAX_PATH = 4096  # characters
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)  # pathlib merges the slashes; drives have one letter
_LOADING = threading.Lock()  # two threads must not decode one Pillow image at once
ResultT = TypeVar("ResultT", Detections, PanopticSegments)


@runtime_checkable
class BinaryFile(Protocol):
    """An open file, a response of an HTTP library, or anything else with bytes to read."""

    def read(self, size: int = -1, /) -> bytes:
        """Read some bytes, or the rest."""


ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray | Tensor
)


@dataclass(frozen=True)
class ReadImages:
    """Images that were read.

    Attributes:
        pixels: of each.
        paths: of each, if it was given as one.
        is_one: whether a single image was given rather than several.
    """

    pixels: list[UInt8[Tensor, "C _ _"]]
    paths: list[str | None]
    is_one: bool

    def attach(self, results: list[ResultT]) -> ResultT | list[ResultT]:
        """Attach images and paths to their results; return one result for one image."""
        attached = [
            replace(result, image=tensor_to_image(pixels), path=path)
            for result, pixels, path in zip(results, self.pixels, self.paths, strict=True)
        ]
        return attached[0] if self.is_one else attached


def read_images(images: Any, channels: int) -> ReadImages:
    """Read one image or several, one after the other: an iterator may reuse the object that it yields.

    Args:
        images: an `ImageInput`, or an iterable of them.
        channels: of the model.

    Raises:
        DatasetError: an image cannot be read, or is no image.
    """
    if is_one_image(images):
        return ReadImages([read_image_input(images, channels)], [path_of(images)], is_one=True)
    pixels, paths = [], []
    for number, image in enumerate(as_iterable(images, channels)):
        pixels.append(read_image_input(image, channels, f"images[{number}]"))
        paths.append(path_of(image))
    return ReadImages(pixels, paths, is_one=False)


def read_image_input(image: Any, channels: int, where: str = "image") -> UInt8[Tensor, "C H W"]:
    """Read the pixels of an image.

    Args:
        image: an `ImageInput`. Arrays and tensors are (H, W, C), (C, H, W) or (H, W), of uint8, of uint16, or of floats
            from 0 to 1.
        channels: of the model.
        where: name of the image in messages.

    Raises:
        DatasetError: it is something else, cannot be read, or has another number of channels.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(_local_path(image, where), channels=channels)
    if isinstance(image, bytes | bytearray | memoryview):
        return _read_bytes(bytes(image), channels, where)
    if isinstance(image, Image.Image):
        return _read_pillow(image, channels, where)
    if isinstance(image, np.ndarray | Tensor):
        return _read_array(image, channels, where)
    if isinstance(image, BinaryFile):
        return _read_bytes(_content_of(image, where), channels, where)
    raise _unknown(image, channels, where)


def is_one_image(images: object) -> TypeGuard[ImageInput]:
    """Return whether an argument is a single image rather than several."""
    if isinstance(images, np.ndarray | Tensor):
        is_batch = images.ndim == 4 or (isinstance(images, np.ndarray) and images.dtype.kind in "OUS")
        return not is_batch
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | BinaryFile)


def as_iterable(images: Any, channels: int) -> Iterable[Any]:
    """Return several images: any iterable but sets and mappings, or a batch as an array or tensor with four axes.

    Raises:
        DatasetError: it is not iterable.
    """
    if isinstance(images, Iterable) and not isinstance(images, Mapping | Set):
        return images
    raise _unknown(
        images, channels, "images", "; or several of them in a list, an array with a further axis, an iterator"
    )


def own_copy(image: Any, where: str = "image") -> Any:
    """Return an image that does not change with its source, such as a camera that fills one array again and again."""
    if isinstance(image, np.ndarray):
        return image.copy()
    if isinstance(image, Tensor):
        return image.detach().clone()
    if isinstance(image, Image.Image):
        return image.copy() if getattr(image, "is_animated", False) else image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, BinaryFile) and not isinstance(image, str | os.PathLike):
        return _content_of(image, where)
    return image


def path_of(image: object) -> str | None:
    """Return the path of an image that was given as one."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _local_path(image: str | os.PathLike[str], where: str) -> Path:
    text = str(os.fspath(image))
    url = _URL.match(text)
    if url is not None or text.startswith("data:"):
        kind = "a data URL" if url is None else f"a {url[1].lower()} URL"
        name = short(text) if url is None else text[:200]
        raise DatasetError(
            f"{where}: found {kind} ({name}), which is not read; download it first, and pass its path or its bytes"
        )
    if len(text) > _MAX_PATH or "\n" in text or "\0" in text:
        raise DatasetError(
            f"{where}: found text of {len(text)} characters ({short(text)}), expected a path; decode base64 to bytes first"
        )
    if Path(text).suffix.lower() in VIDEO_SUFFIXES:
        raise DatasetError(f"{text}: is a video, expected an image; predict it with detrkit.predict_files")
    if not text:
        raise DatasetError(f"{where}: found an empty path, expected an image; check the path")
    return Path(text)


def _content_of(file: BinaryFile, where: str) -> bytes:
    """Read an open file from its start, where it can be rewound."""
    try:
        seek = getattr(file, "seek", None)
        if seek is not None and getattr(file, "seekable", lambda: True)():
            seek(0)
        content: object = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{where}: the file cannot be read ({error}); open it again") from None
    if not isinstance(content, bytes | bytearray):
        raise DatasetError(
            f"{where}: found a file opened as text ({type(file).__name__}), expected bytes; open it with mode 'rb'"
        )
    if len(content) > _MAX_FILE_BYTES:
        raise DatasetError(f"{where}: the file has more than {_MAX_FILE_BYTES} bytes; pass a smaller image")
    return bytes(content)


def _read_bytes(content: bytes, channels: int, where: str) -> UInt8[Tensor, "C H W"]:
    if not content:
        raise DatasetError(f"{where}: found no bytes, expected the content of an image file; is it read to its end?")
    name = f"{where}.npy" if content.startswith(_ARRAY_START) else where
    return read_image_file(io.BytesIO(content), name, channels)


def _read_pillow(image: Image.Image, channels: int, where: str) -> UInt8[Tensor, "C H W"]:
    if not min(image.size):
        raise _no_pixels((image.height, image.width), where)
    try:
        if isinstance(image, ImageFile.ImageFile):
            with _LOADING:
                image.load()
                return image_to_pixels(image, channels, where=where)
        return image_to_pixels(_convertible(image), channels, where=where)
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any kind on malformed files
        raise DatasetError(
            f"{where}: the Pillow image of mode {image.mode} cannot be read ({one_line(error)}); open it again, or "
            "convert it to RGB"
        ) from None


def _convertible(image: Image.Image) -> Image.Image:
    """Convert the modes that Pillow cannot convert to RGB or RGBA directly."""
    if image.mode == "La":
        return image.convert("LA")
    return image.convert("RGBA") if image.mode == "RGBa" else image


def _read_array(image: np.ndarray | Tensor, channels: int, where: str) -> UInt8[Tensor, "C H W"]:
    given_shape = tuple(image.shape)
    if len(given_shape) in (2, 3) and not math.prod(given_shape):
        raise _no_pixels(given_shape, where)
    axis = _channel_axis(given_shape, channels, is_tensor=isinstance(image, Tensor))
    if axis is None:
        raise _wrong_array(image, channels, where)
    values = _to_numpy(image)
    pixels = _to_uint8(np.moveaxis(values, axis, -1) if values.ndim == 3 else values[..., None], image, channels, where)
    count = pixels.shape[-1]
    if count == channels:
        return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)
    drawn = Image.fromarray(np.ascontiguousarray(pixels if count > 1 else pixels[..., 0]), PILLOW_MODES[count])
    return image_to_pixels(drawn, channels, where=where)


def _channel_axis(shape: Sequence[int], channels: int, *, is_tensor: bool) -> int | None:
    """Return the axis of the channels: first of all the last axis of an array and the first one of a tensor."""
    convertible = tuple(PILLOW_MODES) if channels in PILLOW_MODES else ()
    if len(shape) == 2:
        return 2 if channels == 1 or convertible else None
    if len(shape) != 3:
        return None
    axes = (0, 2) if is_tensor else (2, 0)
    exact = [axis for axis in axes if shape[axis] == channels]
    return next(iter([*exact, *(axis for axis in axes if shape[axis] in convertible)]), None)


def _to_numpy(image: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return np.asarray(image)
    values = image.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def _to_uint8(values: np.ndarray, given: np.ndarray | Tensor, channels: int, where: str) -> np.ndarray:
    """Convert 8 or 16 bits, or floats from 0 to 1, to 8 bits."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size == 1:
        return values
    if kind == "u" and size == 2:  # as in .npy files
        return (values >> 8).astype(np.uint8)
    if kind != "f":
        raise _wrong_array(given, channels, where)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # also if one is NaN
        found = (
            "values that are not finite" if not math.isfinite(low + high) else f"values from {low:.4g} to {high:.4g}"
        )
        raise DatasetError(
            f"{where}: found an array of {given.dtype} with {found}, expected uint8, or floats from 0 to 1 that are not "
            "normalised"
        )
    return (values * 255).round().astype(np.uint8)


def _unknown(image: object, channels: int, where: str, more: str = "") -> DatasetError:
    found = "None" if image is None else f"{short(image)} ({type(image).__name__})"
    return DatasetError(
        f"{where}: found {found}, expected a path, the bytes of an image file, an open binary "
        f"file, a Pillow image, a uint8 array (H, W, {channels}) or a uint8 tensor ({channels}, H, W){more}"
    )


def _wrong_array(image: np.ndarray | Tensor, channels: int, where: str) -> DatasetError:
    return DatasetError(
        f"{where}: found an array of shape {tuple(image.shape)} and type {image.dtype}, expected uint8 or floats from 0 to "
        f"1, (H, W, {channels}) as an array or ({channels}, H, W) as a tensor"
    )


def _no_pixels(shape: Sequence[int], where: str) -> DatasetError:
    return DatasetError(f"{where}: found an image without pixels, of shape {tuple(shape)}; check how it was cropped")
