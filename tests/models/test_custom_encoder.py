"""An encoder from outside the package: one module, its name in the config's Literal, one line in the build table."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from detrkit import SetCriterion
from detrkit.config.model import DecoderName, EncoderName, ModelConfig, QueryName
from detrkit.models import build
from detrkit.models.detr import DETR
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.parts import Encoder
from detrkit.models.presets import preset_config
from detrkit.structures import Target


class ConvolutionEncoder(nn.Module):
    """Residual 3 x 3 convolution of every feature map."""

    activation_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(config.hidden_dim, config.hidden_dim, 3, padding=1)

    def forward(self, features: FeatureMaps) -> FeatureMaps:
        maps = [features.map_of(level) for level in range(len(features.sizes))]
        outputs: list[Tensor] = [(one + self.convolution(one)).flatten(2).transpose(1, 2) for one in maps]
        return features.with_tokens(torch.cat(outputs, dim=1))


@pytest.fixture(params=["detr-tiny", "detrkit-s"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DETR:
    monkeypatch.setattr(build, "ENCODERS", {**build.ENCODERS, "convolution": ConvolutionEncoder})
    config = preset_config(request.param, num_classes=3, num_queries=9)
    return build.model_from_config(config.model_copy(update={"encoder": "convolution"}))


def test_custom_encoder_is_trained_with_the_rest_of_the_model(model: DETR) -> None:
    assert isinstance(model.encoder, ConvolutionEncoder)
    assert isinstance(model.encoder, Encoder)
    targets = [Target(torch.tensor([[0.5, 0.5, 0.2, 0.3]]), torch.tensor([1]))]
    predictions = model(torch.randn(1, 3, 64, 96))
    SetCriterion(3, class_scores=model.config.class_scores)(predictions, targets).total.backward()
    gradients = [parameter.grad for parameter in model.encoder.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("names", "table"),
    [(EncoderName, build.ENCODERS), (DecoderName, build.DECODERS), (QueryName, build.QUERY_SOURCES)],
    ids=["encoder", "decoder", "queries"],
)
def test_every_name_of_the_config_has_a_line_in_the_build_table(names: object, table: dict[str, object]) -> None:
    assert set(get_args(names)) == set(table)
