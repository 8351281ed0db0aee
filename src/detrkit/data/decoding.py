"""Decoding of image files to arrays. Free of torch: the server does this in processes of their own.

Files are untrusted: their structure is checked before Pillow opens them, and their size before they are decoded.
"""

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from detrkit.data.image_structure import (
    MAX_PIXELS,
    ImageFile,
    check_avif_frames,
    check_size,
    check_structure,
    check_tiff_blocks,
)
from detrkit.data.suppress_warnings import SuppressWarnings
from detrkit.errors import DatasetError

RGB = 3
EXIF_ORIENTATION = 0x0112
# Pillow has more formats, some of which start other programs (EPS runs Ghostscript)
# by name, the module of PIL that reads it; HEIF has none
_MODULES = {
    "JPEG": "JpegImagePlugin",
    "MPO": "MpoImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "BMP": "BmpImagePlugin",
    "DIB": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "GIF": "GifImagePlugin",
    "AVIF": "AvifImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "PPM": "PpmImagePlugin",
    "TGA": "TgaImagePlugin",
    "PCX": "PcxImagePlugin",
    "ICO": "IcoImagePlugin",
}
_FORMATS = (*_MODULES, "HEIF")
# of strangers: what browsers and phones make, in decoders that are used and tested the most
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIF")
SUPPRESS_WARNINGS = SuppressWarnings()
PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels
_BLOCK = 2**20  # pixels of more than 8 bits that are converted at a time

BeforeDecoding = Callable[[int, int], None]


class TooMuchWorkError(Exception):
    """Raised by a `BeforeDecoding` to stop; it is passed on."""


@functools.cache
def readable_formats(among: Sequence[str] = _FORMATS) -> tuple[str, ...]:
    """Return the formats that Pillow can decode here; HEIC if the package pillow-heif is installed."""
    for name in among:
        with suppress(ImportError):
            if name == "HEIF":
                importlib.import_module("pillow_heif").register_heif_opener()
            else:
                importlib.import_module(f"PIL.{_MODULES[name]}")
    return tuple(name for name in among if name in Image.OPEN)


def decode_file(
    file: ImageFile,
    where: Path | str,
    channels: int = RGB,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = _FORMATS,
    before_decoding: BeforeDecoding | None = None,
) -> np.ndarray:
    """Decode an image file, or a `.npy` array by its name.

    Args:
        file: its content, at the start.
        where: its name, which distinguishes arrays from image files.
        channels: of the model.
        max_pixels: larger images are rejected before they are decoded.
        formats: names of Pillow's that are accepted.
        before_decoding: called with the number of pixels and the number of times that the decoder visits them.

    Returns:
        (H, W, C) of uint8, upright.

    Raises:
        DatasetError: it is not an image, is truncated, too large, or has another number of channels.
    """
    if Path(where).suffix.lower() == ".npy":
        return check_channels(read_array(file, where, max_pixels, before_decoding), channels, where)
    with opened_image(file, where, max_pixels, formats, before_decoding) as image:
        return image_to_array(image, channels, where=str(where), max_pixels=max_pixels)


@contextmanager
def opened_image(
    file: ImageFile,
    where: Path | str,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = _FORMATS,
    before_decoding: BeforeDecoding | None = None,
) -> Iterator[Image.Image]:
    """Open an image file after checks of its structure and size; arguments and errors as in `decode_file`."""
    try:
        passes = check_structure(file, where, max_pixels)
        file.seek(0)
        with SUPPRESS_WARNINGS, Image.open(cast("IO[bytes]", file), formats=readable_formats(tuple(formats))) as image:
            check_size(image.height, image.width, where, max_pixels)
            check_tiff_blocks(image, where)
            if image.format == "AVIF":  # Pillow has read the whole file
                check_avif_frames(file, image.size, where)
            if before_decoding is not None:
                before_decoding(image.width * image.height, passes)
            yield image
    except (DatasetError, TooMuchWorkError):
        raise
    except Image.DecompressionBombError:
        raise DatasetError(
            f"{where}: the image decompresses to more than {MAX_PIXELS} pixels; make it smaller"
        ) from None
    except MemoryError:
        raise DatasetError(f"{where}: takes more memory than an image of its size should; save it again") from None
    except Exception as error:  # Pillow's decoders raise errors of any kind on malformed files
        raise DatasetError(
            f"{where}: cannot be read as an image ({one_line(error)}); expected {_expected(formats)} file"
        ) from None


def _expected(formats: Sequence[str]) -> str:
    return "a JPEG, PNG, WebP, GIF or BMP" if "TIFF" not in formats else "a JPEG, PNG, WebP, AVIF, BMP or TIFF"


def image_to_array(
    image: Image.Image,
    channels: int = RGB,
    annotated_size: tuple[int, int] | None = None,
    where: str = "image",
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Convert a Pillow image to (H, W, C) of uint8: gray (1), RGB (3), RGBA (4), or the pages of a TIFF file.

    Raises:
        DatasetError: it cannot be converted to this number of channels.
    """
    if _has_channels_as_pages(image, channels):
        return _pages_as_channels(image, annotated_size, where, max_pixels)
    if channels == RGB:
        return np.array(apply_exif_orientation(image, annotated_size))
    return _with_channels(image, channels, annotated_size, where)


def _has_channels_as_pages(image: Image.Image, channels: int) -> bool:
    """True if an image is a TIFF with one page per channel."""
    if image.format != "TIFF" or channels < 2 or image.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        return False
    pages = 0
    try:
        while pages <= channels:  # not to the end: a small file may have a hundred thousand
            image.seek(pages)
            pages += 1
    except EOFError:
        pass
    image.seek(0)
    return pages == channels


def _pages_as_channels(
    image: Image.Image, annotated_size: tuple[int, int] | None, where: str, max_pixels: int
) -> np.ndarray:
    pages, size = image.n_frames, image.size  # type: ignore[attr-defined]
    check_size(image.height, image.width, where, max_pixels, pages)
    layers = []
    for page in ImageSequence.Iterator(image):  # one object repeatedly, so its pixels are copied
        if page.size == size:  # others are not decoded
            check_tiff_blocks(page, where)
            layers.append(np.array(_to_eight_bits(_upright(page, annotated_size)).convert("L")))
    if len({layer.shape for layer in layers}) > 1 or len(layers) < pages:
        raise DatasetError(f"{where}: its {pages} pages differ in size, expected one page per channel")
    return np.stack(layers).transpose(1, 2, 0)


def _with_channels(image: Image.Image, channels: int, annotated_size: tuple[int, int] | None, where: str) -> np.ndarray:
    if channels not in PILLOW_MODES:
        raise DatasetError(
            f"{where}: an image of mode {image.mode} does not have {channels} channels; expected a .npy array "
            "(height, width, channels) or a TIFF with one page per channel"
        )
    upright = _upright(image, annotated_size)
    converted = (to_rgb(upright) if channels == 1 else _to_eight_bits(upright)).convert(PILLOW_MODES[channels])
    return np.array(converted).reshape(*converted.size[::-1], channels)


def apply_exif_orientation(image: Image.Image, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB: transparency on white, 16 bits scaled to 8."""
    return to_rgb(_upright(image, annotated_size))


def check_channels(pixels: np.ndarray, channels: int, where: Path | str) -> np.ndarray:
    """Return an array (H, W, C) that has the number of channels.

    Raises:
        DatasetError: it has another one.
    """
    if pixels.shape[2] != channels:
        raise DatasetError(
            f"{where}: has {pixels.shape[2]} channels, expected {channels}; set in_channels of the model"
        )
    return pixels


def read_array(
    file: ImageFile, where: Path | str, max_pixels: int = MAX_PIXELS, before_decoding: BeforeDecoding | None = None
) -> np.ndarray:
    """Read a `.npy` file of 8 or 16 bits.

    Returns:
        (H, W, C) of uint8.

    Raises:
        DatasetError: it is malformed, truncated or too large.
    """
    shape, is_fortran_order, dtype = read_array_header(file, where)
    check_size(shape[0], shape[1], where, max_pixels, math.prod(shape[2:]))
    if before_decoding is not None:
        before_decoding(math.prod(shape) // RGB + 1, 1)
    try:
        content = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
        pixels = content.reshape(shape, order="F" if is_fortran_order else "C")
    except ValueError:
        raise DatasetError(f"{where}: truncated; copy it again") from None
    except OSError as error:
        raise DatasetError(f"{where}: cannot be read ({error.strerror or error})") from None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return (pixels >> 8).astype(np.uint8) if dtype.itemsize == 2 else np.array(pixels)


def read_array_header(file: ImageFile, where: Path | str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a .npy file: shape, order, dtype; pickled objects, which could run code, are rejected.

    Raises:
        DatasetError: it is malformed, or not an image of a valid size.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran_order, dtype = read(file)
    except Exception as error:  # the header is parsed as Python: it can be wrong in any way
        raise DatasetError(f"{where}: cannot be read as an array ({one_line(error)})") from None
    if len(shape) not in (2, 3) or dtype not in (np.uint8, np.uint16, np.dtype(">u2")):
        raise DatasetError(f"{where}: expected (height, width, channels) of uint8 or uint16; write it with numpy.save")
    if min(shape) < 1 or (len(shape) == 3 and shape[2] > shape[0] * shape[1]):
        raise DatasetError(f"{where}: found the shape {shape}, expected (height, width, channels)")
    check_size(shape[0], shape[1], where, channels=math.prod(shape[2:]))
    return shape, is_fortran_order, dtype


def _upright(image: Image.Image, annotated_size: tuple[int, int] | None) -> Image.Image:
    stored_size = (image.height, image.width)
    is_rotated = image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
    if is_rotated and annotated_size == stored_size != stored_size[::-1]:
        return image
    image.load()  # rotates a TIFF file, and updates its EXIF data
    # without a rotation, exif_transpose would make a copy: 80 MB for 20 megapixels
    return ImageOps.exif_transpose(image) if image.getexif().get(EXIF_ORIENTATION) in range(2, 9) else image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and floating-point gray images, which convert() would clip; the latter by the range of their values."""
    if not image.mode.startswith("I;16") and image.mode not in ("I", "F"):
        return image
    gray = np.asarray(image)
    rows = max(1, _BLOCK // max(1, image.width))  # at a time: as float64 the whole image would take 40 bytes a pixel
    blocks = [slice(top, top + rows) for top in range(0, image.height, rows)]
    largest = max((_finite(gray[block]).max(initial=0) for block in blocks), default=0) if image.mode == "F" else 65535
    top = 65535 if largest > 255 else 255 if largest > 1 else 1
    eight_bits = np.empty(gray.shape, np.uint8)
    for block in blocks:
        eight_bits[block] = np.clip(_finite(gray[block]) / top * 255, 0, 255)
    return Image.fromarray(eight_bits)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: transparency on white, more bits scaled to 8."""
    image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def one_line(error: Exception) -> str:
    """Describe an error of a decoder."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is in no known format"
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
