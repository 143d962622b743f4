"""How far two attention maps lie apart, row by row: JSD, KL both ways, total variation; tile by tile, from q and k.

Every term is a function of the larger of the two weights of a key, M, and of a = |log q − log p|, which comes from the
logits: the smaller weight is M e⁻ᵃ. Terms are ≥ 0 one by one, so that nearly equal maps keep their digits where
Σ p log(p/q) would cancel, weights too small for a float still count by their logits, and no eps is needed (METRICS 4).
All four share a few passes over the tile, without a branch and in memory that the next tile reuses: a branch on random
data, a hyperbolic tangent or fresh pages each cost more than ten multiplications.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError, UnknownName
from attnlens.core.scores import Box, Scores
from attnlens.core.tiles import Tile, Tiles


class Logits(NamedTuple):
    """What a map is made of, without the map: q (B, H, Q, D) after rotary, k (B, H_kv, K, D), and the scores."""

    query: Tensor
    key: Tensor
    scores: Scores


@dataclass(eq=False)
class Gap:
    """Two tiles of the same box (b, h, q, k): weights p of base and q of tuned, and d = log q − log p > −∞.

    lost, gained: (b|1, h|1, q) rows where tuned hides a key that base sees, and the reverse; None where none does.
    room: memory for a tile, by name. What is cached lies there, until the next tile.
    """

    p: Tensor
    q: Tensor
    d: Tensor
    lost: Tensor | None
    gained: Tensor | None
    room: Callable[[str, tuple[int, ...]], Tensor]

    def into(self, name: str) -> Tensor:
        """An empty tile."""
        return self.room(name, self.d.shape)

    @cached_property
    def larger(self) -> Tensor:
        """M = max(p, q)."""
        return torch.maximum(self.p, self.q, out=self.into("larger"))

    @cached_property
    def size(self) -> Tensor:
        """a = |d|."""
        return torch.abs(self.d, out=self.into("size"))

    @cached_property
    def capped(self) -> Tensor:
        """a, at most so large that e⁻ᵃ is lost beside 1: what is bounded does not change beyond, and eᵃ is finite."""
        most = 4 - math.log(torch.finfo(self.d.dtype).eps)
        return torch.clamp(self.size, max=most, out=self.into("capped"))

    @cached_property
    def growth(self) -> Tensor:
        """eᵃ − 1."""
        return torch.expm1(self.capped, out=self.into("growth"))

    @cached_property
    def rest(self) -> Tensor:
        """e⁻ᵃ = 1/(1 + (eᵃ − 1)): the smaller weight, over the larger."""
        rest = torch.add(self.growth, 1, out=self.into("rest"))
        return rest.reciprocal_()

    @cached_property
    def loss(self) -> Tensor:
        """1 − e⁻ᵃ, without cancellation."""
        return torch.mul(self.growth, self.rest, out=self.into("loss"))

    @cached_property
    def moved(self) -> Tensor:
        """|q − p| = M (1 − e⁻ᵃ)."""
        return torch.mul(self.larger, self.loss, out=self.into("moved"))

    @cached_property
    def below(self) -> Tensor:
        """M (1 − e⁻ᵃ − a e⁻ᵃ): what a key adds to the KL divergence from the map in which it has the smaller weight."""
        below = torch.mul(self.capped, self.rest, out=self.into("below"))
        return torch.sub(self.loss, below, out=below).mul_(self.larger)

    @cached_property
    def above(self) -> Tensor:
        """M (a − 1 + e⁻ᵃ): the same, from the map in which it has the larger weight; never less than below."""
        above = torch.sub(self.size, self.loss, out=self.into("above"))
        return above.mul_(self.larger)

    def divergence(self, larger: Tensor, infinite: Tensor | None) -> Tensor:
        """Σ over keys: `above` where `larger` is 1, `below` where it is 0; ∞ in rows where a key is hidden."""
        chosen = torch.sub(self.above, self.below, out=self.into("first")).mul_(larger).add_(self.below)
        rows = chosen.sum(-1)
        return rows if infinite is None else rows.masked_fill(infinite, torch.inf)


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
    """½ KL(p‖m) + ½ KL(q‖m) = Σ ½ |q − p| x − m log cosh x. [1/2, 1/2] and [1, 0] → ¾ log 4/3 = 0.2158.

    m = M (1 + e⁻ᵃ)/2 is the mean weight, x = a/2, and log cosh x = ½ log(1 + (eᵃ − 1)(1 − e⁻ᵃ)/4).
    """
    spread = torch.mul(gap.growth, gap.loss, out=gap.into("first")).mul_(0.25).log1p_()
    spread.mul_(torch.add(gap.p, gap.q, out=gap.into("second")))
    terms = torch.mul(gap.moved, gap.capped, out=gap.into("third")).sub_(spread)
    # Far apart the terms come within a few roundings of the bound: not over it.
    return (terms.sum(-1) / 4).clamp(0.0, math.log(2))


@_pair(unit="nats", high=math.inf, reference="Kullback & Leibler 1951")
def kl_forward(gap: Gap) -> Tensor:
    """KL(base‖tuned) = Σ p (log p − log q); ∞ where tuned hides what base sees. [1/2, 1/2], [1/4, 3/4] → 0.1438."""
    return gap.divergence(torch.lt(gap.d, 0, out=gap.into("second")), gap.lost)


@_pair(unit="nats", high=math.inf, reference="Kullback & Leibler 1951")
def kl_backward(gap: Gap) -> Tensor:
    """KL(tuned‖base) = Σ q (log q − log p); ∞ where base hides what tuned sees. [1/2, 1/2], [1/4, 3/4] → 0.1308."""
    return gap.divergence(torch.gt(gap.d, 0, out=gap.into("second")), gap.gained)


@_pair(unit="share", high=1.0, reference="METRICS 4")
def tv(gap: Gap) -> Tensor:
    """½ Σ |q − p|: the share of attention that moved. [1/2, 1/2] and [1/4, 3/4] → 1/4."""
    return gap.moved.sum(-1) / 2


class PairKeeper:
    """Keeps what the tiles of two maps of one shape are reduced to; tuned's tiles may serve others too.

    Raises UnknownName, and ShapeError where the maps differ in shape.
    """

    def __init__(self, base: Logits, tuned: Logits, tiles: Tiles, names: tuple[str, ...], queries: Tensor | None):
        for name in names:
            if name not in PAIRS:
                raise UnknownName.among("pair statistic", name, PAIRS)
        self.base = Tiles.of(base.query, base.key, None, base.scores)
        self.tuned, self.queries = tiles, queries
        _check(base, tuned)
        dtype = torch.promote_types(self.base.dtype, tiles.dtype)
        self.kept = {name: base.query.new_full(base.query.shape[:3], torch.nan, dtype=dtype) for name in names}

    def boxes(self) -> Iterator[Box]:
        """The boxes of a causal map end at its frontier; the other map may reach further."""
        return (self.tuned if self.base.scores.causal else self.base).boxes()

    def keep(self, right: Tile) -> None:
        """Hold a tile of tuned, whose logits must be whole, against that of base."""
        box = right.box
        left, rows = self.base.tile(box), (box.texts, box.heads, box.queries)
        gap = _gap(left, right, self.base.room)
        empty = (left.count == 0) | (right.count == 0)
        if self.queries is not None:
            empty = empty | ~self.queries.to(empty.device)[box.texts, None, box.queries]
        for name, kept in self.kept.items():
            kept[rows] = PAIRS[name].of(gap).masked_fill(empty, torch.nan)


def pair_statistics(
    base: Logits, tuned: Logits, names: tuple[str, ...], *, queries: Tensor | None = None
) -> dict[str, Tensor]:
    """The named statistics of PAIRS for two maps of one shape; queries (B, Q) bool: rows that carry data (None: all).

    Each is (B, H, Q) in float32 (float64 if a map is), NaN on rows without data. Equal maps give exactly 0.
    Raises UnknownName, and ShapeError where the maps differ in shape.
    """
    with torch.no_grad(), torch.autocast(base.query.device.type, enabled=False):
        tiles = Tiles.of(tuned.query, tuned.key, None, tuned.scores)
        keeper = PairKeeper(base, tuned, tiles, names, queries)
        for box in keeper.boxes():
            keeper.keep(tiles.tile(box))
    return keeper.kept


def _check(base: Logits, tuned: Logits) -> None:
    shapes = [(*side.query.shape[:3], side.key.shape[2]) for side in (base, tuned)]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"two maps must have one shape (B, H, Q, K); got {shapes[0]} and {shapes[1]}")
    if base.key.shape[1] != tuned.key.shape[1]:
        raise ShapeError(f"two maps must share their key heads; got {base.key.shape[1]} and {tuned.key.shape[1]}")
    if (base.scores.sinks is None) != (tuned.scores.sinks is None):
        raise ShapeError("two maps must both have a learned null key (sinks), or neither")


def _gap(base: Tile, tuned: Tile, room: Callable[[str, tuple[int, ...]], Tensor]) -> Gap:
    """Weights and difference of log-weights; the maximum logit is 0, so log p = logits + log of the largest weight."""
    d = torch.sub(tuned.logits, base.logits, out=room("gap", base.logits.shape))
    d.add_((tuned.peak.log() - base.peak.log())[..., None])
    lost = gained = None
    if base.visible is not None or tuned.visible is not None:
        sees = [base.logits.new_ones((), dtype=torch.bool) if v is None else v for v in (base.visible, tuned.visible)]
        lost, gained = (sees[0] & ~sees[1]).any(-1), (sees[1] & ~sees[0]).any(-1)
    return Gap(base.weights, tuned.weights, d, lost, gained, room)
