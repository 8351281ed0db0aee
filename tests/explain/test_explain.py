"""`detrkit explain` from files to files: pages, pictures, and hostile photos."""

import json
import re
from pathlib import Path

import pytest
import yaml

from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.synthetic import SHAPES
from detrkit.errors import DetrkitError
from detrkit.explain.run import ExplainRequest, explain_file
from tests.datasets import write_coco
from tests.detectors import small_detector


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder and a run folder whose model has been trained with other weights of the losses."""
    root = tmp_path_factory.mktemp("explain")
    write_coco(root / "shapes")
    model = small_detector().model
    save_checkpoint(
        root / "run" / "best" / "model.safetensors",
        Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64)),
    )
    (root / "run" / "config.yaml").write_text(yaml.safe_dump({"data": "x", "training": {"eos_coef": 0.7}}))
    return root


def document_of(page: Path) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="document">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_a_photo_becomes_a_page(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = place / "shapes" / "val2017" / "3.png"
    page = explain_file(
        ExplainRequest(
            photo, str(place / "run"), annotations=place / "shapes", output=tmp_path / "p.html", threshold=0.99
        )
    )
    document = document_of(page)
    truth = json.loads((place / "shapes" / "annotations" / "instances_val2017.json").read_text())["annotations"]
    boxes = [one["bbox"] for one in truth if one["image_id"] == 3]
    objects = document["objects"]
    assert isinstance(objects, list)
    assert [one["box"][:2] for one in objects] == [box[:2] for box in boxes]
    out = capsys.readouterr().out
    assert out.count("missed object") == len(objects)
    assert f"0 of {len(objects)} objects found" in out
    assert page.stat().st_size < 1_000_000


def test_the_losses_are_weighed_as_in_the_run(place: Path, tmp_path: Path) -> None:
    photo = place / "shapes" / "val2017" / "1.png"  # without objects: all queries should say no object
    losses = {}
    inside, alone = place / "run" / "best" / "model.safetensors", tmp_path / "model.safetensors"
    alone.write_bytes(inside.read_bytes())
    for name, weights in {"run": place / "run", "alone": alone}.items():
        request = ExplainRequest(photo, str(weights), annotations=place / "shapes", output=tmp_path / f"{name}.html")
        matching = document_of(explain_file(request))["matching"]
        assert isinstance(matching, dict)
        losses[name] = matching["losses"]
    for one in losses["run"]:
        # each is weighted by 0.7 and divided by the sum of weights, 9 x 0.7
        assert one["class"] == pytest.approx(one["entropy"] / 9, rel=1e-3)
    assert losses["run"] == losses["alone"]  # without objects, one weight for all cancels out
    photo = place / "shapes" / "val2017" / "2.png"
    totals = []
    for weights in (place / "run", alone, inside, inside.parent):
        request = ExplainRequest(photo, str(weights), annotations=place / "shapes", output=tmp_path / "x.html")
        matching = document_of(explain_file(request))["matching"]
        assert isinstance(matching, dict)
        totals.append(sum(one["class"] for one in matching["losses"] if one["object"] is None))
    assert totals[0] > 1.5 * totals[1]
    assert totals[0] == totals[2] == totals[3]


@pytest.mark.parametrize("figure", ["encoder", "decoder", "matching"])
def test_a_photo_becomes_a_picture(figure: str, place: Path, tmp_path: Path) -> None:
    request = ExplainRequest(
        place / "shapes" / "val2017" / "2.png",
        str(place / "run"),
        annotations=place / "shapes",
        output=tmp_path / "picture.svg",
        figure=figure,  # type: ignore[arg-type]
        points=("5,5", "40.5,60") if figure == "encoder" else (),
        queries=(2,),
    )
    assert explain_file(request).read_text().count("<image") >= 1


LEGAL = (
    "1x1.png",
    "1x500.png",
    "panorama_8000x200.jpg",
    "gray16.png",
    "exif_orientation_6.jpg",
    "hash#question&amp.jpg",
)
REFUSED = (
    "zero_byte.jpg",
    "text_named.jpg",
    "directory_named.jpg",
    "decompression_bomb_20000x20000.png",
    "random_bytes.jpg",
)


@pytest.mark.parametrize("name", [*LEGAL, *REFUSED])
def test_hostile_photos_end_in_a_page_or_a_sentence(name: str, place: Path, shared: Path, tmp_path: Path) -> None:
    photo = shared / "data" / "nasty" / "images" / name
    request = ExplainRequest(photo, str(place / "run"), output=tmp_path / "page.html")
    if name in LEGAL:
        document = document_of(explain_file(request))
        photo_part = document["photo"]
        assert isinstance(photo_part, dict)
        assert photo_part["name"] == name
        return
    with pytest.raises(DetrkitError) as refused:
        explain_file(request)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "page.html").exists()
