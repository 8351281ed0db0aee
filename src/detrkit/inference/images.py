"""Read an image passed to `Detector.predict`: a path, Pillow image, array or tensor."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from detrkit.data.images import image_to_pixels, read_image
from detrkit.errors import DatasetError

ImageInput = Path | str | Image.Image | ndarray | Tensor


def read_image_input(image: ImageInput, channels: int) -> UInt8[Tensor, "C H W"]:
    """Read the pixels of an image.

    Raises:
        DatasetError: the image cannot be read, or has another number of channels.
    """
    if isinstance(image, Path | str):
        return read_image(image, channels=channels)
    if isinstance(image, Image.Image):
        return image_to_pixels(image, channels)
    shape = image.shape if isinstance(image, Tensor) else image.shape[-1:] + image.shape[:-1]
    if len(shape) != 3 or shape[0] != channels or str(image.dtype).removeprefix("torch.") != "uint8":
        raise DatasetError(
            f"image: found an array of shape {tuple(image.shape)} and type {image.dtype}, "
            f"expected uint8, (H, W, {channels}) as an array or ({channels}, H, W) as a tensor"
        )
    return image.cpu() if isinstance(image, Tensor) else torch.from_numpy(image.copy()).movedim(-1, 0)
