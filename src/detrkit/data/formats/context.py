"""Request to the reader of a format, and its report of what is left out."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from detrkit.data.dataset import Split
from detrkit.data.findings import Finding, Location, Severity
from detrkit.data.formats.locate import has_image_suffix
from detrkit.data.images import has_image_content
from detrkit.data.links import DatasetFolder
from detrkit.data.records import ErrorHandler, Masks, SplitName, raise_error
from detrkit.errors import DatasetError


@dataclass
class ReadContext:
    """Request to a reader, and its report.

    A malformed entry is an error: by default it stops the reading. A label, an image or a split that is left out for
    another reason, or that is read differently from how it is written, is a finding.

    Attributes:
        on_error: called with every malformed entry, which is then left out; by default the first one is raised.
        masks: keep what masks are made of: True for a model with masks, where an object without one is an error;
            "available" for copies and checks, where it keeps its box.
        splits: the only splits to read; None for all. Images and annotations of other splits may be missing.
        notes: decisions taken while reading, a sentence each.
        num_errors: malformed entries so far.
        outside: first annotation file that was opened and lies outside of the dataset's folder.
    """

    on_error: ErrorHandler = raise_error
    masks: Masks = False
    splits: Collection[SplitName] | None = None
    notes: list[str] = field(default_factory=list)
    num_errors: int = 0
    outside: Path | None = None
    _dataset: DatasetFolder | None = None
    _findings: dict[tuple[Severity, str, str], list[Location]] = field(default_factory=dict)

    def wants(self, split: SplitName) -> bool:
        """Return whether a split is to be read."""
        return self.splits is None or split in self.splits

    def begin(self, named: Path) -> None:
        """Begin to read a dataset folder or file, as the caller named it."""
        self._dataset = DatasetFolder(named)

    def opened(self, file: Path) -> None:
        """Note an annotation file that is read, so that a copy tells whether its content is of the dataset's folder."""
        dataset = self._dataset
        if dataset is not None and self.outside is None and file != dataset.named and not dataset.contains(file):
            self.outside = file

    def error(self, error: DatasetError) -> None:
        """Report a malformed entry, which is left out."""
        self.num_errors += 1
        self.on_error(error)

    def warn(self, title: str, advice: str, location: Location | None = None) -> None:
        """Report something that makes the dataset worse than it could be; locations of one title are collected."""
        self._add("warning", title, advice, location)

    def inform(self, title: str, advice: str, location: Location | None = None) -> None:
        """Report something that is probably intended; locations of one title are collected."""
        self._add("note", title, advice, location)

    def may_be_empty(self, source: Path, what: str = "images") -> bool:
        """Report a split without images; tools write its name even where a version of the dataset has none.

        Returns:
            False if it is the only split that was asked for.
        """
        if self.splits is not None and len(self.splits) == 1:
            return False
        self.warn("splits without images", "they are left out", Location(f"{source}: no {what}"))
        return True

    def leave_out_undecodable(self, path: Path) -> bool:
        """Report a file among the images whose suffix is unknown and whose content is no image.

        Returns:
            Whether it is one, to be left out.
        """
        if has_image_suffix(path.name) or has_image_content(path):
            return False
        self.warn(
            "files among the images that cannot be decoded",
            "they are left out with their labels; convert them to JPEG or PNG",
            Location(str(path), path),
        )
        return True

    def without_empty(self, splits: dict[SplitName, Split]) -> dict[SplitName, Split]:
        """Leave out splits without images, except one whose images are all malformed."""
        return {name: split for name, split in splits.items() if len(split) or self.num_errors}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings that were reported, without the errors."""
        return tuple(Finding(*key, tuple(locations)) for key, locations in self._findings.items())

    def _add(self, severity: Severity, title: str, advice: str, location: Location | None) -> None:
        locations = self._findings.setdefault((severity, title, advice), [])
        if location is not None:
            locations.append(location)
