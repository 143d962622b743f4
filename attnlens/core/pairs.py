"""How far two attention maps lie apart, row by row: JSD, KL both ways, total variation; tile by tile, from q and k.

Every term is a function of the mean weight m = (p + q)/2 of a key and of x = ½ log(q/p), which comes from the logits:
q − p = 2 m tanh x. Terms are ≥ 0 one by one, so that nearly equal maps keep their digits where Σ p log(p/q) would
cancel, weights too small for a float still count by their logits, and no eps is needed (METRICS 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError, UnknownName
from attnlens.core.scores import Scores
from attnlens.core.tiles import Tile, Tiles


class Logits(NamedTuple):
    """What a map is made of, without the map: q (B, H, Q, D) after rotary, k (B, H_kv, K, D), and the scores."""

    query: Tensor
    key: Tensor
    scores: Scores


class Gap(NamedTuple):
    """Two tiles of the same box (b, h, q, k): weights p of base and q of tuned, and d = log q − log p ≥ −∞.

    lost, gained: (b|1, h|1, q) rows where tuned hides a key that base sees, and the reverse; None where none does.
    """

    p: Tensor
    q: Tensor
    d: Tensor
    lost: Tensor | None
    gained: Tensor | None


@dataclass(frozen=True)
class PairStatistic:
    """What is known of one statistic of two maps: name, unit, bounds, source."""

    name: str
    unit: str
    low: float
    high: float
    reference: str
    of: Callable[[Gap], Tensor]


PAIRS: dict[str, PairStatistic] = {}


def _pair(*, unit: str, high: float, reference: str):
    """Enter a definition under its own name; the function itself is returned."""

    def enter(of: Callable[[Gap], Tensor]) -> Callable[[Gap], Tensor]:
        PAIRS[of.__name__] = PairStatistic(of.__name__, unit, 0.0, high, reference, of)
        return of

    return enter


@_pair(unit="nats", high=math.log(2), reference="Lin 1991; Endres & Schindelin 2003")
def jsd(gap: Gap) -> Tensor:
    """½ KL(p‖m) + ½ KL(q‖m) = Σ m (x tanh x − log cosh x). [1/2, 1/2] and [1, 0] → ¾ log 4/3 = 0.2158."""
    x = (gap.d / 2).abs_()
    t = x.tanh()
    near = x * t + torch.log1p(-t * t) / 2  # log cosh x = −½ log(1 − tanh² x): no digits lost at small x
    far = x * (t - 1) - torch.log1p((-2 * x).exp()) + math.log(2)
    return ((gap.p + gap.q) / 2 * torch.where(x < 1, near, far)).sum(-1)


@_pair(unit="nats", high=math.inf, reference="Kullback & Leibler 1951")
def kl_forward(gap: Gap) -> Tensor:
    """KL(base‖tuned) = Σ p (log p − log q); ∞ where tuned hides what base sees. [1/2, 1/2], [1/4, 3/4] → 0.1438."""
    return _divergence(gap.p, gap.q, gap.d, gap.lost)


@_pair(unit="nats", high=math.inf, reference="Kullback & Leibler 1951")
def kl_backward(gap: Gap) -> Tensor:
    """KL(tuned‖base) = Σ q (log q − log p); ∞ where base hides what tuned sees. [1/2, 1/2], [1/4, 3/4] → 0.1308."""
    return _divergence(gap.q, gap.p, -gap.d, gap.gained)


@_pair(unit="share", high=1.0, reference="METRICS 4")
def tv(gap: Gap) -> Tensor:
    """½ Σ |p − q| = Σ m |tanh x|: the share of attention that moved. [1/2, 1/2] and [1/4, 3/4] → 1/4."""
    return ((gap.p + gap.q) / 2 * (gap.d / 2).tanh_().abs_()).sum(-1)


def _divergence(p: Tensor, q: Tensor, d: Tensor, infinite: Tensor | None) -> Tensor:
    """Σ p (−d) with Σ (q − p) = 0 added, which makes each term p (eᵈ − 1 − d) ≥ 0."""
    near = p * (torch.expm1(d) - d)
    far = q - p - p * d  # eᵈ alone may overflow
    rows = torch.where(d.abs() < 1, near, far).sum(-1)
    return rows if infinite is None else rows.masked_fill(infinite, torch.inf)


def pair_statistics(
    base: Logits, tuned: Logits, names: tuple[str, ...], *, queries: Tensor | None = None
) -> dict[str, Tensor]:
    """The named statistics of PAIRS for two maps of one shape; queries (B, Q) bool: rows that carry data (None: all).

    Each is (B, H, Q) in float32 (float64 if a map is), NaN on rows without data. Equal maps give exactly 0.
    Raises UnknownName, and ShapeError where the maps differ in shape.
    """
    for name in names:
        if name not in PAIRS:
            raise UnknownName.among("pair statistic", name, PAIRS)
    with torch.no_grad(), torch.autocast(base.query.device.type, enabled=False):
        cuts = [Tiles.of(side.query, side.key, None, side.scores) for side in (base, tuned)]
        _check(base, tuned)
        dtype = torch.promote_types(cuts[0].dtype, cuts[1].dtype)
        kept = {name: base.query.new_full(base.query.shape[:3], torch.nan, dtype=dtype) for name in names}
        # The boxes of a causal map end at its frontier; the other map may reach further.
        for box in cuts[base.scores.causal].boxes():
            left, right = (cut.tile(box) for cut in cuts)
            gap, rows = _gap(left, right), (box.texts, box.heads, box.queries)
            empty = (left.count == 0) | (right.count == 0)
            if queries is not None:
                empty = empty | ~queries.to(empty.device)[box.texts, None, box.queries]
            for name in names:
                kept[name][rows] = PAIRS[name].of(gap).masked_fill(empty, torch.nan)
    return kept


def _check(base: Logits, tuned: Logits) -> None:
    shapes = [(*side.query.shape[:3], side.key.shape[2]) for side in (base, tuned)]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"two maps must have one shape (B, H, Q, K); got {shapes[0]} and {shapes[1]}")
    if base.key.shape[1] != tuned.key.shape[1]:
        raise ShapeError(f"two maps must share their key heads; got {base.key.shape[1]} and {tuned.key.shape[1]}")
    if (base.scores.sinks is None) != (tuned.scores.sinks is None):
        raise ShapeError("two maps must both have a learned null key (sinks), or neither")


def _gap(base: Tile, tuned: Tile) -> Gap:
    """Weights and difference of log-weights; the maximum logit is 0, so log p = logits + log of the largest weight."""
    d = (tuned.logits - base.logits).add_((tuned.peak.log() - base.peak.log())[..., None])
    lost = gained = None
    if base.visible is not None or tuned.visible is not None:
        sees = [base.logits.new_ones((), dtype=torch.bool) if v is None else v for v in (base.visible, tuned.visible)]
        lost, gained = (sees[0] & ~sees[1]).any(-1), (sees[1] & ~sees[0]).any(-1)
    return Gap(base.weights, tuned.weights, d, lost, gained)
