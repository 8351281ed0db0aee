"""Every malformed or hostile image of ../shared/data/nasty is explained or rejected with a one-line error."""

from pathlib import Path

import pytest

import detrkit
from detrkit import DatasetError, Detector

_MAX_PAGE_BYTES = 5_000_000


@pytest.mark.slow
def test_every_nasty_image_is_explained_or_rejected(shared: Path, detector: Detector, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    explained, rejected = [], []
    for path in sorted((shared / "data" / "nasty" / "images").iterdir()):
        try:
            explanation = detrkit.explain(detector, path, threshold=0)
        except DatasetError as error:
            assert "\n" not in str(error)
            rejected.append(path.name)
        else:
            explanation.to_html(page)
            assert 10_000 < page.stat().st_size < _MAX_PAGE_BYTES
            page.unlink()
            explained.append(path.name)
    assert {"truncated_60pct.jpg", "zero_byte.jpg", "directory_named.jpg"} < set(rejected)
    assert {"1x1.png", "1x500.png", "panorama_8000x200.jpg", "big_5000x4000.jpg", "int32.tif"} < set(explained)
    assert (len(explained), len(rejected)) == (62, 9)
