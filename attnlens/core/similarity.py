"""How alike two sets of hidden states are: debiased linear CKA, streamed over batches, and the relative change.

Axes: N token, P and Q width of either side, D width of both.
CKA sees what rotation and scale leave (which tokens are alike), the relative change sees every movement. Tokens of one
text are no independent draws, so CKA describes and carries no interval.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError

# HSIC₁ averages over sets of four different tokens.
FEWEST = 4


@dataclass(frozen=True)
class Similarity:
    """Sums of HSIC₁ over batches, each batch counted by its tokens.

    cross, first, second: Σ n · HSIC₁ of x with y, of x with itself, of y with itself; tokens: Σ n of the batches
    counted; skipped: tokens of batches of fewer than four, which have no HSIC₁.
    The memory is D² or N² numbers of one batch, whichever is less, however many batches there are.
    Reference: Nguyen, Raghu & Kornblith 2021: numerators and denominators are averaged over batches, and the ratio is
    taken at the end (a mean of ratios would be biased). Batches there are equal; here a short last batch counts less.
    """

    cross: float = 0.0
    first: float = 0.0
    second: float = 0.0
    tokens: int = 0
    skipped: int = 0

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Similarity":
        """Of one batch of states x (N, P) and y (N, Q) of the same tokens, in float64."""
        x, y = _centred(x, y)
        n = len(x)
        if n < FEWEST:
            return cls(skipped=n)
        cross, first, second = _products(x, y)
        left, right = _Margins.of(x), _Margins.of(y)
        return cls(n * _hsic(cross, left, right), n * _hsic(first, left, left), n * _hsic(second, right, right), n)

    def merge(self, other: "Similarity") -> "Similarity":
        """Both data sets together; neither record is changed."""
        return Similarity(
            self.cross + other.cross,
            self.first + other.first,
            self.second + other.second,
            self.tokens + other.tokens,
            self.skipped + other.skipped,
        )

    @property
    def cka(self) -> float:
        """Debiased CKA: 1 for equal geometry, about 0 for independent states, where it may fall below 0.

        NaN without data and where HSIC₁ of a side with itself is not above 0: as an unbiased estimate it may be, and
        then nothing is known of that side's geometry. Being a ratio of estimates it may pass 1 by a little.
        """
        if not (self.first > 0 and self.second > 0):
            return math.nan
        return self.cross / math.sqrt(self.first * self.second)


def hsic(x: Tensor, y: Tensor) -> float:
    """HSIC₁ of x (N, P) and y (N, Q) with linear kernels, unbiased: 0 on average for independent rows.

    With K̃ = xxᵀ and L̃ = yyᵀ without their diagonals:
    [tr K̃L̃ + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2 · 1ᵀK̃L̃1 / (n−2)] / (n(n−3)); NaN below four tokens.
    Hand example: x = (1, 1, 0, 0), y = (1, 0, 1, 0) → (0 + 2·2/6 − 1) / 4 = −1/12; x with itself gives
    (2 + 2·2/6 − 2) / 4 = 1/6.
    Reference: Song et al. 2012, equation 5.
    """
    x, y = _centred(x, y)
    return _hsic(_products(x, y)[0], _Margins.of(x), _Margins.of(y)) if len(x) >= FEWEST else math.nan


def cka(x: Tensor, y: Tensor) -> float:
    """Debiased linear CKA of x (N, P) and y (N, Q): HSIC₁ of both over the root of HSIC₁ of each with itself.

    Unchanged by rotation, scale and shift of either side. The biased form is near 1 for unrelated states as soon as
    the width passes the number of tokens: 50 tokens of independent noise in 384 dimensions have .88, debiased .01.
    Hand example: (1, 1, 0, 0) and (1, 0, 1, 0) → (−1/12) / (1/6) = −1/2.
    Reference: Kornblith et al. 2019; Song et al. 2012 for the debiased form.
    """
    return Similarity.of(x, y).cka


def relative_change(base: Tensor, tuned: Tensor) -> Tensor:
    """‖h′ − h‖ / ‖h‖ of each token: base, tuned (*, D) → (*) float64, at least 0, exactly 0 for equal states.

    Lengths are taken in float32 or better. NaN where the base is all zeros and the tuned state is not. Rotation and
    scale count as change.
    Hand example: (3, 4) → (3, 5): 1/5.
    """
    if base.shape != tuned.shape or not base.ndim:
        raise ShapeError(
            f"base and tuned states (*, D) must have one shape; got {tuple(base.shape)} and {tuple(tuned.shape)}. "
            "Give the states of the same tokens and layer."
        )
    base, tuned = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (base, tuned))
    moved, length = _wide((tuned - base).norm(dim=-1)), _wide(base.norm(dim=-1))
    return torch.where(moved == 0, moved, moved / torch.where(length > 0, length, math.nan))


class _Margins(NamedTuple):
    """Diagonal (N) of the kernel xxᵀ, and the sums (N) of its rows without the diagonal."""

    diagonal: Tensor
    rows: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_Margins":
        diagonal = x.square().sum(1)
        return cls(diagonal, x @ x.sum(0) - diagonal)


def _products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ K∘L, Σ K∘K and Σ L∘L of the kernels K = xxᵀ and L = yyᵀ.

    Σ K∘L = ‖xᵀy‖²: whichever of tokens and widths is fewer makes the smaller matrices.
    """
    if len(x) < min(x.shape[1], y.shape[1]):
        left, right = x @ x.T, y @ y.T
        return (left * right).sum(), left.square().sum(), right.square().sum()
    return (x.T @ y).square().sum(), (x.T @ x).square().sum(), (y.T @ y).square().sum()


def _hsic(product: Tensor, x: _Margins, y: _Margins) -> float:
    """HSIC₁ of centred states from the sum over K∘L and the margins of both kernels."""
    n = len(x.rows)
    trace = product - x.diagonal @ y.diagonal
    total = trace + x.rows.sum() * y.rows.sum() / ((n - 1) * (n - 2)) - 2 * (x.rows @ y.rows) / (n - 2)
    return float(total / (n * (n - 3)))


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 less their means: HSIC₁ is the same, but large common offsets no longer cancel digits."""
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(
            f"states (N, P) and (N, Q) of the same tokens are needed; got {tuple(x.shape)} and {tuple(y.shape)}. "
            "Select the tokens of both with one mask."
        )
    if not len(x):
        return _wide(x), _wide(y)
    # Less the first row before the mean: constant states become exact zeros.
    x, y = _wide(x) - _wide(x[:1]), _wide(y) - _wide(y[:1])
    return x - x.mean(0), y - y.mean(0)


def _wide(x: Tensor) -> Tensor:
    """In float64 where it lies; Apple's devices have none, so theirs comes to the processor."""
    return (x.detach().cpu() if x.device.type == "mps" else x.detach()).double()
