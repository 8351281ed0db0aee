"""Do queries look at what they find? Attention inside the boxes of detected objects, against looking everywhere alike.

    python -m benchmarks.attention [--run RUN] [--photos 100]

Trains plain DETR on the demo's drawings (4 minutes) unless RUN holds such a run. Of unseen ones, each object that is found
(score and IoU of at least 0.5, right class) gives the share of its query's cross-attention that lies inside the true box,
averaged over heads; looking everywhere alike would give the share of the photo that the box covers.
"""

import argparse
from pathlib import Path

import torch

from detrkit import Detector, SetCriterion
from detrkit.data.synthetic import SHAPES, SyntheticShapes
from detrkit.demo.run import STYLE, run_demo
from detrkit.explain.explanation import explain
from detrkit.models.detr import DETR

SEED = 42
THRESHOLD = 0.5


def shares_of(detector: Detector, num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per object found: the share of attention inside its box after every decoder layer (N, T), and the uniform one (N)."""
    model: DETR = detector.model
    inside, uniform = [], []
    for sample in SyntheticShapes(num_images, 2 * SEED + 1, STYLE).draw_all():
        explanation = explain(
            model, detector.preprocessing, detector.categories, sample, loss=SetCriterion(len(SHAPES))
        )
        attention, matching = explanation.attention, explanation.matching
        assert matching is not None
        for outcome in matching.outcomes:
            if outcome.score is None or outcome.found_by is None or outcome.score < THRESHOLD:
                continue
            box = sample.annotations.boxes[outcome.object]
            layers = range(model.config.decoder_layers)
            weights = [
                attention.mean_weights("decoder_cross", layer, queries=[outcome.found_by])[0] for layer in layers
            ]
            inside.append(attention.grid.mass_inside(torch.stack(weights), box))
            uniform.append(attention.grid.area_share(box))
    return torch.stack(inside), torch.tensor(uniform)


def main() -> None:
    """Print a line per decoder layer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, default=Path("runs/attention"))
    parser.add_argument("--photos", type=int, default=100)
    arguments = parser.parse_args()
    if not arguments.run.exists():
        run_demo(arguments.run, SEED, model="detr-tiny")
    detector = Detector.load(arguments.run)
    if detector.model.config.decoder != "dense" or detector.model.config.class_scores != "softmax":
        raise SystemExit(f"{arguments.run}: found another model, expected plain DETR; detrkit demo --model detr-tiny")
    inside, uniform = shares_of(detector, arguments.photos)
    print(f"{len(uniform)} objects found in {arguments.photos} unseen drawings; uniform share {uniform.mean():.3f}")
    for layer, mean in enumerate(inside.mean(0).tolist(), start=1):
        print(f"layer {layer}: {mean:.3f} of the attention inside the box, ratio {mean / uniform.mean():.2f}")
    print(f"all layers: ratio {inside.mean() / uniform.mean():.2f}")


if __name__ == "__main__":
    main()
