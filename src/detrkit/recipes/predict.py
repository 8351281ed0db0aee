"""Predicting photo files: pictures and JSON."""

from collections.abc import Sequence
from pathlib import Path

from detrkit.data.photos import SUFFIXES
from detrkit.errors import ConfigError, DataError
from detrkit.files import make_folder, replacing, write_text
from detrkit.inference.detector import Detector
from detrkit.recipes.loaders import device_for
from detrkit.terminal import plain_console


def predict_files(source: str, photos: Sequence[Path], *, threshold: float, device: str, output: Path) -> None:
    """Predict photos one by one; write NAME.png and NAME.json for each.

    A photo that cannot be read is named and passed over; the others are predicted.

    Raises:
        DetrkitError: the model cannot be read, or none of the photos.
    """
    console = plain_console()
    paths = list_photos(photos)
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold: found {threshold}, expected a score between 0 and 1")
    names = output_names(paths)
    _spare_the_photos(paths, [output / f"{name}.png" for name in names])
    detector = Detector.load(source, device_for(source, device))
    unreadable = []
    for path, name in zip(paths, names, strict=True):
        try:
            detections = detector.predict(path, threshold)
        except DataError as error:
            unreadable.append(str(error))
            console.print(f"{path.name}: not predicted")
            continue
        make_folder(output)
        with replacing(output / f"{name}.png") as temporary:
            detections.draw().save(temporary)
        write_text(output / f"{name}.json", detections.to_json())
        found = ", ".join(
            f"{name} {score:.2f}" for name, score in zip(detections.names, detections.scores.tolist(), strict=True)
        )
        console.print(f"{path.name}: {found or 'nothing above the threshold'}")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(paths)} photos were not predicted; {unreadable[0]}")
    console.print(f"pictures and JSON are in {output}")


def _spare_the_photos(paths: Sequence[Path], pictures: Sequence[Path]) -> None:
    """See that no picture takes the place of a photo."""
    photos = {path.resolve() for path in paths}
    for picture in pictures:
        if picture.resolve() in photos:
            raise ConfigError(f"{picture}: is one of the photos and would be overwritten; choose another --output")


def list_photos(given: Sequence[Path]) -> list[Path]:
    """List photo files; of a folder, all photos right inside it.

    Raises:
        ConfigError: nothing was given.
        DataError: a path does not exist, or a folder holds no photo.
    """
    if not given:
        raise ConfigError("predict: found no photos, expected at least one; name files or a folder after the model")
    paths: list[Path] = []
    for path in given:
        if not path.exists():
            raise DataError(f"{path}: found nothing, expected a photo or a folder of photos; check the path")
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file())
            if not inside:
                raise DataError(f"{path}: found no photo in this folder, expected {', '.join(sorted(SUFFIXES))}")
            paths += inside
        else:
            paths.append(path)
    return paths


def output_names(paths: Sequence[Path]) -> list[str]:
    """Name the output of each photo: its own name, without suffix where that is still its own alone."""
    stems = [path.stem for path in paths]
    names: list[str] = []
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else path.name
        while name in names:
            name += "_"
        names.append(name)
    return names
