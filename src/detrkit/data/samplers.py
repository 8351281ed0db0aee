"""Training batches: their images and order depend on the seed and the epoch alone.

So a run can be resumed in the middle of an epoch, and any number of worker processes prepares the same batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data import Sampler

from detrkit.data.records import Records
from detrkit.distributed.rank import Rank

_NUM_STREAMS = 48  # divisible by most numbers of processes and workers


@dataclass(frozen=True)
class SampleKey:
    """A training sample: an image, and the seed of its augmentation.

    Attributes:
        index: of the image.
        epoch: from 1; part of the augmentation's seed.
        batch: step within the epoch, whose images are cropped and resized alike on all ranks, so that none waits for the
            rank with the largest images; None to crop and resize each image on its own.
        is_closing: whether the run is in its last part, in which there is no strong augmentation.
    """

    index: int
    epoch: int
    batch: int | None = None
    is_closing: bool = False


@dataclass(frozen=True)
class BatchGrouping:
    """Images that are batched together.

    Attributes:
        is_portrait: whether each image is taller than wide; batches of one orientation need less padding.
        shard: number of the shard that each image is in, so that a reader goes through its shards one after the other;
            None for image files.
        same_crop: whether the images of a step are cropped and resized alike, which reduces padding further.
    """

    is_portrait: Bool[Tensor, "P"]
    shard: Int64[Tensor, "P"] | None = None
    same_crop: bool = False

    @classmethod
    def ungrouped(cls, count: int) -> "BatchGrouping":
        """Return a grouping of so many images without constraints."""
        return cls(torch.zeros(count, dtype=torch.bool))

    @classmethod
    def from_records(cls, records: Records, *, by_aspect_ratio: bool) -> "BatchGrouping":
        """Group the images of records by shard, and by orientation if asked."""
        sizes, spans = records.arrays.sizes, records.arrays.spans
        is_portrait = (sizes[:, 0] > sizes[:, 1]) & by_aspect_ratio
        if not len(records) or int(spans[0, 0]) < 0:
            return cls(is_portrait, same_crop=by_aspect_ratio)
        files = [str(records.path(index).parent) for index in range(len(records))]
        number = {file: index for index, file in enumerate(dict.fromkeys(files))}
        return cls(is_portrait, torch.tensor([number[file] for file in files]), same_crop=by_aspect_ratio)


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Batches of one epoch, as the `batch_sampler` of a `DataLoader`.

    The images are shuffled into one stream, or into 48 if they are in shards, whose order is then shuffled too. Each stream
    is divided into batches of one orientation; the remaining images are mixed, and fewer than a batch are left for another
    epoch. The streams alternate. Process r of R takes every batch i with i % R = r, and its worker w of W those with
    i % W = w, so that each reads its own streams, and shards, if R W divides 48.

    Attributes:
        epoch: counted from 1; set it before iterating.
        first: batches of the epoch to skip, when a run is resumed after them.
        position: epoch, and batch within it from 0, of the next batch to be drawn. The worker processes of a `DataLoader`
            draw some batches in advance.
        closing_from: position of the first batch without strong augmentation; None if that is not known yet.
    """

    def __init__(self, grouping: BatchGrouping, batch_size: int, seed: int, rank: Rank | None = None) -> None:
        self.grouping = grouping
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank or Rank()
        self.epoch = 1
        self.first = 0
        self.position = (1, 0)
        self.closing_from: tuple[int, int] | None = None
        count = len(grouping.is_portrait)
        self._num_streams = _NUM_STREAMS if grouping.shard is not None and count >= _NUM_STREAMS * batch_size else 1
        self._num_batches = max(1, count // batch_size) // self.rank.world_size

    def __len__(self) -> int:
        """Number of batches of a whole epoch for this process."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = self._shuffle(generator)
        bounds = [len(order) * part // self._num_streams for part in range(self._num_streams + 1)]
        streams, rests = [], []
        for first, end in pairwise(bounds):
            batches, rest = self._divide(order[first:end], generator)
            streams.append(batches)
            rests += rest
        all_batches = [batch for turn in zip_longest(*streams) for batch in turn if batch is not None]
        size = self.batch_size
        all_batches += [rests[start : start + size] for start in range(0, len(rests) - size + 1, size)]
        all_batches = all_batches or [rests]  # fewer images than a batch: all of them
        own = list(enumerate(all_batches))[self.rank.rank :: self.rank.world_size][: self._num_batches]
        epoch = self.epoch
        for count, (number, batch) in enumerate(own[self.first :], start=self.first):
            step = number // self.rank.world_size if self.grouping.same_crop else None
            is_closing = self.closing_from is not None and (epoch, count) >= self.closing_from
            self.position = (epoch, count + 1)
            yield [SampleKey(index, epoch, step, is_closing) for index in batch]

    def _shuffle(self, generator: torch.Generator) -> Int64[Tensor, "P"]:
        order = torch.randperm(len(self.grouping.is_portrait), generator=generator)
        if self.grouping.shard is None:
            return order
        shard_order = torch.randperm(int(self.grouping.shard.max()) + 1, generator=generator)
        return order[shard_order[self.grouping.shard[order]].argsort(stable=True)]

    def _divide(self, order: Int64[Tensor, "_"], generator: torch.Generator) -> tuple[list[list[int]], list[int]]:
        """Divide a stream into batches of one orientation, and the remaining images, fewer than two batches."""
        size = self.batch_size
        is_portrait = self.grouping.is_portrait[order]
        orientations = [order[is_portrait].tolist(), order[~is_portrait].tolist()]
        batches = [
            part[start : start + size] for part in orientations for start in range(0, len(part) - size + 1, size)
        ]
        rest = [index for part in orientations for index in part[len(part) // size * size :]]
        if self.grouping.shard is None:
            return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()], rest
        # in the order of the stream, which goes through its shards one after the other
        position_of = {index: position for position, index in enumerate(order.tolist())}
        return sorted(batches, key=lambda batch: position_of[batch[0]]), rest


def mix_seeds(*numbers: int) -> int:
    """Derive one seed from several numbers; trailing zeros make no difference."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
