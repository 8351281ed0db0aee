"""Charts of training."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from detrkit.visualization.charts import draw_training_curves


def pixels_of_first_curve(steps: Sequence[int]) -> int:
    """Number of pixels in the colour of the first curve in the chart of losses, below its legend."""
    png = draw_training_curves([{"kind": "train", "step": step, "loss": 2.0} for step in steps])
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    chart = drawn[drawn.shape[0] // 4 :, : drawn.shape[1] // 2].astype(int)
    return int((np.abs(chart - [31, 119, 180]).sum(-1) < 60).sum())


def test_single_entry_is_drawn_as_a_dot() -> None:
    assert pixels_of_first_curve([10]) > 5
    assert pixels_of_first_curve([10, 20]) > pixels_of_first_curve([10])
    assert pixels_of_first_curve([]) == 0
