"""The shape of a change: singular values, ranks, and how far the leading subspace of a matrix turned."""

import math
from dataclasses import dataclass

import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from attnlens.core.errors import ShapeError

# Entries widened to float64 at a time, and of a tall matrix the rows that one QR step takes in.
CHUNK = 2**20


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix (N,) float64, largest first, and what they say; ranks are NaN of a zero matrix."""

    values: Tensor

    @property
    def norm(self) -> float:
        """Frobenius norm √Σσ²."""
        return float(torch.linalg.vector_norm(self.values))

    @property
    def spectral_norm(self) -> float:
        """The largest singular value: how far the change can move a vector of length 1."""
        return float(self.values[0]) if len(self.values) else 0.0

    @property
    def nuclear_norm(self) -> float:
        """Σσ."""
        return float(self.values.sum())

    @property
    def stable_rank(self) -> float:
        """‖·‖_F² / ‖·‖₂², from 1 to the rank: how many directions share the change, blind to small ones."""
        top = self.spectral_norm
        return float((self.values / top).square().sum()) if top > 0 else math.nan

    @property
    def effective_rank(self) -> float:
        """exp H(σ/Σσ), from 1 to the rank (Roy & Vetterli 2007). Equal values: their number."""
        total = self.nuclear_norm
        return float(torch.special.entr(self.values / total).sum().exp()) if total > 0 else math.nan


def change_spectrum(base: Tensor, tuned: Tensor) -> Spectrum:
    """Singular values of tuned − base, two matrices (M, N) of any float dtype, in float64.

    A tall matrix is reduced to its R factor chunk by chunk (σ(R) = σ), so that memory holds one chunk of the change.
    Hand example: diag(1, 1) → diag(4, 5): 4, 3; stable rank 25/16.
    """
    if base.shape != tuned.shape or base.ndim != 2:
        raise ShapeError(f"needed two matrices of one shape; got {tuple(base.shape)} and {tuple(tuned.shape)}")
    factor = None
    for old, new in zip(_tall_chunks(base), _tall_chunks(tuned), strict=True):
        part = new - old if factor is None else torch.cat([factor, new - old])
        # The decomposition of a tall part takes longer than that of its triangle.
        factor = torch.linalg.qr(part, mode="r").R if part.shape[0] > part.shape[1] else part
    return Spectrum(torch.zeros(0, dtype=torch.float64) if factor is None else torch.linalg.svdvals(factor))


def _tall_chunks(matrix: Tensor):
    """Chunks of rows in float64, of the matrix or its transpose, whichever is taller."""
    matrix = matrix.detach()
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    width = matrix.shape[1]
    if width:
        yield from (part.cpu().double() for part in matrix.split(max(2 * width, CHUNK // width)))


@dataclass(frozen=True)
class LowRank:
    """A change given by its factors: scale · left · right, left (M, r), right (r, N)."""

    left: Tensor
    right: Tensor
    scale: float

    def __post_init__(self):
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ShapeError(
                f"needed factors (M, r) and (r, N); got {tuple(self.left.shape)} and {tuple(self.right.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) of the product."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Tensor:
        """The product (M, N) in float64."""
        return self.scale * (self.left.detach().cpu().double() @ self.right.detach().cpu().double())

    def spectrum(self) -> Spectrum:
        """Singular values of the product without forming it: σ(R_L R_Rᵀ) of two QR factors, O((M+N) r²).

        At most r values; factors of zeros give exact zeros, which a product of rounded inverses would not.
        """
        left, right = (
            torch.linalg.qr(factor.detach().cpu().double(), mode="r").R for factor in (self.left, self.right.T)
        )
        return Spectrum(torch.linalg.svdvals(left @ right.T) * abs(self.scale))

    def unchanged(self) -> int:
        """How many entries of the product are 0 because a whole row of left or column of right is."""
        if self.scale == 0:
            return math.prod(self.shape)
        rows, columns = int((self.left != 0).any(1).sum()), int((self.right != 0).any(0).sum())
        return math.prod(self.shape) - rows * columns


@dataclass(frozen=True)
class Turn:
    """How far the subspace of the k leading singular vectors turned.

    angle: the largest principal angle in radians, 0 to π/2. overlap: φ = ‖UᵀU′‖_F²/k, rescaled so that a random
    subspace has 0 and the same one 1. gap: σ_k/σ_{k+1} of the base; near 1 the subspace is ill-defined and angle and
    overlap mean little. spectral_norm: σ₁ of the base.
    """

    k: int
    angle: float
    overlap: float
    gap: float
    spectral_norm: float


def subspace_turn(base: Tensor, tuned: Tensor, k: int = 16) -> Turn:
    """Turn of the k leading singular vectors of a matrix (M, N), on its shorter side of d = min(M, N); left if square.

    k is at most d/2: beyond, two subspaces must share directions. NaN where d < 2. Angles are sine-based
    (Knyazev & Argentati 2002): arccos would show 6e-8 for equal subspaces. φ: Hu et al. 2021.
    Hand example: diag(2, 1) → diag(1, 2), k = 1: angle π/2, φ 0, rescaled −1, gap 2.
    """
    if base.shape != tuned.shape or base.ndim != 2:
        raise ShapeError(f"needed two matrices of one shape; got {tuple(base.shape)} and {tuple(tuned.shape)}")
    side = min(base.shape)
    k = min(k, side // 2)
    values, vectors = _leading(base)
    if k < 1:
        return Turn(0, math.nan, math.nan, math.nan, float(values[0]) if side else 0.0)
    old, new = vectors[:, :k], _leading(tuned)[1][:, :k]
    share = float((old.T @ new).square().sum()) / k
    gap = float(values[k - 1] / values[k]) if values[k] > 0 else math.inf
    angle = float(subspace_angles(old.numpy(), new.numpy())[0])
    return Turn(k, angle, (share - k / side) / (1 - k / side), gap, float(values[0]))


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, largest first, and vectors (d, d) of the shorter side, from the Gram matrix of that side.

    Values below 1e-8 of the largest are lost in its rounding; the leading ones, which are asked for, are not.
    """
    gram = torch.zeros(min(matrix.shape), min(matrix.shape), dtype=torch.float64)
    for part in _tall_chunks(matrix.T):  # of a square matrix the left vectors
        gram.addmm_(part.T, part)
    squares, vectors = torch.linalg.eigh(gram)
    return squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
