"""Weights from the network: only when asked for by name, with a progress bar, and checked by their hash."""

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch

from detrkit._internal.files import make_folder
from detrkit.errors import CheckpointError

_PUBLISHED = "https://dl.fbaipublicfiles.com/detr/"
PUBLISHED_FILES = {
    "detr-r50": "detr-r50-e632da11.pth",
    "detr-r50-dc5": "detr-r50-dc5-f0fb7ef5.pth",
    "detr-r101": "detr-r101-2c7b67e5.pth",
    "detr-r101-dc5": "detr-r101-dc5-a2e86def.pth",
    "detr-r50-panoptic": "detr-r50-panoptic-00ce5173.pth",
    "detr-r50-dc5-panoptic": "detr-r50-dc5-panoptic-da08f1b1.pth",
    "detr-r101-panoptic": "detr-r101-panoptic-40021d53.pth",
}
# the published weights of successors, converted, as the Hugging Face hub has them
HUB_MODELS = {
    "conditional-detr-r50": "microsoft/conditional-detr-resnet-50",
    "dab-detr-r50": "IDEA-Research/dab-detr-resnet-50",
    "dab-detr-r50-dc5": "IDEA-Research/dab-detr-resnet-50-dc5",
    "deformable-detr-r50": "SenseTime/deformable-detr",
    "deformable-detr-r50-single-scale": "SenseTime/deformable-detr-single-scale",
    "deformable-detr-r50-single-scale-dc5": "SenseTime/deformable-detr-single-scale-dc5",
    "deformable-detr-r50-refine": "SenseTime/deformable-detr-with-box-refine",
    "deformable-detr-r50-two-stage": "SenseTime/deformable-detr-with-box-refine-two-stage",
}
_TORCHVISION = "https://download.pytorch.org/models/"
IMAGENET_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}


def published_weights(preset: str) -> Path:
    """Fetch the published weights of a preset, once.

    Raises:
        CheckpointError: none were published, the network does not answer, or the file is not what it should be.
    """
    if preset not in PUBLISHED_FILES:
        raise CheckpointError(
            f"{preset}: no weights of this model can be fetched; use one of {', '.join((*PUBLISHED_FILES, *HUB_MODELS))}, "
            "or train it"
        )
    return fetch(_PUBLISHED + PUBLISHED_FILES[preset])


def imagenet_weights(backbone: str) -> Path:
    """Fetch torchvision's ImageNet weights of a backbone, once.

    Raises:
        CheckpointError: there are none, the network does not answer, or the file is not what it should be.
    """
    if backbone not in IMAGENET_FILES:
        raise CheckpointError(
            f"backbone {backbone!r} has no ImageNet weights; use one of {', '.join(IMAGENET_FILES)}, or leave out --weights"
        )
    return fetch(_TORCHVISION + IMAGENET_FILES[backbone])


def fetch(url: str) -> Path:
    """Download a file into torch's cache unless it lies there, with a progress bar.

    Args:
        url: its name ends in the first digits of its SHA-256, as in `detr-r50-e632da11.pth`.

    Raises:
        CheckpointError: the network does not answer, or the content does not match the hash.
    """
    name = url.rsplit("/", 1)[1]
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    assert found, f"{name} carries no hash"
    path = make_folder(Path(torch.hub.get_dir()) / "checkpoints") / name
    if not path.is_file():
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=found[1], progress=True)
        except (URLError, OSError) as error:
            raise CheckpointError(
                f"{url}: cannot be fetched ({error}); check the network, or put the file at {path}"
            ) from None
        except RuntimeError as error:  # the hash differs: nothing was kept
            raise CheckpointError(f"{url}: the download is damaged ({error}); try again") from None
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if not digest.startswith(found[1]):
        raise CheckpointError(f"{path}: its SHA-256 begins with {digest[:8]}, expected {found[1]}; remove it")
    return path
