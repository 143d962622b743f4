"""Many tests at once: p-values adjusted for how many were made, by false discovery rate or family-wise error."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values whose cut at q keeps the false discovery rate at q.

    p (*) in [0, 1], NaN where no test was made → (*), each at least its p; valid for independent or positively
    dependent tests. NaN stays NaN and does not count as a test.
    Hand example: [.01, .02, .03, .5] → [.04, .04, .04, .5].
    Reference: Benjamini & Hochberg 1995.
    """
    return _adjusted(np.asarray(p, np.float64), "bh")


def benjamini_yekutieli(p: ArrayLike) -> NDArray[np.float64]:
    """`benjamini_hochberg` for tests of any dependence: larger by Σ 1/i over the m tests, at most 1.

    p (*) in [0, 1], NaN where no test was made → (*).
    Hand example: [.01, .02, .03, .5] → [1/12, 1/12, 1/12, 1], as 1 + 1/2 + 1/3 + 1/4 = 25/12.
    Reference: Benjamini & Yekutieli 2001.
    """
    return _adjusted(np.asarray(p, np.float64), "by")


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values whose cut at α keeps the chance of any false rejection at α, whatever the dependence.

    p (*) in [0, 1], NaN where no test was made → (*), each at least its p. NaN stays NaN and is no test.
    Hand example: [.01, .02, .03, .5] → [.04, .06, .06, .5].
    Reference: Holm 1979.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, axis=None)[: np.count_nonzero(~np.isnan(p))]  # NaN are last
    adjusted = np.full(p.shape, np.nan)
    steps = p.flat[order] * np.arange(len(order), 0, -1)
    adjusted.flat[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _adjusted(p: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    tested = ~np.isnan(p)
    adjusted = np.full(p.shape, np.nan)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested], method=method)
    return adjusted
