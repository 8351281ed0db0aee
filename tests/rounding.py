"""Tolerances for one float32 computation done in two ways: other kernels, batch sizes, processors.

A float32 operation is off by up to EPS relative to its result, and a sum of n products by about sqrt(n) EPS relative to its
size, as the errors have random signs. The errors of d such operations in a row add up to at most d sqrt(n) EPS, as layers
with normalisation do not amplify them. Two computations differ by twice of that. Kernels differ in the order of their sums:
those of AMX, AVX-512, AVX2 and ARM, and those for one image and for two.
"""

import torch
from torch import Tensor

EPS = 2.0**-24
# of the small models in these tests: convolutions of 9 x 128 products, and about ten of them, then five layers of six
TERMS, OPERATIONS = 9 * 128, 40


def rounding_error(terms: int = TERMS, operations: int = OPERATIONS) -> float:
    """Return how much two results of one computation may differ, relative to their size.

    Args:
        terms: products that are summed to one value, at most.
        operations: such sums in a row. Default: those of a small model.
    """
    return 2 * operations * terms**0.5 * EPS


def assert_equal_up_to_rounding(
    actual: Tensor, expected: Tensor, *, size: float | None = None, terms: int = TERMS, operations: int = OPERATIONS
) -> None:
    """Compare two results of one computation.

    Args:
        actual: one result.
        expected: the other.
        size: magnitude of the values that are rounded. Default: the largest of `expected`.
        terms: as in `rounding_error`.
        operations: as in `rounding_error`.
    """
    if size is None:
        size = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=size * rounding_error(terms, operations))
