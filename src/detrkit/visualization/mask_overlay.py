"""Coloured surfaces on a photo, with outlines."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
_OPACITY = 0.45


def draw_masks(photo: Image.Image, masks: np.ndarray, colours_of: Sequence[Colour]) -> Image.Image:
    """Colour the masks (N, H, W) of single objects, the first on top."""
    ids = np.zeros(masks.shape[1:], dtype=np.int64)
    colours = np.zeros((len(masks) + 1, 3), dtype=np.uint8)
    for index in reversed(range(len(masks))):
        ids[masks[index]] = index + 1
        colours[index + 1] = colours_of[index]
    picture = blend(photo, colours[ids], ids > 0)
    outline(picture, ids)
    return picture


def blend(photo: Image.Image, surface: np.ndarray, where: np.ndarray) -> Image.Image:
    """Mix colours (H, W, 3) into a copy of a photo, where (H, W) says so."""
    pixels = np.asarray(photo.convert("RGB"))
    mixed = pixels * (1 - _OPACITY) + surface * _OPACITY
    return Image.fromarray(np.where(where[..., None], mixed, pixels).astype(np.uint8))


def outline(picture: Image.Image, ids: np.ndarray) -> None:
    """Draw a white line where two segments meet."""
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    picture.paste((255, 255, 255), mask=Image.fromarray(edge.astype(np.uint8) * 200))
