"""Dropout drops the share that it should, scales what is left, and its gradient follows."""

import pytest
import torch
from torch.nn import functional as F

from detrkit.models.attention import MultiHeadAttention
from detrkit.models.dropout import Dropout, drop


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 101), (200, 1000)])
def test_share_and_scale(share: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.ones(shape, requires_grad=True)
    dropped = drop(values, share)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - share)), rtol=1e-4, atol=0)
    if values.numel() > 10_000:
        assert float((~kept).float().mean()) == pytest.approx(share, abs=0.01)
        assert float(dropped.detach().mean()) == pytest.approx(1, abs=0.01)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, dropped.detach())


def test_the_same_seed_drops_the_same_and_eval_drops_nothing() -> None:
    module = Dropout(0.3)
    values = torch.randn(50, 50)
    torch.manual_seed(1)
    first = module(values)
    torch.manual_seed(1)
    assert torch.equal(first, module(values))
    assert not torch.equal(first, module(values))
    assert module.eval()(values) is values


def test_attention_without_dropping_anything_is_the_fused_one() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 4, 0.1).train()
    tokens, mask = torch.randn(2, 9, 16), torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 6:] = True
    heads = [attention.split_heads(tokens)] * 3
    attend = ~mask[:, None, None, :]
    attention.dropout = 1e-9
    torch.testing.assert_close(
        attention.mix_with_dropout(heads[0], heads[1], heads[2], attend),
        F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attend),
    )
