"""Mean and variance of a stream: one frozen record, merged without keeping the data."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attnlens.core.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations, entry by entry; NaN is no data and is not counted.

    n (*) int64; mean (*) float64, NaN where n = 0; m2 (*) float64 = Σ (x − mean)².
    Hand example: of [1, 2, NaN, 6] → n 3, mean 3, m2 14, variance 7.
    Reference: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def of(cls, x: ArrayLike) -> "Moments":
        """Moments of x (N, *) over its leading axis, in float64; N may be 0."""
        x = np.asarray(x, np.float64)
        if x.ndim == 0:
            raise ShapeError("Moments.of needs values along a leading axis (N, *); got one number. Wrap it in a list.")
        known = ~np.isnan(x)
        n = known.sum(0)
        if not len(x):
            return cls(n, np.full(x.shape[1:], np.nan), np.zeros(x.shape[1:]))
        # Deviations from the first known value: a constant column has exactly its value as mean and m2 = 0.
        first = np.take_along_axis(x, known.argmax(0)[None], axis=0)[0]
        shifted = np.where(known, x - first, 0.0)
        offset = shifted.sum(0) / np.maximum(n, 1)
        m2 = np.where(known, (shifted - offset) ** 2, 0.0).sum(0)
        return cls(n, first + offset, m2)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both data sets together; neither record is changed."""
        if self.n.shape != other.n.shape:
            raise ShapeError(
                f"merging moments needs equal shapes; got {self.n.shape} and {other.n.shape}. "
                "Accumulate the same statistic on both sides."
            )
        n = self.n + other.n
        weight = other.n / np.maximum(n, 1)
        mine, theirs = np.where(self.n > 0, self.mean, 0.0), np.where(other.n > 0, other.mean, 0.0)
        delta = theirs - mine
        mean = np.where(n > 0, mine + delta * weight, np.nan)
        return Moments(n, mean, self.m2 + other.m2 + delta**2 * self.n * weight)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Sample variance m2 / (n − 1); NaN below two values."""
        return np.where(self.n > 1, self.m2 / np.maximum(self.n - 1, 1), np.nan)

    @property
    def standard_deviation(self) -> NDArray[np.float64]:
        """Square root of the sample variance, in the unit of the data; NaN below two values."""
        return np.sqrt(self.variance)
