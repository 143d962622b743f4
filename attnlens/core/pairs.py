"""How far two attention maps lie apart, row by row: JSD, KL both ways, total variation; tile by tile, from q and k.

Every term is a function of the larger of the two weights of a key, M, and of a = |log q − log p|, which comes from the
logits: the smaller weight is M e⁻ᵃ. No term changes its sign from key to key, so that nearly equal maps keep
their digits where Σ p log(p/q) would cancel, weights too small for a float still count by their logits, and no eps is
needed (METRICS 4). All four share a few passes over the tile, without a branch and in little memory, used again and
again: a branch on random data, a hyperbolic tangent or a page outside the cache costs more than ten multiplications.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, log
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

    def to(self, device: torch.device) -> "Logits":
        """The same on this device."""
        return Logits(self.query.to(device), self.key.to(device), self.scores.to(device))


class Sums(NamedTuple):
    """Of two maps p and q, sums over the keys of each row (b, h, q); x = e⁻ᵃ − 1, so that |q − p| = −M x.

    moved: Σ |q − p|. mixed: Σ M [(2 + x) log(1 + x/2) + a (1 + x)], which is −2 JSD: of weights M and M (1 + x) the
    mean is M (1 + x/2), so the former adds −½ M log(1 + x/2) and the latter ½ M (1 + x)(−a − log(1 + x/2)).
    forward, backward: KL(p‖q) and KL(q‖p), finite: a key adds M (1 − e⁻ᵃ − a e⁻ᵃ) to the divergence from the map in
    which it has the smaller weight, and M (a − 1 + e⁻ᵃ) to the other; None where they were not asked for.
    lost, gained: (b|1, h|1, q) rows where tuned hides a key that base sees, and the reverse; None where none does.
    """

    moved: Tensor
    mixed: Tensor
    forward: Tensor | None = None
    backward: Tensor | None = None
    lost: Tensor | None = None
    gained: Tensor | None = None


@dataclass(frozen=True)
class PairStatistic:
    """What is known of one statistic of two maps: name, unit, bounds, source."""

    name: str
    unit: str
    low: float
    high: float
    reference: str
    of: Callable[[Sums], Tensor]


PAIRS: dict[str, PairStatistic] = {}


def _pair(*, unit: str, high: float, reference: str):
    """Enter a definition under its own name; the function itself is returned."""

    def enter(of: Callable[[Sums], Tensor]) -> Callable[[Sums], Tensor]:
        PAIRS[of.__name__] = PairStatistic(of.__name__, unit, 0.0, high, reference, of)
        return of

    return enter


@_pair(unit="nats", high=log(2), reference="Lin 1991; Endres & Schindelin 2003")
def jsd(sums: Sums) -> Tensor:
    """½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2. [1/2, 1/2] and [1, 0] → ¾ log 4/3 = 0.2158."""
    # Rounding may carry a sum a little over its bound.
    return (sums.mixed / -2).clamp(0.0, log(2))


@_pair(unit="nats", high=inf, reference="Kullback & Leibler 1951")
def kl_forward(sums: Sums) -> Tensor:
    """KL(base‖tuned) = Σ p (log p − log q); ∞ where tuned hides what base sees. [1/2, 1/2], [1/4, 3/4] → 0.1438."""
    return _divergence(sums.forward, sums.lost)


@_pair(unit="nats", high=inf, reference="Kullback & Leibler 1951")
def kl_backward(sums: Sums) -> Tensor:
    """KL(tuned‖base) = Σ q (log q − log p); ∞ where base hides what tuned sees. [1/2, 1/2], [1/4, 3/4] → 0.1308."""
    return _divergence(sums.backward, sums.gained)


@_pair(unit="share", high=1.0, reference="METRICS 4")
def tv(sums: Sums) -> Tensor:
    """½ Σ |q − p|: the share of attention that moved. [1/2, 1/2] and [1/4, 3/4] → 1/4."""
    return (sums.moved / 2).clamp(max=1.0)


DIRECTED = {"kl_forward", "kl_backward"}  # a third of all passes serves these alone


def _divergence(rows: Tensor | None, hidden: Tensor | None) -> Tensor:
    """Sums of rows, ∞ where a key that one map sees is hidden in the other."""
    assert rows is not None
    return rows if hidden is None else rows.masked_fill(hidden, inf)


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
        empty = (left.count == 0) | (right.count == 0)
        if self.queries is not None:
            empty = empty | ~self.queries.to(empty.device)[box.texts, None, box.queries]
        sums = _sums(left, right, self.base.room, directed=not DIRECTED.isdisjoint(self.kept))
        for name, kept in self.kept.items():
            kept[rows] = PAIRS[name].of(sums).masked_fill(empty, torch.nan)


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


def _sums(base: Tile, tuned: Tile, room: Callable[[str, tuple[int, ...]], Tensor], *, directed: bool) -> Sums:
    """Two tiles of one box, summed over their keys. Overwrites the logits of base; room: memory for a tile, by name.

    The maximum logit is 0, so log p = logits + log of the largest weight.
    """
    d = torch.sub(tuned.logits, base.logits, out=base.logits)  # log q − log p
    d.add_((tuned.peak.log() - base.peak.log())[..., None])
    larger, a, x, rest, terms = (room(name, d.shape) for name in ("larger", "a", "x", "rest", "terms"))
    torch.maximum(base.weights, tuned.weights, out=larger)
    torch.abs(d, out=a)
    torch.neg(a, out=x).expm1_()
    torch.add(x, 1, out=rest)  # e⁻ᵃ
    torch.mul(x, 0.5, out=terms).log1p_()
    terms.addcmul_(terms, rest).addcmul_(a, rest)
    mixed = terms.mul_(larger).sum(-1)
    if not directed:
        return Sums(-x.mul_(larger).sum(-1), mixed)
    torch.add(a, x, out=terms).mul_(larger)  # M (a − 1 + e⁻ᵃ), from the map in which the key has the larger weight
    rest.mul_(a).add_(x).mul_(larger)  # the same, from the map in which it has the smaller weight, negative
    terms.add_(rest)  # how much more the former is
    moved = x.mul_(larger).sum(-1)
    forward = torch.lt(d, 0, out=a).mul_(terms).sum(-1)
    backward = torch.gt(d, 0, out=a).mul_(terms).sum(-1)
    lost = gained = None
    alike = base.scores.merely_causal and tuned.scores.merely_causal
    if not alike and (base.visible is not None or tuned.visible is not None):
        sees = [d.new_ones((), dtype=torch.bool) if seen is None else seen for seen in (base.visible, tuned.visible)]
        lost, gained = (sees[0] & ~sees[1]).any(-1), (sees[1] & ~sees[0]).any(-1)
    both = rest.sum(-1)
    return Sums(-moved, mixed, forward - both, backward - both, lost, gained)
