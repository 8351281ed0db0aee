"""Publish models on the Hugging Face hub: a folder with weights and a model card, and its upload."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from detrkit._internal.files import write_text
from detrkit._internal.text import first_line
from detrkit.checkpoints.conversion.huggingface import write_huggingface_folder
from detrkit.checkpoints.model_card import model_card
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from detrkit.checkpoints.sources import HUB_ID, WEIGHTS_FILE
from detrkit.errors import CheckpointError, ConfigError, arg

FolderFormat = Literal["detrkit", "huggingface", "huggingface-no-timm"]
_CARD = "README.md"


def write_model_folder(
    folder: Path,
    checkpoint: Checkpoint,
    format: FolderFormat,
    name: str,
    *,
    metrics: Mapping[str, float] | None = None,
    licence: str | None = None,
) -> None:
    """Write weights and a model card; a card that exists already is kept.

    Args:
        folder: is created.
        checkpoint: to write.
        format: detrkit's own, or one that transformers reads.
        name: by which the model is loaded, for the card: a hub id, or a folder.
        metrics: for the card, such as AP, 0..1, by name.
        licence: for the card, as the hub names it, for example "apache-2.0"; None leaves it to the owner.

    Raises:
        CheckpointError: Hugging Face has no such model.
        ConfigError: the folder cannot be written to.
    """
    if format == "detrkit":
        save_checkpoint(folder / WEIGHTS_FILE, checkpoint)
    else:
        write_huggingface_folder(folder, checkpoint, native_backbone=format == "huggingface-no-timm")
    if not (folder / _CARD).exists():
        card = model_card(checkpoint, name, metrics=metrics, licence=licence, for_transformers=format != "detrkit")
        write_text(folder / _CARD, card)


def hub_token(repo_id: str, token: str | None = None) -> str:
    """Return the token for uploads, before any work is done.

    Raises:
        ConfigError: the id is malformed, or there is no token.
    """
    from huggingface_hub import get_token

    if not HUB_ID.fullmatch(repo_id):
        raise ConfigError(f"{repo_id!r} is not a hub id, expected OWNER/NAME of letters, digits, '-', '_' and '.'")
    token = token or get_token()
    if not token:
        raise ConfigError(f"{repo_id}: no token for the hub; run `hf auth login`, or set HF_TOKEN")
    return token


def push_checkpoint(
    checkpoint: Checkpoint,
    format: FolderFormat,
    repo_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    licence: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload weights and a model card to the hub; a card that exists there is kept.

    Args:
        checkpoint: to upload.
        format: detrkit's own, or one that transformers reads.
        repo_id: OWNER/NAME.
        metrics: for the card, such as AP, 0..1, by name.
        licence: for the card, as the hub names it, for example "apache-2.0"; None leaves it to the owner.
        private: make a new repository visible to its owner only.
        token: for uploads; by default, the one that was logged in with.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the id is malformed, or there is no token.
        CheckpointError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=hub_token(repo_id, token))
    with tempfile.TemporaryDirectory() as folder:
        write_model_folder(Path(folder), checkpoint, format, repo_id, metrics=metrics, licence=licence)
        try:
            address = str(api.create_repo(repo_id, private=private, exist_ok=True))
            has_card = api.file_exists(repo_id, _CARD)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message="Weights written by detrkit",
                ignore_patterns=[_CARD] if has_card else None,
            )
        except Exception as error:  # the hub's client has changed its network library, and its errors, twice
            raise CheckpointError(
                f"{repo_id}: cannot be pushed to the hub ({first_line(error)}); check the network, the name and "
                f"{arg('token')}"
            ) from None
    return address
