"""Time and memory of deformable attention, compared with transformers without its compiled operation.

    python -m benchmarks.deformable [--height 800] [--width 1066] [--levels 4] [--threads 2] [--rounds 5]

One layer each with the same weights; the queries are all cells of all feature maps, as in the encoder. The two take turns
in processes of their own. Times are the minimum over the rounds; memory is the peak of the process above its memory before
the first round. The last line compares the outputs.
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
from detrkit.models.layers import LayerConfig

WIDTH, HEADS, POINTS = 256, 8, 4
NAMES = ("detrkit", "transformers")


@dataclass(frozen=True)
class Measurement:
    """Seconds and megabytes of one implementation."""

    forward: float
    backward: float
    memory: float


def feature_sizes(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of the feature maps of stride 8, 16, ..."""
    return tuple((-(-height // 2**power), -(-width // 2**power)) for power in range(3, 3 + levels))


def random_features(sizes: tuple[tuple[int, int], ...]) -> FeatureMaps:
    """Create feature maps of noise."""
    tokens = torch.randn(1, sum(h * w for h, w in sizes), WIDTH)
    return FeatureMaps(tokens, torch.zeros_like(tokens), None, sizes)


def build(name: str, sizes: tuple[tuple[int, int], ...]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Build one layer, and a function that calls it."""
    torch.manual_seed(0)
    shape = LayerConfig(WIDTH, HEADS, 4 * WIDTH, 0.0, False, num_feature_levels=len(sizes), num_points=POINTS)
    layer = DeformableAttention(shape)
    nn.init.normal_(layer.offset_projection.weight, std=0.1)
    nn.init.normal_(layer.weight_projection.weight, std=0.1)
    features = random_features(sizes)
    references = features.to_map_coordinates(torch.cat(features.cell_centers(), dim=1))
    if name == "detrkit":
        return layer, lambda tokens: layer(tokens, references, features.with_tokens(tokens))

    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    config = DeformableDetrConfig(num_feature_levels=len(sizes), disable_custom_kernels=True)
    converted = DeformableDetrMultiscaleDeformableAttention(config, num_heads=HEADS, n_points=POINTS)
    names = {
        "sampling_offsets": "offset_projection",
        "attention_weights": "weight_projection",
        "value_proj": "value_projection",
        "output_proj": "output_projection",
    }
    converted.load_state_dict(
        {f"{a}.{kind}": layer.state_dict()[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}
    )
    shapes = torch.tensor(sizes)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])

    def call(tokens: Tensor) -> Tensor:
        arguments = {"spatial_shapes": shapes, "spatial_shapes_list": list(sizes), "level_start_index": starts}
        output: Tensor = converted(tokens, encoder_hidden_states=tokens, reference_points=references, **arguments)[0]
        return output

    return converted, call


def measure(name: str, sizes: tuple[tuple[int, int], ...], threads: int, turns: "Turns") -> None:
    """Measure all rounds of one implementation, each when it is its turn."""
    torch.set_num_threads(threads)
    _, call = build(name, sizes)
    torch.manual_seed(1)
    tokens = random_features(sizes).tokens.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(turns.rounds):
        turns.wait(name)
        start = time.perf_counter()
        output = call(tokens)
        middle = time.perf_counter()
        output.sum().backward()
        times.append((middle - start, time.perf_counter() - middle))
        turns.end(name)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    turns.results.put(
        (name, Measurement(min(t[0] for t in times), min(t[1] for t in times), memory), output.detach().numpy())
    )


class Turns:
    """Lets the two processes run alternately."""

    def __init__(self, rounds: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.rounds = rounds
        self.results = context.SimpleQueue()
        self._turn = {name: context.Semaphore(int(name == NAMES[0])) for name in NAMES}

    def wait(self, name: str) -> None:
        """Wait for the turn of this implementation."""
        self._turn[name].acquire()

    def end(self, name: str) -> None:
        """Give the turn to the other implementation."""
        self._turn[NAMES[1 - NAMES.index(name)]].release()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("height", 800), ("width", 1066), ("levels", 4), ("threads", 2), ("rounds", 5)):
        parser.add_argument(f"--{option}", type=int, default=default)
    arguments = parser.parse_args()
    sizes = feature_sizes(arguments.height, arguments.width, arguments.levels)
    turns = Turns(arguments.rounds)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=measure, args=(name, sizes, arguments.threads, turns)) for name in NAMES]
    for process in processes:
        process.start()
    results = [turns.results.get() for _ in NAMES]
    for process in processes:
        process.join()
    measurements = {name: measurement for name, measurement, _ in results}
    print(f"{arguments.height} x {arguments.width} px, {len(sizes)} maps, {sum(h * w for h, w in sizes)} cells")
    print("| | forward, s | backward, s | both, s | memory, MB |\n|---|---|---|---|---|")
    for name in NAMES:
        one = measurements[name]
        both = one.forward + one.backward
        print(f"| {name} | {one.forward:.3f} | {one.backward:.3f} | {both:.3f} | {one.memory:.0f} |")
    first, second = (measurements[name] for name in NAMES)
    ratio = (first.forward + first.backward) / (second.forward + second.backward)
    print(f"ratio of times {ratio:.2f}, of memory {first.memory / second.memory:.2f}")
    print(f"maximum difference of outputs {abs(results[0][2] - results[1][2]).max():.1e}")


if __name__ == "__main__":
    main()
