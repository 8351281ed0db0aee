"""Every kind of photo that a caller may hand over -> uint8 pixels."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from detrkit.data.images import image_to_pixels, read_image
from detrkit.errors import DatasetError

ImageInput = Path | str | Image.Image | ndarray | Tensor


def read_image_input(photo: ImageInput, channels: int) -> UInt8[Tensor, "C H W"]:
    """Read a photo's pixels.

    Raises:
        DatasetError: it cannot be read, or has another number of channels.
    """
    if isinstance(photo, Path | str):
        return read_image(photo, channels=channels)
    if isinstance(photo, Image.Image):
        return image_to_pixels(photo, channels)
    shape = photo.shape if isinstance(photo, Tensor) else photo.shape[-1:] + photo.shape[:-1]
    if len(shape) != 3 or shape[0] != channels or str(photo.dtype).removeprefix("torch.") != "uint8":
        raise DatasetError(
            f"photo: found an array of shape {tuple(photo.shape)} and type {photo.dtype}, "
            f"expected uint8, (H, W, {channels}) as an array or ({channels}, H, W) as a tensor"
        )
    return photo.cpu() if isinstance(photo, Tensor) else torch.from_numpy(photo.copy()).movedim(-1, 0)
