"""Which photos are learned from together, and in which order: decided by the seed and the epoch alone.

So a run can go on where it stopped, in the middle of an epoch too, and any number of worker processes prepares the same
batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data import Sampler

from detrkit.data.records import Records


@dataclass(frozen=True)
class Draw:
    """One sample to be prepared: a photo, and the epoch (from 1) whose randomness changes it."""

    index: int
    epoch: int


@dataclass(frozen=True)
class Readers:
    """The processes that read photos together.

    Attributes:
        rank: this training process, 0 .. world - 1.
        world: training processes.
        workers: reading processes of each.
    """

    rank: int = 0
    world: int = 1
    workers: int = 0


@dataclass(frozen=True)
class Arrangement:
    """What the order should respect.

    Attributes:
        is_tall: which photos are taller than wide: batches of one kind need less padding.
        shard: the file in which each photo lies, None when each has its own. A reader then goes through shards of its own,
            one after the other.
    """

    is_tall: Bool[Tensor, "P"]
    shard: Int64[Tensor, "P"] | None = None

    @classmethod
    def anything(cls, count: int) -> "Arrangement":
        """Nothing to respect: all photos are alike."""
        return cls(torch.zeros(count, dtype=torch.bool))

    @classmethod
    def of(cls, records: Records, *, by_shape: bool) -> "Arrangement":
        """Read off records what there is to respect."""
        sizes, spans = records.columns.sizes, records.columns.spans
        is_tall = (sizes[:, 0] > sizes[:, 1]) & by_shape
        if not len(records) or int(spans[0, 0]) < 0:
            return cls(is_tall)
        files = [str(records.path(index).parent) for index in range(len(records))]
        number = {file: index for index, file in enumerate(dict.fromkeys(files))}
        return cls(is_tall, torch.tensor([number[file] for file in files]))


class TrainBatches(Sampler[list[Draw]]):
    """The batches of one epoch; a data loader's `batch_sampler`.

    The photos are laid out in random order and dealt to streams: one, or one per reader when photos lie in shards, whose
    order is then random as well. Each stream is cut into batches of photos of one shape; what is left over is mixed, and
    a rest smaller than a batch waits for another epoch. A data loader's worker w of W takes every batch i with i % W = w.

    Attributes:
        epoch: counted from 1; set it before iterating.
        first: batches of the epoch that are passed over, because a run goes on after them.
    """

    def __init__(self, arrangement: Arrangement, batch_size: int, seed: int, readers: Readers | None = None) -> None:
        self.arrangement = arrangement
        self.batch_size = batch_size
        self.seed = seed
        self.readers = readers or Readers()
        self.epoch = 1
        self.first = 0
        self._num_streams = self._count_streams()
        self._num_batches = self._count_batches()

    def __len__(self) -> int:
        """Batches of a whole epoch for this training process."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self._order(generator)
        bounds = [len(order) * part // self._num_streams for part in range(self._num_streams + 1)]
        streams = [self._batches(order[first:end], generator) for first, end in pairwise(bounds)]
        of_all = [batch for together in zip(*streams, strict=False) for batch in together]
        of_this = of_all[self.readers.rank :: self.readers.world][: self._num_batches]
        for batch in of_this[self.first :]:
            yield [Draw(index, self.epoch) for index in batch]

    def _count_streams(self) -> int:
        readers = self.readers.world * max(1, self.readers.workers)
        count = len(self.arrangement.is_tall)
        return readers if self.arrangement.shard is not None and count >= readers * self.batch_size else 1

    def _count_batches(self) -> int:
        count = len(self.arrangement.is_tall)
        whole = count // self._num_streams // self.batch_size * self._num_streams // self.readers.world
        return whole or min(1, count)

    def _order(self, generator: torch.Generator) -> Int64[Tensor, "P"]:
        order = torch.randperm(len(self.arrangement.is_tall), generator=generator)
        if self.arrangement.shard is None:
            return order
        place = torch.randperm(int(self.arrangement.shard.max()) + 1, generator=generator)
        return order[place[self.arrangement.shard[order]].argsort(stable=True)]

    def _batches(self, order: Int64[Tensor, "_"], generator: torch.Generator) -> Sequence[list[int]]:
        """Cut a stream into batches of one shape, and mix what is left of either."""
        size = self.batch_size
        is_tall = self.arrangement.is_tall[order]
        shapes = [order[is_tall].tolist(), order[~is_tall].tolist()]
        batches = [shape[at : at + size] for shape in shapes for at in range(0, len(shape) - size + 1, size)]
        rest = [index for shape in shapes for index in shape[len(shape) // size * size :]]
        batches += [rest[at : at + size] for at in range(0, len(rest) - size + 1, size)]
        if not batches:  # fewer photos than a batch: all of them
            return [rest]
        # in the order of the stream, so that a shard is read once: by each batch's first photo
        position = {index: at for at, index in enumerate(order.tolist())}
        by_place = sorted(batches, key=lambda batch: position[batch[0]])
        if self.arrangement.shard is not None:
            return by_place
        return [by_place[at] for at in torch.randperm(len(by_place), generator=generator).tolist()]
