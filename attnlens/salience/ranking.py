"""The best-scored share of a text's words."""

import numpy as np

TOP_SHARE = 0.15
# Equal scores differ by rounding; no rank may rest on that.
_TIE = 1e-9


def top(scores: np.ndarray, pool: np.ndarray, share: float) -> np.ndarray:
    """Words of the pool that fewer than share·(pool size) words of the pool outrank.

    scores (W,) float, pool (W,) bool -> (W,) bool. Ties stand or fall together, so every occurrence of a word form
    is marked or none is; the best word of a pool is always marked. Hand example: 0.15 of scores 4, 3, 3, 2, 2, 1, 1
    (1.05 words) marks the 4 and both 3s.
    """
    ranked = np.sort(scores[pool])
    outranking = len(ranked) - np.searchsorted(ranked, scores + _TIE * np.abs(scores), side="right")
    return pool & (outranking < share * len(ranked))


def mark_top(scores: np.ndarray) -> np.ndarray:
    """The top 15 % of the scored words of a text, as far as they score above 0: (W,) float, NaN unscored -> (W,) bool.

    A text whose scored words all stand out has none that does.
    """
    pool = ~np.isnan(scores)
    marked = top(scores, pool, TOP_SHARE) & (scores > 0)
    return marked if (marked != pool).any() else np.zeros_like(marked)
