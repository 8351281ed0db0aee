"""Photos: from a file or an array to a uint8 tensor, upright, with as many channels as the model reads.

Untrusted input: a file is decoded only after its size has been read from its header. Usual photos become RGB; `.npy` arrays
(H, W, C) and TIFF files of several pages carry any number of channels.
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
from detrkit.errors import DatasetError

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB
RGB = 3
# Pillow knows more, of which some start other programs (EPS asks Ghostscript)
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO")
_EXIF_ORIENTATION = 0x0112
_QUIET = SuppressWarnings()
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # what Pillow can convert to, by number of channels


@runtime_checkable
class ImageFile(Protocol):
    """An open file, in memory or on disk."""

    def read(self, size: int = -1, /) -> bytes:
        """Read some bytes, or the rest."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go elsewhere."""

    def tell(self) -> int:
        """Say where it is."""


def open_image(
    path: Path | str, annotated_size: tuple[int, int] | None = None, span: tuple[int, int] | None = None
) -> Image.Image:
    """Read a photo in RGB, turned upright as its EXIF orientation says.

    Args:
        path: the file.
        annotated_size: (height, width) that the annotations speak of. When only the stored pixels have that size and
            the upright photo has not, the annotations were made on the stored pixels, and the photo is left as it is.
        span: (offset, length) in bytes of a photo inside a shard, which is the folder of `path`.

    Raises:
        DatasetError: the file is missing, no image, truncated, or unreasonably large.
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
    """Read a photo's pixels with a number of channels.

    Usual photos are converted where Pillow can: to grey (1), RGB (3), RGB with alpha (4). Other numbers must be there: in a
    `.npy` array, or as pages of a TIFF. Arguments else as in `open_image`.

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
    """Read the pixels of a photo that came over a network, as `read_image` reads those of one on disk.

    Args:
        file: its content, from the beginning.
        name: what its sender calls it; arrays are told by it.
        channels: that the model reads.
        max_pixels: larger photos are refused before they are decoded.

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
    where: str = "photo",
    max_pixels: int = MAX_PIXELS,
) -> UInt8[Tensor, "C H W"]:
    """Copy an opened image's pixels, as `read_image` does.

    Raises:
        DatasetError: it cannot have that many channels.
    """
    if _has_channels_as_pages(image, channels):
        return _pages_as_channels(image, annotated_size, where, max_pixels)
    if channels == RGB:
        return image_to_tensor(apply_exif_orientation(image, annotated_size))
    return _with_channels(image, channels, annotated_size, where)


def _has_channels_as_pages(image: Image.Image, channels: int) -> bool:
    """Whether an image is a TIFF of as many pages as channels are wanted, each of one channel."""
    if image.format != "TIFF" or channels < 2 or image.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        return False
    pages = 0
    try:
        while pages <= channels:  # not all of them: a small file may have a hundred thousand
            image.seek(pages)
            pages += 1
    except EOFError:
        pass
    image.seek(0)
    return pages == channels


def read_image_bytes(path: Path, span: tuple[int, int] | None = None) -> bytes:
    """Read a photo's file, or its part of a shard, as it stands.

    Raises:
        DatasetError: it is not there, or the shard ends before it.
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
        raise DatasetError(f"{path}: its shard ends before the photo does; copy the shard again")
    return content


@contextmanager
def _opened(path: Path, span: tuple[int, int] | None) -> Iterator[Image.Image]:
    """Open a photo and see that it is of a reasonable size; whatever its decoding raises becomes a `DatasetError`."""
    if span is None and not is_file(path):
        raise DatasetError(
            f"{path}: found {'a folder' if path.is_dir() else 'nothing'}, expected a photo; check the path"
        )
    # from memory, for Pillow maps uncompressed TIFF files from disk and turns them wrongly
    in_memory = span is not None or path.suffix.lower() in (".tif", ".tiff")
    source = io.BytesIO(read_image_bytes(path, span)) if in_memory else path
    with _image_in(source, path, MAX_PIXELS) as image:
        yield image


@contextmanager
def _image_in(source: Path | ImageFile, where: Path | str, max_pixels: int) -> Iterator[Image.Image]:
    try:
        with _QUIET, Image.open(cast("Path | IO[bytes]", source), formats=_readable_formats()) as image:
            _check_size(image.height, image.width, where, max_pixels)
            yield image
    except DatasetError:
        raise
    except Image.DecompressionBombError:
        raise DatasetError(f"{where}: the photo unpacks to more than {MAX_PIXELS} pixels; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise what they like on malformed files
        raise DatasetError(
            f"{where}: cannot be read as a photo ({_one_line(error)}); expected a JPEG, PNG, WebP, BMP or TIFF file"
        ) from None


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(height: int, width: int, where: Path | str, max_pixels: int = MAX_PIXELS, channels: int = RGB) -> None:
    if width * height * channels > max_pixels * RGB:
        of_channels = "" if channels == RGB else f" of {channels} channels"
        raise DatasetError(
            f"{where}: the photo has {width} x {height} pixels{of_channels}, at most {max_pixels * RGB // channels} "
            "are read; make it smaller or cut it into tiles"
        )


def read_image_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of a photo, upright, from its header, without decoding it.

    Raises:
        DatasetError: it is missing or no image.
    """
    if path.suffix.lower() == ".npy":
        return array_shape(path)[:2]
    try:
        with _QUIET, Image.open(path, formats=_readable_formats()) as image:
            # of a PNG, its own method would decode the pixels first
            lies_on_its_side = Image.Image.getexif(image).get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
            if lies_on_its_side and image.format == "TIFF":  # of which Pillow's versions differ in what they turn
                upright = open_image(path)
                return upright.height, upright.width
            return (image.width, image.height) if lies_on_its_side else (image.height, image.width)
    except Exception as error:  # Pillow's decoders raise what they like on malformed files
        raise DatasetError(f"{path}: cannot be read as a photo ({_one_line(error)})") from None


def array_shape(path: Path, span: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Read (height, width, channels) of a .npy file from its header.

    Raises:
        DatasetError: it is no such array.
    """
    try:
        with path.open("rb") if span is None else io.BytesIO(read_image_bytes(path, span)) as file:
            shape, _, _ = _read_array_header(file, path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def apply_exif_orientation(image: Image.Image, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """Turn an image upright, put white behind what is transparent, scale 16 bits to 8, and convert to RGB."""
    return _to_rgb(_upright(image, annotated_size))


def image_to_tensor(photo: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """Copy a photo's pixels into a tensor, channels last in memory: torchvision resizes these twice as fast."""
    return torch.from_numpy(np.array(_to_rgb(photo))).permute(2, 0, 1)


def tensor_to_image(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    """Copy a tensor's pixels into a photo that people can look at: its first three channels, or its first as grey."""
    colours = image[:RGB] if len(image) >= RGB else image[:1].expand(RGB, -1, -1)
    return Image.fromarray(colours.permute(1, 2, 0).contiguous().cpu().numpy())


def _pages_as_channels(
    image: Image.Image, annotated_size: tuple[int, int] | None, where: str, max_pixels: int
) -> UInt8[Tensor, "C H W"]:
    pages, size = image.n_frames, image.size  # type: ignore[attr-defined]
    _check_size(image.height, image.width, where, max_pixels, pages)
    # the iterator hands over one object again and again: its pixels are copied at once; other sizes are not decoded
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
            f"{where}: a photo of mode {image.mode} has no {channels} channels; expected a .npy array "
            "(height, width, channels) or a TIFF of as many pages"
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
    shape, in_columns, kind = _read_array_header(file, where)
    _check_size(shape[0], shape[1], where, max_pixels, math.prod(shape[2:]))
    try:
        content = np.frombuffer(file.read(math.prod(shape) * kind.itemsize), kind)
        pixels = content.reshape(shape, order="F" if in_columns else "C")
    except ValueError:
        raise DatasetError(f"{where}: ends before its pixels do; copy it again") from None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    eight_bits = (pixels >> 8).astype(np.uint8) if kind.itemsize == 2 else np.array(pixels)
    return torch.from_numpy(eight_bits).permute(2, 0, 1)


def _read_array_header(file: ImageFile, where: Path | str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read what a .npy file says of itself: shape, order, type; objects, which could run code, are refused.

    Raises:
        DatasetError: it is none, or holds no photo of a reasonable size.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_columns, kind = read(file)
    except Exception as error:  # the header is parsed as Python: it can be wrong in any way
        raise DatasetError(f"{where}: cannot be read as an array ({_one_line(error)})") from None
    if len(shape) not in (2, 3) or kind not in (np.uint8, np.uint16, np.dtype(">u2")):
        raise DatasetError(f"{where}: expected (height, width, channels) of uint8 or uint16; write it with numpy.save")
    if min(shape) < 1 or (len(shape) == 3 and shape[2] > shape[0] * shape[1]):
        raise DatasetError(f"{where}: found the shape {shape}, expected (height, width, channels)")
    _check_size(shape[0], shape[1], where, channels=math.prod(shape[2:]))
    return shape, in_columns, kind


def _upright(image: Image.Image, annotated_size: tuple[int, int] | None) -> Image.Image:
    stored_size = (image.height, image.width)
    lies_on_its_side = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    if lies_on_its_side and annotated_size == stored_size != stored_size[::-1]:
        return image
    image.load()  # which turns a TIFF file, and says so in its EXIF data
    # of others, exif_transpose would make a copy: 80 MB of 20 megapixels
    return ImageOps.exif_transpose(image) if image.getexif().get(_EXIF_ORIENTATION) in range(2, 9) else image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and floating-point grey, which convert() would clip; of the latter, by the range its values lie in."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        largest = grey.max(initial=0)
        top = 65535 if image.mode != "F" or largest > 255 else 255 if largest > 1 else 1
        return Image.fromarray(np.clip(grey / top * 255, 0, 255).astype(np.uint8))
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no known form"
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
