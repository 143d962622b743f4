"""Lengths of what each key writes: hand number, explicit products, shared value heads, precision."""

import math

import pytest
import torch

from attnlens.core.errors import ShapeError
from attnlens.core.flow import rollout_step, summed_lengths, value_norms


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


def test_summed_lengths_by_hand():
    """‖[3, 0] + [0, 4]‖ = 5, and vectors that cancel are none."""
    weights, value = torch.ones(1, 2, 1, 1), torch.full((1, 1, 1, 1), 3.0)
    assert summed_lengths(weights, value, torch.tensor([[[1.0, 0]], [[0, 4 / 3]]])).item() == pytest.approx(5.0)
    assert summed_lengths(weights, value, torch.tensor([[[1.0, 0]], [[-1.0, 0]]])).item() == 0.0


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_summed_lengths_equal_the_explicit_sum(key_heads: int):
    weights, value, output = random(2, 4, 3, 5).softmax(-1), random(2, key_heads, 5, 6), random(4, 6, 12, seed=1)
    vectors = value.repeat_interleave(4 // key_heads, 1) @ output  # (B, H, K, M)
    expected = (weights[..., None] * vectors[:, :, None]).sum(1).norm(dim=-1)
    torch.testing.assert_close(summed_lengths(weights, value, output), expected, atol=1e-7, rtol=1e-7)


def test_rollout_by_hand():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])[None, None]
    first = rollout_step(None, weights)
    assert first.tolist() == [[[1.0, 0.0], [0.25, 0.75]]]
    assert rollout_step(first, weights).tolist() == [[[1.0, 0.0], [0.4375, 0.5625]]]  # ¼ + ¾·¼, ¾·¾
    padded = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])[None, None]
    assert rollout_step(None, padded).tolist() == [[[1.0, 0.0], [0.0, 1.0]]]
    with pytest.raises(ShapeError, match="of a text on itself"):
        rollout_step(None, torch.ones(1, 1, 2, 3))


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_rollout_multiplies_from_the_left_and_means_over_heads(turn: float):
    layers = [torch.stack([random(4, 4, seed=s) * turn, random(4, 4, seed=s + 9)])[None].softmax(-1) for s in (0, 1, 2)]
    rolled, product = None, torch.eye(4, dtype=torch.float64)
    for layer in layers:
        rolled = rollout_step(rolled, layer)
        product = (layer[0].sum(0) / 2 + torch.eye(4)) / 2 @ product
    assert rolled is not None
    torch.testing.assert_close(rolled[0], product)
