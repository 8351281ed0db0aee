"""Which photos are learned from together, and in which order: decided by the seed and the epoch alone.

So a run can go on where it stopped, in the middle of an epoch too, and any number of worker processes prepares the same
batches.
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

_STREAMS = 48  # many processes and workers divide it


@dataclass(frozen=True)
class SampleKey:
    """One sample to be prepared.

    Attributes:
        index: of the photo.
        epoch: whose randomness changes it, from 1.
        batch: number of its step within the epoch, whose photos are cut and resized alike, those of other processes, too,
            which would otherwise wait for the one with the largest; None: each for itself.
    """

    index: int
    epoch: int
    batch: int | None = None


@dataclass(frozen=True)
class Rank:
    """Which part of the batches a training process takes.

    Attributes:
        rank: of this process, 0 .. world - 1.
        world: training processes.
    """

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class BatchGrouping:
    """What the order should respect.

    Attributes:
        is_tall: which photos are taller than wide: batches of one kind need less padding.
        shard: the file in which each photo lies, None when each has its own. A reader then goes through shards of its own,
            one after the other.
        alike: whether the photos of a step are cut and resized alike, which needs less padding still.
    """

    is_tall: Bool[Tensor, "P"]
    shard: Int64[Tensor, "P"] | None = None
    alike: bool = False

    @classmethod
    def anything(cls, count: int) -> "BatchGrouping":
        """Nothing to respect: all photos are alike."""
        return cls(torch.zeros(count, dtype=torch.bool))

    @classmethod
    def of(cls, records: Records, *, by_shape: bool) -> "BatchGrouping":
        """Read off records what there is to respect."""
        sizes, spans = records.columns.sizes, records.columns.spans
        is_tall = (sizes[:, 0] > sizes[:, 1]) & by_shape
        if not len(records) or int(spans[0, 0]) < 0:
            return cls(is_tall, alike=by_shape)
        files = [str(records.path(index).parent) for index in range(len(records))]
        number = {file: index for index, file in enumerate(dict.fromkeys(files))}
        return cls(is_tall, torch.tensor([number[file] for file in files]), alike=by_shape)


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """The batches of one epoch; a data loader's `batch_sampler`.

    The photos are laid out in random order: in one stream, or in 48 when they lie in shards, whose order is then random
    as well. Each stream is cut into batches of photos of one shape; what is left over is mixed, and a rest smaller than a
    batch waits for another epoch. Streams take turns. Process r of R takes every batch i with i % R = r, and its worker w
    of W every one of those with i % W = w: so each reads streams, and shards, of its own when R W divides 48.

    Attributes:
        epoch: counted from 1; set it before iterating.
        first: batches of the epoch that are passed over, because a run goes on after them.
    """

    def __init__(self, arrangement: BatchGrouping, batch_size: int, seed: int, share: Rank | None = None) -> None:
        self.arrangement = arrangement
        self.batch_size = batch_size
        self.seed = seed
        self.share = share or Rank()
        self.epoch = 1
        self.first = 0
        count = len(arrangement.is_tall)
        self._num_streams = _STREAMS if arrangement.shard is not None and count >= _STREAMS * batch_size else 1
        self._num_batches = max(1, count // batch_size) // self.share.world

    def __len__(self) -> int:
        """Batches of a whole epoch for this training process."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = self._order(generator)
        bounds = [len(order) * part // self._num_streams for part in range(self._num_streams + 1)]
        streams, rests = [], []
        for first, end in pairwise(bounds):
            batches, rest = self._cut(order[first:end], generator)
            streams.append(batches)
            rests += rest
        of_all = [batch for turn in zip_longest(*streams) for batch in turn if batch is not None]
        size = self.batch_size
        of_all += [rests[at : at + size] for at in range(0, len(rests) - size + 1, size)]
        of_all = of_all or [rests]  # fewer photos than a batch: all of them
        of_this = list(enumerate(of_all))[self.share.rank :: self.share.world][: self._num_batches]
        for number, batch in of_this[self.first :]:
            step = number // self.share.world
            yield [SampleKey(index, self.epoch, step if self.arrangement.alike else None) for index in batch]

    def _order(self, generator: torch.Generator) -> Int64[Tensor, "P"]:
        order = torch.randperm(len(self.arrangement.is_tall), generator=generator)
        if self.arrangement.shard is None:
            return order
        place = torch.randperm(int(self.arrangement.shard.max()) + 1, generator=generator)
        return order[place[self.arrangement.shard[order]].argsort(stable=True)]

    def _cut(self, order: Int64[Tensor, "_"], generator: torch.Generator) -> tuple[list[list[int]], list[int]]:
        """Cut a stream into batches of one shape; what is left of either is less than two batches, and is mixed."""
        size = self.batch_size
        is_tall = self.arrangement.is_tall[order]
        shapes = [order[is_tall].tolist(), order[~is_tall].tolist()]
        batches = [shape[at : at + size] for shape in shapes for at in range(0, len(shape) - size + 1, size)]
        rest = [index for shape in shapes for index in shape[len(shape) // size * size :]]
        if self.arrangement.shard is None:
            return [batches[at] for at in torch.randperm(len(batches), generator=generator).tolist()], rest
        # in the order of the stream, so that it goes through its shards one after the other
        position = {index: at for at, index in enumerate(order.tolist())}
        return sorted(batches, key=lambda batch: position[batch[0]]), rest


def mix_seeds(*numbers: int) -> int:
    """One seed of several numbers, in which each of them counts, but for zeros at the end."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
