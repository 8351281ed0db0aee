"""Photos: from a file or an array to a uint8 tensor, upright, in RGB.

Untrusted input: a file is decoded by Pillow only after its size has been read from its header.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from detrkit.errors import DataError

MOST_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
_EXIF_ORIENTATION = 0x0112


def open_photo(path: Path | str, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """Read a photo, turned upright as its EXIF orientation says.

    Args:
        path: the file.
        annotated_size: (height, width) that the annotations speak of. When only the stored pixels have that size and
            the upright photo has not, the annotations were made on the stored pixels, and the photo is left as it is.

    Raises:
        DataError: the file is missing, no image, truncated, or unreasonably large.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: found {'a folder' if path.is_dir() else 'nothing'}, expected a photo; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to bother anyone
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise DataError(
                        f"{path}: the photo has {image.width} x {image.height} pixels, at most {MOST_PIXELS} are read; "
                        "make it smaller or cut it into tiles"
                    )
                return as_people_see_it(image, annotated_size)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{path}: the photo unpacks to more than {MOST_PIXELS} pixels; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise what they like on malformed files
        raise DataError(
            f"{path}: cannot be read as a photo ({_one_line(error)}); expected a JPEG, PNG, WebP, BMP or TIFF file"
        ) from None


def photo_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of a photo, upright, from its header, without decoding it.

    Raises:
        DataError: it is missing or no image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            lies_on_its_side = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
            return (image.width, image.height) if lies_on_its_side else (image.height, image.width)
    except Exception as error:  # Pillow's decoders raise what they like on malformed files
        raise DataError(f"{path}: cannot be read as a photo ({_one_line(error)})") from None


def as_people_see_it(image: Image.Image, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """Turn an image upright, put white behind what is transparent, scale 16 bits to 8, and convert to RGB."""
    return _to_rgb(_upright(image, annotated_size))


def photo_to_tensor(photo: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """Copy a photo's pixels into a tensor, channels last in memory: torchvision resizes these twice as fast."""
    return torch.from_numpy(np.array(_to_rgb(photo))).permute(2, 0, 1)


def tensor_to_photo(image: UInt8[Tensor, "3 H W"]) -> Image.Image:
    """Copy a tensor's pixels into a photo."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def _upright(image: Image.Image, annotated_size: tuple[int, int] | None) -> Image.Image:
    stored_size = (image.height, image.width)
    lies_on_its_side = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    if lies_on_its_side and annotated_size == stored_size != stored_size[::-1]:
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I", "F"):  # 16-bit and floating-point grey: convert() would clip instead of scaling
        grey = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" or grey.max() > 1 else 1.0
        image = Image.fromarray(np.clip(np.nan_to_num(grey) / top * 255, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
