"""Hashes and revisions of published weights, and the record of those that are only known since their first download.

File names of DETR and torchvision end in the first eight digits of the SHA-256. Full hashes and revisions are from public
records of people who downloaded the files; those of torchvision and DETR agree with the file names, and those of the hub
with what it says of its files when they are downloaded. What is not listed is trusted at the first download: `HashRecord`
keeps its hash next to the file, and every later use is compared with it. RF-DETR's authors publish MD5 hashes, which are
compared, too. Light: imports no torch.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from detrkit._internal.documents import parse_json
from detrkit._internal.files import make_folder, write_text
from detrkit.checkpoints.zoo_foundation import FILE_MD5, FOUNDATION_FILE_NAMES
from detrkit.errors import CheckpointError, ConfigError

# how a download is checked: by the full hash, by its first digits, or by what was recorded at the first download
Check = Literal["SHA-256", "8 digits of SHA-256", "MD5", "first download"]
DOWNLOADS = "detrkit.downloads"  # name of the logger to which downloads are announced; the command line prints it
RECORD = "detrkit-hashes.json"
_logger = logging.getLogger(__name__)
_WAIT = 3600.0  # seconds for another process that downloads the same file

FILE_SHA256 = {
    "detr-r50-e632da11.pth": "e632da11ec76ae67bac2f8579fbed3724e08dead7d200ca13e019b197784eadc",
    "detr-r50-dc5-f0fb7ef5.pth": "f0fb7ef52a6b0bbd87dce4a4b8569b509f03ad082f60f936dc5b7009940295d3",
    "detr-r101-2c7b67e5.pth": "2c7b67e52d2e687cefa3c4a5e701a148664159c96725c62984600d2d9d5c4104",
    "detr-r101-dc5-a2e86def.pth": "a2e86defc9f49cfca7df75523d8745c6aa15482a5184e8dc62a0a19119c0286e",
    "resnet18-f37072fd.pth": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    "resnet34-b627a593.pth": "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "resnet101-63fe2227.pth": "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
}


@dataclass(frozen=True)
class HubPin:
    """The revision of a model on the hub that is used.

    Attributes:
        revision: commit.
        sha256: of its ``model.safetensors``; None if it is not known.
    """

    revision: str
    sha256: str | None = None


HUB_PINS = {
    "microsoft/conditional-detr-resnet-50": HubPin("8f8795fb7c319c7862d4f4cd699e76bb09cf2593"),
    "IDEA-Research/dab-detr-resnet-50": HubPin("d8e2856ee1f7a28088f0b8069ceebf2a44cb5042"),
    "SenseTime/deformable-detr": HubPin(
        "83ecd26945199939cb82806f988debdb71e6f43e", "caf1e3e61283c6ce35cd2d9adaa7033cf40997d4dfe434003bcdb9085cc8cf9b"
    ),
    "SenseTime/deformable-detr-single-scale": HubPin(
        "e880a4ca7bbe47b33d37ed90e2948efbbdad0d44", "82eeb57bbcdd02408afc53d5f5c874e3a7f27b5034194ae2c4475d06fceaa59b"
    ),
    "SenseTime/deformable-detr-single-scale-dc5": HubPin(
        "c23332913d0ae1a8c98725e308eccba65a5933cc", "e71afa5f5900e2e769275156494195508efcadaab4275b0cd4c80f10369dc090"
    ),
    "SenseTime/deformable-detr-with-box-refine": HubPin(
        "2e9e461623a8fdc296e19666c46c8a4389a3a6fe", "4113700fe8aade398808424b7c5c1304cfbf886adc6450a6ca5d50a702be3373"
    ),
    "SenseTime/deformable-detr-with-box-refine-two-stage": HubPin(
        "e74bff70d69f3e825f6cefaf179bfba707f92054", "411bb4238a834d40fff651b1b5b7d6dd80c2dd28be1747eec7b6918674e85de6"
    ),
    "PekingU/rtdetr_r18vd": HubPin("ac77a11ff0170a41b771c03264987f8ce2b0d753"),
    "PekingU/rtdetr_r50vd": HubPin(
        "df939e661d8c52e80608d1ec566561aabd25a4e7", "5263d5521eff3e356f6cd8a371fd5dfb891725beda5f713674f79669115cdc64"
    ),
    "PekingU/rtdetr_v2_r18vd": HubPin(
        "5650961749fa93567c0d46fc7f43ea4f9e914107", "d18309d0d7ea57048138885c4c6ecfcb1e24506fc6153b94ad484f8ab62c7115"
    ),
    "PekingU/rtdetr_v2_r34vd": HubPin("5d60d8fb5eb2a3ee5575bf200ecbce4e2cfa420c"),
    "PekingU/rtdetr_v2_r50vd": HubPin("282494075698cab9faa1096ae26856890030c817"),
    "ustc-community/dfine-nano-coco": HubPin(
        "066438d3d8f0da137a37b38fdf3368fd4afceced", "19e06bdc873da819920a8d373b879721a5b9759d822f8213220bb09abbdab58b"
    ),
    "ustc-community/dfine-small-coco": HubPin("f79e65b5fbb33ceb9d3ebba042955d7410c608f8"),
    "ustc-community/dfine-medium-coco": HubPin("4ab9f5e466432f4fcf9a9a023da6aa5ecc9c9829"),
    "ustc-community/dfine-large-coco": HubPin("aa8f8211545e4cff5adf52ea512f9ac74a9824ec"),
    "ustc-community/dfine-xlarge-coco": HubPin("ea4f6be7350bbe3c199ec6febc74168346cb5a68"),
    "microsoft/table-transformer-detection": HubPin(
        "2357cbe2b5a5d1c03e54f32764f06058933b65ab", "8f1aa73170102c038d40155e2734b343bf07e0fe12594228a8590943b01dccf7"
    ),
}


def check_of_file(name: str) -> Check:
    """Return how a file of the authors is checked."""
    if name in FILE_SHA256:
        return "SHA-256"
    if name in FILE_MD5:
        return "MD5"
    return "8 digits of SHA-256" if published_digits(name) else "first download"


def file_name(url: str) -> str:
    """Return the name of a file in the cache: that of its address, unless several are called alike."""
    return FOUNDATION_FILE_NAMES.get(url, url.rsplit("/", 1)[1])


def published_digits(name: str) -> str:
    """Return the first digits of a file's SHA-256 at the end of its name, as in ``detr-r50-e632da11.pth``; or nothing."""
    match = re.search(r"-([0-9a-f]{8,64})\.", name)
    return match[1] if match else ""


def check_of_hub(repo_id: str) -> Check:
    """Return how a model of the hub is checked."""
    pin = HUB_PINS.get(repo_id)
    return "SHA-256" if pin is not None and pin.sha256 is not None else "first download"


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def md5_of(path: Path) -> str:
    """Compute the MD5 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


class HashRecord:
    """Values by name in a JSON file, which several processes may write.

    Args:
        path: the file; it is created with the first value.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """Read all values.

        Raises:
            CheckpointError: the file is malformed.
        """
        try:
            content = parse_json(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise self._malformed(str(error)[:80]) from None
        if not isinstance(content, dict):
            raise self._malformed(f"found a {type(content).__name__}")
        return content

    def store(self, name: str, value: Any) -> None:
        """Add a value, or replace it. In a cache that cannot be written to, such as a shared one, a warning is logged.

        Raises:
            CheckpointError: the file is malformed.
        """
        try:
            with waiting_lock(self.path):
                write_text(self.path, json.dumps({**self.read(), name: value}, indent=2, sort_keys=True) + "\n")
        except ConfigError as error:
            _logger.warning("the SHA-256 of %s is not recorded: %s", name, error)

    def check_or_store(self, name: str, digest: str, path: Path) -> None:
        """Compare the hash of a file with that of its first download, or record it as such.

        Raises:
            CheckpointError: it is another one.
        """
        recorded = self.read().get(name)
        if recorded is None:
            self.store(name, digest)
        elif recorded != digest:
            raise CheckpointError(
                f"{path}: its SHA-256 is {digest}, but {recorded} was recorded in {self.path} at its first download; "
                "remove the file, or the line there if you trust the new content"
            )

    def _malformed(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: not readable as a record of hashes ({reason}); remove it to record them again"
        )


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Lock a file against other processes; wait while another one has the lock.

    Raises:
        CheckpointError: another process locks it for an hour.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(make_folder(path.parent) / f".{path.name}.lock")
    try:
        lock.acquire(timeout=_WAIT)
    except Timeout:
        raise CheckpointError(f"{path}: another process writes it since an hour; end it, and try again") from None
    except (NotImplementedError, OSError):
        pass  # some network file systems have no locks
    try:
        yield
    finally:
        lock.release()
