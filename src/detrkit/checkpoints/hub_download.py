"""Downloads from the Hugging Face hub: of one revision, announced before, checked by their hashes.

A model of `HUB_PINS` is taken at its pinned revision. Others are pinned by their first download: its commit and the hashes
of its files are recorded in the hub's cache, and used from then on without asking the hub. ``hf:OWNER/NAME@main`` asks it
again.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from detrkit._internal.home import check_cache_home
from detrkit._internal.text import first_line
from detrkit.checkpoints.download import announced_size, check_size
from detrkit.checkpoints.hashes import DOWNLOADS, HUB_PINS, RECORD, HashRecord, sha256_of
from detrkit.checkpoints.sources import WEIGHTS_FILE
from detrkit.errors import CheckpointError

_logger = logging.getLogger(DOWNLOADS)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")
# the first kind that a repository has is downloaded
_WEIGHTS = (
    (WEIGHTS_FILE,),
    (f"{WEIGHTS_FILE}.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)


@dataclass(frozen=True)
class _Files:
    """Files of one commit: their sizes in bytes, and their SHA-256 where the hub knows it."""

    commit: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


def hub_snapshot(repo_id: str, revision: str | None = None) -> Path:
    """Download settings and weights of a model unless they are in the hub's cache, and check them.

    Args:
        repo_id: OWNER/NAME.
        revision: commit, branch or tag. Default: that of `HUB_PINS`, or of the first download, or else the newest.

    Returns:
        The folder.

    Raises:
        CheckpointError: it cannot be downloaded, or a file does not match its hash.
        ConfigError: there is no home folder.
    """
    from huggingface_hub import constants

    check_cache_home("models of the hub", "HF_HOME", "HF_HUB_CACHE")
    record = HashRecord(Path(constants.HF_HUB_CACHE) / RECORD)
    pin = HUB_PINS.get(repo_id) if revision is None else None
    target = revision if pin is None else pin.revision
    key = f"{repo_id}@{target or ''}"
    recorded = _checked(record.read().get(key), key, record)
    is_moving = revision is not None and not _COMMIT.fullmatch(revision)
    if is_moving:
        recorded = None
    expected: dict[str, str] = {} if recorded is None else dict(recorded["files"])
    if pin is not None and pin.sha256 is not None:
        expected[WEIGHTS_FILE] = pin.sha256
    if recorded is not None and (folder := _cached(repo_id, recorded)) is not None:
        _compare(folder, {name: sha256_of(folder / name) for name in recorded["files"]}, expected)
        return folder
    folder, files = _download(repo_id, target if recorded is None else recorded["commit"])
    digests = {name: sha256_of(folder / name) for name in files.sizes}
    _compare(folder, digests, {**files.sha256, **expected})
    record.store(key, {"commit": files.commit, "files": digests})
    return folder


def _checked(recorded: Any, key: str, record: HashRecord) -> dict[str, Any] | None:
    """Check the form of a recorded download."""
    if recorded is None:
        return None
    is_valid = (
        isinstance(recorded, dict)
        and isinstance(recorded.get("commit"), str)
        and isinstance(recorded.get("files"), dict)
        and bool(recorded["files"])
        and all(isinstance(digest, str) and Path(name).name == name for name, digest in recorded["files"].items())
    )
    if not is_valid:
        raise CheckpointError(f"{record.path}: its entry {key!r} is malformed; remove the entry")
    return dict(recorded)


def _cached(repo_id: str, recorded: Mapping[str, Any]) -> Path | None:
    """Return the folder of a recorded download if all of its files are in the cache."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(repo_id, name, revision=recorded["commit"]) for name in recorded["files"]]
    return Path(str(paths[0])).parent if all(isinstance(path, str) for path in paths) else None


def _download(repo_id: str, revision: str | None) -> tuple[Path, _Files]:
    from huggingface_hub import snapshot_download

    try:
        files = _list_files(repo_id, revision)
    except CheckpointError:
        raise
    except Exception as error:  # the hub's client has changed its network library, and its errors, twice
        folder = _offline(repo_id, revision)
        if folder is None:
            raise _failed(repo_id, revision, error) from None
        present = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        return folder, _Files(folder.name, {name: present[name] for name in _chosen(present)}, {})
    _logger.info(
        "downloading %s (revision %s, %s) from the Hugging Face Hub",
        repo_id,
        files.commit[:7],
        announced_size(sum(files.sizes.values())),
    )
    try:
        return Path(snapshot_download(repo_id, revision=files.commit, allow_patterns=list(files.sizes))), files
    except Exception as error:
        raise _failed(repo_id, revision, error) from None


def _list_files(repo_id: str, revision: str | None) -> _Files:
    """Ask the hub for the files of a revision."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    siblings = {one.rfilename: one for one in info.siblings or ()}
    chosen = _chosen(siblings)
    if not any(fnmatch(name, pattern) for name in chosen for kind in _WEIGHTS for pattern in kind):
        raise CheckpointError(f"{repo_id}: the repository on the hub contains no {WEIGHTS_FILE}; check the name")
    sizes = {name: int(siblings[name].size or 0) for name in chosen}
    check_size(sum(sizes.values()), repo_id)
    hashes = {name: one.lfs.sha256 for name in chosen if (one := siblings[name]).lfs is not None}
    return _Files(str(info.sha), sizes, hashes)


def _chosen(names: Mapping[str, object]) -> list[str]:
    """Choose the settings, and the first kind of weights that there is."""
    weights: Sequence[str] = next((kind for kind in _WEIGHTS if kind[0] in names), ())
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in (*_SETTINGS, *weights)))


def _offline(repo_id: str, revision: str | None) -> Path | None:
    """Return what the hub's cache holds, if the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except Exception:
        return None


def _failed(repo_id: str, revision: str | None, error: Exception) -> CheckpointError:
    name = repo_id if revision is None else f"{repo_id}@{revision}"
    return CheckpointError(
        f"{name}: cannot be downloaded from the Hugging Face Hub ({first_line(error)}); check the name and the network"
    )


def _compare(folder: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name, digest in expected.items():
        if name in found and found[name] != digest:
            raise CheckpointError(
                f"{folder / name}: its SHA-256 is {found[name]}, expected {digest}; remove the folder to download it again"
            )
