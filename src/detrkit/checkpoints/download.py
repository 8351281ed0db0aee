"""Downloads of published weights, checked by their hash; only when a user asks for them by name."""

import hashlib
import logging
import re
from pathlib import Path
from urllib.error import URLError

import torch

from detrkit._internal.files import make_folder
from detrkit.checkpoints.zoo import IMAGENET_URLS, imagenet_url, official_url
from detrkit.checkpoints.zoo_realtime import REALTIME_PAGES
from detrkit.errors import CheckpointError, arg

_logger = logging.getLogger(__name__)


def official_weights(preset: str) -> Path:
    """Download the official weights of a preset unless they are in torch's cache.

    Raises:
        CheckpointError: the network fails, the file does not match its hash, or only a browser can download it.
    """
    if preset in REALTIME_PAGES:
        raise CheckpointError(
            f"{preset}: its weights can only be downloaded with a browser, from {REALTIME_PAGES[preset]}; then give the "
            f"path of the file, and {arg('model', preset)}"
        )
    return fetch(official_url(preset))


def imagenet_weights(backbone: str) -> Path:
    """Download the ImageNet weights of a backbone unless they are in torch's cache.

    Raises:
        CheckpointError: there are none, the network fails, or the file does not match its hash.
    """
    url = imagenet_url(backbone)
    if url is None:
        raise CheckpointError(
            f"backbone {backbone!r} has no ImageNet weights; use one of {', '.join(IMAGENET_URLS)}, or leave out "
            f"{arg('weights')}"
        )
    return fetch(url)


def cached_imagenet_weights(backbone: str) -> Path | None:
    """Return the ImageNet weights of a backbone if they are in torch's cache."""
    url = imagenet_url(backbone)
    path = None if url is None else Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    return path if path is not None and path.is_file() else None


def fetch(url: str) -> Path:
    """Download a file into torch's cache unless it is there.

    Args:
        url: its name ends in the first digits of its SHA-256, as in ``detr-r50-e632da11.pth``, unless its authors published
            no hash; then a file is only known to be complete if it can be read and fits its model.

    Raises:
        CheckpointError: the network fails, or the content does not match the hash.
    """
    name = url.rsplit("/", 1)[1]
    match = re.search(r"-([0-9a-f]{8,})\.", name)
    path = make_folder(Path(torch.hub.get_dir()) / "checkpoints") / name
    if not path.is_file():
        _logger.info("downloading %s to %s", url, path)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=match and match[1], progress=False)
        except (URLError, OSError) as error:
            raise CheckpointError(
                f"{url}: cannot be downloaded ({error}); check the network, or put the file at {path}"
            ) from None
        except RuntimeError as error:  # the hash differs; torch removes the file
            raise CheckpointError(f"{url}: the download is damaged ({error}); try again") from None
    if match is None:
        return path
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if not digest.startswith(match[1]):
        raise CheckpointError(f"{path}: its SHA-256 begins with {digest[:8]}, expected {match[1]}; remove the file")
    return path
