"""How to predict, and what photos, videos and cameras have in common while they are predicted."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detrkit._internal.signals import StopSignal
from detrkit.data.batching import check_batching
from detrkit.errors import ConfigError, DatasetError, did_you_mean
from detrkit.inference.detector import Detector, Threshold
from detrkit.inference.engines.torch import Precision
from detrkit.inference.images import ImageInput
from detrkit.inference.writers.parquet import check_parquet
from detrkit.ops.tiles import Tiling
from detrkit.structures import Detections

_KINDS = ("pictures", "json", "jsonl", "parquet", "segments")


@dataclass(frozen=True)
class PredictOptions:
    """How to predict, and what to write; `cli/predict.py` explains each."""

    threshold: Threshold = 0.5
    classes: str | None = None
    tile: int | None = None
    overlap: float = 0.2
    batch_size: int = 1
    workers: int = 2
    precision: Precision = "auto"
    device: str = "auto"
    recursive: bool = False
    frames: int | None = None
    shard: str | None = None
    write: str | None = None
    output: Path = Path("predictions")

    def __post_init__(self) -> None:
        """See that the numbers make sense, before a model is loaded.

        Raises:
            ConfigError: they do not, or what is needed to write is not installed.
        """
        if self.threshold != "auto" and not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold: found {self.threshold}, expected a score between 0 and 1, or auto")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"--frames: found {self.frames}, expected at least 1")
        check_batching(self.batch_size, self.workers)
        if "parquet" in self.kinds(""):
            check_parquet()
        _ = self.tiling

    @property
    def tiling(self) -> Tiling | None:
        """How photos are cut, if they are."""
        return None if self.tile is None else Tiling(self.tile, self.overlap)

    def kinds(self, default: str) -> frozenset[str]:
        """What is written: what was asked for, or else the default.

        Raises:
            ConfigError: nobody can write that.
        """
        words = (default if self.write is None else self.write).split(",")
        chosen = frozenset(word.strip() for word in words if word.strip())
        if self.write is not None and not chosen:
            raise ConfigError(f"--write: found {self.write!r}, expected some of {', '.join(_KINDS)}")
        for kind in chosen - set(_KINDS):
            raise ConfigError(f"--write {kind}: {did_you_mean(kind, _KINDS)}")
        return chosen

    def class_names(self, detector: Detector) -> list[str] | None:
        """Take the list of classes apart; a name may hold a comma itself."""
        if self.classes is None:
            return None
        is_one = self.classes in detector.categories.names
        return [self.classes] if is_one else [name.strip() for name in self.classes.split(",")]


@dataclass
class Counters:
    """What has been done so far."""

    photos: int = 0
    objects: int = 0
    faults: int = 0
    first_fault: str = ""

    def refuse(self, sentence: str) -> None:
        """Count a photo or video that was not predicted, or not to its end."""
        self.first_fault = self.first_fault or sentence
        self.faults += 1


@dataclass(frozen=True)
class PredictionRun:
    """What predicts, and where to.

    Attributes:
        detector: the model.
        options: of the user.
        names: of the outputs, without suffix, by the paths of photos and videos.
        stop: tells whether to stop.
        console: where to tell what is done.
        tally: what has been done so far.
    """

    detector: Detector
    options: PredictOptions
    names: dict[str, str]
    stop: StopSignal
    console: Console
    tally: Counters = field(default_factory=Counters)

    def stream(
        self,
        photos: Iterable[ImageInput],
        with_images: bool,
        fault: Callable[[ImageInput, DatasetError], None] | None = None,
    ) -> Generator[Detections, None, None]:
        """Predict photos or frames as the options say."""
        options = self.options
        return self.detector.stream(
            photos,
            options.threshold,
            batch_size=options.batch_size,
            workers=options.workers,
            classes=options.class_names(self.detector),
            tiling=options.tiling,
            with_images=with_images,
            fault=fault,
        )


def progress_bar(what: str, is_shown: bool = True) -> Progress:
    """A bar on stderr, which goes when all is done."""
    return Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        disable=not is_shown,
    )
