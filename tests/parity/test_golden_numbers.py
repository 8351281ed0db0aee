"""Some golden numbers, stored in the project; `test_golden.py` compares all of them if ../shared is available."""

import json
from pathlib import Path

import numpy as np
import torch

from detrkit import SetCriterion
from tests.parity.golden import formula_batch, formula_model, formula_targets
from tests.parity.test_golden import official_gradient_norms

GOLDEN = json.loads(Path(__file__).with_name("golden_numbers.json").read_text())


def test_detr_r50_with_formula_weights_gives_the_golden_numbers() -> None:
    model = formula_model("detr-r50")
    assert sum(p.numel() for p in model.parameters()) == GOLDEN["parameters"]
    predictions = model(*formula_batch())

    def close(actual: torch.Tensor, key: str) -> None:
        np.testing.assert_allclose(actual.detach().numpy(), GOLDEN[key], rtol=0, atol=2e-4, err_msg=key)

    close(predictions.class_logits[:, 0, :8], "class_logits_of_query_0_first_8_slots")
    close(predictions.boxes[:, :4], "boxes_of_first_4_queries")
    close(predictions.layer_boxes[:5, :, 0].transpose(0, 1), "boxes_of_query_0_in_layers_0_to_4")

    report = SetCriterion(91)(predictions, formula_targets(91))
    for layer, key in ((-1, "matches_of_last_layer"), (0, "matches_of_layer_0")):
        for image in range(2):
            assert torch.stack(report.matches.pairs(layer, image)).tolist() == GOLDEN[key][image], key
    assert report.losses.keys() == GOLDEN["losses"].keys()
    for part, value in report.losses.items():
        np.testing.assert_allclose(float(value), GOLDEN["losses"][part], rtol=1e-4, atol=1e-6, err_msg=part)
    np.testing.assert_allclose(float(report.total.detach()), GOLDEN["loss_total"], rtol=1e-4)

    report.total.backward()
    norms = official_gradient_norms(model)
    for name, norm in GOLDEN["gradient_norms"].items():
        np.testing.assert_allclose(norms[name], norm, rtol=1e-3, err_msg=name)
