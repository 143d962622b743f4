"""Lengths of what each key writes: hand number, explicit products, shared value heads, precision."""

import math

import pytest
import torch

from attnlens.core.errors import ShapeError
from attnlens.core.flow import value_norms


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hand_number():
    output = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    assert value_norms(torch.tensor([[[[1.0, 2.0]]]]), output).item() == pytest.approx(math.sqrt(17))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("out", [3, 12])  # narrower than a head, and wider
def test_equals_the_explicit_vectors(key_heads: int, out: int):
    value, output = random(2, key_heads, 5, 6), random(4, 6, out, seed=1)
    expected = (value.repeat_interleave(4 // key_heads, 1) @ output).norm(dim=-1)
    got = value_norms(value, output)
    assert got.shape == (2, 4, 5)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_half_precision_is_computed_in_float32():
    value, output = random(1, 2, 5, 6).bfloat16(), random(2, 6, 12, seed=1).bfloat16()
    got = value_norms(value, output)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), value_norms(value.double(), output.double()), atol=1e-5, rtol=1e-5)


def test_shapes_must_fit():
    with pytest.raises(ShapeError, match="must fit value"):
        value_norms(random(1, 2, 5, 6), random(2, 5, 12))
    with pytest.raises(ShapeError, match="must fit value"):
        value_norms(random(1, 2, 5, 6), random(3, 6, 12))
