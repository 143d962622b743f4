"""The same attention for both sides of a test: a Problem for the slow reference, tensors and Scores for attnlens."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from attnlens.core import tiles
from attnlens.core.flow import value_norms
from attnlens.core.rows import STATISTICS, Groups
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted
from tests.reference import Problem

ALL = tuple(STATISTICS)
B, H, Q, K, D = 2, 4, 11, 11, 6
SCALE = 0.4
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


def small_tiles(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Tiles of so many elements, however many threads there are and however few rows that makes."""
    monkeypatch.setattr(tiles, "TILE", max(1, elements // torch.get_num_threads()))
    monkeypatch.setattr(tiles, "FEWEST", 1)


class Case(NamedTuple):
    """One attention: for the reference, and for attnlens as (q, k, v), Scores and Wanted."""

    slow: Problem
    tensors: list[Tensor]
    scores: Scores
    wanted: Wanted


def problem(
    options: dict, *, heads_kv: int = 2, seed: int = 0, spread: float = 2.0, queries: int = Q, keys: int = K
) -> Case:
    """Random q, k, v of the options; a mask comes with rows that see nothing, padding with rows that carry no data."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(B, H, queries, D)) * spread, rng.normal(size=(B, heads_kv, keys, D))
    v, o = rng.normal(size=(B, heads_kv, keys, 5)), np.random.default_rng(seed + 1).normal(size=(H, 5, 7))
    if options.get("rising"):  # each key above the one before it, for every query
        q, k = np.abs(q), np.sort(np.abs(k), 2)
    if options.get("offset"):
        q[..., 0], k[..., 0] = 1.0, options["offset"] / SCALE
    sinks = rng.normal(size=H) if options.get("sinks") else None
    bias = rng.normal(size=(1, H, queries, keys)) if options.get("bias") else None
    valid = rng.random((B, queries)) < 0.8
    mask, given, add = _mask(options.get("mask"), rng, queries, keys, valid)
    if bias is not None:
        add = bias if add is None else add + bias
    groups = rng.integers(0, 3, (B, keys))
    common = {
        "causal": options.get("causal", False),
        "window": options.get("window"),
        "softcap": options.get("softcap"),
    }
    slow = Problem(q, k, v, SCALE, mask=mask, add=add, sinks=sinks, groups=groups, queries=valid, o=o, **common)
    scores = Scores(
        SCALE,
        mask=given,
        bias=None if bias is None else torch.tensor(bias),
        sinks=None if sinks is None else torch.tensor(sinks),
        **common,
    )
    norms = value_norms(torch.tensor(v), torch.tensor(o))
    wanted = Wanted(ALL, Groups.of(torch.tensor(groups)), torch.tensor(valid), norms)
    return Case(slow, [torch.tensor(array) for array in (q, k, v)], scores, wanted)


def _mask(kind: str | None, rng: np.random.Generator, queries: int, keys: int, valid: np.ndarray):
    """What is visible, the mask as attnlens gets it, and what it adds; padding also changes which rows are valid."""
    if kind is None:
        return None, None, None
    if kind == "float":
        mask, edit = rng.random((B, H, queries, keys)) < 0.6, rng.normal(size=(B, H, queries, keys))
        # Half of the lowest number is the border: sums of several masks land beyond it.
        floor = np.where(rng.random(mask.shape) < 0.5, FLOOR, 0.6 * FLOOR)
        return mask, torch.tensor(np.where(mask, edit, floor)), edit
    if kind == "bool":
        mask = rng.random((B, 1, queries, keys)) < 0.6
        mask[0, 0, 2] = False  # a row that sees nothing
    else:
        seen = np.ones((B, keys), dtype=bool)
        for text, padded in enumerate((4, 1)):
            seen[text, slice(None, padded) if kind == "left" else slice(-padded, None)] = False
        valid[:] = seen[:, -queries:]
        mask = np.broadcast_to(seen[:, None, None], (B, 1, queries, keys)).copy()
    return mask, torch.tensor(mask), None
