"""Predicting whatever a user names: photos, videos and cameras, or one process's share of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from detrkit._internal.provenance import is_written_by_detrkit, refuse_foreign_overwrite
from detrkit._internal.signals import StopSignal
from detrkit._internal.text import plain_console
from detrkit.checkpoints.exported import is_exported
from detrkit.data.video import is_detrkit_video
from detrkit.distributed.devices import choose_rank_device
from detrkit.distributed.rank import Process
from detrkit.errors import ConfigError, DatasetError
from detrkit.inference.detector import Detector
from detrkit.inference.engines.load import choose_inference_device
from detrkit.inference.inputs import Sources, choose_shard, list_inputs, output_names
from detrkit.inference.predict_images import PHOTO_KINDS, predict_photos
from detrkit.inference.predict_videos import DEFAULT_KINDS, name_of_camera, predict_camera, predict_video
from detrkit.inference.prediction import PredictionRun, PredictOptions
from detrkit.inference.writers.jsonl import lines_name


def predict_files(source: str, given: Sequence[str], options: PredictOptions) -> int | None:
    """Predict everything that was named, or this process's share of it.

    A photo that cannot be read is named and passed over; the others are predicted.

    Returns:
        The signal that stopped it, or None.

    Raises:
        DetrkitError: the model cannot be read, or some of the photos and videos.
    """
    process, is_from_environment = choose_shard(options.shard)
    sources = list_inputs(given, recursive=options.recursive, leave_out=options.output)
    _check_kinds(sources, options)
    files = [*sources.photos, *sources.videos]
    names = dict(zip(files, output_names(files, taken=[lines_name(process)] if sources.videos else []), strict=True))
    _spare_the_sources(names, options.output)
    _spare_all_others(
        [names[photo] for photo in sources.photos], options.kinds(PHOTO_KINDS), _OF_PHOTOS, options.output
    )
    of_videos = [*(names[video] for video in sources.videos), *map(name_of_camera, sources.cameras)]
    _spare_all_others(of_videos, options.kinds(DEFAULT_KINDS), _OF_VIDEOS, options.output)
    is_ranked = is_from_environment and not is_exported(source)  # a GPU for each process, if there are some
    if sources.photos and "parquet" in options.kinds(PHOTO_KINDS):
        refuse_foreign_overwrite(options.output / f"{lines_name(process)}.parquet")
    device = (
        choose_rank_device(options.device, process) if is_ranked else choose_inference_device(source, options.device)
    )
    detector = Detector.load(source, device, precision=options.precision)
    _check_masks(detector, options)
    detector.resolve_threshold(options.threshold)  # says now if there is none
    detector.resolve_classes(options.class_names(detector))
    console = plain_console()
    if process.world > 1:
        console.print(f"share {process.rank}/{process.world} of {len(files)} photos and videos")
    mine = sources.share(process)
    with StopSignal() as stop:
        job = PredictionRun(detector, options, names, stop, console)
        _predict_all(job, source, mine, process)
    count = len(mine.photos) + len(mine.videos) + len(mine.cameras)
    if job.tally.faults:
        raise DatasetError(f"{job.tally.faults} of {count} photos were not predicted; {job.tally.first_fault}")
    return stop.received


def _predict_all(job: PredictionRun, source: str, sources: Sources, process: Process) -> None:
    if sources.photos:
        predict_photos(job, source, sources.photos, process)
    for video in sources.videos:
        if job.stop.received is None:
            predict_video(job, video)
    for camera in sources.cameras:
        if job.stop.received is None:
            predict_camera(job, camera)


def _check_kinds(sources: Sources, options: PredictOptions) -> None:
    """See that everything that was asked for can be written."""
    if (sources.videos or sources.cameras) and "json" in options.kinds(DEFAULT_KINDS):
        raise ConfigError("--write json: is for photos; --write jsonl has a line for each frame of a video")


def _check_masks(detector: Detector, options: PredictOptions) -> None:
    """See that the model can do what is asked of its masks."""
    if options.tile is not None and detector.engine.config.panoptic:
        raise ConfigError("--tile: puts boxes of tiles together, and masks are not; leave it out for this model")
    if "segments" in options.kinds("") and detector.categories.is_thing is None:
        raise ConfigError(
            "--write segments: this model tells no things from stuff; train one on panoptic data, with a preset that "
            "ends in -panoptic"
        )


# kinds, their suffixes, and how a file of ours is known, which may be written anew
_OF_PHOTOS = (
    ("json", ".json", is_written_by_detrkit),
    ("pictures", ".png", is_written_by_detrkit),
    ("segments", ".segments.png", is_written_by_detrkit),
)
_OF_VIDEOS = (
    ("pictures", ".mp4", is_detrkit_video),
    ("jsonl", ".jsonl", is_written_by_detrkit),
    ("parquet", ".jsonl", is_written_by_detrkit),
    ("parquet", ".parquet", is_written_by_detrkit),
)


def _spare_all_others(
    names: Sequence[str],
    kinds: frozenset[str],
    files: Sequence[tuple[str, str, Callable[[Path], bool]]],
    output: Path,
) -> None:
    """See that nothing takes the place of what somebody else wrote: annotations and masks lie beside the photos, too."""
    for kind, suffix, is_ours in files:
        for path in (output / f"{name}{suffix}" for name in names if kind in kinds):
            refuse_foreign_overwrite(path, is_ours=is_ours)


def _spare_the_sources(names: dict[str, str], output: Path) -> None:
    """See that no picture takes the place of a photo or a video."""
    folders = {folder for folder in {Path(path).parent for path in names} if folder.resolve() == output.resolve()}
    if not folders:
        return
    there = {output.resolve() / f"{name}{suffix}" for name in names.values() for suffix in (".png", ".mp4")}
    for path in names:
        if Path(path).resolve() in there:
            raise ConfigError(f"{path}: would be overwritten by what is found in it; choose another --output")
