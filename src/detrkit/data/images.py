"""Reading of images as uint8 tensors, upright, with the number of channels of the model.

Files are untrusted: they are decoded only after their size was read from the header. Image files become RGB; `.npy` arrays
(H, W, C) and TIFF files of several pages have any number of channels.
"""

import functools
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from detrkit._internal.files import is_file
from detrkit.data.suppress_warnings import SuppressWarnings
from detrkit.errors import DatasetError, arg

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB
RGB = 3
# Pillow has more formats, some of which start other programs (EPS runs Ghostscript)
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO")
_TGA_SUFFIXES = (".tga", ".icb", ".vda", ".vst")
_EXIF_ORIENTATION = 0x0112
_SUPPRESS_WARNINGS = SuppressWarnings()
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels


@runtime_checkable
class ImageFile(Protocol):
    """An open file, in memory or on disk."""

    def read(self, size: int = -1, /) -> bytes:
        """Read some bytes, or the rest."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Change the position."""

    def tell(self) -> int:
        """Return the position."""


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
        return tensor_to_image(_read_array(path, span))
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
        return _with_channels_of_array(_read_array(path, span), channels, path)
    with _opened(path, span) as image:
        return image_to_pixels(image, channels, annotated_size, str(path))


def read_uploaded_image(
    file: ImageFile, name: str, channels: int = RGB, max_pixels: int = MAX_PIXELS
) -> UInt8[Tensor, "C H W"]:
    """Read an image that was uploaded, like `read_image`.

    Args:
        file: its content, at the start.
        name: file name given by the sender, which distinguishes arrays from image files.
        channels: of the model.
        max_pixels: larger images are rejected before they are decoded.

    Raises:
        DatasetError: as in `read_image`.
    """
    if Path(name).suffix.lower() == ".npy":
        return _with_channels_of_array(_array_in(file, name, max_pixels), channels, name)
    with _image_in(file, name, max_pixels) as image:
        return image_to_pixels(image, channels, where=name, max_pixels=max_pixels)


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
    if _has_channels_as_pages(image, channels):
        return _pages_as_channels(image, annotated_size, where, max_pixels)
    if channels == RGB:
        return image_to_tensor(apply_exif_orientation(image, annotated_size))
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


def read_image_bytes(path: Path, span: tuple[int, int] | None = None) -> bytes:
    """Read the bytes of an image file, or of an image inside a shard.

    Raises:
        DatasetError: it is missing, or the shard is truncated.
    """
    try:
        if span is None:
            return path.read_bytes()
        with path.parent.open("rb") as shard:
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
    if span is None and not is_file(path):
        raise DatasetError(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}, expected an image; check the path"
        )
    # from memory: Pillow maps uncompressed TIFF files from disk and rotates them wrongly
    in_memory = span is not None or path.suffix.lower() in (".tif", ".tiff")
    source = io.BytesIO(read_image_bytes(path, span)) if in_memory else path
    with _image_in(source, path, MAX_PIXELS) as image:
        yield image


@contextmanager
def _image_in(source: Path | ImageFile, where: Path | str, max_pixels: int) -> Iterator[Image.Image]:
    try:
        with _SUPPRESS_WARNINGS, Image.open(cast("Path | IO[bytes]", source), formats=_readable_formats()) as image:
            _check_size(image.height, image.width, where, max_pixels)
            yield image
    except DatasetError:
        raise
    except Image.DecompressionBombError:
        raise DatasetError(
            f"{where}: the image decompresses to more than {MAX_PIXELS} pixels; make it smaller"
        ) from None
    except Exception as error:  # Pillow's decoders raise errors of any kind on malformed files
        raise DatasetError(
            f"{where}: cannot be read as an image ({_one_line(error)}); expected a JPEG, PNG, WebP, AVIF, BMP or TIFF file"
        ) from None


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Return the formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(height: int, width: int, where: Path | str, max_pixels: int = MAX_PIXELS, channels: int = RGB) -> None:
    if width * height * channels > max_pixels * RGB:
        of_channels = "" if channels == RGB else f" of {channels} channels"
        raise DatasetError(
            f"{where}: the image has {width} x {height} pixels{of_channels}, more than the maximum of "
            f"{max_pixels * RGB // channels}; make it smaller or split it into tiles"
        )


def has_image_content(path: Path) -> bool:
    """Return whether a file is an image by its content, whatever its suffix."""
    try:
        # a TGA has no signature: any content could be one
        with (
            _SUPPRESS_WARNINGS,
            Image.open(path, formats=[one for one in _readable_formats() if one != "TGA"]) as image,
        ):
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
        _read_array_header(file, path)
        return
    formats = [one for one in _readable_formats() if one != "TGA" or suffix in _TGA_SUFFIXES]
    try:
        with _SUPPRESS_WARNINGS:
            Image.open(cast("IO[bytes]", file), formats=formats)
    except Image.DecompressionBombError:
        return  # a large image
    except Exception as error:  # Pillow's decoders raise errors of any kind on malformed files
        raise DatasetError(
            f"{path}: is not an image ({_one_line(error)}), and only images are copied; replace it, or let detrkit doctor "
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
        with _SUPPRESS_WARNINGS, Image.open(path, formats=_readable_formats()) as image:
            # the method of a PNG would decode the pixels first
            is_rotated = Image.Image.getexif(image).get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
            if is_rotated and image.format == "TIFF":  # versions of Pillow differ in how they rotate these
                upright = open_image(path)
                return upright.height, upright.width
            return (image.width, image.height) if is_rotated else (image.height, image.width)
    except Exception as error:  # Pillow's decoders raise errors of any kind on malformed files
        raise DatasetError(f"{path}: cannot be read as an image ({_one_line(error)})") from None


def array_shape(path: Path, span: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Read (height, width, channels) of a .npy file from its header.

    Raises:
        DatasetError: it is not such an array.
    """
    try:
        with path.open("rb") if span is None else io.BytesIO(read_image_bytes(path, span)) as file:
            shape, _, _ = _read_array_header(file, path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def apply_exif_orientation(image: Image.Image, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB: transparency on white, 16 bits scaled to 8."""
    return _to_rgb(_upright(image, annotated_size))


def image_to_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """Convert to a tensor with channels last in memory, which torch resizes twice as fast."""
    return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)


def tensor_to_image(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    """Convert a tensor to a Pillow image: its first three channels, or the first one as gray."""
    colors = image[:RGB] if len(image) >= RGB else image[:1].expand(RGB, -1, -1)
    return Image.fromarray(colors.permute(1, 2, 0).contiguous().cpu().numpy())


def _pages_as_channels(
    image: Image.Image, annotated_size: tuple[int, int] | None, where: str, max_pixels: int
) -> UInt8[Tensor, "C H W"]:
    pages, size = image.n_frames, image.size  # type: ignore[attr-defined]
    _check_size(image.height, image.width, where, max_pixels, pages)
    # the iterator yields one object repeatedly, so its pixels are copied; other sizes are not decoded
    layers = [
        np.array(_to_eight_bits(_upright(page, annotated_size)).convert("L"))
        for page in ImageSequence.Iterator(image)
        if page.size == size
    ]
    if len({layer.shape for layer in layers}) > 1 or len(layers) < pages:
        raise DatasetError(f"{where}: its {pages} pages differ in size, expected one page per channel")
    return torch.from_numpy(np.stack(layers))


def _with_channels(
    image: Image.Image, channels: int, annotated_size: tuple[int, int] | None, where: str
) -> UInt8[Tensor, "C H W"]:
    if channels not in _MODES:
        raise DatasetError(
            f"{where}: an image of mode {image.mode} does not have {channels} channels; expected a .npy array "
            "(height, width, channels) or a TIFF with one page per channel"
        )
    upright = _upright(image, annotated_size)
    converted = (_to_rgb(upright) if channels == 1 else _to_eight_bits(upright)).convert(_MODES[channels])
    return torch.from_numpy(np.array(converted).reshape(*converted.size[::-1], channels)).permute(2, 0, 1)


def _with_channels_of_array(pixels: UInt8[Tensor, "C H W"], channels: int, where: Path | str) -> UInt8[Tensor, "C H W"]:
    if len(pixels) != channels:
        raise DatasetError(f"{where}: has {len(pixels)} channels, expected {channels}; set in_channels of the model")
    return pixels


def _read_array(path: Path, span: tuple[int, int] | None) -> UInt8[Tensor, "C H W"]:
    try:
        with path.open("rb") if span is None else io.BytesIO(read_image_bytes(path, span)) as file:
            return _array_in(file, path, MAX_PIXELS)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None


def _array_in(file: ImageFile, where: Path | str, max_pixels: int) -> UInt8[Tensor, "C H W"]:
    """Read (H, W, C) or (H, W) of 8 or 16 bits."""
    shape, is_fortran_order, dtype = _read_array_header(file, where)
    _check_size(shape[0], shape[1], where, max_pixels, math.prod(shape[2:]))
    try:
        content = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
        pixels = content.reshape(shape, order="F" if is_fortran_order else "C")
    except ValueError:
        raise DatasetError(f"{where}: truncated; copy it again") from None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    eight_bits = (pixels >> 8).astype(np.uint8) if dtype.itemsize == 2 else np.array(pixels)
    return torch.from_numpy(eight_bits).permute(2, 0, 1)


def _read_array_header(file: ImageFile, where: Path | str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a .npy file: shape, order, dtype; pickled objects, which could run code, are rejected.

    Raises:
        DatasetError: it is malformed, or not an image of a valid size.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran_order, dtype = read(file)
    except Exception as error:  # the header is parsed as Python: it can be wrong in any way
        raise DatasetError(f"{where}: cannot be read as an array ({_one_line(error)})") from None
    if len(shape) not in (2, 3) or dtype not in (np.uint8, np.uint16, np.dtype(">u2")):
        raise DatasetError(f"{where}: expected (height, width, channels) of uint8 or uint16; write it with numpy.save")
    if min(shape) < 1 or (len(shape) == 3 and shape[2] > shape[0] * shape[1]):
        raise DatasetError(f"{where}: found the shape {shape}, expected (height, width, channels)")
    _check_size(shape[0], shape[1], where, channels=math.prod(shape[2:]))
    return shape, is_fortran_order, dtype


def _upright(image: Image.Image, annotated_size: tuple[int, int] | None) -> Image.Image:
    stored_size = (image.height, image.width)
    is_rotated = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    if is_rotated and annotated_size == stored_size != stored_size[::-1]:
        return image
    image.load()  # rotates a TIFF file, and updates its EXIF data
    # without a rotation, exif_transpose would make a copy: 80 MB for 20 megapixels
    return ImageOps.exif_transpose(image) if image.getexif().get(_EXIF_ORIENTATION) in range(2, 9) else image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and floating-point gray images, which convert() would clip; the latter by the range of their values."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        largest = gray.max(initial=0)
        top = 65535 if image.mode != "F" or largest > 255 else 255 if largest > 1 else 1
        return Image.fromarray(np.clip(gray / top * 255, 0, 255).astype(np.uint8))
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is in no known format"
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
