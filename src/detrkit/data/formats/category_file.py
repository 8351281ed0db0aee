"""`categories.json`: keeps the category ids next to annotations of formats that have none, or number them themselves."""

import json
from pathlib import Path

from detrkit._internal.documents import parse_json
from detrkit._internal.files import read_text
from detrkit.data.categories import Categories
from detrkit.data.formats.context import ReadContext
from detrkit.errors import DatasetError

CATEGORIES_FILE = "categories.json"


def category_file_text(categories: Categories) -> str:
    """Return the content of the file."""
    return json.dumps(categories.to_json(), indent=1, ensure_ascii=False)


def read_category_file(folder: Path, context: ReadContext) -> Categories | None:
    """Read the file in a dataset folder, if it has one.

    Args:
        folder: of the dataset.
        context: notes that the file is read.

    Raises:
        DatasetError: it is malformed.
    """
    path = folder / CATEGORIES_FILE
    if not path.is_file():
        return None
    context.opened(path)
    try:
        return Categories.from_json(parse_json(read_text(path)))
    except (OSError, ValueError):
        raise DatasetError(
            f"{path}: expected a list of objects with 'id' and 'name'; correct it or remove it"
        ) from None
