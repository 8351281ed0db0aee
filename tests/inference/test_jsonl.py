"""JSON Lines writer: resuming, truncated files, settings, locks; conversion to Parquet."""

import json
import os
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from detrkit.distributed.rank import Rank
from detrkit.errors import ConfigError, DatasetError
from detrkit.inference.writers.jsonl import JsonlWriter, jsonl_name, read_jsonl
from detrkit.inference.writers.parquet import write_parquet

SETTINGS = {"model": "sha256:1", "threshold": 0.5, "classes": None}
OBJECT = {"name": 'a "dog", "error": ', "category_id": 18, "score": 0.9, "box": [1.0, 2.0, 3.0, 4.0]}
NAMES = ["a.jpg", 'with "quotes" {and} , commas.jpg', "new\nline.jpg", "bytes\udcff.jpg", "größer.jpg"]


def entry(name: str) -> dict[str, object]:
    return {"image": name, "width": 6, "height": 7, "objects": [OBJECT]}


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.jsonl"
    with JsonlWriter(path, SETTINGS) as file:
        for name in NAMES:
            file.add(entry(name))
    return path


def test_written_lines_are_read_back_and_count_as_done(lines: Path) -> None:
    assert list(read_jsonl(lines)) == [entry(name) for name in NAMES]
    with JsonlWriter(lines, SETTINGS) as file:
        assert file.done == set(NAMES)
        assert file.errors == {}
        file.add({"image": "bad.jpg", "error": "cannot be read", "objects": []})
    with JsonlWriter(lines, SETTINGS) as file:
        assert file.errors == {"bad.jpg": "cannot be read"}
        assert len(file.done) == len(NAMES) + 1


def test_truncated_file_is_resumed(lines: Path) -> None:
    whole = lines.read_bytes()
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    near_line_ends = {end + offset for end in ends for offset in (-1, 0, 1)}
    for length in sorted({*range(0, len(whole), 11), *near_line_ends} - {len(whole)}):
        lines.write_bytes(whole[:length])
        assert [one["image"] for one in read_jsonl(lines)] == NAMES[: whole[:length].count(b"\n")]
        with JsonlWriter(lines, SETTINGS) as file:
            assert file.done == set(NAMES[: whole[:length].count(b"\n")])
            for name in NAMES:
                if name not in file.done:
                    file.add(entry(name))
        assert lines.read_bytes() == whole


def test_other_settings_are_rejected_and_the_file_is_kept(lines: Path) -> None:
    before = lines.read_bytes()
    with pytest.raises(ConfigError, match=r"was written with threshold 0\.5, not 0\.7; choose another output"):
        JsonlWriter(lines, {**SETTINGS, "threshold": 0.7})
    lines.with_suffix(".settings.json").unlink()
    with pytest.raises(ConfigError, match=r"settings in predictions\.settings\.json are missing"):
        JsonlWriter(lines, SETTINGS)
    assert lines.read_bytes() == before


def test_file_of_another_program_is_rejected_and_kept(lines: Path) -> None:
    for content in (b'{"photo": 3}\n', b"\x00" * 50 + b"\n", b'{"image": 3\n', b'{"image": "a"\xff}\n'):
        lines.write_bytes(content)
        with pytest.raises(DatasetError, match="line 1: was not written by detrkit"):
            JsonlWriter(lines, SETTINGS)
        assert lines.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [b'{"image": "a.jpg", "error": "\x00x"}\n', b'{"image": "a.jpg", "error": }\n', b'{"image": "a", "error": 1]}\n'],
)
def test_malformed_line_with_an_error_is_rejected_and_kept(lines: Path, line: bytes) -> None:
    lines.write_bytes(line)
    with pytest.raises(DatasetError, match="line 1: was not written by detrkit"):
        JsonlWriter(lines, SETTINGS)
    assert lines.read_bytes() == line


def test_second_writer_of_a_file_is_rejected(lines: Path) -> None:
    with JsonlWriter(lines, SETTINGS), pytest.raises(ConfigError, match="another process writes to it"):
        JsonlWriter(lines, SETTINGS)
    with JsonlWriter(lines, SETTINGS):
        pass


def test_full_disk_is_reported(lines: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with JsonlWriter(lines, SETTINGS) as file, full.open("r+b", buffering=0) as disk:
        file._file.close()
        file._file = disk  # type: ignore[assignment]
        with pytest.raises(ConfigError, match="free disk space and repeat the call"):
            file.add(entry("b.jpg"))


def test_each_partition_has_its_own_file_name() -> None:
    assert jsonl_name(Rank()) == "predictions"
    assert jsonl_name(Rank(1, 2)) == "predictions-1-of-2"
    assert jsonl_name(Rank(3, 16)) == "predictions-03-of-16"


def test_parquet_table_equals_the_lines(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detrkit.inference.writers import parquet

    monkeypatch.setattr(parquet, "_ROWS_PER_GROUP", 2)  # several row groups
    named = [{**entry(name), "objects": []} for name in ("c.jpg", "d.jpg")]
    bad = {"image": "e.jpg", "error": "cannot be read", "objects": []}
    frame = {"image": "f.mp4", "frame": 3, "seconds": 0.125, "width": 6, "height": 7, "objects": [OBJECT, OBJECT]}
    lines.write_text("".join(json.dumps(one) + "\n" for one in [entry("a.jpg"), *named, bad, frame]))
    write_parquet(lines, lines.with_suffix(".parquet"))
    rows = pyarrow.parquet.read_table(lines.with_suffix(".parquet")).to_pylist()
    columns = dict.fromkeys(("image", "frame", "seconds", "width", "height", "error", "objects"))
    assert rows[1:4] == [{**columns, **one} for one in [*named, bad]]
    assert rows[4]["frame"] == 3
    assert rows[0]["objects"][0]["name"] == OBJECT["name"]
    assert rows[0]["objects"][0]["score"] == pytest.approx(0.9)
    assert rows[4]["objects"][1]["box"] == [1, 2, 3, 4]


def test_undecodable_names_are_escaped_in_parquet(lines: Path) -> None:
    lines.write_text(json.dumps(entry(os.fsdecode(b"f\xf6to.jpg"))) + "\n")
    write_parquet(lines, lines.with_suffix(".parquet"))
    assert pyarrow.parquet.read_table(lines.with_suffix(".parquet")).to_pylist()[0]["image"] == "f\\udcf6to.jpg"


def test_missing_pyarrow_is_reported(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ConfigError,
        match=r"write='parquet' needs the package pyarrow; install it with: .*pip install 'detrkit\[parquet\]'",
    ):
        write_parquet(lines, lines.with_suffix(".parquet"))
