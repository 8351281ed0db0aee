"""Share of the cross-attention inside the boxes of detected objects, compared with uniform attention.

    python -m benchmarks.attention [--run RUN] [--images 100]

Trains plain DETR on the demo's images (4 minutes) unless RUN is such a run. For every detected object (score and IoU of at
least 0.5, right class) of unseen images, measures the share of the query's cross-attention inside the ground truth box,
averaged over heads. Uniform attention would give the share of the image area that the box covers.
"""

import argparse
from pathlib import Path

import torch

from detrkit import Detector, SetCriterion
from detrkit.data.synthetic import SHAPES, SyntheticShapes
from detrkit.demo.run import STYLE, run_demo
from detrkit.explain.explain import explain_sample

SEED = 42
THRESHOLD = 0.5


def attention_shares(detector: Detector, num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of attention inside the box of every detected object after every decoder layer (N, T).

    The second value is the share of uniform attention (N).
    """
    inside, uniform = [], []
    criterion = SetCriterion(len(SHAPES))
    for sample in SyntheticShapes(num_images, 2 * SEED + 1, STYLE).draw_all():
        explanation = explain_sample(detector, sample, criterion=criterion)
        attention, matching = explanation.attention, explanation.matching
        assert matching is not None
        for outcome in matching.outcomes:
            if outcome.detected_by is None or not outcome.is_detected(THRESHOLD):
                continue
            box = sample.annotations.boxes[outcome.object]
            weights = [
                attention.mean_weights("decoder_cross", layer, queries=[outcome.detected_by])[0]
                for layer in range(explanation.config.decoder_layers)
            ]
            inside.append(attention.grid.mass_inside(torch.stack(weights), box))
            uniform.append(attention.grid.area_share(box))
    return torch.stack(inside), torch.tensor(uniform)


def main() -> None:
    """Print a line per decoder layer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, default=Path("runs/attention"))
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    if not arguments.run.exists():
        run_demo(arguments.run, SEED, model="detr-tiny")
    detector = Detector.load(arguments.run)
    if detector.model.config.decoder != "dense" or detector.model.config.class_scores != "softmax":
        raise SystemExit(f"{arguments.run} is not a run of plain DETR; train one with: detrkit demo --model detr-tiny")
    inside, uniform = attention_shares(detector, arguments.images)
    print(f"{len(uniform)} objects detected in {arguments.images} unseen images; uniform share {uniform.mean():.3f}")
    for layer, mean in enumerate(inside.mean(0).tolist(), start=1):
        print(f"layer {layer}: {mean:.3f} of the attention inside the box, ratio {mean / uniform.mean():.2f}")
    print(f"all layers: ratio {inside.mean() / uniform.mean():.2f}")


if __name__ == "__main__":
    main()
