"""False discovery rate over many tests at once: p-values adjusted for how many were made."""

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


def _adjusted(p: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    tested = ~np.isnan(p)
    adjusted = np.full(p.shape, np.nan)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested], method=method)
    return adjusted
