"""The doctor: every fault is found and named, a healthy set has none, and the nasty ones never crash it."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.data.checks.examine import DatasetReport, examine
from detrkit.errors import DatasetError
from tests.datasets import write_coco

Document = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "shapes", num_train=6, num_val=6)


def change(folder: Path, edit: Callable[[Document], Any], name: str = "train2017") -> None:
    path = folder / "annotations" / f"instances_{name}.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def said(diagnosis: DatasetReport, what: str) -> tuple[str, tuple[str, ...]]:
    """Severity and places of the finding whose text holds `what`."""
    found = [finding for finding in diagnosis.findings if what in finding.what]
    assert len(found) == 1, [finding.what for finding in diagnosis.findings]
    return found[0].severity, tuple(str(place) for place in found[0].places)


def most_annotated(folder: Path) -> int:
    documents = [json.loads(path.read_text()) for path in (folder / "annotations").iterdir()]
    photos = [[entry["image_id"] for entry in document["annotations"]] for document in documents]
    return max(count for of_split in photos for count in Counter(of_split).values())


def test_photos_fuller_than_the_model_are_told_with_the_number_that_helps(folder: Path) -> None:
    change(folder, lambda d: d["annotations"].extend([{**d["annotations"][0], "id": 1000 + n} for n in range(9)]))
    diagnosis = examine(folder, workers=1, num_queries=8)
    assert diagnosis.max_objects == most_annotated(folder) >= 10
    advice = next(one.advice for one in diagnosis.findings if "more objects than the 8 queries" in one.what)
    assert f"--num-queries {2 * most_annotated(folder)}," in advice
    # crowds are never learned
    change(folder, lambda d: [entry.update(iscrowd=1) for entry in d["annotations"]])
    change(folder, lambda d: [entry.update(iscrowd=1) for entry in d["annotations"]], "val2017")
    assert examine(folder, workers=1).max_objects == 0


def test_a_healthy_set(folder: Path) -> None:
    diagnosis = examine(folder, workers=1, image_size=64, stride=8)
    assert diagnosis.is_fit
    assert diagnosis.num_images == {"train": 6, "val": 6}
    assert {finding.severity for finding in diagnosis.findings} <= {"note", "warning"}
    severity, places = said(diagnosis, "photos without objects")
    assert (severity, len(places)) == ("note", 2)
    total = sum(sum(one.objects.values()) for one in diagnosis.classes)
    documents = [json.loads(path.read_text()) for path in (folder / "annotations").iterdir()]
    assert total == sum(len(document["annotations"]) for document in documents)


def set_box(box: list[Any]) -> Callable[[Document], Any]:
    def edit(document: Document) -> None:
        document["annotations"][0]["bbox"] = box

    return edit


@pytest.mark.parametrize(
    ("edit", "what", "severity"),
    [
        (set_box([1, 2, float("nan"), 5]), "entries that cannot be read", "error"),
        (set_box([1, 2, 3]), "entries that cannot be read", "error"),
        (lambda d: d["annotations"][0].update(category_id=99), "entries that cannot be read", "error"),
        (lambda d: d["images"].append(d["images"][0]), "entries that cannot be read", "error"),
        (lambda d: d["images"][0].update(file_name="../../etc/passwd"), "entries that cannot be read", "error"),
        (lambda d: d["images"][1].update(height=9), "another size", "error"),
        (set_box([5, 5, 0, 7]), "without an area", "warning"),
        (set_box([5, 5, 1, 7]), "less than 2 px", "warning"),
        (set_box([50, 50, 30, 30]), "leave their photo", "warning"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "annotated twice", "warning"),
        (lambda d: d["annotations"].extend(d["annotations"][:1] * 9), "more objects than the 8 queries", "warning"),
    ],
)
def test_faults_of_annotations(folder: Path, edit: Callable[[Document], Any], what: str, severity: str) -> None:
    change(folder, edit)
    found, places = said(examine(folder, workers=1, num_queries=8), what)
    assert found == severity
    assert places


def test_other_box_conventions_are_recognised(folder: Path) -> None:
    def as_corners(document: Document) -> None:
        for entry in document["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["bbox"] = [x, y, x + w, y + h]

    def as_shares(document: Document) -> None:
        for entry in document["annotations"]:
            entry["bbox"] = [value / 64 for value in entry["bbox"]]

    for edit, what in ((as_corners, "two corners"), (as_shares, "shares of the photo")):
        copy = folder.parent / what.replace(" ", "_")
        shutil.copytree(folder, copy)
        for name in ("train2017", "val2017"):
            change(copy, edit, name)
        assert said(examine(copy, workers=1), what)[0] == "error"


def test_faults_of_photos(folder: Path) -> None:
    photo = folder / "train2017" / "2.png"
    photo.write_bytes(photo.read_bytes()[:200])
    shutil.copy(folder / "train2017" / "3.png", folder / "val2017" / "3.png")
    shutil.copy(folder / "train2017" / "5.png", folder / "train2017" / "6.png")
    diagnosis = examine(folder, workers=1)
    assert not diagnosis.is_fit
    assert str(photo) in said(diagnosis, "cannot be read")[1][0]
    assert said(diagnosis, "stand in two splits")[0] == "warning"
    assert said(diagnosis, "stand twice in a split")[0] == "warning"
    order = ["error", "warning", "note"]
    severities = [order.index(finding.severity) for finding in diagnosis.findings]
    assert severities == sorted(severities)


def test_faults_of_classes(folder: Path) -> None:
    def only_circles(document: Document) -> None:
        document["annotations"] = [entry for entry in document["annotations"] if entry["category_id"] == 1]

    for name in ("train2017", "val2017"):
        change(folder, lambda document: document["categories"].append({"id": 9, "name": "blob"}), name)
    assert said(examine(folder, workers=1), "without any object")[1] == ("blob",)
    change(folder, only_circles)
    diagnosis = examine(folder, workers=1)
    assert said(diagnosis, "training split does not show") == ("warning", ("square", "triangle"))


def test_faults_of_class_names(folder: Path) -> None:
    def rename(document: Document) -> None:
        for entry, name in zip(document["categories"], ("hidden \x1b[8m", "", "two\nlines"), strict=True):
            entry["name"] = name
        document["categories"] += [{"id": 8, "name": "twice"}, {"id": 9, "name": "twice"}]

    for name in ("train2017", "val2017"):
        change(folder, rename, name)
    diagnosis = examine(folder, workers=1)
    assert said(diagnosis, "without a name") == ("warning", ("'', id 2",))
    assert said(diagnosis, "stand twice") == ("warning", ("'twice', id 8", "'twice', id 9"))
    assert said(diagnosis, "characters that are not shown") == (
        "warning",
        ("'hidden \\x1b[8m', id 1", "'two\\nlines', id 3"),
    )


def test_no_class_name_is_obeyed_by_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from detrkit.cli import main

    for split in ("train2017", "val2017"):
        change(folder, lambda document: document["categories"][0].update(name="a\x1b[2Jb\nc\rd"), split)
    with pytest.raises(SystemExit):
        main(["doctor", str(folder), "--workers", "1"])
    said = capsys.readouterr().out
    assert "a\\x1b[2Jb\\nc\\x0dd" in said
    assert not {"\x1b", "\r"} & set(said)


def test_places_are_shown_from_the_folder_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detrkit.cli import main

    change(folder, set_box([5, 5, 0, 7]))
    monkeypatch.chdir(folder.parent)
    for data in (folder.name, str(folder)):
        with pytest.raises(SystemExit):
            main(["doctor", data, "--workers", "1"])
        assert "\n  train2017/" in capsys.readouterr().out


def test_a_training_split_without_objects(folder: Path) -> None:
    change(folder, lambda document: [entry.update(iscrowd=1) for entry in document["annotations"]])
    assert said(examine(folder, workers=1), "no object in the training split")[0] == "error"


def test_the_terminal_the_file_and_the_exit_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detrkit.cli import main

    monkeypatch.setenv("COLUMNS", "80")
    page = tmp_path / "page.html"
    arguments = [
        "doctor",
        str(folder),
        "--workers",
        "1",
        "--json",
        str(tmp_path / "findings.json"),
        "--html",
        str(page),
    ]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert "training will learn 3 classes" in printed
    assert f"the fullest photo has {most_annotated(folder)} objects" in printed
    change(folder, lambda document: document["images"][1].update(height=9))
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 1
    assert "training would go wrong" in capsys.readouterr().out
    content = json.loads((tmp_path / "findings.json").read_text())
    assert content["is_fit"] is False
    assert content["findings"][0]["severity"] == "error"
    assert content["findings"][0]["places"][0]["photo"].endswith("2.png")
    assert "data:image/jpeg" in page.read_text()
    assert "annotated as" in page.read_text()


def test_the_mended_copy_is_healthy_and_the_original_untouched(folder: Path, tmp_path: Path) -> None:
    from detrkit.cli import main

    change(folder, set_box([50, 50, 30, 30]))
    change(folder, lambda document: document["annotations"][1].update(bbox=[5, 5, 0, 7]))
    change(folder, lambda document: document["annotations"].append(document["annotations"][2]))
    change(folder, lambda document: document["annotations"].append({"id": "x"}))
    photo = folder / "train2017" / "5.png"
    photo.write_bytes(b"no photo")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(folder), "--workers", "1", "--fix", str(tmp_path / "mended")])
    assert left.value.code == 1  # of the original
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    diagnosis = examine(tmp_path / "mended", workers=1)
    assert diagnosis.is_fit
    assert {finding.severity for finding in diagnosis.findings} == {"note"}
    assert diagnosis.num_images == {"train": 5, "val": 6}
    assert diagnosis.folder.train.categories == examine(folder, workers=1).folder.train.categories


def nasty_coco(shared: Path) -> list[Path]:
    return sorted((shared / "data" / "nasty" / "coco").glob("*.json"))


def test_the_nasty_files_load_or_are_named_and_never_crash(shared: Path) -> None:
    manifest = json.loads((shared / "data" / "nasty" / "MANIFEST.json").read_text())["coco"]
    outcomes: dict[str, list[str]] = {"loaded": [], "refused": [], "told": []}
    for path in nasty_coco(shared):
        try:
            diagnosis = examine(path, workers=1)
        except DatasetError as error:
            assert "\n" not in str(error)
            outcome = "refused"
        else:
            outcome = "loaded" if diagnosis.is_fit else "told"
        outcomes[outcome].append(path.name)
    assert {name for name, entry in manifest.items() if "(legal)" in entry["why"]} <= set(outcomes["loaded"])
    counts = {outcome: len(names) for outcome, names in outcomes.items()}
    assert counts == {"loaded": 45, "told": 37, "refused": 25}, outcomes


def test_a_grey_photo_is_fine(folder: Path) -> None:
    path = folder / "train2017" / "2.png"
    with Image.open(path) as photo:
        grey = photo.convert("L")
    grey.save(path)
    assert examine(folder, workers=1).is_fit


def test_a_second_examination_decodes_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detrkit.data.checks import decode_cache as decoded

    folder, memory = write_coco(tmp_path / "coco"), tmp_path / "memory" / "photos.jsonl"
    first = examine(folder, workers=1, memory=memory)
    lines = memory.read_text().splitlines()
    assert len(lines) == 7
    # stopped after three photos, in the middle of a line
    memory.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    counts: list[int] = []
    again = examine(folder, workers=1, memory=memory, progress=lambda done, _: counts.append(done))
    assert counts == [3, 4, 5, 6, 7]
    assert again.findings == first.findings
    monkeypatch.setattr(decoded, "ProcessPoolExecutor", _NoPool)
    assert examine(folder, workers=1, memory=memory).findings == first.findings
    monkeypatch.undo()
    photo = next((folder / "train2017").iterdir())
    whole = photo.read_bytes()
    photo.write_bytes(b"broken")
    assert any("cannot be read" in finding.what for finding in examine(folder, workers=1, memory=memory).findings)
    status = photo.stat()
    photo.write_bytes(whole)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert examine(folder, workers=1, memory=memory).findings == first.findings, "faults are never remembered"


class _NoPool:
    """A pool that nobody may give work to."""

    def __init__(self, _workers: int) -> None:
        pass

    def __enter__(self) -> "_NoPool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, _function: object, jobs: list[object], **_settings: object) -> list[object]:
        assert not jobs
        return []


def test_a_memory_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    (tmp_path / "file").write_text("")
    assert examine(folder, workers=1, memory=tmp_path / "file" / "photos.jsonl").num_images == {"train": 4, "val": 3}
