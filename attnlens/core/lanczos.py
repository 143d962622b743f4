"""The spectrum of a large matrix from a few products with it, with the error of each number.

Golub–Kahan bidiagonalisation from independent random vectors (Golub & Kahan 1965): each gives quadratures for sums over
singular values (stochastic Lanczos quadrature; Ubaru, Chen & Saad 2017), all together the largest value. A
decomposition takes as much work as thousands of products with a vector; this takes a few hundred.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError

PROBES, STEPS = 16, 16
# Nobody's seed: weights drawn from the same numbers as the random vectors would not be independent of them.
SEED = 0x2545F4914F6CDD1D
# Numbers of the sums are given within this many standard errors: Student's t of 14 degrees of freedom, two-sided 95 %.
CONFIDENCE = 2.145
# How often the largest singular value may lie outside its bound.
MISS = 1e-9
# What rounding the factors of a product to bfloat16 may do to a result; measured: a tenth of it.
BFLOAT16 = 2**-8


@dataclass(frozen=True)
class Estimate:
    """Of the singular values σ of one matrix: √Σσ² (known), the largest one, Σσ, exp H(σ/Σσ) and ‖·‖_F²/σ₁².

    *_error: relative. Of the sums a 95 % interval over the random vectors, and half of what two quadratures that
    enclose Σσ lie apart. Of the largest value how much larger it may be, with probability 1 − 1e-9, whatever the gaps
    (Kuczyński & Woźniakowski 1992); it is smaller by no more than rounding.
    """

    norm: float
    spectral_norm: float
    nuclear_norm: float
    effective_rank: float
    spectral_norm_error: float
    nuclear_norm_error: float
    effective_rank_error: float

    @property
    def stable_rank(self) -> float:
        """‖·‖_F² / σ₁²."""
        return (self.norm / self.spectral_norm) ** 2 if self.spectral_norm > 0 else math.nan

    @property
    def stable_rank_error(self) -> float:
        """How much smaller it may be, relative to it."""
        return 2 * self.spectral_norm_error


def estimated_spectrum(matrix: Tensor, norm: float | None = None) -> Estimate:
    """`Estimate` of a matrix (M, N) of any float dtype, in float32.

    One in bfloat16 is multiplied as it is where that is quick here. norm: its Frobenius norm, where it is known. The
    same numbers each time on one machine.
    Hand example: all singular values equal s (d of them): largest s, sum d·s, effective rank d, without error.
    """
    if matrix.ndim != 2:
        raise ShapeError(f"needed a matrix; got {tuple(matrix.shape)}")
    matrix = matrix.detach()
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    side = tall.shape[1]
    if norm is None:
        norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) if matrix.numel() else 0.0
    if norm == 0 or not math.isfinite(norm):
        return Estimate(norm, norm, norm, math.nan, 0.0, 0.0, 0.0)
    narrow = matrix.dtype == torch.bfloat16 and _multiplies_bfloat16(matrix.device)
    found = _estimate(tall if narrow else tall.float(), norm, min(STEPS, side))
    # Beside a few directions the rounding of products in bfloat16 would count as many more.
    return _estimate(tall.float(), norm, min(STEPS, side)) if narrow and found.effective_rank < side / 8 else found


def _estimate(tall: Tensor, norm: float, steps: int) -> Estimate:
    """From products in the dtype of a matrix that is no wider than it is high, of this Frobenius norm."""
    side, blocks = tall.shape[1], _bidiagonals(tall, steps)
    nodes, weights = _rules(blocks)
    # The rule of Gauss never gives less than the sum of square roots it stands for, that of Radau, with a node at 0,
    # never more.
    above = _sums(nodes, weights, norm, side)
    blocks[:, -1, -1] = 0
    below = _sums(*_rules(blocks), norm, side)
    total, rank = (_between(*pair) for pair in zip(below, above, strict=True))
    rounding = BFLOAT16 if tall.dtype == torch.bfloat16 else 0.0
    return Estimate(
        norm,
        float(nodes.max()),
        total.value,
        rank.value,
        _bound(side, steps) + rounding,
        total.error + rounding,
        rank.error + rounding,
    )


class _Sum(NamedTuple):
    """A number and its relative error."""

    value: float
    error: float


def _between(below: _Sum, above: _Sum) -> _Sum:
    """The middle of two numbers, and as its error how far it may be from what lies between them."""
    middle = (below.value + above.value) / 2
    return _Sum(middle, abs(above.value - below.value) / 2 / middle + max(below.error, above.error))


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are quick here: in units made for them, and not number by number."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _bidiagonals(tall: Tensor, steps: int) -> Tensor:
    """The upper bidiagonal matrices (PROBES, k, k) float64 of k steps from PROBES random vectors on the shorter side.

    Every vector of that side is made orthogonal to all before it: without that rounding would find values twice, or
    invent some; the other side follows (Simon & Zha 2000), and of it the last vectors alone are held.
    """
    rows, side = tall.shape
    start = torch.randn(PROBES, side, generator=torch.Generator().manual_seed(SEED)).to(tall.device)
    rights = torch.zeros(PROBES, steps, side, device=tall.device)
    rights[:, 0] = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    left, back = torch.zeros(PROBES, rows, device=tall.device), torch.zeros(PROBES, 1, device=tall.device)
    blocks = torch.zeros(PROBES, steps, steps, dtype=torch.float64)
    for step in range(steps):
        moved = _times(tall, rights[:, step])
        left, blocks[:, step, step] = _scaled(moved - back * left, moved)
        if step + 1 < steps:
            moved = _times(tall.T, left)
            rest = moved
            for _ in range(2):  # once leaves of a long vector what is long beside a short rest
                shares = rights[:, : step + 1] @ rest[:, :, None]
                rest = rest - (shares.mT @ rights[:, : step + 1])[:, 0]
            rights[:, step + 1], blocks[:, step, step + 1] = _scaled(rest, moved)
            back = blocks[:, step, step + 1, None].to(left)
    return blocks


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """The matrix (M, N) times each of some vectors (PROBES, N): (PROBES, M) float32.

    The matrix as it lies in memory, without a copy; the vectors without gaps, with which it would take twice as long.
    """
    vectors = vectors.to(matrix.dtype)
    product = (matrix @ vectors.T.contiguous()).T if matrix.is_contiguous() else vectors.contiguous() @ matrix.T
    return product.float()


def _scaled(rest: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of some vectors (PROBES, n), made of length 1, and how long it was.

    Where nothing but rounding is left the space is exhausted: vectors of zeros, of length 0.
    """
    lengths = torch.linalg.vector_norm(rest, dim=1)
    lengths = torch.where(lengths > 1e-6 * torch.linalg.vector_norm(whole, dim=1), lengths, 0.0)
    return rest / torch.where(lengths > 0, lengths, torch.inf)[:, None], lengths.cpu()


def _rules(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (PROBES, k) of the quadrature of each bidiagonal matrix; the weights of a row sum to 1."""
    _, nodes, right = torch.linalg.svd(blocks)
    return nodes, right[:, :, 0].square()


def _sums(nodes: Tensor, weights: Tensor, norm: float, side: int) -> tuple[_Sum, _Sum]:
    """Σσ and exp H(σ/Σσ). What each probe says of Σσ², which is known, tells how far it is off (a control variate)."""
    squares = (weights * nodes.square()).sum(1) * side
    of_values = _Probed.of((weights * nodes).sum(1) * side, squares, norm**2)
    total = of_values.mean
    logs = -torch.special.entr(nodes)  # σ log σ
    of_logs = _Probed.of((weights * logs).sum(1) * side, squares, norm**2)
    entropy = math.log(total) - of_logs.mean / total
    # H moves by (1/S + T/S²) dS − dT/S.
    moves = of_values.rest * (1 / total + of_logs.mean / total**2) - of_logs.rest / total
    return (
        _Sum(total, CONFIDENCE * _standard_error(of_values.rest) / total),
        _Sum(math.exp(entropy), CONFIDENCE * _standard_error(moves)),
    )


class _Probed(NamedTuple):
    """The mean of what the probes say, and what is left of each (PROBES,) beside what Σσ² explains."""

    mean: float
    rest: Tensor

    @classmethod
    def of(cls, values: Tensor, squares: Tensor, known: float) -> "_Probed":
        off, spread = squares - squares.mean(), values - values.mean()
        slope = float((off * spread).sum() / off.square().sum()) if bool(off.any()) else 0.0
        return cls(float(values.mean()) - slope * (float(squares.mean()) - known), spread - slope * off)


def _standard_error(rest: Tensor) -> float:
    return math.sqrt(float(rest.square().sum()) / (PROBES - 2) / PROBES)


def _bound(side: int, steps: int) -> float:
    """How much larger σ₁ may be than the largest node, relative to it, but for a chance of MISS.

    One probe misses λ₁ = σ₁² by ε with a chance below 1.648 √N exp(−√ε (2k − 1)); all of them must.
    """
    if steps >= side:
        return 0.0
    root = (math.log(1.648 * math.sqrt(side)) - math.log(MISS) / PROBES) / (2 * steps - 1)
    return 1 / math.sqrt(1 - root**2) - 1 if root < 1 else math.inf
