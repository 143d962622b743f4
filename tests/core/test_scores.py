"""Scores of some of the queries are rows of the scores of all."""

import pytest
import torch

from attnlens.core.rows import dense_map
from tests.core.problems import CASES, problem


@pytest.mark.parametrize("queries", [11, 5])
@pytest.mark.parametrize("case", [*CASES, "float mask"])
def test_at_gives_the_rows_of_the_whole_map(case: str, queries: int):
    """Causal, windows, masks and biases also where the queries are the last of more keys, as behind a cache."""
    options = CASES.get(case, {"mask": "float", "causal": True, "window": 6})
    query, key, _ = (found := problem(options, queries=queries)).tensors
    rows = [4, 0, 3]
    whole = dense_map(query, key, found.scores)
    some = dense_map(query[:, :, rows], key, found.scores.at(rows, queries, key.shape[2]))
    torch.testing.assert_close(some.weights, whole.weights[:, :, rows], atol=1e-12, rtol=1e-10)
    assert torch.equal(some.visible, whole.visible[:, :, rows])
