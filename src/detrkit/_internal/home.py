"""The user's home folder, which containers and services may lack: no HOME, and no entry of the user in the system."""

import os

from detrkit.errors import ConfigError


def has_home() -> bool:
    """Return whether there is a home folder."""
    return os.path.expanduser("~") != "~"  # noqa: PTH111  (the method of a path raises an error)


def check_cache_home(what: str, *variables: str) -> None:
    """Check that there is a folder to keep downloads in.

    Args:
        what: is kept in it, for the message.
        variables: environment variables, one of which names the folder where there is no home; the first one is advised.

    Raises:
        ConfigError: neither is set.
    """
    if not has_home() and not any(os.environ.get(name) for name in (*variables, "XDG_CACHE_HOME")):
        raise ConfigError(
            f"there is no home folder to keep {what} in: HOME is unset, and the user is not known to the system; set "
            f"{variables[0]} to a folder"
        )
