"""Write the predictions of a video: an annotated video, and one line of JSON per frame."""

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

from detrkit._internal.files import atomic_write
from detrkit._internal.provenance import is_written_by_detrkit, refuse_foreign_overwrite
from detrkit.data.video import Video, VideoWriter, is_detrkit_video
from detrkit.inference.options import Output
from detrkit.inference.writers.parquet import write_parquet
from detrkit.structures import Detections

_FILES: tuple[tuple[Output, str, Callable[[Path], bool]], ...] = (
    ("images", ".mp4", is_detrkit_video),
    ("jsonl", ".jsonl", is_written_by_detrkit),
    ("parquet", ".jsonl", is_written_by_detrkit),
    ("parquet", ".parquet", is_written_by_detrkit),
)


class VideoOutputWriter:
    """Writes the outputs of one video; the files are in place once it is closed without an error."""

    def __init__(self, path: Path, video: Video, outputs: Collection[Output]) -> None:
        """Open the files.

        Args:
            path: path of the outputs, without suffix.
            video: the video that is predicted.
            outputs: what to write.

        Raises:
            ConfigError: a file cannot be written.
        """
        self._video = video
        self._lines_path = path.with_name(f"{path.name}.jsonl")
        self._outputs = outputs
        self._lines = self._annotated = None
        with ExitStack() as stack:
            if "images" in outputs:
                temporary = stack.enter_context(atomic_write(path.with_name(f"{path.name}.mp4")))
                self._annotated = stack.enter_context(VideoWriter(temporary, video.rate))
            if not {"jsonl", "parquet"}.isdisjoint(outputs):
                temporary = stack.enter_context(atomic_write(self._lines_path))
                self._lines = stack.enter_context(temporary.open("w", encoding="utf-8"))
            self._open = stack.pop_all()

    @property
    def draws(self) -> bool:
        """Return whether the frames themselves are needed."""
        return self._annotated is not None

    def __enter__(self) -> "VideoOutputWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if error is None and "parquet" in self._outputs:
            write_parquet(self._lines_path, self._lines_path.with_suffix(".parquet"))

    def add(self, detections: Detections, number: int, seconds: float, pixel_aspect: Fraction = Fraction(1)) -> None:
        """Write one frame.

        Args:
            detections: of the frame.
            number: of the frame, from 0.
            seconds: time of the frame.
            pixel_aspect: see `data.video.Frame`.
        """
        if self._annotated is not None:
            self._annotated.add(detections.draw(), seconds, pixel_aspect)
        if self._lines is not None:
            assert detections.size is not None
            height, width = detections.size
            position = {"image": self._video.name, "frame": number, "seconds": round(seconds, 6)}
            size = {"width": width, "height": height}
            self._lines.write(json.dumps({**position, **size, "objects": detections.to_list()}) + "\n")


def check_video_outputs(folder: Path, names: Collection[str], outputs: Collection[Output]) -> None:
    """Check that no output replaces a file that detrkit did not write.

    Raises:
        ConfigError: one would.
    """
    for output, suffix, is_own in _FILES:
        for name in names if output in outputs else ():
            refuse_foreign_overwrite(folder / f"{name}{suffix}", is_own=is_own)
