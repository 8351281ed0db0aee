"""Categories: the dataset's own ids and names, mapped once to labels 0 .. K-1 and restored in every output."""

from collections.abc import Sequence
from dataclasses import dataclass

from detrkit.errors import DataError


@dataclass(frozen=True)
class Categories:
    """The classes of a dataset or model; a label is a position in these tuples."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def label_of(self, category_id: int) -> int:
        """Find the label of a category id.

        Raises:
            DataError: no such category.
        """
        try:
            return self.ids.index(category_id)
        except ValueError:
            raise DataError(f"category id {category_id} is not among the {len(self)} known ones") from None
