"""Batching of concurrent images, and failing batches."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from detrkit.data.dataset import unannotated
from detrkit.errors import CheckpointError
from detrkit.serve.batcher import Batcher
from detrkit.structures import Detections, Sample
from tests.waiting import PATIENCE, wait_until


class FakePredictor:
    """A predictor that detects nothing, records its batches, and can be made to wait."""

    def __init__(self, max_padding: float = 0.25) -> None:
        self.engine: Any = None
        self.max_padding = max_padding
        self.batches: list[list[int]] = []
        self.min_scores: list[Any] = []
        self.may_continue = threading.Event()
        self.may_continue.set()
        self.has_batch = threading.Event()
        self.error: BaseException | None = None

    def preprocess(self, pixels: UInt8[Tensor, "C H W"]) -> Sample:
        return unannotated(pixels)

    def predict_samples(self, samples: Sequence[Sample], min_scores: float | tuple[float, ...]) -> list[Detections]:
        self.has_batch.set()
        assert self.may_continue.wait(PATIENCE)
        self.batches.append([int(sample.image[0, 0, 0]) for sample in samples])
        self.min_scores.append(min_scores)
        if self.error is not None and 13 in self.batches[-1]:
            raise self.error
        nothing = torch.zeros(0)
        return [
            Detections(torch.zeros(0, 4), nothing, nothing.long(), nothing.long(), (), path=str(number))
            for number in self.batches[-1]
        ]


def sample(number: int, height: int = 8, width: int = 8) -> Sample:
    return unannotated(torch.full((3, height, width), number, dtype=torch.uint8))


class BusyBatcher:
    """A batcher whose device is busy until `go`, so that the waiting jobs are known."""

    def __init__(self, fake: FakePredictor, batch_size: int, sizes: list[int] | None = None) -> None:
        self.fake = fake
        fake.may_continue.clear()
        self.batcher = Batcher([fake], batch_size, on_batch=None if sizes is None else sizes.append)
        self.first = self.batcher.predict(sample(0), 0.5)
        assert fake.has_batch.wait(PATIENCE)

    def add(self, *numbers: int, height: int = 8, width: int = 8, threshold: float = 0.5) -> list[Future[Detections]]:
        return [self.batcher.predict(sample(number, height, width), threshold) for number in numbers]

    def go(self, futures: Sequence[Future[Any]]) -> list[Any]:
        self.fake.may_continue.set()
        return [future.result(PATIENCE) for future in futures]


@pytest.fixture
def close() -> Iterator[list[Batcher[Any]]]:
    open_ones: list[Batcher[Any]] = []
    yield open_ones
    for batcher in open_ones:
        batcher.close()


def test_waiting_images_share_batches_and_get_their_own_results(close: list[Batcher[Any]]) -> None:
    sizes: list[int] = []
    busy = BusyBatcher(FakePredictor(), 4, sizes)
    close.append(busy.batcher)
    futures = busy.add(1, 2, 3, 4, 5, 6)
    assert len(busy.batcher) == 6
    assert [detections.path for detections in busy.go(futures)] == ["1", "2", "3", "4", "5", "6"]
    assert busy.fake.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert sizes == [1, 4, 2]
    assert len(busy.batcher) == 0


def test_similar_shapes_share_a_batch_and_the_longest_waiting_comes_first(close: list[Batcher[Any]]) -> None:
    busy = BusyBatcher(FakePredictor(), 2)
    close.append(busy.batcher)
    futures = busy.add(1, height=4, width=16) + busy.add(2, height=16, width=4) + busy.add(3, height=4, width=16)
    busy.go(futures)
    assert busy.fake.batches == [[0], [1, 3], [2]]


def test_model_without_padding_invariance_gets_batches_of_one_size(close: list[Batcher[Any]]) -> None:
    busy = BusyBatcher(FakePredictor(max_padding=0), 8)
    close.append(busy.batcher)
    busy.go(busy.add(1, 2) + busy.add(3, height=8, width=9) + busy.add(4))
    assert busy.fake.batches == [[0], [1, 2, 4], [3]]


def test_each_threshold_has_its_own_batches(close: list[Batcher[Any]]) -> None:
    busy = BusyBatcher(FakePredictor(), 8)
    close.append(busy.batcher)
    busy.go(busy.add(1, threshold=0.5) + busy.add(2, threshold=0.7) + busy.add(3, threshold=0.5))
    assert busy.fake.batches == [[0], [1, 3], [2]]
    assert busy.fake.min_scores == [0.5, 0.5, 0.7]


def test_image_waits_for_others_until_the_batch_is_full(close: list[Batcher[Any]]) -> None:
    fake = FakePredictor()
    batcher = Batcher([fake], 3, batch_wait=1000.0)
    close.append(batcher)
    futures = [batcher.predict(sample(number), 0.5) for number in (1, 2)]
    assert not fake.has_batch.wait(0.1)
    futures.append(batcher.predict(sample(3), 0.5))
    assert [future.result(PATIENCE).path for future in futures] == ["1", "2", "3"]
    assert fake.batches == [[1, 2, 3]]


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), CheckpointError("damaged"), SystemExit(3), StopIteration()]
)
def test_failing_image_fails_alone_and_the_thread_continues(
    error: BaseException, close: list[Batcher[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakePredictor()
    fake.error = error
    busy = BusyBatcher(fake, 4)
    close.append(busy.batcher)
    good, bad, other = busy.add(1, 13, 2)
    assert [detections.path for detections in busy.go([good, other])] == ["1", "2"]
    assert isinstance(bad.exception(20), CheckpointError if isinstance(error, CheckpointError) else RuntimeError)
    assert fake.batches == [[0], [1, 13, 2], [1], [13], [2]]
    assert bool(caplog.records) is not isinstance(error, CheckpointError), "unexpected errors are logged"
    assert busy.batcher.is_alive
    assert busy.add(7)[0].result(20).path == "7"


def test_cancelled_images_are_not_predicted(close: list[Batcher[Any]]) -> None:
    busy = BusyBatcher(FakePredictor(), 1)
    close.append(busy.batcher)
    futures = busy.add(1, 2, 3)
    assert futures[1].cancel()
    busy.go([futures[0], futures[2]])
    assert busy.fake.batches == [[0], [1], [3]]


def test_function_call_is_not_batched_with_images(close: list[Batcher[Any]]) -> None:
    busy = BusyBatcher(FakePredictor(), 8)
    close.append(busy.batcher)
    futures = [*busy.add(1), busy.batcher.call(lambda fake: fake.batches.copy()), *busy.add(2)]
    assert busy.go(futures)[1] == [[0], [1, 2]]


def test_every_device_takes_jobs(close: list[Batcher[Any]]) -> None:
    fakes = [FakePredictor(), FakePredictor()]
    for fake in fakes:
        fake.may_continue.clear()
    batcher = Batcher(fakes, 1)
    close.append(batcher)
    futures = [batcher.predict(sample(number), 0.5) for number in (1, 2)]
    wait_until(lambda: all(fake.has_batch.is_set() for fake in fakes))
    for fake in fakes:
        fake.may_continue.set()
    assert sorted(future.result(PATIENCE).path or "" for future in futures) == ["1", "2"]
    assert sorted(fakes[0].batches + fakes[1].batches) == [[1], [2]]


def test_close_finishes_running_and_cancels_waiting_jobs() -> None:
    busy = BusyBatcher(FakePredictor(), 1)
    (waiting,) = busy.add(1)
    closing = threading.Thread(target=busy.batcher.close)
    closing.start()
    wait_until(waiting.cancelled)
    assert not busy.batcher.is_alive
    busy.fake.may_continue.set()
    closing.join(PATIENCE)
    assert busy.first.result(20).path == "0"
    with pytest.raises(CancelledError):
        busy.add(2)[0].result(20)
