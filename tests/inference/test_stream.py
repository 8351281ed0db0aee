"""`Detector.stream`: order, batches, bounded reading ahead, errors, tiles."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit import Detections, Detector
from detrkit.errors import ConfigError, DatasetError
from detrkit.inference.stream import choose_batch, padding_share
from detrkit.ops.tiles import Tiling
from detrkit.structures import Batch, Predictions
from tests.inference.test_detector import shape_image

SIZES = [(96, 64), (64, 96), (96, 66), (200, 50), (60, 96), (96, 64), (64, 90), (64, 64), (96, 64)]


def assert_same_detections(one: Detections, other: Detections) -> None:
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=0.02)
    assert torch.equal(one.labels, other.labels)
    assert one.class_names == other.class_names


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for number, (width, height) in enumerate(SIZES):
        shape_image(number, width, height).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


class RecordingEngine:
    """An engine that records the sizes of its batches."""

    def __init__(self, detector: Detector) -> None:
        self.config = detector.engine.config
        self._inner = detector.engine
        self.sizes: list[list[tuple[int, int]]] = []

    def predict(self, batch: Batch) -> Predictions:
        self.sizes.append(batch.sizes)
        return self._inner.predict(batch)


def with_recording_engine(detector: Detector) -> tuple[Detector, RecordingEngine]:
    engine = RecordingEngine(detector)
    return Detector(engine, detector.categories, detector.preprocessing), engine


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_stream_gives_the_detections_of_predict_in_order(
    detector: Detector,
    paths: list[Path],
    workers: int,
    batch_size: int,
) -> None:
    streamed = list(detector.stream(paths, 0, batch_size=batch_size, workers=workers))
    assert [one.path for one in streamed] == [str(path) for path in paths]
    for path, one, size in zip(paths, streamed, SIZES, strict=True):
        assert_same_detections(one, detector.predict(path, 0))
        assert one.image is not None
        assert one.image.size == size
        assert one.size == size[::-1]


def test_images_of_similar_shape_share_a_batch(detector: Detector, paths: list[Path]) -> None:
    recorded, engine = with_recording_engine(detector)
    list(recorded.stream(paths * 4, 0, batch_size=3, workers=0))
    assert sum(len(sizes) for sizes in engine.sizes) == 36
    for sizes in engine.sizes:
        assert all(padding_share(sizes[0], size) <= 0.25 for size in sizes)
    assert sum(len(sizes) == 3 for sizes in engine.sizes) >= 9, "batches are filled"


def test_padding_share_of_hand_computed_cases() -> None:
    assert padding_share((2, 4), (2, 4)) == 0
    assert padding_share((2, 4), (4, 2)) == 0.5
    assert padding_share((4, 4), (4, 2)) == 0.25


def test_model_without_padding_invariance_gets_batches_of_one_size(detector: Detector) -> None:
    sizes = {3: (8, 8), 4: (8, 9), 5: (8, 8), 7: (20, 8), 8: (8, 8)}
    assert choose_batch(sizes, 4, detector.max_padding) == [3, 5, 8, 4]
    assert choose_batch(sizes, 2, detector.max_padding) == [3, 5]
    as_published = detector.preprocessing.model_copy(update={"padding_invariant": False})
    leaking = Detector(detector.engine, detector.categories, as_published)
    assert choose_batch(sizes, 4, leaking.max_padding) == [3, 5, 8]


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (2, 1), (2, 4)])
def test_images_are_read_only_as_far_ahead_as_needed(
    detector: Detector,
    workers: int,
    batch_size: int,
) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield np.full((64, 64 + taken % 7, 3), taken % 256, np.uint8)

    before = threading.active_count()
    stream = detector.stream(endless(), 0, workers=workers, batch_size=batch_size)
    for number in range(60):
        next(stream)
        assert taken - number <= (8 * batch_size if batch_size > 1 else 1) + 2 * workers + 1
    stream.close()
    assert threading.active_count() == before, "the threads have ended"


def test_unreadable_image_is_reported_and_skipped(
    detector: Detector,
    paths: list[Path],
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    mixed = [paths[0], bad, paths[1], bad]
    errors: list[tuple[str, str]] = []
    results = list(
        detector.stream(mixed, 0, batch_size=2, on_error=lambda image, error: errors.append((str(image), str(error))))
    )
    assert [one.path for one in results] == [str(paths[0]), str(paths[1])]
    assert [where for where, _ in errors] == [str(bad)] * 2
    assert all("cannot be read as an image" in message for _, message in errors)
    with pytest.raises(DatasetError, match=r"bad\.png"):
        list(detector.stream(mixed, 0))


def test_classes_are_selected_by_name(detector: Detector, paths: list[Path]) -> None:
    unfiltered = list(detector.stream(paths, 0))
    names = {name for one in unfiltered for name in one.class_names}
    name = sorted(names)[0]
    assert len(names) > 1
    for all_of_them, some in zip(unfiltered, detector.stream(paths, 0, classes=[name]), strict=True):
        chosen = [i for i, other in enumerate(all_of_them.class_names) if other == name]
        assert_same_detections(some, all_of_them[chosen])
    with pytest.raises(ConfigError, match="did you mean 'square'"):
        detector.stream(paths, classes=["sqare"])


def test_settings_out_of_range_are_rejected_before_reading(detector: Detector) -> None:
    for settings in ({"threshold": 7}, {"batch_size": 0}, {"workers": -1}):
        with pytest.raises(ConfigError):
            detector.stream(iter([1]), **settings)  # type: ignore[arg-type]


def test_detections_without_images_keep_the_image_size(
    detector: Detector,
    paths: list[Path],
) -> None:
    for one, (width, height) in zip(detector.stream(paths, 0, keep_images=False), SIZES, strict=True):
        assert one.image is None
        assert one.size == (height, width)


def test_tiles_are_predicted_and_merged(detector: Detector) -> None:
    recorded, engine = with_recording_engine(detector)
    large, small = shape_image(0, 150, 100), shape_image(1, 64, 64)
    tiling = Tiling(100, 0.2)
    results = list(recorded.stream([large, small], 0.5, tiling=tiling, batch_size=2, workers=1))
    # the whole image, its two tiles in one batch, and the small one
    assert [len(sizes) for sizes in engine.sizes] == [1, 2, 1]
    assert_same_detections(results[1], detector.predict(small, 0.5))
    assert results[0].size == (100, 150)
    assert results[0].image is not None
    views = tiling.views((100, 150))
    alone = [detector.predict(large.crop(view), 0.5).translate(view[:2]) for view in views]
    for box, label in zip(results[0].boxes, results[0].labels.tolist(), strict=True):
        # each box is one of a view's, or put together of some
        assert any(label in one.labels.tolist() for one in alone)
        assert float(box[0]) >= min(float(one.boxes[:, 0].min()) for one in alone if len(one)) - 0.01
    assert len(results[0]) <= sum(len(one) for one in alone)


def test_image_of_one_tile_is_predicted_whole(detector: Detector, paths: list[Path]) -> None:
    for path, one in zip(paths, detector.stream(paths, 0, tiling=Tiling(200), batch_size=3), strict=True):
        assert_same_detections(one, detector.predict(path, 0))


def test_threads_do_not_change_the_warning_filters(detector: Detector, tmp_path: Path) -> None:
    palette = Image.new("P", (64, 64))
    palette.info["transparency"] = b"\x00\xff"
    for number in range(12):
        palette.save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    assert len(list(detector.stream(sorted(tmp_path.iterdir()), workers=4))) == 12
    assert list(warnings.filters) == before
