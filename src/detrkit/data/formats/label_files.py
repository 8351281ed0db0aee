"""Finds the label file of an image, wherever the field's tools put it."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from detrkit.data.formats.locate import IMAGE_WORDS, LABEL_WORDS, DatasetFiles, is_hidden, is_named, subset_of


class LabelFinder:
    """Finds the label file of an image: where `labels` stands for `images` in its path, or next to it."""

    def __init__(self, tree: DatasetFiles, suffix: str = ".txt") -> None:
        self.tree = tree
        self.suffix = suffix
        self._folders: dict[Path, list[Path]] = {}

    def find(self, image: Path) -> Path | None:
        """Find the label file of an image."""
        for folder in self.folders(image.parent):
            name = self.tree.listing(folder).file(f"{image.stem}{self.suffix}")
            if name is not None:
                return folder / name
        return None

    def folders(self, images: Path) -> list[Path]:
        """List the folders in which labels of the images in a folder are looked for."""
        if images not in self._folders:
            self._folders[images] = list(dict.fromkeys(self._places(images)))
        return self._folders[images]

    def unused(self, used: Collection[Path]) -> list[Path]:
        """List the label files, in the folders of labels, that belong to no image."""
        of_images = {one for one in self._folders if not any(label.parent == one for label in used)}
        searched = {one for places in self._folders.values() for one in places} - of_images
        return [
            folder / name
            for folder in sorted(searched)
            for name in sorted(self.tree.listing(folder).files)
            if name.lower().endswith(self.suffix) and not is_hidden(name) and folder / name not in used
        ]

    def _places(self, images: Path) -> Iterator[Path]:
        inside = images.is_relative_to(self.tree.root)
        root = self.tree.root if inside else images.parents[min(2, len(images.parents) - 1)]
        parts = images.relative_to(root).parts
        ancestors = [(root.joinpath(*parts[:index]), index) for index in reversed(range(len(parts) + 1))]
        for folder, index in ancestors[1:]:
            if is_named(parts[index], IMAGE_WORDS):
                yield from self._siblings(folder, parts[index], parts[index + 1 :])
        for folder, index in ancestors:
            yield from self._siblings(folder, "", parts[index:])
        if parts:
            yield from self._siblings(images.parent, images.name, ())
        yield images

    def _siblings(self, folder: Path, name: str, rest: Sequence[str]) -> Iterator[Path]:
        """Yield the folders of labels in a folder that go with a folder of images: `train_labels` with `train_images`."""
        for sibling in self.tree.subfolders(folder):
            if is_named(sibling.name, LABEL_WORDS) and subset_of(sibling.name) in (None, subset_of(name)):
                found = self.tree.find(sibling, rest) if rest else sibling
                if found is not None and found.is_dir():
                    yield found
