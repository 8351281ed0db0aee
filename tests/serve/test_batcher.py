"""Who shares a batch with whom, and what happens when a batch fails."""

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
from tests.serve.conftest import wait_until


class Fake:
    """Finds nothing, notes what it was given, and waits where it is told to."""

    def __init__(self, max_padding: float = 0.25) -> None:
        self.engine: Any = None
        self.max_padding = max_padding
        self.batches: list[list[int]] = []
        self.thresholds: list[Any] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.is_in = threading.Event()
        self.poison: BaseException | None = None

    def preprocess(self, pixels: UInt8[Tensor, "C H W"]) -> Sample:
        return unannotated(pixels)

    def predict_samples(self, samples: Sequence[Sample], threshold: float | tuple[float, ...]) -> list[Detections]:
        self.is_in.set()
        assert self.may_go.wait(20)
        self.batches.append([int(sample.image[0, 0, 0]) for sample in samples])
        self.thresholds.append(threshold)
        if self.poison is not None and 13 in self.batches[-1]:
            raise self.poison
        nothing = torch.zeros(0)
        return [
            Detections(torch.zeros(0, 4), nothing, nothing.long(), nothing.long(), (), path=str(number))
            for number in self.batches[-1]
        ]


def sample(number: int, height: int = 8, width: int = 8) -> Sample:
    return unannotated(torch.full((3, height, width), number, dtype=torch.uint8))


class Held:
    """A batcher whose device is busy until it is let go, so that what waits is known."""

    def __init__(self, fake: Fake, batch_size: int, sizes: list[int] | None = None) -> None:
        self.fake = fake
        fake.may_go.clear()
        self.batcher = Batcher([fake], batch_size, note_batch=None if sizes is None else sizes.append)
        self.first = self.batcher.predict(sample(0), 0.5)
        assert fake.is_in.wait(20)

    def add(self, *numbers: int, height: int = 8, width: int = 8, threshold: float = 0.5) -> list[Future[Detections]]:
        return [self.batcher.predict(sample(number, height, width), threshold) for number in numbers]

    def go(self, futures: Sequence[Future[Any]]) -> list[Any]:
        self.fake.may_go.set()
        return [future.result(20) for future in futures]


@pytest.fixture
def close() -> Iterator[list[Batcher[Any]]]:
    open_ones: list[Batcher[Any]] = []
    yield open_ones
    for batcher in open_ones:
        batcher.close()


def test_what_waits_together_is_predicted_together_and_everyone_gets_their_own(close: list[Batcher[Any]]) -> None:
    sizes: list[int] = []
    held = Held(Fake(), 4, sizes)
    close.append(held.batcher)
    futures = held.add(1, 2, 3, 4, 5, 6)
    assert len(held.batcher) == 6
    assert [found.path for found in held.go(futures)] == ["1", "2", "3", "4", "5", "6"]
    assert held.fake.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert sizes == [1, 4, 2]
    assert len(held.batcher) == 0


def test_like_shapes_go_together_and_the_longest_waiting_first(close: list[Batcher[Any]]) -> None:
    held = Held(Fake(), 2)
    close.append(held.batcher)
    futures = held.add(1, height=4, width=16) + held.add(2, height=16, width=4) + held.add(3, height=4, width=16)
    held.go(futures)
    assert held.fake.batches == [[0], [1, 3], [2]]


def test_a_model_into_which_padding_leaks_gets_photos_of_one_size_alone(close: list[Batcher[Any]]) -> None:
    held = Held(Fake(max_padding=0), 8)
    close.append(held.batcher)
    held.go(held.add(1, 2) + held.add(3, height=8, width=9) + held.add(4))
    assert held.fake.batches == [[0], [1, 2, 4], [3]]


def test_each_threshold_has_its_own_batches(close: list[Batcher[Any]]) -> None:
    held = Held(Fake(), 8)
    close.append(held.batcher)
    held.go(held.add(1, threshold=0.5) + held.add(2, threshold=0.7) + held.add(3, threshold=0.5))
    assert held.fake.batches == [[0], [1, 3], [2]]
    assert held.fake.thresholds == [0.5, 0.5, 0.7]


def test_a_photo_waits_for_others_no_longer_than_until_the_batch_is_full(close: list[Batcher[Any]]) -> None:
    fake = Fake()
    batcher = Batcher([fake], 3, batch_wait=1000.0)
    close.append(batcher)
    futures = [batcher.predict(sample(number), 0.5) for number in (1, 2)]
    assert not fake.is_in.wait(0.1)
    futures.append(batcher.predict(sample(3), 0.5))
    assert [future.result(20).path for future in futures] == ["1", "2", "3"]
    assert fake.batches == [[1, 2, 3]]


@pytest.mark.parametrize(
    "poison", [RuntimeError("out of memory"), CheckpointError("damaged"), SystemExit(3), StopIteration()]
)
def test_a_photo_that_breaks_the_model_fails_alone_and_the_thread_goes_on(
    poison: BaseException, close: list[Batcher[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    fake = Fake()
    fake.poison = poison
    held = Held(fake, 4)
    close.append(held.batcher)
    good, bad, other = held.add(1, 13, 2)
    assert [found.path for found in held.go([good, other])] == ["1", "2"]
    assert isinstance(bad.exception(20), CheckpointError if isinstance(poison, CheckpointError) else RuntimeError)
    assert fake.batches == [[0], [1, 13, 2], [1], [13], [2]]
    assert bool(caplog.records) is not isinstance(poison, CheckpointError), "what is no sentence is logged"
    assert held.batcher.is_alive
    assert held.add(7)[0].result(20).path == "7"


def test_nobody_computes_what_was_given_up(close: list[Batcher[Any]]) -> None:
    held = Held(Fake(), 1)
    close.append(held.batcher)
    futures = held.add(1, 2, 3)
    assert futures[1].cancel()
    held.go([futures[0], futures[2]])
    assert held.fake.batches == [[0], [1], [3]]


def test_a_call_has_the_device_for_itself(close: list[Batcher[Any]]) -> None:
    held = Held(Fake(), 8)
    close.append(held.batcher)
    futures = [*held.add(1), held.batcher.call(lambda fake: fake.batches.copy()), *held.add(2)]
    assert held.go(futures)[1] == [[0], [1, 2]]


def test_every_device_takes_its_share(close: list[Batcher[Any]]) -> None:
    fakes = [Fake(), Fake()]
    for fake in fakes:
        fake.may_go.clear()
    batcher = Batcher(fakes, 1)
    close.append(batcher)
    futures = [batcher.predict(sample(number), 0.5) for number in (1, 2)]
    wait_until(lambda: all(fake.is_in.is_set() for fake in fakes))
    for fake in fakes:
        fake.may_go.set()
    assert sorted(future.result(20).path or "" for future in futures) == ["1", "2"]
    assert sorted(fakes[0].batches + fakes[1].batches) == [[1], [2]]


def test_closing_finishes_what_is_computed_and_gives_up_what_waits() -> None:
    held = Held(Fake(), 1)
    (waiting,) = held.add(1)
    closing = threading.Thread(target=held.batcher.close)
    closing.start()
    wait_until(waiting.cancelled)
    assert not held.batcher.is_alive
    held.fake.may_go.set()
    closing.join(20)
    assert held.first.result(20).path == "0"
    with pytest.raises(CancelledError):
        held.add(2)[0].result(20)
