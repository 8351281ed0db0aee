"""Write the predictions of images: annotated images, JSON documents, segment maps, and lines of a shared file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from detrkit._internal.files import atomic_write, make_folder, write_text
from detrkit._internal.provenance import is_written_by_detrkit, provenance_mark, refuse_foreign_overwrite
from detrkit.data.segment_png import write_ids
from detrkit.errors import DatasetError
from detrkit.inference.options import Output
from detrkit.inference.writers.jsonl import JsonlWriter
from detrkit.structures import Detections

_SUFFIXES: Mapping[Output, str] = {"json": ".json", "images": ".png", "segments": ".segments.png"}


@dataclass(frozen=True)
class ImageWriter:
    """Writes the outputs of one image at a time; its line last, because a line marks the image as done.

    Attributes:
        folder: folder to write to.
        names: name of the outputs, without suffix, by the path of the image.
        outputs: what to write.
        lines: the file of lines, if "jsonl" or "parquet" is an output.
    """

    folder: Path
    names: Mapping[str, str]
    outputs: Collection[Output]
    lines: JsonlWriter | None

    def add(self, detections: Detections) -> None:
        """Write the outputs of an image.

        Raises:
            ConfigError: a file cannot be written.
        """
        assert detections.path is not None
        assert detections.size is not None
        name = self.names[detections.path]
        make_folder(self.folder)
        if "images" in self.outputs:
            with atomic_write(self.folder / f"{name}.png") as temporary:
                detections.draw().save(temporary, pnginfo=provenance_mark())
        if "segments" in self.outputs and detections.segments is not None:
            write_ids(self.folder / f"{name}.segments.png", detections.segments.ids)
        if "json" in self.outputs:
            write_text(self.folder / f"{name}.json", detections.to_json())
        if self.lines is not None:
            height, width = detections.size
            self.lines.add({"image": detections.path, "width": width, "height": height, **detections.to_dict()})

    def add_error(self, image: str, error: DatasetError) -> None:
        """Record an image that cannot be read."""
        if self.lines is not None:
            self.lines.add({"image": image, "error": str(error), "objects": []})


def check_image_outputs(folder: Path, names: Collection[str], outputs: Collection[Output]) -> None:
    """Check that no output replaces a file of the user, such as an annotation or a mask next to an image.

    Raises:
        ConfigError: one would.
    """
    for output, suffix in _SUFFIXES.items():
        for name in names if output in outputs else ():
            refuse_foreign_overwrite(folder / f"{name}{suffix}", is_own=is_written_by_detrkit)
