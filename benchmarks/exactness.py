"""Differences between this implementation and the published code.

    python -m benchmarks.exactness FOLDER_OF_GOLDEN_FILES

Prints, for every golden file, the maximum difference of outputs (absolute), losses and gradient norms (relative).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tests.parity.golden import formula_batch, formula_model, formula_targets
from tests.parity.test_golden import VARIANTS, official_gradient_norms

from detrkit import SetCriterion


def compare(file: Path) -> tuple[float, float, float]:
    """Return the maximum differences of outputs, losses and gradient norms."""
    golden = np.load(file)
    name, overrides = VARIANTS[file.stem]
    model = formula_model(name, **overrides)
    num_classes = model.config.num_classes
    predictions = model(*formula_batch())
    output = SetCriterion(num_classes)(predictions, formula_targets(num_classes, with_masks=model.config.mask_head))
    output.total.backward()
    outputs = max(
        float((torch.from_numpy(golden[key]) - tensor.detach()).abs().max())
        for key, tensor in (("pred_logits", predictions.class_logits), ("pred_boxes", predictions.boxes))
    )
    losses = max(
        abs(float(value) - float(golden[f"loss/{part}"])) / max(abs(float(golden[f"loss/{part}"])), 1e-12)
        for part, value in output.losses.items()
    )
    norms = official_gradient_norms(model)
    expected = {
        key.removeprefix("gradnorm/"): float(golden[key]) for key in golden.files if key.startswith("gradnorm/")
    }
    floor = 1e-3 * max(expected.values())  # smaller norms consist of rounding errors
    gradients = max(abs(norms[key] - value) / value for key, value in expected.items() if value > floor)
    return outputs, losses, gradients


def main() -> None:
    """Print one line per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(f"{'file':<32} outputs    losses     gradient norms")
    for name in VARIANTS:
        outputs, losses, gradients = compare(folder / f"{name}.npz")
        print(f"{name:<32} {outputs:.1e}    {losses:.1e}    {gradients:.1e}")


if __name__ == "__main__":
    main()
