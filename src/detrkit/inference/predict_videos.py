"""Predicting videos and cameras: an annotated video, and a line of JSON for each frame.

A video that is broken somewhere is predicted up to there; it counts as a fault all the same.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from itertools import islice
from pathlib import Path

from torch import Tensor

from detrkit._internal.files import atomic_write
from detrkit._internal.text import plural
from detrkit.data.video import Video, VideoWriter, open_camera, open_video
from detrkit.errors import DatasetError
from detrkit.inference.prediction import PredictionRun, progress_bar
from detrkit.inference.writers.parquet import write_parquet
from detrkit.structures import Detections

DEFAULT_KINDS = "pictures,jsonl"


def predict_video(job: PredictionRun, path: str) -> None:
    """Predict a video file."""
    _predict(job, path, job.names[path], open_video(Path(path)))


def predict_camera(job: PredictionRun, name: str) -> None:
    """Predict a camera until Ctrl-C, or for as many frames as the options say."""
    _predict(job, f"camera:{name}", name_of_camera(name), open_camera(name))


def name_of_camera(name: str) -> str:
    """What the files of a camera are called."""
    return "camera-" + "".join(sign if sign.isalnum() else "-" for sign in name).strip("-")


def _predict(job: PredictionRun, name: str, output: str, opened: AbstractContextManager[Video]) -> None:
    try:
        with opened as video:
            count, objects, fault = _predict_frames(job, video, job.options.output / output)
    except DatasetError as error:
        job.tally.refuse(str(error))
        job.console.print(f"{Path(name).name}: not predicted", soft_wrap=True)
        return
    job.tally.photos += 1
    job.console.print(f"{Path(name).name}: {plural(count, 'frame')}, {plural(objects, 'object')}", soft_wrap=True)
    if fault is not None:
        job.tally.refuse(str(fault))


class _Frames:
    """The pictures of a video, on their way; those that are not predicted yet are remembered by number and time.

    Attributes:
        waiting: number and seconds of each.
        fault: what ended the video before its time.
    """

    def __init__(self, video: Video, most: int | None) -> None:
        self.waiting: deque[tuple[int, float]] = deque()
        self.fault: DatasetError | None = None
        self._frames = islice(video, most)

    def __iter__(self) -> Iterator[Tensor]:
        try:
            for frame in self._frames:
                self.waiting.append((frame.number, frame.seconds))
                yield frame.pixels
        except DatasetError as error:
            self.fault = error


def _predict_frames(job: PredictionRun, video: Video, output: Path) -> tuple[int, int, DatasetError | None]:
    """Predict frame by frame; the files are in place when all is done.

    Returns:
        How many frames and objects there were, and what was wrong with the next frame.

    Raises:
        DatasetError: no frame can be read.
    """
    kinds = job.options.kinds(DEFAULT_KINDS)
    frames = _Frames(video, job.options.frames)
    count = objects = 0
    lines = output.with_name(f"{output.name}.jsonl")
    with ExitStack() as stack:
        add_picture = _picture_writer(stack, video, output) if "pictures" in kinds else None
        add_line = _line_writer(stack, lines) if kinds & {"jsonl", "parquet"} else None
        progress = stack.enter_context(progress_bar("frames"))
        task = progress.add_task("", total=job.options.frames or video.num_frames or None)
        for found in stack.enter_context(closing(job.stream(frames, add_picture is not None))):
            number, seconds = frames.waiting.popleft()
            if add_picture is not None:
                add_picture(found, seconds)
            if add_line is not None:
                add_line(found, video.name, number, seconds)
            count, objects = count + 1, objects + len(found)
            progress.advance(task)
            if job.stop.received is not None:
                break
        if frames.fault is not None and not count:
            raise frames.fault  # before an empty file takes the place of another
    if "parquet" in kinds:
        write_parquet(lines, lines.with_suffix(".parquet"))
    return count, objects, frames.fault


def _picture_writer(stack: ExitStack, video: Video, output: Path) -> Callable[[Detections, float], None]:
    path = stack.enter_context(atomic_write(output.with_name(f"{output.name}.mp4")))
    writer = stack.enter_context(VideoWriter(path, video.rate))
    return lambda found, seconds: writer.add(found.draw(), seconds)


def _line_writer(stack: ExitStack, path: Path) -> Callable[[Detections, str, int, float], None]:
    file = stack.enter_context(stack.enter_context(atomic_write(path)).open("w", encoding="utf-8"))

    def add(found: Detections, name: str, number: int, seconds: float) -> None:
        assert found.size is not None
        height, width = found.size
        where = {"image": name, "frame": number, "seconds": round(seconds, 6)}
        file.write(json.dumps({**where, "width": width, "height": height, "objects": found.to_list()}) + "\n")

    return add
