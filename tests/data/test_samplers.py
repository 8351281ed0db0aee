"""Training batches: every image once per epoch, reproducible, divided among ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detrkit.data.records import Record, Records
from detrkit.data.samplers import BatchGrouping, SampleKey, TrainBatchSampler
from detrkit.distributed.rank import Rank

counts = st.integers(1, 60)
sizes = st.integers(1, 7)


def indices(batches: TrainBatchSampler) -> list[list[int]]:
    return [[draw.index for draw in batch] for batch in batches]


@given(st.lists(st.booleans(), min_size=1, max_size=60), sizes, st.integers(0, 99), st.integers(1, 5))
def test_every_image_occurs_once_except_a_remainder(tall: list[bool], size: int, seed: int, epoch: int) -> None:
    batches = TrainBatchSampler(BatchGrouping(torch.tensor(tall)), size, seed)
    batches.epoch = epoch
    drawn = indices(batches)
    seen = [index for batch in drawn for index in batch]
    assert len(drawn) == len(batches) == max(1, len(tall) // size)
    assert len(set(seen)) == len(seen)
    assert len(tall) - len(seen) == (len(tall) % size if len(tall) >= size else 0)
    mixed = sum(len({tall[index] for index in batch}) > 1 for batch in drawn)
    assert mixed <= 1 or size == 1
    assert drawn == indices(batches)


def test_epochs_and_seeds_differ() -> None:
    orders = set()
    for seed in (0, 1):
        for epoch in (1, 2):
            batches = TrainBatchSampler(BatchGrouping.ungrouped(50), 5, seed)
            batches.epoch = epoch
            orders.add(str(indices(batches)))
    assert len(orders) == 4
    assert all(draw.epoch == 2 for batch in batches for draw in batch)


@given(counts, sizes, st.integers(0, 20))
def test_epoch_is_resumed_in_the_middle(count: int, size: int, first: int) -> None:
    batches = TrainBatchSampler(BatchGrouping.ungrouped(count), size, 7)
    whole = list(batches)
    batches.first = first
    assert list(batches) == whole[first:]
    assert all(isinstance(draw, SampleKey) for batch in whole for draw in batch)


@given(st.integers(1, 400), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_ranks_divide_the_images(count: int, size: int, world_size: int, in_shards: bool) -> None:
    shard = torch.arange(count) // 7 if in_shards else None
    grouping = BatchGrouping(torch.arange(count) % 3 == 0, shard)
    per_rank = [TrainBatchSampler(grouping, size, 3, Rank(rank, world_size)) for rank in range(world_size)]
    drawn = [indices(batches) for batches in per_rank]
    assert [len(of_rank) for of_rank in drawn] == [max(1, count // size) // world_size] * world_size
    assert [len(of_rank) for of_rank in drawn] == [len(batches) for batches in per_rank]
    seen = [index for of_rank in drawn for batch in of_rank for index in batch]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("by_aspect_ratio", [False, True])
def test_each_reader_reads_its_own_shards(by_aspect_ratio: bool) -> None:
    """96 shards of 12 images: each of four readers, two processes of two workers, opens a quarter, and a few at borders."""
    is_portrait = (torch.arange(96 * 12) % 3 == 0) & by_aspect_ratio
    grouping = BatchGrouping(is_portrait, torch.arange(96 * 12) // 12)
    shards_of: dict[tuple[int, int], set[int]] = {}
    for rank in range(2):
        batches = TrainBatchSampler(grouping, 4, 0, Rank(rank, 2))
        for number, batch in enumerate(indices(batches)):
            shards_of.setdefault((rank, number % 2), set()).update(index // 12 for index in batch)
    assert len(set.union(*shards_of.values())) == 96
    assert all(len(shards) <= 24 + 24 * by_aspect_ratio for shards in shards_of.values())


def record(number: int, objects: int, span: tuple[int, int] | None = None) -> Record:
    boxes = np.arange(4 * objects, dtype=np.float32).reshape(-1, 4) + number
    labels = np.arange(objects, dtype=np.int64)
    path = Path(f"/images/{number}-ß\udcff.jpg")
    return Record(number, path, (10 + number, 20), boxes, labels, labels % 2 == 1, span)


def test_records_are_restored_from_arrays() -> None:
    given_records = [record(-5, 0), record(2**62, 3), record(7, 1, (512, 1000))]
    records = Records.of(given_records)
    assert len(records) == 3
    for before, after in zip(given_records, records, strict=True):
        assert (before.image_id, before.path, before.size, before.span) == (
            after.image_id,
            after.path,
            after.size,
            after.span,
        )
        for column in ("boxes", "labels", "is_crowd"):
            assert np.array_equal(getattr(before, column), getattr(after, column))
            assert getattr(before, column).dtype == getattr(after, column).dtype
    assert records[-1].image_id == 7
    assert [one.image_id for one in records[1:]] == [2**62, 7]
    assert records.select([2, 0]).image_ids == [7, -5]
    assert len(Records.of([])) == 0
    assert not list(Records.of([record(1, 0)])[1:])


def test_records_need_21_bytes_per_object() -> None:
    records = Records.of(record(number, 100) for number in range(100))
    assert records.arrays.num_bytes < 25 * 100 * 100


def test_grouping_by_orientation_and_shard() -> None:
    records = Records.of([record(30, 0, (0, 1)), record(1, 0, (1, 1))])
    assert BatchGrouping.from_records(records, by_aspect_ratio=True).is_portrait.tolist() == [True, False]
    assert not BatchGrouping.from_records(records, by_aspect_ratio=False).is_portrait.any()
    assert [BatchGrouping.from_records(records, by_aspect_ratio=choice).same_crop for choice in (True, False)] == [
        True,
        False,
    ]
    assert BatchGrouping.from_records(records, by_aspect_ratio=True).shard is not None
    assert BatchGrouping.from_records(Records.of([record(1, 0)]), by_aspect_ratio=True).shard is None


def test_images_of_a_step_share_their_crop_on_all_ranks() -> None:
    grouping = BatchGrouping(torch.zeros(24, dtype=torch.bool), same_crop=True)
    alone = {draw.index: draw.batch for batch in TrainBatchSampler(grouping, 2, 5) for draw in batch}
    assert sorted(alone.values()) == sorted(list(range(12)) * 2)
    for rank in range(3):
        order = TrainBatchSampler(grouping, 2, 5, Rank(rank, 3))
        order.first = 1
        numbers = [{draw.batch for draw in batch} for batch in order]
        assert numbers == [{1}, {2}, {3}]
    assert {draw.batch for batch in TrainBatchSampler(BatchGrouping.ungrouped(4), 2, 5) for draw in batch} == {None}


@pytest.mark.parametrize(("resumed_at", "process"), [(0, Rank()), (1, Rank()), (2, Rank()), (0, Rank(1, 2))])
def test_batches_from_a_position_on_are_closing(resumed_at: int, process: Rank) -> None:
    sampler = TrainBatchSampler(BatchGrouping.ungrouped(16), batch_size=2, seed=1, rank=process)
    sampler.closing_from = (2, 2)
    for epoch, expected in ((1, [False] * 4), (2, [False, False, True, True]), (3, [True] * 4)):
        sampler.epoch, sampler.first = epoch, resumed_at
        closing = [[key.is_closing for key in batch] for batch in sampler][: 4 - resumed_at]
        assert closing == [[is_closing] * 2 for is_closing in expected[resumed_at:]]


@pytest.mark.parametrize("drawn", [0, 1, 3])
def test_augmentation_ends_with_the_next_batch_that_is_drawn(drawn: int) -> None:
    sampler = TrainBatchSampler(BatchGrouping.ungrouped(6), batch_size=2, seed=1)
    sampler.epoch = 5
    batches = iter(sampler)
    for _ in range(drawn):
        assert not next(batches)[0].is_closing
    sampler.closing_from = sampler.position
    assert all(key.is_closing for batch in batches for key in batch)
    assert sampler.closing_from == ((5, drawn) if drawn else (1, 0))
