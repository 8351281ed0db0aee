"""Every awkward, malformed and hostile photo of ../shared/data/nasty becomes a page or one sentence; none hangs."""

from pathlib import Path

from detrkit import Detector
from detrkit.checkpoints.native import save_checkpoint
from detrkit.errors import DatasetError
from detrkit.explain.run import ExplainRequest, explain_file

_LARGEST_PAGE = 5_000_000  # bytes


def test_every_nasty_photo_is_explained_or_refused(shared: Path, detector: Detector, tmp_path: Path) -> None:
    weights, page = tmp_path / "tiny.safetensors", tmp_path / "page.html"
    save_checkpoint(weights, detector.to_checkpoint())
    explained, refused = [], []
    for photo in sorted((shared / "data" / "nasty" / "images").iterdir()):
        try:
            explain_file(ExplainRequest(photo, str(weights), output=page, threshold=0))
        except DatasetError as error:
            assert "\n" not in str(error)
            assert not page.exists(), "nothing is left"
            refused.append(photo.name)
        else:
            assert 10_000 < page.stat().st_size < _LARGEST_PAGE
            page.unlink()
            explained.append(photo.name)
    assert {"truncated_60pct.jpg", "zero_byte.jpg", "directory_named.jpg"} < set(refused)
    assert {"1x1.png", "1x500.png", "panorama_8000x200.jpg", "big_5000x4000.jpg", "int32.tif"} < set(explained)
    assert (len(explained), len(refused)) == (62, 9)
