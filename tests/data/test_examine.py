"""`examine` and `detrkit doctor`: errors are found and located, and malformed datasets never crash."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.data.checks.examine import DatasetReport, examine
from detrkit.data.checks.fix import fix_dataset
from detrkit.errors import ConfigError, DatasetError
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


def check(data: Path, **options: Any) -> DatasetReport:
    return examine(data, **{"workers": 0, "cache": False, **options})


def finding_of(report: DatasetReport, title: str) -> tuple[str, tuple[str, ...]]:
    """Severity and locations of the only finding whose title contains `title`."""
    findings = [finding for finding in report.findings if title in finding.title]
    assert len(findings) == 1, [finding.title for finding in report.findings]
    return findings[0].severity, tuple(str(location) for location in findings[0].locations)


def max_annotations(folder: Path) -> int:
    documents = [json.loads(path.read_text()) for path in (folder / "annotations").iterdir()]
    images = [[entry["image_id"] for entry in document["annotations"]] for document in documents]
    return max(count for of_split in images for count in Counter(of_split).values())


def test_more_objects_than_queries_advises_a_number_of_queries(folder: Path) -> None:
    change(folder, lambda d: d["annotations"].extend([{**d["annotations"][0], "id": 1000 + n} for n in range(9)]))
    report = check(folder, num_queries=8)
    assert report.max_objects == max_annotations(folder) >= 10
    advice = next(one.advice for one in report.findings if "more objects than the 8 queries" in one.title)
    assert f"set num_queries to {2 * max_annotations(folder)}," in advice
    # crowds do not count
    change(folder, lambda d: [entry.update(iscrowd=1) for entry in d["annotations"]])
    change(folder, lambda d: [entry.update(iscrowd=1) for entry in d["annotations"]], "val2017")
    assert check(folder).max_objects == 0


def test_dataset_without_errors_has_notes_only(folder: Path) -> None:
    report = check(folder, image_size=64, stride=8)
    assert not report.num_errors
    assert report.num_images == {"train": 6, "val": 6}
    assert {finding.severity for finding in report.findings} <= {"note", "warning"}
    severity, locations = finding_of(report, "images without objects")
    assert (severity, len(locations)) == ("note", 2)
    total = sum(sum(one.objects.values()) for one in report.classes)
    documents = [json.loads(path.read_text()) for path in (folder / "annotations").iterdir()]
    assert total == sum(len(document["annotations"]) for document in documents)


def set_box(box: list[Any]) -> Callable[[Document], Any]:
    def edit(document: Document) -> None:
        document["annotations"][0]["bbox"] = box

    return edit


@pytest.mark.parametrize(
    ("edit", "what", "severity"),
    [
        (set_box([1, 2, float("nan"), 5]), "objects that cannot be read", "error"),
        (set_box([1, 2, 3]), "objects that cannot be read", "error"),
        (lambda d: d["annotations"][0].update(category_id=99), "objects that cannot be read", "error"),
        (lambda d: d["images"].append(d["images"][0]), "images that cannot be used", "error"),
        (lambda d: d["images"][0].update(file_name="../../etc/passwd"), "images that cannot be used", "error"),
        (lambda d: d["annotations"][0].update(image_id=4711), "annotations that cannot be read", "error"),
        (lambda d: d["images"][1].update(height=9), "another size", "error"),
        (set_box([5, 5, 0, 7]), "without area", "warning"),
        (set_box([5, 5, 1, 7]), "smaller than 2 px", "warning"),
        (set_box([50, 50, 30, 30]), "exceed their image", "warning"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "annotated twice", "warning"),
        (lambda d: d["annotations"].extend(d["annotations"][:1] * 9), "more objects than the 8 queries", "warning"),
    ],
)
def test_malformed_annotations_are_found(
    folder: Path, edit: Callable[[Document], Any], what: str, severity: str
) -> None:
    change(folder, edit)
    found, locations = finding_of(check(folder, num_queries=8), what)
    assert found == severity
    assert locations


def test_boxes_in_another_convention_are_recognized(folder: Path) -> None:
    def as_corners(document: Document) -> None:
        for entry in document["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["bbox"] = [x, y, x + w, y + h]

    def as_relative(document: Document) -> None:
        for entry in document["annotations"]:
            entry["bbox"] = [value / 64 for value in entry["bbox"]]

    for edit, what in ((as_corners, "two corners"), (as_relative, "relative to the image")):
        copy = folder.parent / what.replace(" ", "_")
        shutil.copytree(folder, copy)
        for name in ("train2017", "val2017"):
            change(copy, edit, name)
        assert finding_of(check(copy), what)[0] == "error"


def test_unreadable_and_duplicate_images_are_found(folder: Path) -> None:
    image = folder / "train2017" / "2.png"
    image.write_bytes(image.read_bytes()[:200])
    shutil.copy(folder / "train2017" / "3.png", folder / "val2017" / "3.png")
    shutil.copy(folder / "train2017" / "5.png", folder / "train2017" / "6.png")
    report = check(folder)
    assert report.num_errors
    assert str(image) in finding_of(report, "cannot be used")[1][0]
    assert finding_of(report, "in two splits")[0] == "warning"
    assert finding_of(report, "in a split twice")[0] == "warning"
    order = ["error", "warning", "note"]
    severities = [order.index(finding.severity) for finding in report.findings]
    assert severities == sorted(severities)


def test_classes_without_objects_are_found(folder: Path) -> None:
    def only_circles(document: Document) -> None:
        document["annotations"] = [entry for entry in document["annotations"] if entry["category_id"] == 1]

    for name in ("train2017", "val2017"):
        change(folder, lambda document: document["categories"].append({"id": 9, "name": "blob"}), name)
    assert finding_of(check(folder), "without any object")[1] == ("blob",)
    change(folder, only_circles)
    report = check(folder)
    assert finding_of(report, "without objects in the training split") == ("warning", ("square", "triangle"))


def test_unusable_class_names_are_found(folder: Path) -> None:
    def rename(document: Document) -> None:
        for entry, name in zip(document["categories"], ("hidden \x1b[8m", "", "two\nlines"), strict=True):
            entry["name"] = name
        document["categories"] += [{"id": 8, "name": "twice"}, {"id": 9, "name": "twice"}]

    for name in ("train2017", "val2017"):
        change(folder, rename, name)
    report = check(folder)
    assert finding_of(report, "without a name") == ("warning", ("'', id 2",))
    assert finding_of(report, "occur twice") == ("warning", ("'twice', id 8", "'twice', id 9"))
    assert finding_of(report, "with control characters") == (
        "warning",
        ("'hidden \\x1b[8m', id 1", "'two\\nlines', id 3"),
    )


def test_control_characters_of_class_names_are_escaped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from detrkit.cli import main

    for split in ("train2017", "val2017"):
        change(folder, lambda document: document["categories"][0].update(name="a\x1b[2Jb\nc\rd"), split)
    with pytest.raises(SystemExit):
        main(["doctor", str(folder), "--workers", "0"])
    printed = capsys.readouterr().out
    assert "a\\x1b[2Jb\\nc\\x0dd" in printed
    assert not {"\x1b", "\r"} & set(printed)


def test_paths_are_printed_relative_to_the_dataset(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detrkit.cli import main

    change(folder, set_box([5, 5, 0, 7]))
    monkeypatch.chdir(folder.parent)
    for data in (folder.name, str(folder)):
        with pytest.raises(SystemExit):
            main(["doctor", data, "--workers", "0"])
        assert "\n  train2017/" in capsys.readouterr().out


def test_training_split_without_objects_is_an_error(folder: Path) -> None:
    change(folder, lambda document: [entry.update(iscrowd=1) for entry in document["annotations"]])
    assert finding_of(check(folder), "no object in the training split")[0] == "error"


def test_doctor_prints_writes_json_and_html_and_sets_the_exit_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detrkit.cli import main

    monkeypatch.setenv("COLUMNS", "80")
    page = tmp_path / "page.html"
    arguments = [
        "doctor",
        str(folder),
        "--workers",
        "0",
        "--json",
        str(tmp_path / "findings.json"),
        "--html",
        str(page),
    ]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert "ready for training: 6 images" in printed
    assert f"at most {max_annotations(folder)} objects per image" in printed
    change(folder, lambda document: document["images"][1].update(height=9))
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 1
    assert "1 error must be fixed before training" in capsys.readouterr().out
    content = json.loads((tmp_path / "findings.json").read_text())
    assert content["num_errors"] == 1
    assert content["findings"][0]["severity"] == "error"
    assert content["findings"][0]["locations"][0]["image"].endswith("2.png")
    assert "data:image/jpeg" in page.read_text()
    assert "annotated as" in page.read_text()


def test_fix_writes_a_copy_without_errors_and_keeps_the_original(folder: Path, tmp_path: Path) -> None:
    from detrkit.cli import main

    change(folder, set_box([50, 50, 30, 30]))
    change(folder, lambda document: document["annotations"][1].update(bbox=[5, 5, 0, 7]))
    change(folder, lambda document: document["annotations"].append(document["annotations"][2]))
    change(folder, lambda document: document["annotations"].append({"id": "x"}))
    image = folder / "train2017" / "5.png"
    image.write_bytes(b"not an image")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(folder), "--workers", "0", "--fix", str(tmp_path / "fixed")])
    assert not left.value.code  # of the copy
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    report = check(tmp_path / "fixed")
    assert not report.num_errors
    assert {finding.severity for finding in report.findings} == {"note"}
    assert report.num_images == {"train": 5, "val": 6}
    assert report.dataset.categories == check(folder).dataset.categories


def nasty_coco(shared: Path) -> list[Path]:
    return sorted((shared / "data" / "nasty" / "coco").glob("*.json"))


@pytest.mark.slow
def test_malformed_files_are_loaded_reported_or_rejected(shared: Path) -> None:
    manifest = json.loads((shared / "data" / "nasty" / "MANIFEST.json").read_text())["coco"]
    outcomes: dict[str, list[str]] = {"loaded": [], "rejected": [], "reported": []}
    for path in nasty_coco(shared):
        try:
            report = check(path)
        except DatasetError as error:
            assert "\n" not in str(error)
            outcome = "rejected"
        else:
            outcome = "reported" if report.num_errors else "loaded"
        outcomes[outcome].append(path.name)
    assert {name for name, entry in manifest.items() if "(legal)" in entry["why"]} <= set(outcomes["loaded"])
    counts = {outcome: len(names) for outcome, names in outcomes.items()}
    assert counts == {"loaded": 52, "reported": 37, "rejected": 18}, outcomes


def test_gray_image_is_not_an_error(folder: Path) -> None:
    path = folder / "train2017" / "2.png"
    with Image.open(path) as image:
        gray = image.convert("L")
    gray.save(path)
    assert not check(folder).num_errors


def test_cache_skips_unchanged_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detrkit.data.checks import decode_cache

    folder, cache = write_coco(tmp_path / "coco"), tmp_path / "cache" / "images.jsonl"
    first = check(folder, cache=cache)
    lines = cache.read_text().splitlines()
    assert len(lines) == 7
    # interrupted after three images, in the middle of a line
    cache.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    counts: list[int] = []
    again = check(folder, cache=cache, progress=lambda done, _: counts.append(done))
    assert counts == [3, 4, 5, 6, 7]
    assert again.findings == first.findings
    monkeypatch.setattr(decode_cache, "_decode", _fail)
    assert check(folder, cache=cache).findings == first.findings
    monkeypatch.undo()
    image = next((folder / "train2017").iterdir())
    whole = image.read_bytes()
    image.write_bytes(b"broken")
    assert any("cannot be used" in finding.title for finding in check(folder, cache=cache).findings)
    status = image.stat()
    image.write_bytes(whole)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert check(folder, cache=cache).findings == first.findings, "errors are not cached"


def _fail(_record: object) -> None:
    raise AssertionError("decoded again")


def test_cache_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    (tmp_path / "file").write_text("")
    assert check(folder, cache=tmp_path / "file" / "images.jsonl").num_images == {"train": 4, "val": 3}


def test_report_shows_itself_in_a_notebook_and_as_one_line(folder: Path) -> None:
    report = check(folder)
    assert repr(report) == "DatasetReport(shapes: 6 train, 6 val images, 3 classes; 1 note)"
    page = report._repr_html_()
    assert "<table>" in page
    assert "circle" in page
    content = json.loads(report.to_json())
    assert content["num_images"] == {"train": 6, "val": 6}


def test_torch_dataset_is_examined() -> None:
    from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle

    report = examine(SyntheticShapes(5, 0, SyntheticStyle(size=48)), workers=0)
    assert (report.format, report.num_errors) == (None, 0)
    assert sum(report.num_images.values()) == 5
    with pytest.raises(ConfigError, match="is of a torch dataset"):
        fix_dataset(report, "out")


@pytest.mark.parametrize(("argument", "value"), [("image_size", 8), ("workers", -1)])
def test_number_out_of_range_is_rejected(folder: Path, argument: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{argument}={value}.* expected"):
        examine(folder, **{argument: value})  # type: ignore[arg-type]


def test_missing_folder_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from detrkit.cli import main\n"
        "try: main(['doctor', 'nope'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.strip() == "False"
    assert result.stderr == "error: nope: no such file or folder, expected a dataset folder; check the path\n"
