"""Eight threads that predict, record attention and explain with one `Detector` get exactly what each gets alone.

    python -m benchmarks.threads [--seconds 60]

Prints the number of calls of each kind, and how many results differ in any bit from those of the same call alone. Every
other second, another thread changes the mode of the model to training and back, as a training loop does.
"""

import argparse
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detrkit import Detector, build_model
from detrkit.explain.explain import explain

NUM_THREADS = 8


@dataclass(frozen=True)
class ThreadResult:
    """Result of `mix_in_threads`.

    Attributes:
        counts: finished calls of each kind.
        differences: calls whose result differs from that of the call alone, or that raised.
    """

    counts: dict[str, int]
    differences: list[str]

    @property
    def num_calls(self) -> int:
        """Number of calls of all kinds."""
        return sum(self.counts.values())


def small_detector() -> Detector:
    """Build a small detector with random weights whose model is in training mode, with dropout."""
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3, num_queries=20, hidden_dim=32, dim_feedforward=64, dropout=0.5)
    with torch.no_grad():
        model.query_source.get_parameter("weight").mul_(3)
    return Detector.from_model(model, ["circle", "square", "star"], image_size=64)


def small_images() -> list[np.ndarray]:
    """Return random images of different sizes."""
    return [np.random.default_rng(k).integers(0, 255, (60, 80 + 8 * (k % 3), 3), dtype=np.uint8) for k in range(8)]


def predicted(detector: Detector, image: np.ndarray) -> list[Tensor]:
    """Return what a prediction consists of."""
    detections = detector.predict(image, 0.0)
    return [detections.boxes, detections.scores, detections.labels]


def attended(detector: Detector, image: np.ndarray) -> list[Tensor]:
    """Return recorded attention."""
    attention = detector.attention(image)
    return [attention.weights("decoder_cross"), attention.weights("encoder", 0), attention.predictions.boxes]


def explained(detector: Detector, image: np.ndarray) -> list[Tensor]:
    """Return what an explanation consists of."""
    explanation = explain(detector, image)
    shapes = [size for stage in explanation.stages for shape in stage.outputs for size in shape]
    return [explanation.layer_boxes, explanation.attention.weights("decoder_self"), torch.tensor(shapes)]


KINDS: dict[str, Callable[[Detector, np.ndarray], list[Tensor]]] = {
    "predict": predicted,
    "attention": attended,
    "explain": explained,
}


def mix_in_threads(
    detector: Detector, images: Sequence[np.ndarray], *, rounds: int | None = None, seconds: float = 0.0
) -> ThreadResult:
    """Call a detector from eight threads, with kinds and images in another order in each.

    Args:
        detector: shared by all.
        images: every call is also made alone first.
        rounds: calls per thread; None runs for some seconds.
        seconds: duration.
    """
    alone = {(kind, k): run(detector, image) for kind, run in KINDS.items() for k, image in enumerate(images)}
    end = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    differences: list[str] = []
    lock = threading.Lock()

    def work(thread: int) -> None:
        order = np.random.default_rng(thread)
        done = 0
        while done < rounds if rounds is not None else time.monotonic() < end:
            kind, k = list(KINDS)[order.integers(len(KINDS))], int(order.integers(len(images)))
            try:
                result = KINDS[kind](detector, images[k])
                is_same = all(torch.equal(one, other) for one, other in zip(result, alone[kind, k], strict=True))
                fault = "" if is_same else "differs"
            except Exception as error:  # counted as a difference, whatever it is
                fault = f"{type(error).__name__}: {error}"
            done += 1
            with lock:
                counts[kind] += 1
                if fault:
                    differences.append(f"thread {thread}, {kind} of image {k}: {fault}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        detector.model.train(not detector.model.training)
        threads[0].join(0.05 if rounds is not None else 1.0)
        if not threads[0].is_alive():
            for thread in threads:
                thread.join()
    return ThreadResult(dict(counts), differences)


def main() -> None:
    """Print counts and differences."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    result = mix_in_threads(small_detector(), small_images(), seconds=seconds)
    print(f"{NUM_THREADS} threads, {seconds:g} s: {result.num_calls} calls ({result.counts})")
    print(f"{len(result.differences)} results differ from those of the same call alone")
    for difference in result.differences[:10]:
        print(difference)


if __name__ == "__main__":
    main()
