"""Reading of images as uint8 tensors, upright, with the number of channels of the model.

Files are untrusted: they are decoded only after their size was read from the header. Image files become RGB; `.npy` arrays
(H, W, C) and TIFF files of several pages have any number of channels.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from detrkit._internal.files import is_file, open_file, what_is_at
from detrkit.data.decoding import (
    EXIF_ORIENTATION,
    RGB,
    SUPPRESS_WARNINGS,
    apply_exif_orientation,
    check_channels,
    decode_file,
    image_to_array,
    one_line,
    opened_image,
    read_array,
    read_array_header,
    readable_formats,
    to_rgb,
)
from detrkit.data.image_structure import MAX_PIXELS, ImageFile, check_header
from detrkit.errors import DatasetError, arg

_TGA_SUFFIXES = (".tga", ".icb", ".vda", ".vst")


def open_image(
    path: Path | str, annotated_size: tuple[int, int] | None = None, span: tuple[int, int] | None = None
) -> Image.Image:
    """Read an image in RGB, with its EXIF orientation applied.

    Args:
        path: the file.
        annotated_size: (height, width) of the annotations. If the stored pixels have this size and the upright image has
            not, the annotations were made on the stored pixels, and the EXIF orientation is ignored.
        span: (offset, length) in bytes of an image inside a shard, which is the parent of `path`.

    Raises:
        DatasetError: the file is missing, not an image, truncated, or too large.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return tensor_to_image(to_tensor(_array_at(path, span)))
    with _opened(path, span) as image:
        return apply_exif_orientation(image, annotated_size)


def read_image(
    path: Path | str,
    annotated_size: tuple[int, int] | None = None,
    span: tuple[int, int] | None = None,
    channels: int = RGB,
) -> UInt8[Tensor, "C H W"]:
    """Read an image with a number of channels.

    Image files are converted to gray (1), RGB (3) or RGBA (4). Other numbers of channels are read from `.npy` arrays, or
    from the pages of TIFF files. Other arguments as in `open_image`.

    Raises:
        DatasetError: as in `open_image`, or it has another number of channels.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return to_tensor(check_channels(_array_at(path, span), channels, path))
    with _opened(path, span) as image:
        return image_to_pixels(image, channels, annotated_size, str(path))


def read_image_file(
    file: ImageFile, name: str, channels: int = RGB, max_pixels: int = MAX_PIXELS
) -> UInt8[Tensor, "C H W"]:
    """Read an image from an open file, like `read_image`.

    Args:
        file: its content, at the start.
        name: file name, which distinguishes arrays from image files.
        channels: of the model.
        max_pixels: larger images are rejected before they are decoded.

    Raises:
        DatasetError: as in `read_image`.
    """
    return to_tensor(decode_file(file, name, channels, max_pixels))


def image_to_pixels(
    image: Image.Image,
    channels: int = RGB,
    annotated_size: tuple[int, int] | None = None,
    where: str = "image",
    max_pixels: int = MAX_PIXELS,
) -> UInt8[Tensor, "C H W"]:
    """Convert a Pillow image to a tensor, like `read_image`.

    Raises:
        DatasetError: it cannot be converted to this number of channels.
    """
    return to_tensor(image_to_array(image, channels, annotated_size, where, max_pixels))


def read_image_bytes(path: Path, span: tuple[int, int] | None = None) -> bytes:
    """Read the bytes of an image file, or of an image inside a shard.

    Raises:
        DatasetError: it is missing, or the shard is truncated.
    """
    try:
        if span is None:
            with _open_file(path) as file:
                return file.read()
        with open_file(path.parent) as shard:
            shard.seek(span[0])
            content = shard.read(span[1])
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(content) != span[1]:
        raise DatasetError(f"{path}: the shard ends before the image does; copy the shard again")
    return content


@contextmanager
def _opened(path: Path, span: tuple[int, int] | None) -> Iterator[Image.Image]:
    """Open an image and check its size; errors of decoding become `DatasetError`s."""
    with _open_file(path, span) as file, opened_image(file, path) as image:
        yield image


@contextmanager
def _open_file(path: Path, span: tuple[int, int] | None = None) -> Iterator[ImageFile]:
    """Open an image file, or an image inside a shard.

    Pillow is given an open file, too: it maps uncompressed TIFF files from paths, and then rotates them wrongly.

    Raises:
        DatasetError: it is missing, a folder, or may not be read.
    """
    if span is not None:
        yield io.BytesIO(read_image_bytes(path, span))
        return
    if not is_file(path):  # opening a pipe would wait for a writer
        raise DatasetError(f"{path}: {what_is_at(path)}, expected an image; check the path")
    try:
        file = path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    with file:
        yield file


def has_image_content(path: Path) -> bool:
    """Return whether a file is an image by its content, whatever its suffix."""
    # a TGA has no signature: any content could be one
    formats = [one for one in readable_formats() if one != "TGA"]
    try:
        with _open_file(path) as file, SUPPRESS_WARNINGS:
            check_header(file, path)
            with Image.open(cast("IO[bytes]", file), formats=formats) as image:
                return image.width > 0
    except Exception:  # Pillow's decoders raise errors of any kind on malformed files
        return False


def check_image_content(file: ImageFile, path: Path) -> None:
    """Check by its content that a file is an image, before it is copied; its pixels are not decoded.

    Args:
        file: at its start.
        path: of the file, whose suffix tells arrays, and TGA images, which have no signature.

    Raises:
        DatasetError: it is not an image.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        read_array_header(file, path)
        return
    formats = [one for one in readable_formats() if one != "TGA" or suffix in _TGA_SUFFIXES]
    try:
        with SUPPRESS_WARNINGS:
            check_header(file, path)
            Image.open(cast("IO[bytes]", file), formats=formats)
    except DatasetError:
        raise
    except Image.DecompressionBombError:
        return  # a large image
    except Exception as error:  # Pillow's decoders raise errors of any kind on malformed files
        raise DatasetError(
            f"{path}: is not an image ({one_line(error)}), and only images are copied; replace it, or let detrkit doctor "
            f"write a copy without it ({arg('fix', 'COPY')})"
        ) from None


def read_image_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of an image, upright, from its header, without decoding it.

    Raises:
        DatasetError: it is missing or not an image.
    """
    if path.suffix.lower() == ".npy":
        return array_shape(path)[:2]
    try:
        with _open_file(path) as file, SUPPRESS_WARNINGS:
            check_header(file, path)
            with Image.open(cast("IO[bytes]", file), formats=readable_formats()) as image:
                # the method of a PNG would decode the pixels first
                is_rotated = Image.Image.getexif(image).get(EXIF_ORIENTATION) in (5, 6, 7, 8)
                if is_rotated and image.format == "TIFF":  # versions of Pillow differ in how they rotate these
                    upright = open_image(path)
                    return upright.height, upright.width
                return (image.width, image.height) if is_rotated else (image.height, image.width)
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any kind on malformed files
        raise DatasetError(f"{path}: cannot be read as an image ({one_line(error)})") from None


def array_shape(path: Path, span: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Read (height, width, channels) of a .npy file from its header.

    Raises:
        DatasetError: it is not such an array.
    """
    with _open_file(path, span) as file:
        shape, _, _ = read_array_header(file, path)
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def image_to_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """Convert to a tensor with channels last in memory, which torch resizes twice as fast."""
    return to_tensor(np.array(to_rgb(image)))


def to_tensor(pixels: np.ndarray) -> UInt8[Tensor, "C H W"]:
    """Convert an array (H, W, C) to a tensor that shares its memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def tensor_to_image(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    """Convert a tensor to a Pillow image: its first three channels, or the first one as gray."""
    colors = image[:RGB] if len(image) >= RGB else image[:1].expand(RGB, -1, -1)
    return Image.fromarray(colors.permute(1, 2, 0).contiguous().cpu().numpy())


def _array_at(path: Path, span: tuple[int, int] | None) -> np.ndarray:
    with _open_file(path, span) as file:
        return read_array(file, path)
