"""Categories of Objects365, and the rows of its class heads that COCO's names mean."""

import json
from pathlib import Path

from detrkit.data.categories import COCO_NAMES
from detrkit.data.objects365 import OBJECTS365_NAME_OF_COCO, OBJECTS365_NAMES, objects365_categories


def test_rows_are_category_ids_and_row_0_is_unused() -> None:
    categories = objects365_categories()
    assert categories.ids == tuple(range(366))
    assert categories.names[:3] == ("N/A", "Person", "Sneakers")
    assert (categories.names[47], categories.names[93], categories.names[365]) == ("Bicycle", "Dog", "Table Tennis")
    assert len(set(OBJECTS365_NAMES)) == 365


def test_every_name_of_coco_is_that_of_a_class_or_has_one() -> None:
    names = {name.casefold() for name in OBJECTS365_NAMES}
    other = [name for name in COCO_NAMES.values() if name not in names]
    assert sorted(other) == sorted(OBJECTS365_NAME_OF_COCO)
    assert set(OBJECTS365_NAME_OF_COCO.values()) <= set(OBJECTS365_NAMES)


def test_coco_names_mean_the_rows_of_the_authors_table(shared: Path) -> None:
    table = json.loads((shared / "golden" / "modern" / "label_ids_realtime.json").read_text())
    rows = {name.casefold(): row for row, name in enumerate(OBJECTS365_NAMES)}
    own = [rows[OBJECTS365_NAME_OF_COCO.get(name, name).casefold()] for name in COCO_NAMES.values()]
    assert own == table["label_to_objects365_class_dfine"]
