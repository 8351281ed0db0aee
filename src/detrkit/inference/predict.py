"""Predict files: images, videos and cameras, or one process's part of them, with outputs on disk."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.signals import StopSignal
from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.sources import local_file
from detrkit.data.video import Video, camera_name, open_camera, open_video
from detrkit.distributed.devices import choose_rank_device
from detrkit.distributed.rank import Rank
from detrkit.errors import ConfigError, DatasetError, arg
from detrkit.inference.detector import Detector
from detrkit.inference.engines.load import choose_inference_device
from detrkit.inference.images import ImageInput
from detrkit.inference.inputs import Inputs, camera_output_name, list_inputs, output_names, parse_partition
from detrkit.inference.options import PredictOptions, parse_settings
from detrkit.inference.stream import ErrorHandler
from detrkit.inference.writers.images import ImageWriter, check_image_outputs
from detrkit.inference.writers.jsonl import JsonlWriter, jsonl_name
from detrkit.inference.writers.parquet import write_parquet
from detrkit.inference.writers.video import VideoOutputWriter, check_video_outputs
from detrkit.structures import Detections

ProgressFunction = Callable[[int, int], None]


@dataclass(frozen=True)
class FileResult:
    """Result of one input.

    Attributes:
        name: path of the file, or `camera:0`.
        num_frames: predicted frames; 1 for an image.
        num_objects: detected objects, in all frames.
        detections: of an image; None for a video.
        error: why it was not predicted, or not to its end.
        note: what is missing in its outputs: the sound of a video.
    """

    name: str
    num_frames: int = 0
    num_objects: int = 0
    detections: Detections | None = None
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class PredictResult:
    """Result of `predict_files`.

    Attributes:
        output: folder that was written to.
        process: which part of the inputs this was.
        num_inputs: inputs of this part.
        num_predicted: images, videos and cameras predicted by this call.
        num_objects: objects detected by this call.
        num_resumed: images that were done by an earlier call.
        errors: one message for each input that could not be predicted, now or by an earlier call.
        num_earlier_errors: how many of the errors are from an earlier call.
        lines: the JSON Lines of the images, if written.
        table: the Parquet table of the images, if written.
        stopped_by: number of the signal that stopped the call early.
    """

    output: Path
    process: Rank
    num_inputs: int
    num_predicted: int
    num_objects: int
    num_resumed: int
    errors: tuple[str, ...]
    num_earlier_errors: int
    lines: Path | None
    table: Path | None
    stopped_by: int | None

    def __repr__(self) -> str:
        return (
            f"PredictResult({self.num_predicted} of {self.num_inputs} inputs predicted, {self.num_objects} objects, "
            f"{len(self.errors)} errors, output={str(self.output)!r})"
        )


def predict_files(
    source: Path | str,
    inputs: Path | str | Sequence[Path | str] | Inputs,
    *,
    output: Path | str = "predictions",
    progress: ProgressFunction | None = None,
    on_result: Callable[[FileResult], None] | None = None,
    options: PredictOptions | None = None,
    **settings: Any,
) -> PredictResult:
    """Predict images, videos and cameras, and write the detections to a folder.

    An input that cannot be read is recorded in the result; the others are predicted. Ctrl-C and SIGTERM end the call after
    the current image; with "jsonl" among the outputs, the same call resumes it.

    Args:
        source: see `Detector.load`.
        inputs: files, folders, glob patterns, `.txt` lists of paths, cameras (0, `camera:0`, `rtsp://...`); or what
            `list_inputs` returned.
        output: folder to write to.
        progress: called with (done, total) after every image, and after every frame of a video; total is 0 if unknown.
        on_result: called after every input.
        options: the settings as an object.
        **settings: fields of `PredictOptions`: `threshold`, `classes`, `partition`, `write` and others.

    Returns:
        Numbers of inputs and objects, the files of all images, and a message for each input that could not be predicted.

    Raises:
        ConfigError: a setting is wrong, or an output would replace a file that detrkit did not write.
        DatasetError: an input does not exist.
        CheckpointError: the model cannot be read.
    """
    options = options or parse_settings(PredictOptions, settings)
    output = Path(output)
    process, is_from_environment = parse_partition(options.partition)
    if not isinstance(inputs, Inputs):
        given = [inputs] if isinstance(inputs, Path | str) else inputs
        inputs = list_inputs([str(one) for one in given], recursive=options.recursive, exclude=output)
    names = _check_outputs(inputs, output, options, process)
    # one GPU per process, if there are several
    by_rank = is_from_environment and not is_exported(source)
    device = choose_rank_device(options.device, process) if by_rank else choose_inference_device(source, options.device)
    detector = Detector.load(
        source, device, precision=options.precision, model=options.model, state_dict_key=options.state_dict_key
    )
    _check_model(detector, options)
    with StopSignal() as stop:
        run = _Run(detector, str(source), output, options, process, names, stop, progress, on_result)
        return run.predict(inputs.partition(process))


def _check_outputs(inputs: Inputs, output: Path, options: PredictOptions, process: Rank) -> dict[str, str]:
    """Name the outputs of every file, and check that they replace no file of the user."""
    if (inputs.videos or inputs.cameras) and "json" in options.video_outputs:
        raise ConfigError(f"{arg('write', 'json')} is for images; 'jsonl' has one line per frame of a video")
    files = [*inputs.images, *inputs.videos]
    lines_name = jsonl_name(process)
    names = dict(zip(files, output_names(files, taken=[lines_name] if inputs.videos else []), strict=True))
    _check_inputs_are_kept(names, output)
    check_image_outputs(output, [names[image] for image in inputs.images], options.image_outputs)
    of_videos = [*(names[video] for video in inputs.videos), *map(camera_output_name, inputs.cameras)]
    check_video_outputs(output, of_videos, options.video_outputs)
    if inputs.images and "parquet" in options.image_outputs:
        refuse_foreign_overwrite(output / f"{lines_name}.parquet")
    return names


def _check_inputs_are_kept(names: dict[str, str], output: Path) -> None:
    """Check that no annotated image or video replaces an input."""
    output = output.resolve()
    if all(Path(path).parent.resolve() != output for path in names):
        return
    written = {output / f"{name}{suffix}" for name in names.values() for suffix in (".png", ".mp4")}
    for path in names:
        if Path(path).resolve() in written:
            raise ConfigError(f"{path}: would be overwritten by its own predictions; choose another {arg('output')}")


def _check_model(detector: Detector, options: PredictOptions) -> None:
    """Check the settings that depend on the model."""
    detector.resolve_threshold(options.threshold)
    detector.resolve_classes(options.class_names(detector.categories.names))
    if options.tile is not None and detector.engine.config.mask_head:
        raise ConfigError(f"{arg('tile', options.tile)} merges boxes only, and this model predicts masks; omit it")
    if options.write is not None and "segments" in options.image_outputs and detector.categories.is_thing is None:
        raise ConfigError(
            f"{arg('write', 'segments')} needs a panoptic model; train a preset whose name ends in -panoptic on panoptic "
            "data"
        )


@dataclass
class _Run:
    """One call of `predict_files`, and its counters."""

    detector: Detector
    source: str
    output: Path
    options: PredictOptions
    process: Rank
    names: dict[str, str]
    stop: StopSignal
    progress: ProgressFunction | None
    on_result: Callable[[FileResult], None] | None
    num_predicted: int = 0
    num_objects: int = 0
    num_resumed: int = 0
    errors: list[str] = field(default_factory=list)
    earlier_errors: list[str] = field(default_factory=list)
    lines: Path | None = None
    table: Path | None = None

    def predict(self, inputs: Inputs) -> PredictResult:
        """Predict this process's inputs."""
        if inputs.images:
            self._predict_images(inputs.images)
        for path in inputs.videos:
            if self.stop.received is None:
                self._predict_video(path, self.names[path], open_video(Path(path)))
        for camera in inputs.cameras:
            if self.stop.received is None:
                self._predict_video(camera_name(camera), camera_output_name(camera), open_camera(camera))
        return PredictResult(
            self.output,
            self.process,
            len(inputs),
            self.num_predicted,
            self.num_objects,
            self.num_resumed,
            (*self.errors, *self.earlier_errors),
            len(self.earlier_errors),
            self.lines,
            self.table,
            self.stop.received,
        )

    def _predict_images(self, images: Sequence[str]) -> None:
        outputs, folder = self.options.image_outputs, self.output
        lines = None
        if outputs & {"jsonl", "parquet"}:
            lines = JsonlWriter(folder / f"{jsonl_name(self.process)}.jsonl", self._line_settings())
            self.lines = lines.path
        with lines or nullcontext():
            todo = [image for image in images if lines is None or image not in lines.done]
            self.num_resumed = len(images) - len(todo)
            if lines is not None:  # repeated, so that the result does not depend on resuming
                self.earlier_errors = [lines.errors[image] for image in images if image in lines.errors]
            writer = ImageWriter(folder, self.names, outputs, lines)

            def on_error(image: ImageInput, error: DatasetError) -> None:
                writer.add_error(str(image), error)
                self._report(FileResult(str(image), error=str(error)))
                self._advance(len(todo))

            with closing(self._stream(todo, "images" in outputs, on_error)) as results:
                for detections in results:
                    writer.add(detections)
                    self._report(FileResult(detections.path or "", 1, len(detections), detections))
                    self._advance(len(todo))
                    if self.stop.received is not None:
                        return
        if lines is not None and "parquet" in outputs:
            self.table = lines.path.with_suffix(".parquet")
            write_parquet(lines.path, self.table)

    def _predict_video(self, name: str, output: str, opened: AbstractContextManager[Video]) -> None:
        """Predict a video; a video that is damaged somewhere is predicted up to there, and counts as an error."""
        try:
            with opened as video:
                result = self._predict_frames(name, video, self.output / output)
        except DatasetError as error:
            result = FileResult(name, error=str(error))
        self._report(result)

    def _predict_frames(self, name: str, video: Video, output: Path) -> FileResult:
        """Predict frame by frame.

        Raises:
            DatasetError: no frame can be read.
        """
        max_frames = self.options.max_frames
        frames = _Frames(video, max_frames)
        total = max_frames or video.num_frames or 0
        num_frames = num_objects = 0
        with (
            VideoOutputWriter(output, video, self.options.video_outputs) as writer,
            closing(self._stream(frames, writer.draws)) as results,
        ):
            for detections in results:
                writer.add(detections, *frames.waiting.popleft())
                num_frames, num_objects = num_frames + 1, num_objects + len(detections)
                if self.progress is not None:
                    self.progress(num_frames, total)
                if self.stop.received is not None:
                    break
            if frames.error is not None and not num_frames:
                raise frames.error  # before an empty file replaces an earlier result
        note = f"its sound is not copied to {output.name}.mp4" if video.has_sound and writer.draws else None
        error = None if frames.error is None else str(frames.error)
        return FileResult(name, num_frames, num_objects, error=error, note=note)

    def _report(self, result: FileResult) -> None:
        if result.error is not None:
            self.errors.append(result.error)
        if result.num_frames or result.error is None:
            self.num_predicted += 1
            self.num_objects += result.num_objects
        if self.on_result is not None:
            self.on_result(result)

    def _advance(self, total: int) -> None:
        if self.progress is not None:
            self.progress(self.num_predicted + len(self.errors), total)

    def _stream(
        self, images: Iterable[ImageInput], keep_images: bool, on_error: ErrorHandler | None = None
    ) -> Generator[Detections, None, None]:
        options = self.options
        return self.detector.stream(
            images,
            options.threshold,
            batch_size=options.batch_size,
            workers=options.workers,
            classes=options.class_names(self.detector.categories.names),
            tiling=options.tiling,
            keep_images=keep_images,
            on_error=on_error,
        )

    def _line_settings(self) -> dict[str, Any]:
        """Return everything that the numbers in the lines depend on."""
        options = self.options
        weights = local_file(self.source)
        model = self.source
        if weights is not None:
            with weights.open("rb") as content:
                model = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
        classes = options.class_names(self.detector.categories.names)
        return {
            "model": model,
            "threshold": self.detector.resolve_threshold(options.threshold),
            "precision": options.precision,
            **({"state_dict_key": options.state_dict_key} if options.state_dict_key else {}),
            **({"named_model": options.model} if options.model else {}),
            "classes": None if classes is None else sorted(set(classes)),
            "tile": options.tile,
            "overlap": None if options.tile is None else options.overlap,
            "partition": f"{self.process.rank}/{self.process.world_size}",
        }


class _Frames:
    """Iterates over the pixels of a video, and remembers number and time of the frames that are not predicted yet.

    Attributes:
        waiting: number, seconds and pixel aspect of each.
        error: what ended the video early.
    """

    def __init__(self, video: Video, max_frames: int | None) -> None:
        self.waiting: deque[tuple[int, float, Fraction]] = deque()
        self.error: DatasetError | None = None
        self._frames = islice(video, max_frames)

    def __iter__(self) -> Iterator[Tensor]:
        try:
            for frame in self._frames:
                self.waiting.append((frame.number, frame.seconds, frame.pixel_aspect))
                yield frame.pixels
        except DatasetError as error:
            self.error = error
