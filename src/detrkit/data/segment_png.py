"""PNG files of segment ids, as in COCO's panoptic annotations and results.

The files are untrusted: the header is checked before decoding. Any other kind of PNG (gray, palette, 16 bits) would decode
to numbers that are not ids, and is rejected.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32
from PIL import Image
from torch import Tensor

from detrkit._internal.files import atomic_write, open_file, reason_of
from detrkit._internal.provenance import provenance_mark
from detrkit.data.decoding import opened_image
from detrkit.errors import DatasetError
from detrkit.ops.segments import ids_to_rgb, rgb_to_ids

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = 26  # bytes of signature, length, name, width, height, bit depth and color type
_KINDS = {0: "gray", 2: "color", 3: "palette", 4: "gray with alpha", 6: "color with alpha"}
_EXPECTED = "expected an RGB PNG of 8 bits whose colors are segment ids"


def read_ids(path: Path, size: tuple[int, int]) -> Int32[Tensor, "H W"]:
    """Read the segment id of every pixel; alpha is ignored.

    Args:
        path: the PNG.
        size: expected (height, width).

    Raises:
        DatasetError: it is missing, of another kind or size, or damaged.
    """
    try:
        with open_file(path) as file:
            _check_header(file.read(_HEADER), path, size)
            file.seek(0)
            with opened_image(file, path, formats=("PNG",)) as image:
                pixels = np.array(image)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DatasetError(f"{path}: cannot be read ({reason_of(error)}), {_EXPECTED}") from None
    return rgb_to_ids(torch.from_numpy(pixels)[:, :, :3])


def write_ids(path: Path, ids: Int32[Tensor, "H W"]) -> None:
    """Write segment ids as a PNG, atomically."""
    with atomic_write(path) as temporary:
        Image.fromarray(ids_to_rgb(ids).contiguous().cpu().numpy()).save(temporary, "PNG", pnginfo=provenance_mark())


def _check_header(header: bytes, path: Path, size: tuple[int, int]) -> None:
    if len(header) < _HEADER or not header.startswith(_SIGNATURE):
        raise DatasetError(f"{path}: is not a PNG, {_EXPECTED}; other formats do not keep ids")
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    bits, kind = header[24], header[25]
    if bits != 8 or kind not in (2, 6):
        found = f"{_KINDS.get(kind, 'unknown')} PNG of {bits} bits a channel"
        raise DatasetError(f"{path}: is a {found}; {_EXPECTED}")
    if (height, width) != size:
        raise DatasetError(
            f"{path}: has {width} x {height} pixels, its image {size[1]} x {size[0]}; export the two together"
        )
