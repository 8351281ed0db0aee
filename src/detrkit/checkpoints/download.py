"""Downloads of published weights by their address: over https only, of bounded size, checked by their hash.

A file appears in torch's cache when it is complete and checked. What an interrupted download left is continued.
"""

import http.client
import logging
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError

import torch

from detrkit._internal.home import check_cache_home
from detrkit.checkpoints.hashes import (
    DOWNLOADS,
    FILE_SHA256,
    RECORD,
    HashRecord,
    file_name,
    md5_of,
    published_digits,
    sha256_of,
    waiting_lock,
)
from detrkit.checkpoints.zoo import IMAGENET_URLS, imagenet_url, official_url
from detrkit.checkpoints.zoo_foundation import FILE_MD5
from detrkit.checkpoints.zoo_realtime import REALTIME_PAGES
from detrkit.errors import CheckpointError, arg

MAX_DOWNLOAD = 4 * 2**30  # bytes; the largest published detectors have about 1 GB
_logger = logging.getLogger(DOWNLOADS)
_SCHEMES = ("https://",)
_TIMEOUT = 30.0  # seconds without an answer
_CHUNK = 2**20  # bytes


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
    path = None if url is None else _cache() / file_name(url)
    return path if path is not None and path.is_file() else None


def fetch(url: str) -> Path:
    """Download a file into torch's cache unless it is there, and check it.

    Args:
        url: its name may end in the first digits of its SHA-256, as in ``detr-r50-e632da11.pth``. The full hash is taken
            from `FILE_SHA256`, or else recorded at the first download.

    Raises:
        CheckpointError: the network fails, or the content does not match the hash.
    """
    name = file_name(url)
    expected = FILE_SHA256.get(name) or published_digits(name)
    path = _cache_folder() / name
    if not path.is_file():
        with waiting_lock(path):
            if not path.is_file():  # another process may have downloaded it
                _download(url, path, expected)
    digest = sha256_of(path)
    if not digest.startswith(expected):
        raise CheckpointError(f"{path}: its SHA-256 is {digest}, expected {expected}; remove the file")
    if name in FILE_MD5 and (md5 := md5_of(path)) != FILE_MD5[name]:
        raise CheckpointError(f"{path}: its MD5 is {md5}, expected {FILE_MD5[name]}; remove the file")
    if name not in FILE_SHA256:
        HashRecord(path.parent / RECORD).check_or_store(url, digest, path)
    return path


def announced_size(num_bytes: int | None) -> str:
    """Return a size for an announcement."""
    return "size unknown" if num_bytes is None else f"{num_bytes / 1e6:.1f} MB"


def check_size(num_bytes: int, source: str) -> None:
    """Check the size of a download.

    Raises:
        CheckpointError: it is larger than `MAX_DOWNLOAD`.
    """
    if num_bytes > MAX_DOWNLOAD:
        raise CheckpointError(
            f"{source}: has more than {MAX_DOWNLOAD:,} bytes, which no weights of a detector have; check the address"
        )


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _download(url: str, path: Path, expected: str) -> None:
    if not url.startswith(_SCHEMES):
        raise CheckpointError(f"{url}: is not an https address, expected one; check it")
    partial = path.with_name(f".{path.name}.part")
    try:
        _continue(url, partial)
    except (URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise CheckpointError(
            f"{url}: cannot be downloaded ({reason}); check the network, or put the file at {path}"
        ) from None
    digest = sha256_of(partial)
    if not digest.startswith(expected):
        partial.unlink()
        raise CheckpointError(
            f"{url}: the download is damaged (its SHA-256 is {digest}, expected {expected}); try again"
        )
    partial.replace(path)


def _continue(url: str, partial: Path) -> None:
    """Download to a file, after what it holds already."""
    start = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310  https only
    opener = urllib.request.build_opener(_SecureRedirects)
    try:
        response = opener.open(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        partial.unlink()  # it is not a part of this file
        _continue(url, partial)
        return
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        check_size(total or 0, url)
        _logger.info("downloading %s (%s)", url, announced_size(total))
        with partial.open("ab" if start else "wb") as file:
            received = _copy(response, file, start, url)
    if total is not None and received != total:
        raise URLError(f"the connection ended after {received:,} of {total:,} bytes")


def _copy(response: http.client.HTTPResponse, file: IO[bytes], start: int, url: str) -> int:
    received = start
    while chunk := response.read(_CHUNK):
        received += len(chunk)
        check_size(received, url)
        file.write(chunk)
    return received


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https addresses only."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        """Return the request for another address."""
        if not newurl.startswith(_SCHEMES):
            raise URLError(f"it redirects to {newurl[:80]}, which is not an https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _cache_folder() -> Path:
    """Return torch's folder of weights, which is created.

    Raises:
        CheckpointError: it cannot be.
        ConfigError: there is no home folder.
    """
    check_cache_home("weights", "TORCH_HOME")
    folder = _cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot keep weights ({error.strerror or error}); set TORCH_HOME to a folder that can be written to"
        ) from None
    return folder
