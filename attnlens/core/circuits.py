"""What a head computes with its weights: the products W_QᵀW_K and W_O W_V, which no change of basis alters.

W_Q → M⁻ᵀW_Q with W_K → M W_K leaves attention as it was, whatever the invertible M; so do W_V → N W_V with
W_O → W_O N⁻¹, and any key bias (softmax does not see what a query adds to all its keys). A change of one of these
matrices alone therefore says nothing certain; a change of the product does. Where rotary positions stand between
query and key, the product is that of equal positions; a norm of queries and keys stands outside of it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError

# A sum of products this much smaller than its parts has lost half of float64's digits to them.
CANCELLED = 1e-7


class Factors(NamedTuple):
    """The product leftᵀ·right of each head, never formed: left (H, r, M), right (H_kv, r, N) of grouped queries."""

    left: Tensor
    right: Tensor


class ProductChange(NamedTuple):
    """Frobenius norms (H,) of the change of a product, and of the base's product."""

    delta_norm: Tensor
    base_norm: Tensor

    @property
    def relative(self) -> Tensor:
        """(H,) change over base; NaN where the base's product is 0 and changed."""
        return torch.where(self.delta_norm == 0, 0.0, self.delta_norm / self.base_norm).masked_fill(
            (self.base_norm == 0) & (self.delta_norm > 0), torch.nan
        )


def query_key(query: Tensor, bias: Tensor | None, key: Tensor, heads: int, key_heads: int) -> Factors:
    """Factors of [W_Q | b_Q]ᵀW_K: query (H·r, D), bias (H·r) or None, key (H_kv·r, D); the key bias has no effect."""
    return Factors(_with_bias(_by_head(query, heads), bias), _shared(_by_head(key, key_heads), heads))


def output_value(output: Tensor, value: Tensor, bias: Tensor | None, heads: int, key_heads: int) -> Factors:
    """Factors of W_O [W_V | b_V]: output (D, H·r), value (H_kv·r, D), bias (H_kv·r) or None."""
    return Factors(_by_head(output.T, heads), _shared(_with_bias(_by_head(value, key_heads), bias), heads))


def product_change(base: Factors, tuned: Factors) -> ProductChange:
    """‖L′ᵀR′ − LᵀR‖_F and ‖LᵀR‖_F of every head in O((M+N) r²), no M×N matrix formed.

    The difference is (L′−L)ᵀR′ + Lᵀ(R′−R), so that small changes are not the difference of two large norms. To 1e-8 of
    the change, and where its two halves cancel below that, to 1e-15 of the base.
    Hand example, r = 1: L = [1, 0], R = [2, 0] → L′ = [1, 0], R′ = [2, 1]: change 1, base 2.
    """
    if [part.shape for part in base] != [part.shape for part in tuned]:
        raise ShapeError(
            f"base and tuned must have one shape; got {[tuple(part.shape) for part in base]} and "
            f"{[tuple(part.shape) for part in tuned]}"
        )
    old, new = (Factors(*(part.detach().cpu().double() for part in factors)) for factors in (base, tuned))
    moved = Factors(new.left - old.left, new.right - old.right)
    lefts, rights, rank = _grams(moved.left, old.left), _grams(new.right, moved.right), old.left.shape[1]
    change = _product_norm(lefts, rights, (moved.left, old.left), (new.right, moved.right))
    return ProductChange(
        change, _product_norm(lefts[:, rank:, rank:], old.right @ old.right.mT, (old.left,), (old.right,))
    )


def _grams(first: Tensor, second: Tensor) -> Tensor:
    """The products of the rows of both factors of each head with each other, (H, 2r, 2r)."""
    across = first @ second.mT
    upper, lower = (first @ first.mT, across), (across.mT, second @ second.mT)
    return torch.cat([torch.cat(upper, 2), torch.cat(lower, 2)], 1)


def _product_norm(left: Tensor, right: Tensor, lefts: tuple[Tensor, ...], rights: tuple[Tensor, ...]) -> Tensor:
    """‖LᵀR‖_F = √Σ (LLᵀ)∘(RRᵀ) of each head, from the products LLᵀ (H, s, s) and RRᵀ (H_kv, s, s).

    lefts, rights: what L and R consist of; where that sum has lost its digits, QR factors of them, which take longer.
    """
    repeats = len(left) // len(right)
    right = right.repeat_interleave(repeats, 0)
    squares = (left * right).sum((1, 2))
    lost = squares <= CANCELLED * torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    norms = squares.clamp(min=0).sqrt()
    if bool(lost.any()):
        factors = torch.cat(lefts, 1), torch.cat(rights, 1).repeat_interleave(repeats, 0)
        norms[lost] = _factored_norm(*(factor[lost] for factor in factors))
    return norms


def _factored_norm(left: Tensor, right: Tensor) -> Tensor:
    first, second = (torch.linalg.qr(part.transpose(1, 2), mode="r").R for part in (left, right))
    return torch.linalg.matrix_norm(first @ second.transpose(1, 2))


def _by_head(matrix: Tensor, heads: int) -> Tensor:
    if matrix.ndim != 2 or heads < 1 or matrix.shape[0] % heads:
        raise ShapeError(f"{tuple(matrix.shape)} cannot be split into {heads} heads along its first axis")
    return matrix.reshape(heads, -1, matrix.shape[1])  # (H·r, D) -> (H, r, D)


def _with_bias(matrix: Tensor, bias: Tensor | None) -> Tensor:
    """The bias as one more column: what a constant input of 1 would add."""
    if bias is None:
        return matrix
    return torch.cat([matrix, bias.reshape(*matrix.shape[:2], 1).to(matrix)], 2)  # (H, r, D) -> (H, r, D+1)


def _shared(matrix: Tensor, heads: int) -> Tensor:
    """Key or value heads, of which the query heads that read one follow each other (grouped queries)."""
    if heads % matrix.shape[0]:
        raise ShapeError(f"{heads} query heads cannot share {matrix.shape[0]} key heads evenly")
    return matrix
