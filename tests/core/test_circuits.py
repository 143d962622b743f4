"""Products of a head's weights: a hand number, dense references, and what they must not see."""

import pytest
import torch
from torch import Tensor

from attnlens.core.circuits import Factors, output_value, product_change, query_key
from attnlens.core.errors import ShapeError

HEADS, KEY_HEADS, SIZE, WIDTH = 4, 2, 3, 10


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """One attention module with grouped queries: query, key, value, output, and biases."""
    return {
        "q": drawn(HEADS * SIZE, WIDTH),
        "bq": drawn(HEADS * SIZE, seed=1),
        "k": drawn(KEY_HEADS * SIZE, WIDTH, seed=2),
        "v": drawn(KEY_HEADS * SIZE, WIDTH, seed=3),
        "bv": drawn(KEY_HEADS * SIZE, seed=4),
        "o": drawn(WIDTH, HEADS * SIZE, seed=5),
    }


def both(w: dict[str, Tensor]) -> tuple[Factors, Factors]:
    return (
        query_key(w["q"], w["bq"], w["k"], HEADS, KEY_HEADS),
        output_value(w["o"], w["v"], w["bv"], HEADS, KEY_HEADS),
    )


def dense(w: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Both products of every head as full matrices, head by head."""
    scores, outputs = [], []
    for head in range(HEADS):
        rows = slice(head * SIZE, (head + 1) * SIZE)
        shared = slice(head // (HEADS // KEY_HEADS) * SIZE, (head // (HEADS // KEY_HEADS) + 1) * SIZE)
        scores.append(torch.cat([w["q"][rows].T @ w["k"][shared], (w["bq"][rows] @ w["k"][shared])[None]]))
        out = w["o"][:, rows]
        outputs.append(torch.cat([out @ w["v"][shared], (out @ w["bv"][shared])[:, None]], 1))
    return scores, outputs


def moved(w: dict[str, Tensor], size: float = 0.1) -> dict[str, Tensor]:
    return {name: tensor + size * torch.roll(tensor, 1) for name, tensor in w.items()}


def test_hand_number():
    old = Factors(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, 0.0]]]))
    change = product_change(old, Factors(old.left, torch.tensor([[[2.0, 1.0]]])))
    assert change.delta_norm.tolist() == pytest.approx([1], rel=1e-15)
    assert change.base_norm.tolist() == [2] and change.relative.tolist() == pytest.approx([0.5], rel=1e-15)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_equals_the_dense_reference(weights: dict[str, Tensor], size: float):
    tuned = moved(weights, size)
    for circuit, (old, new) in enumerate(zip(both(weights), both(tuned), strict=True)):
        change = product_change(old, new)
        for head, (before, after) in enumerate(zip(dense(weights)[circuit], dense(tuned)[circuit], strict=True)):
            assert change.base_norm[head].item() == pytest.approx(before.norm().item(), rel=1e-13)
            assert change.delta_norm[head].item() == pytest.approx((after - before).norm().item(), rel=1e-8)


def test_a_change_of_basis_is_no_change(weights: dict[str, Tensor]):
    """I-7: per key head any invertible M for queries and keys, any N for values and outputs; any key bias."""
    turned = {name: tensor.clone() for name, tensor in weights.items()}
    per = HEADS // KEY_HEADS
    for group in range(KEY_HEADS):
        first, second = drawn(SIZE, SIZE, seed=20 + group), drawn(SIZE, SIZE, seed=30 + group)
        keys = slice(group * SIZE, (group + 1) * SIZE)
        turned["k"][keys] = first @ weights["k"][keys]
        turned["v"][keys] = second @ weights["v"][keys]
        turned["bv"][keys] = second @ weights["bv"][keys]
        for head in range(group * per, (group + 1) * per):
            rows = slice(head * SIZE, (head + 1) * SIZE)
            turned["q"][rows] = torch.linalg.inv(first).T @ weights["q"][rows]
            turned["bq"][rows] = torch.linalg.inv(first).T @ weights["bq"][rows]
            turned["o"][:, rows] = weights["o"][:, rows] @ torch.linalg.inv(second)
    assert (turned["q"] - weights["q"]).norm() > weights["q"].norm(), "the matrices themselves moved far"
    for old, new in zip(both(weights), both(turned), strict=True):
        assert product_change(old, new).relative.max() < 1e-13


def test_no_change_is_exactly_zero_and_swapping_keeps_the_size(weights: dict[str, Tensor]):
    tuned = moved(weights)
    for old, new in zip(both(weights), both(tuned), strict=True):
        assert product_change(old, Factors(old.left.clone(), old.right.clone())).delta_norm.tolist() == [0] * HEADS
        there, back = product_change(old, new), product_change(new, old)
        torch.testing.assert_close(there.delta_norm, back.delta_norm, rtol=1e-12, atol=0)
        torch.testing.assert_close(back.base_norm, product_change(new, new).base_norm, rtol=1e-14, atol=0)


def test_permuted_heads_permute_the_result(weights: dict[str, Tensor]):
    """I-8, exactly: key heads in another order, each with its query heads."""
    tuned = moved(weights)

    def permuted(w: dict[str, Tensor]) -> dict[str, Tensor]:
        queries = torch.arange(HEADS * SIZE).reshape(KEY_HEADS, -1).flip(0).flatten()
        keys = torch.arange(KEY_HEADS * SIZE).reshape(KEY_HEADS, -1).flip(0).flatten()
        rows = {"q": queries, "bq": queries, "k": keys, "v": keys, "bv": keys}
        return {name: w[name][index] for name, index in rows.items()} | {"o": w["o"][:, queries]}

    for circuit in range(2):
        straight = product_change(both(weights)[circuit], both(tuned)[circuit]).relative
        other = product_change(both(permuted(weights))[circuit], both(permuted(tuned))[circuit]).relative
        assert torch.equal(other, straight.reshape(KEY_HEADS, -1).flip(0).flatten())


def test_shared_keys_are_the_repeated_keys(weights: dict[str, Tensor]):
    repeated = weights["k"].reshape(KEY_HEADS, SIZE, WIDTH).repeat_interleave(2, 0).flatten(0, 1)
    shared, full = both(weights)[0], query_key(weights["q"], weights["bq"], repeated, HEADS, HEADS)
    assert torch.equal(shared.left, full.left) and len(shared.right) == KEY_HEADS
    change = product_change(shared, shared._replace(left=2 * shared.left))
    expected = product_change(full, full._replace(left=2 * full.left))
    assert all(torch.equal(*parts) for parts in zip(change, expected, strict=True))
    assert expected.relative.tolist() == pytest.approx([1] * HEADS, rel=1e-12)


def test_a_bias_of_queries_counts_and_zero_products_are_told(weights: dict[str, Tensor]):
    tuned = weights | {"bq": weights["bq"] + 1}
    change = product_change(both(weights)[0], both(tuned)[0])
    expected = weights["k"].reshape(KEY_HEADS, SIZE, WIDTH).sum(1).norm(dim=1).repeat_interleave(2)
    torch.testing.assert_close(change.delta_norm, expected, rtol=1e-12, atol=0)
    plain = query_key(weights["q"], None, weights["k"], HEADS, KEY_HEADS)
    assert plain.left.shape == (HEADS, SIZE, WIDTH)
    nothing = Factors(torch.zeros_like(plain.left), plain.right)
    assert product_change(nothing, plain).relative.isnan().all()
    assert product_change(nothing, nothing).relative.tolist() == [0] * HEADS
    assert product_change(plain, nothing).relative.tolist() == pytest.approx([1] * HEADS, rel=1e-14)


def test_float32_weights_are_widened(weights: dict[str, Tensor]):
    narrow = {name: tensor.float() for name, tensor in weights.items()}
    wide = {name: tensor.double() for name, tensor in narrow.items()}
    old = product_change(both(wide)[0], both(moved(wide))[0])
    new = product_change(both(narrow)[0], both(moved(narrow))[0])
    assert new.delta_norm.dtype == torch.float64
    torch.testing.assert_close(old.base_norm, new.base_norm, rtol=1e-15, atol=0)


def test_other_shapes_are_refused(weights: dict[str, Tensor]):
    old = both(weights)
    with pytest.raises(ShapeError, match="base and tuned must have one shape"):
        product_change(old[0], old[1]._replace(left=old[1].left[:, :1]))
    with pytest.raises(ShapeError, match=r"\(12, 10\) cannot be split into 5 heads"):
        query_key(weights["q"], None, weights["k"], 5, 1)
    with pytest.raises(ShapeError, match="3 query heads cannot share 2 key heads"):
        query_key(weights["q"], None, weights["k"], 3, 2)
