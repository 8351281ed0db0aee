"""Deformable attention beside that of `transformers` without its compiled operation: time and memory.

    python -m benchmarks.deformable [--height 800] [--width 1066] [--levels 4] [--threads 2] [--rounds 5]

One layer each with the same weights, all cells of all feature maps asking, as in the encoder. Rounds take turns, and each
figure is the best of its rounds; memory is the most that a process of its own needed beyond what it had before, of all
rounds. The last line compares what they compute.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrkit.models.attention.deformable import DeformableAttention
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.transformer import LayerShape

WIDTH, HEADS, POINTS = 256, 8, 4
NAMES = ("detrkit", "transformers")


@dataclass(frozen=True)
class Figures:
    """What one of them took: seconds, and megabytes."""

    forward: float
    backward: float
    memory: float


def sizes_of(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """Feature maps of strides 8, 16, ..."""
    return tuple((-(-height // 2**power), -(-width // 2**power)) for power in range(3, 3 + levels))


def scene_of(sizes: tuple[tuple[int, int], ...]) -> FeatureMaps:
    """Cells that hold noise."""
    tokens = torch.randn(1, sum(h * w for h, w in sizes), WIDTH)
    return FeatureMaps(tokens, torch.zeros_like(tokens), None, sizes)


def build(name: str, sizes: tuple[tuple[int, int], ...]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """One layer, and how to ask it."""
    torch.manual_seed(0)
    shape = LayerShape(WIDTH, HEADS, 4 * WIDTH, 0.0, False, num_feature_levels=len(sizes), num_points=POINTS)
    ours = DeformableAttention(shape)
    nn.init.normal_(ours.offset_projection.weight, std=0.1)
    nn.init.normal_(ours.weight_projection.weight, std=0.1)
    scene = scene_of(sizes)
    references = scene.in_maps(torch.cat(scene.cell_centres(), dim=1))
    if name == "detrkit":
        return ours, lambda tokens: ours(tokens, references, scene.holding(tokens))

    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    config = DeformableDetrConfig(num_feature_levels=len(sizes), disable_custom_kernels=True)
    theirs = DeformableDetrMultiscaleDeformableAttention(config, num_heads=HEADS, n_points=POINTS)
    names = {
        "sampling_offsets": "offset_projection",
        "attention_weights": "weight_projection",
        "value_proj": "value_projection",
        "output_proj": "output_projection",
    }
    theirs.load_state_dict(
        {f"{a}.{kind}": ours.state_dict()[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}
    )
    shapes = torch.tensor(sizes)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])

    def ask(tokens: Tensor) -> Tensor:
        given = {"spatial_shapes": shapes, "spatial_shapes_list": list(sizes), "level_start_index": starts}
        answer: Tensor = theirs(tokens, encoder_hidden_states=tokens, reference_points=references, **given)[0]
        return answer

    return theirs, ask


def measure(name: str, sizes: tuple[tuple[int, int], ...], threads: int, turns: "Turns") -> None:
    """Take the times of all rounds, when it is this one's turn."""
    torch.set_num_threads(threads)
    _, ask = build(name, sizes)
    torch.manual_seed(1)
    tokens = scene_of(sizes).tokens.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(turns.rounds):
        turns.wait(name)
        start = time.perf_counter()
        answer = ask(tokens)
        middle = time.perf_counter()
        answer.sum().backward()
        times.append((middle - start, time.perf_counter() - middle))
        turns.end(name)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    turns.results.put(
        (name, Figures(min(t[0] for t in times), min(t[1] for t in times), memory), answer.detach().numpy())
    )


class Turns:
    """Lets the two processes work one after the other."""

    def __init__(self, rounds: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.rounds = rounds
        self.results = context.SimpleQueue()
        self._may_go = {name: context.Semaphore(int(name == NAMES[0])) for name in NAMES}

    def wait(self, name: str) -> None:
        """Until it is this one's turn."""
        self._may_go[name].acquire()

    def end(self, name: str) -> None:
        """Give the turn to the other."""
        self._may_go[NAMES[1 - NAMES.index(name)]].release()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("height", 800), ("width", 1066), ("levels", 4), ("threads", 2), ("rounds", 5)):
        parser.add_argument(f"--{option}", type=int, default=default)
    given = parser.parse_args()
    sizes = sizes_of(given.height, given.width, given.levels)
    turns = Turns(given.rounds)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=measure, args=(name, sizes, given.threads, turns)) for name in NAMES]
    for process in processes:
        process.start()
    found = [turns.results.get() for _ in NAMES]
    for process in processes:
        process.join()
    figures = {name: one for name, one, _ in found}
    print(f"{given.height} x {given.width} px, {len(sizes)} maps, {sum(h * w for h, w in sizes)} cells")
    print("| | forward, s | backward, s | both, s | memory, MB |\n|---|---|---|---|---|")
    for name in NAMES:
        one = figures[name]
        print(
            f"| {name} | {one.forward:.3f} | {one.backward:.3f} | {one.forward + one.backward:.3f} | {one.memory:.0f} |"
        )
    ours, theirs = (figures[name] for name in NAMES)
    ratio = (ours.forward + ours.backward) / (theirs.forward + theirs.backward)
    print(f"ratio of times {ratio:.2f}, of memory {ours.memory / theirs.memory:.2f}")
    print(f"largest difference of outputs {abs(found[0][2] - found[1][2]).max():.1e}")


if __name__ == "__main__":
    main()
