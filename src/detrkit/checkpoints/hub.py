"""Models out to the Hugging Face hub: a folder with weights and a card, and its upload.

Input: a `Checkpoint`. Output: a folder that `read_checkpoint` reads, in our form or in that of `transformers`.
"""

import tempfile
from pathlib import Path
from typing import Literal

from detrkit._internal.files import write_text
from detrkit.checkpoints.conversion import huggingface
from detrkit.checkpoints.load import HUB_ID, WEIGHTS_FILE
from detrkit.checkpoints.model_card import CardFacts, model_card
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from detrkit.errors import CheckpointError, ConfigError

FolderForm = Literal["detrkit", "huggingface", "huggingface-no-timm"]
_CARD = "README.md"


def write_model_folder(folder: Path, checkpoint: Checkpoint, format: FolderForm, facts: CardFacts) -> None:
    """Write weights and a card; a card that lies there already is its owner's, and stays.

    Raises:
        CheckpointError: Hugging Face's DETR has no such variant.
        ConfigError: the folder cannot be written to.
    """
    if format == "detrkit":
        save_checkpoint(folder / WEIGHTS_FILE, checkpoint)
    else:
        huggingface.write_folder(folder, checkpoint, native_backbone=format == "huggingface-no-timm")
    if not (folder / _CARD).exists():
        write_text(folder / _CARD, model_card(checkpoint, facts, for_transformers=format != "detrkit"))


def hub_token(repo_id: str, token: str | None = None) -> str:
    """Find the right to write to the hub, before any work is done.

    Raises:
        ConfigError: the id is none, or nobody has logged in.
    """
    from huggingface_hub import get_token

    if not HUB_ID.fullmatch(repo_id):
        raise ConfigError(f"{repo_id!r}: is no hub id, expected OWNER/NAME of letters, digits, '-', '_' and '.'")
    found = token or get_token()
    if not found:
        raise ConfigError(f"{repo_id}: found no token for the hub; run `hf auth login`, or set HF_TOKEN")
    return found


def push_checkpoint(
    checkpoint: Checkpoint, format: FolderForm, facts: CardFacts, *, private: bool = False, token: str | None = None
) -> str:
    """Upload weights and a card to the hub, under the id that the facts name; a card that is there already stays.

    Args:
        checkpoint: what to upload.
        format: our own, or what `transformers` reads.
        facts: for the card.
        private: whether a new repository can be seen by its owner alone.
        token: the right to write; by default, the one that was logged in with.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the id is none, or nobody has logged in.
        CheckpointError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    repo_id = facts.name
    api = HfApi(token=hub_token(repo_id, token))
    with tempfile.TemporaryDirectory() as folder:
        write_model_folder(Path(folder), checkpoint, format, facts)
        try:
            address = str(api.create_repo(repo_id, private=private, exist_ok=True))
            has_card = api.file_exists(repo_id, _CARD)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message="Weights written by detrkit",
                ignore_patterns=[_CARD] if has_card else None,
            )
        except Exception as error:  # the hub's client has changed its network library, and with it its errors, twice
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise CheckpointError(
                f"{repo_id}: cannot be pushed to the hub ({reason}); check the network, the name and the token"
            ) from None
    return address
