"""Dropout: probability, scale and gradients; dropout of attention weights and residuals."""

import pytest
import torch
from torch.nn import functional as F

from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.dropout import Dropout, dropout, dropout_mask
from detrkit.models.layers import FeedForward, LayerConfig, Residual


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 101), (200, 1000)])
def test_dropped_share_and_scale_follow_the_probability(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.ones(shape, requires_grad=True)
    dropped = dropout(values, p)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - p)), rtol=1e-4, atol=0)
    if values.numel() > 10_000:
        assert float((~kept).float().mean()) == pytest.approx(p, abs=0.01)
        assert float(dropped.detach().mean()) == pytest.approx(1, abs=0.01)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, dropped.detach())


def test_probability_that_rounds_to_one_keeps_a_finite_scale() -> None:
    kept, scale = dropout_mask(torch.ones(10), 0.999999)
    assert scale == 65536
    assert set(kept.tolist()) <= {0.0, 1.0}


def test_attention_with_dropout_has_the_same_mean() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 4, 0.5).train()
    heads = [attention.split_heads(torch.randn(4, 200, 16)) for _ in range(2)]
    outputs = attention.attend_with_dropout(heads[0], heads[1], torch.ones(4, 4, 200, 4), None)
    assert float(outputs.mean()) == pytest.approx(1, abs=0.02)
    assert float(outputs.std()) > 0.01


def test_residuals_drop_the_sublayer_output_and_feed_forward_networks_the_activations() -> None:
    torch.manual_seed(0)
    config = LayerConfig(width=8, num_heads=2, dim_feedforward=4096, dropout=0.5, pre_norm=True)
    added = Residual(config).train().after(torch.zeros(1, 500, 8), torch.ones(1, 500, 8))
    assert set(added.unique().tolist()) == {0.0, 2.0}
    network, tokens = FeedForward(config).train(), torch.randn(1, 1, 8)
    with torch.no_grad():
        samples = torch.stack([network(tokens) for _ in range(50)])
        expected = network.eval()(tokens)
    assert float(samples.std(0).mean()) > 0.01
    torch.testing.assert_close(samples.mean(0), expected, rtol=0, atol=float(samples.std(0).max()))


def test_dropout_is_reproducible_by_seed_and_identity_in_evaluation() -> None:
    module = Dropout(0.3)
    values = torch.randn(50, 50)
    torch.manual_seed(1)
    first = module(values)
    torch.manual_seed(1)
    assert torch.equal(first, module(values))
    assert not torch.equal(first, module(values))
    assert module.eval()(values) is values


def test_attention_with_negligible_dropout_equals_the_fused_one() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 4, 0.1).train()
    tokens, mask = torch.randn(2, 9, 16), torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 6:] = True
    heads = [attention.split_heads(tokens)] * 3
    attend = ~mask[:, None, None, :]
    attention.dropout = 1e-9
    torch.testing.assert_close(
        attention.attend_with_dropout(heads[0], heads[1], heads[2], attend),
        F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attend),
    )
