"""Files and cameras to predict: single files, folders, glob patterns, lists, and one process's part of them."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detrkit._internal.provenance import is_written_by_detrkit
from detrkit.data.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from detrkit.distributed.rank import Rank, rank_from_environment
from detrkit.errors import ConfigError, DatasetError, arg

_CAMERA_PREFIX = "camera:"
_LIVE_STREAM = re.compile("(rtsps?|rtmps?|rtp|udp|srt)://", re.IGNORECASE)
_WEB = re.compile("[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LIST_SUFFIX = ".txt"
_DRAWN_SUFFIX = ".png"


@dataclass(frozen=True)
class Inputs:
    """Inputs of a prediction, each once, with their paths as given.

    Attributes:
        images: image files.
        videos: video files.
        cameras: numbers or names of cameras.
    """

    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images) + len(self.videos) + len(self.cameras)

    def partition(self, process: Rank) -> "Inputs":
        """Return every n-th input, for one of n processes."""
        rank, world_size = process.rank, process.world_size
        return Inputs(self.images[rank::world_size], self.videos[rank::world_size], self.cameras[rank::world_size])


def list_inputs(given: Sequence[str], *, recursive: bool = False, exclude: Path | None = None) -> Inputs:
    """List images, videos and cameras.

    Args:
        given: files; folders, of which all images are taken that detrkit did not draw; glob patterns such as
            `images/**/*.jpg`; `.txt` files with one path per line; cameras: `camera:0`, `0`, `rtsp://...`.
        recursive: include the images in subfolders; links to folders are not followed.
        exclude: folder to skip: the output folder, which contains images as well.

    Raises:
        ConfigError: nothing was given.
        DatasetError: a path does not exist, or a folder contains no image.
    """
    if not given:
        raise ConfigError(f"{arg('images')}: found none, expected at least one; pass files or a folder after the model")
    files: list[str] = []
    cameras: list[str] = []
    for name in given:
        camera = _camera_in(name)
        if camera is not None:
            cameras.append(camera)
        else:
            files += _list_files(name, recursive, None if exclude is None else exclude.resolve())
    files = list(dict.fromkeys(files))
    images = tuple(file for file in files if not _is_video(file))
    videos = tuple(file for file in files if _is_video(file))
    return Inputs(images, videos, tuple(dict.fromkeys(cameras)))


def _camera_in(name: str) -> str | None:
    """Return the camera that an input names, or None for files.

    Raises:
        DatasetError: it is an address of the web.
    """
    if name.startswith(_CAMERA_PREFIX):
        return name.removeprefix(_CAMERA_PREFIX)
    if _LIVE_STREAM.match(name) or (name.isdecimal() and not Path(name).exists()):
        return name
    if _WEB.match(name):
        raise DatasetError(
            f"{name}: addresses of the web are not read; download the file and pass its path, or name the live stream of a "
            f"camera as {_CAMERA_PREFIX}{name[:60]}"
        )
    return None


def _list_files(name: str, recursive: bool, exclude: Path | None) -> list[str]:
    path = Path(name)
    if path.is_dir():
        inside = sorted(_images_in_folder(path, recursive, exclude))
        if not inside:
            hint = "" if recursive else f"; {arg('recursive', True)} includes subfolders"
            raise DatasetError(
                f"{path}: found no image in this folder, expected {', '.join(sorted(IMAGE_SUFFIXES))}; images that "
                f"detrkit drew are skipped{hint}"
            )
        return inside
    if path.is_file():
        return list(_read_list(path)) if path.suffix.lower() == _LIST_SUFFIX else [str(path)]
    if glob.has_magic(name):
        matches = glob.iglob(name, recursive=True)  # noqa: PTH207  (patterns may be absolute)
        known = (file for file in matches if (_is_image(file) or _is_video(file)) and not _is_drawn(Path(file)))
        matching = sorted(file for file in known if exclude is None or exclude not in Path(file).resolve().parents)
        if not matching:
            raise DatasetError(
                f"{name}: found no image or video that matches this pattern (images that detrkit drew are skipped); "
                "check the pattern"
            )
        return matching
    raise DatasetError(
        f"{path}: found nothing, expected an image, a video, a folder, a list or a pattern; check the path"
    )


def _images_in_folder(folder: Path, recursive: bool, exclude: Path | None) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        is_excluded = exclude is not None and place != str(folder) and Path(place).resolve() == exclude
        if is_excluded or not recursive:
            folders.clear()
        if not is_excluded:
            yield from (str(path) for name in files if _is_image(name) and not _is_drawn(path := Path(place, name)))


def _is_drawn(path: Path) -> bool:
    """Return whether a path is an annotated image that detrkit wrote next to its input, or not a file at all."""
    return not path.is_file() or (path.suffix.lower() == _DRAWN_SUFFIX and is_written_by_detrkit(path))


def _read_list(path: Path) -> Iterator[str]:
    """Read a list of paths, relative to the list or to the working directory."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            names = [line.strip() for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as text ({error}); expected the path of an image per line") from None
    if not names:
        raise DatasetError(f"{path}: found an empty list, expected the path of an image per line")
    for name in names:
        relative = path.parent / name
        yield str(relative) if relative.exists() else name


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def parse_partition(text: str | None) -> tuple[Rank, bool]:
    """Return which part of the inputs this process predicts.

    Args:
        text: INDEX/COUNT, with INDEX from 0; None reads the environment of torchrun and srun.

    Returns:
        The process, and whether it was read from the environment.

    Raises:
        ConfigError: the text is malformed.
    """
    if text is None:
        return rank_from_environment(), True
    rank, _, world_size = text.partition("/")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ConfigError(
            f"{arg('partition', text)} is not INDEX/COUNT with INDEX from 0 to COUNT - 1; use for example 0/2 and 1/2"
        )
    return Rank(int(rank), int(world_size)), False


def output_names(paths: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Name the outputs of each input: its stem, or its name with suffix if several share a stem.

    Args:
        paths: of all inputs, whichever process predicts them.
        taken: names that are used otherwise.
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


def camera_output_name(camera: str) -> str:
    """Name the outputs of a camera, without the user and the password of an address."""
    start, separator, rest = camera.partition("://")
    if separator:
        host, slash, path = rest.partition("/")
        camera = f"{start}-{host.rpartition('@')[2]}{slash}{path}"
    return "camera-" + "".join(sign if sign.isalnum() else "-" for sign in camera).strip("-")
