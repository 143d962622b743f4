"""The same attention for both sides of a test: a Problem for the slow reference, tensors and Scores for attnlens."""

import numpy as np
import torch

from attnlens.core.rows import STATISTICS, Groups
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted
from tests.reference import Problem

ALL = tuple(STATISTICS)
B, H, Q, K, D = 2, 4, 11, 11, 6
FLOOR = torch.finfo(torch.float64).min

CASES = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 4},
    "symmetric window": {"window": 3},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "causal sinks": {"sinks": True, "causal": True},
    "bias": {"bias": True},
    "mask": {"mask": "bool"},
    "causal mask": {"mask": "bool", "causal": True},
    "float mask per head": {"mask": "float", "bias": True},
    "everything": {"mask": "bool", "bias": True, "softcap": 3.0, "sinks": True},
}


def problem(options: dict, *, heads_kv: int = 2, seed: int = 0, spread: float = 2.0, queries: int = Q):
    """The same attention for both sides: (Problem for the reference, tensors and Scores for attnlens)."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(B, H, queries, D)) * spread, rng.normal(size=(B, heads_kv, K, D))
    v = rng.normal(size=(B, heads_kv, K, 5))
    sinks = rng.normal(size=H) if options.get("sinks") else None
    bias = rng.normal(size=(1, H, queries, K)) if options.get("bias") else None
    mask = add = given = None
    if options.get("mask") == "bool":
        mask = rng.random((B, 1, queries, K)) < 0.6
        mask[0, 0, 2] = False  # a row that sees nothing
        given = torch.tensor(mask)
    elif options.get("mask") == "float":
        mask = rng.random((B, H, queries, K)) < 0.6
        edit = rng.normal(size=(B, H, queries, K))
        # Half of the lowest number is the border: sums of several masks land beyond it.
        floor = np.where(rng.random(mask.shape) < 0.5, FLOOR, 0.6 * FLOOR)
        given = torch.tensor(np.where(mask, edit, floor))
        add = edit
    if bias is not None:
        add = bias if add is None else add + bias
    groups = rng.integers(0, 3, (B, K))
    valid = rng.random((B, queries)) < 0.8
    common = {
        "causal": options.get("causal", False),
        "window": options.get("window"),
        "softcap": options.get("softcap"),
    }
    slow = Problem(q, k, v, 0.4, mask=mask, add=add, sinks=sinks, groups=groups, queries=valid, **common)
    tensors = [torch.tensor(array) for array in (q, k, v)]
    scores = Scores(
        0.4,
        mask=given,
        bias=None if bias is None else torch.tensor(bias),
        sinks=None if sinks is None else torch.tensor(sinks),
        **common,
    )
    return slow, tensors, scores, Wanted(ALL, Groups.of(torch.tensor(groups)), torch.tensor(valid))
