"""Class names of Hugging Face as people write them: kept by id, rows without a name are numbered, and it is noted."""

from typing import Any

import pytest

from detrkit.checkpoints.conversion.labels import read_categories


@pytest.mark.parametrize(
    ("id2label", "names", "notes"),
    [
        ({"0": "cat", "1": "dog", "2": "cow"}, ("cat", "dog", "cow"), 0),
        ({0: "cat", 1: "dog", 2: "cow"}, ("cat", "dog", "cow"), 0),
        (["cat", "dog", "cow"], ("cat", "dog", "cow"), 0),
        ({"cat": 0, "dog": 1, "cow": 2}, ("cat", "dog", "cow"), 0),
        ({"1": "cat", "2": "dog"}, ("class 0", "cat", "dog"), 1),
        ({"1": "cat", "2": "dog", "3": "cow"}, ("class 0", "cat", "dog"), 2),
        ({"0": "cat", "7": "dog"}, ("cat", "class 1", "class 2"), 2),
        ({"0": "cat"}, ("cat", "class 1", "class 2"), 1),
        ({"0": "LABEL_0", "1": "dog", "2": "label_2"}, ("class 0", "dog", "class 2"), 1),
        ({"0": "cat", "1": None, "2": ""}, ("cat", "class 1", "class 2"), 1),
        ({"0": 10, "1": 20, "2": 30}, ("10", "20", "30"), 0),
        ({"0": "cat", "1": "cat", "2": "dog"}, ("cat", "cat", "dog"), 1),
        ({"0": "N/A", "1": "cat", "2": "N/A"}, ("N/A", "cat", "N/A"), 0),
        ({" 0": "cat", "01": "dog", "2": "Käse"}, ("cat", "dog", "Käse"), 0),
    ],
    ids=str,
)
def test_names_are_kept_by_id(id2label: Any, names: tuple[str, ...], notes: int) -> None:
    categories, found = read_categories({"id2label": id2label}, 3, "config.json")
    assert categories is not None
    assert categories.names == names
    assert categories.ids == (0, 1, 2)
    assert len(found) == notes
    assert all(note.startswith("config.json: id2label ") for note in found)


@pytest.mark.parametrize("id2label", [None, {}, [], 3, "cat", {"0": "LABEL_0", "1": "LABEL_1"}, {"a": "b"}], ids=str)
def test_model_without_names_has_no_categories(id2label: Any) -> None:
    assert read_categories({"id2label": id2label}, 3, "here") == (None, [])


def test_names_of_other_ids_only_are_noted() -> None:
    categories, notes = read_categories({"id2label": {"7": "cat", "8": "dog"}}, 2, "here")
    assert categories is None
    assert notes == ["here: id2label names ids that the model does not have, as it has 0 to 1: 7 (cat), 8 (dog)"]


def test_label2id_stands_in() -> None:
    categories, _ = read_categories({"label2id": {"cat": 0, "dog": "1"}}, 2, "here")
    assert categories is not None
    assert categories.names == ("cat", "dog")


def test_ids_of_the_dataset_are_kept() -> None:
    content = {"id2label": {"0": "cat", "1": "dog"}, "detrkit_category_ids": [17, 18]}
    categories, _ = read_categories(content, 2, "here")
    assert categories is not None
    assert categories.ids == (17, 18)
    for ids in ([17], [17, 17], ["17", "18"], None):
        categories, _ = read_categories({**content, "detrkit_category_ids": ids}, 2, "here")
        assert categories is not None
        assert categories.ids == (0, 1)
