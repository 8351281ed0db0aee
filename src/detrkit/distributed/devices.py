"""Names of devices (``"auto"``, ``"cpu"``, ``"cuda:1"``) to `torch.device`."""

import re
from typing import TYPE_CHECKING

from detrkit.distributed.rank import Rank
from detrkit.errors import ConfigError, arg

if TYPE_CHECKING:
    import torch

# device types of torch that compute, and those of its makers' back ends
_TYPES = ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia", "maia", "ipu", "vulkan", "privateuseone", "meta")
_NAME = re.compile(rf"auto|({'|'.join(_TYPES)})(:\d+)?")


def check_device_name(name: str) -> None:
    """Check that a name is one of a device, existing on this machine or not. Imports no torch.

    Raises:
        ConfigError: it is not, or the device computes nothing.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{arg('device', name)} is not a device; use 'cpu', 'cuda', 'cuda:1' or 'auto'")
    if name.startswith("meta"):
        raise ConfigError(f"{arg('device', name)} computes nothing; use 'cpu' or 'auto'")


def choose_device(name: "str | torch.device | int") -> "torch.device":
    """Return the device of this name, or the GPU of this number; ``"auto"`` is a GPU if there is one, otherwise the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    import torch

    name = f"cuda:{name}" if isinstance(name, int) else name
    check_device_name(str(name))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"{arg('device', name)} is not available: {reason}; use 'cpu' or 'auto'") from None
    return device


def choose_rank_device(name: str, process: Rank) -> "torch.device":
    """Return the device of one of several processes: each has a GPU of its own, which becomes torch's current one.

    Raises:
        ConfigError: this machine has no such device.
    """
    device = choose_device(name)
    if device.type == "cuda" and process.world_size > 1:
        import torch

        device = choose_device(f"cuda:{process.local_rank}")
        torch.cuda.set_device(device)
    return device
