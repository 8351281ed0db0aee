"""What to predict: photos and videos named one by one, by folder, by pattern or in a list; cameras; a process's share."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detrkit._internal.provenance import is_written_by_detrkit
from detrkit.data.images import SUFFIXES
from detrkit.data.video import VIDEO_SUFFIXES
from detrkit.distributed.rank import Process, process_from_environment
from detrkit.errors import ConfigError, DatasetError

_CAMERA = "camera:"
_LIST = ".txt"
_DRAWN = ".png"


@dataclass(frozen=True)
class Sources:
    """What was found, each once; the paths as they were given.

    Attributes:
        photos: files.
        videos: files.
        cameras: their numbers or names.
    """

    photos: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()

    def share(self, process: Process) -> "Sources":
        """Take every n-th for one of n processes."""
        rank, world = process.rank, process.world
        return Sources(self.photos[rank::world], self.videos[rank::world], self.cameras[rank::world])


def list_inputs(given: Sequence[str], *, recursive: bool = False, leave_out: Path | None = None) -> Sources:
    """List photos, videos and cameras.

    Args:
        given: files; folders, whose photos are taken, without what detrkit drew; patterns such as `photos/**/*.jpg`; `.txt`
            files with a path a line; `camera:0`.
        recursive: look into the folders of folders, too; links to folders are not followed.
        leave_out: folder that is not looked into: the output, which holds pictures as well.

    Raises:
        ConfigError: nothing was given.
        DatasetError: a path does not exist, or there is no photo in a folder.
    """
    if not given:
        raise ConfigError("predict: found no photos, expected at least one; name files or a folder after the model")
    files: list[str] = []
    cameras: list[str] = []
    for name in given:
        if name.startswith(_CAMERA):
            cameras.append(name.removeprefix(_CAMERA))
        else:
            files += _files_of(name, recursive, leave_out)
    files = list(dict.fromkeys(files))
    photos = tuple(file for file in files if not _is_video(file))
    videos = tuple(file for file in files if _is_video(file))
    return Sources(photos, videos, tuple(dict.fromkeys(cameras)))


def _files_of(name: str, recursive: bool, leave_out: Path | None) -> list[str]:
    path = Path(name)
    if path.is_dir():
        inside = sorted(_photos_inside(path, recursive, None if leave_out is None else leave_out.resolve()))
        if not inside:
            where = "" if recursive else ", and --recursive was not asked for"
            raise DatasetError(
                f"{path}: found no photo in this folder, expected {', '.join(sorted(SUFFIXES))}{where}; what detrkit "
                "drew does not count"
            )
        return inside
    if path.is_file():
        return list(_lines_of(path)) if path.suffix.lower() == _LIST else [str(path)]
    if glob.has_magic(name):
        fitting = glob.iglob(name, recursive=True)  # noqa: PTH207  (patterns may be absolute)
        known = (file for file in fitting if (_is_photo(file) or _is_video(file)) and _is_others_file(Path(file)))
        away = None if leave_out is None else leave_out.resolve()
        matching = sorted(file for file in known if away is None or away not in Path(file).resolve().parents)
        if not matching:
            raise DatasetError(
                f"{name}: found no photo or video that fits this pattern, but for what detrkit drew; check it"
            )
        return matching
    raise DatasetError(
        f"{path}: found nothing, expected a photo, a video, a folder, a list or a pattern; check the path"
    )


def _photos_inside(folder: Path, recursive: bool, leave_out: Path | None) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        is_left_out = leave_out is not None and place != str(folder) and Path(place).resolve() == leave_out
        if is_left_out or not recursive:
            folders.clear()
        if not is_left_out:
            yield from (str(path) for name in files if _is_photo(name) and _is_others_file(path := Path(place, name)))


def _is_others_file(path: Path) -> bool:
    """Whether a file is not one of the pictures that detrkit draws beside photos."""
    return path.is_file() and not (path.suffix.lower() == _DRAWN and is_written_by_detrkit(path))


def _lines_of(path: Path) -> Iterator[str]:
    """Read a list: paths beside it, or from where one is."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            names = [line.strip() for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: not readable as text ({error}); expected the path of a photo in each line"
        ) from None
    if not names:
        raise DatasetError(f"{path}: found an empty list, expected the path of a photo in each line")
    for name in names:
        beside = path.parent / name
        yield str(beside) if beside.exists() else name


def _is_photo(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def choose_shard(text: str | None) -> tuple[Process, bool]:
    """Tell which share is this process's.

    Args:
        text: I/N, the I-th (from 0) of N; None asks torchrun's and srun's environment.

    Returns:
        The process, and whether the environment told it.

    Raises:
        ConfigError: it makes no sense.
    """
    if text is None:
        return process_from_environment(), True
    rank, _, world = text.partition("/")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise ConfigError(f"--shard: found {text!r}, expected I/N with I from 0 to N - 1, for example 0/2 and 1/2")
    return Process(int(rank), int(world)), False


def output_names(paths: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Name the output of each photo: its own name, without suffix where that is still its own alone.

    Args:
        paths: of all photos, whichever process predicts them.
        taken: names that others have.
    """
    plain = [Path(path) for path in paths]
    stems = Counter(path.stem for path in plain)
    used = set(taken)
    names: list[str] = []
    for path in plain:
        name = path.stem if stems[path.stem] == 1 else path.name
        while name in used:
            name += "_"
        used.add(name)
        names.append(name)
    return names
