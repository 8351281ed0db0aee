"""Names of temporary files and folders, and removal of those that killed processes left behind."""

import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"\.detrkit-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{12}(?:\..*)?")
_MAX_AGE = 86_400.0  # seconds after which what another machine left behind is removed, too


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """Return an unused path in a folder, which names this machine and process.

    The name of the final file is not part of it: that may already have the maximum length.
    """
    return folder / f".detrkit-{_host()}-{os.getpid()}-{secrets.token_hex(6)}{suffix}"


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of processes that have ended, or of other machines if they are a day old."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            name = _NAME.fullmatch(entry.name)
            with suppress(OSError):
                if name and _is_abandoned(name["host"], int(name["pid"]), entry.stat(follow_symlinks=False).st_mtime):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink(missing_ok=True)


@functools.cache
def sweep_once(folder: Path) -> None:
    """Sweep a folder at this process's first write to it: listing a folder of many images takes time."""
    sweep(folder)


def _is_abandoned(host: str, pid: int, modified: float) -> bool:
    if host == _host() and pid != os.getpid() and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # of another user
            return False
        return False
    return time.time() - modified > _MAX_AGE


@functools.cache
def _host() -> str:
    """Identify what process numbers are unique in: a machine since its start, or a container on it."""
    parts = [platform.node()]
    for source in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(str(source.readlink()) if source.is_symlink() else source.read_text(encoding="ascii"))
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()
