"""The best-scored share of a text's words."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from attnlens.salience.ranking import top


def test_by_hand():
    scores, everyone = np.array([4.0, 3, 3, 2, 2, 1, 1]), np.ones(7, dtype=bool)
    assert top(scores, everyone, 0.15).tolist() == [True, True, True, False, False, False, False]
    assert top(scores, everyone, 0.1).tolist() == [True, False, False, False, False, False, False]
    assert top(scores, scores < 4, 0.15).tolist() == [False, True, True, False, False, False, False]
    assert top(np.array([]), np.array([], dtype=bool), 0.15).tolist() == []


def test_rounding_does_not_rank():
    scores = np.array([0.3, 0.1 + 0.2, -0.3, -(0.1 + 0.2)])
    assert scores[0] != scores[1]
    assert top(scores, np.ones(4, dtype=bool), 0.2).tolist() == [True, True, False, False]
    assert top(scores, scores < 0, 0.2).tolist() == [False, False, True, True]


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30), st.floats(0.01, 1, allow_nan=False)
)
def test_laws(words: list[tuple[int, bool]], share: float):
    scores = np.array([score for score, _ in words], dtype=float)
    pool = np.array([member for _, member in words])
    marked = top(scores, pool, share)
    assert not (marked & ~pool).any() and marked.any() == pool.any()
    if marked.any():
        lowest = scores[marked].min()
        assert ((scores >= lowest) & pool == marked).all(), "ties stand or fall together"
        assert (scores[marked] > lowest).sum() < share * pool.sum(), "without the last ties the share is not full"
        if (pool & ~marked).any():
            assert marked.sum() >= share * pool.sum(), "with them it is"
