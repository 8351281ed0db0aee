"""`torch.load` for files that hold more than weights: harmless types are read as inert values, nothing is executed.

torch's ``weights_only`` unpickler calls only what it is given, which is `inert_types`. Before, the file is checked by
`torch_archive`, as the unpickler believes the sizes that it reads; after, the tensors are, by `tensor_budget`.
"""

import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from detrkit._internal.text import first_line
from detrkit.checkpoints.inert_types import READ_AS
from detrkit.checkpoints.pickle_values import RefusedPickleError
from detrkit.checkpoints.tensor_budget import check_content
from detrkit.checkpoints.torch_archive import check_torch_file
from detrkit.errors import CheckpointError

_LOCK = threading.Lock()  # torch's list of allowed types is global


def load_torch_file(path: Path) -> Any:
    """Read a file of `torch.save` to the CPU.

    Raises:
        CheckpointError: it is missing, damaged, holds a type that is not read, or tensors that would take much more memory
            than the file explains.
    """
    try:
        check_torch_file(path)
        with _LOCK, warnings.catch_warnings(), torch.serialization.safe_globals(READ_AS):  # type: ignore[arg-type]  # pairs with a name are allowed
            warnings.simplefilter("ignore")  # of other pickle protocols, some of which can be read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except RefusedPickleError as error:
        raise CheckpointError(f"{path}: {error.message}") from None
    except Exception as error:  # torch raises many kinds for malformed and for forbidden content
        raise CheckpointError(f"{path}: {_explain(path, error)}") from None
    check_content(content, path.stat().st_size, path)
    return content


def _explain(path: Path, error: Exception) -> str:
    reason = first_line(error)
    if not path.is_file():
        return f"not readable as weights ({reason}); check the path"
    if "pickle" in reason or reason.startswith("Weights only"):  # torch's text advises to run it
        reason = "not written by torch.save, or more than tensors and plain values in it"
    return f"not readable as weights ({reason}); expected .safetensors, or a state dict saved by torch"
