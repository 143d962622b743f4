"""The statistics of `rows.py` and the attention output straight from q, k, v: memory O(T·tile), never a T×T map.

Entropy is centred, H = log Z − Σ p (s − max), which loses fewer digits than L − Σ p s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attnlens.core import lean
from attnlens.core.errors import ShapeError
from attnlens.core.pairs import Logits, PairKeeper
from attnlens.core.rows import STATISTICS, known, needed, normalized
from attnlens.core.scores import HIDDEN, Box, Scores, distances
from attnlens.core.tiles import Tile, Tiles, without
from attnlens.core.wanted import Wanted

# Below this a float32 mass has lost digits.
WEAK = 1e-30
# A row that gives content less gets a softmax of the content alone; else its shares are read off the map.
STRONG = 1e-6
# Computed last, in this order: they overwrite logits that others read.
SPENDING = ("entropy_content", "entropy", "entropy_normalized", "effective_keys")
# What each key received over all rows that carry data.
RECEIVED = ("received", "received_mean")
GROUPED = {name for name, record in STATISTICS.items() if record.axes == "group"} | {"entropy_content"}


def attend(
    query: Tensor, key: Tensor, value: Tensor | None, scores: Scores, wanted: Wanted
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Attention output and statistics of q (B, H, Q, D), k (B, H_kv, K, D) and v (B, H_kv, K, D_v) or None.

    Returns the output (B, H, Q, D_v) in the dtype of q (None without v; rows that see no key are 0) and a dictionary of
    (B, H, Q), (B, H, Q, G) or (B, H, K) tensors in float32 (float64 for float64 input), NaN on rows without data.
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        tiles = Tiles.of(query, key, value, scores)
        if lean.serves(wanted):
            return lean.attend(tiles, wanted)
        keeper = _Keeper(tiles, wanted)
        pairs = None
        if wanted.against is not None:
            pairs = PairKeeper(wanted.against, Logits(query, key, scores), tiles, wanted.pairs, wanted.queries)
        output = None if value is None else query.new_empty(*query.shape[:3], value.shape[-1])
        for box in (tiles if pairs is None else pairs).boxes():
            tile = tiles.tile(box)
            if output is not None:
                carried = without(tiles.carried(box, tile.weights), tile)
                output[box.texts, box.heads, box.queries] = carried.to(output.dtype)
            if pairs is not None:  # before its logits are overwritten
                pairs.keep(tile)
            keeper.keep(tile)
        return output, keeper.finish() | ({} if pairs is None else pairs.kept)


@dataclass
class _Rows:
    """A tile, and the groups of its keys if they are known: weights (b, k, G) and content (b, k, 1).

    nested: whether all groups lie within the content.
    """

    tile: Tile
    groups: tuple[Tensor, Tensor] | None
    nested: bool

    @property
    def columns(self) -> Tensor:
        """Weights of the groups; the keeper has refused statistics whose groups are missing."""
        assert self.groups is not None
        return self.groups[0]

    @property
    def content(self) -> Tensor:
        """Which keys are content, 0 or 1 (b, k, 1)."""
        assert self.groups is not None
        return self.groups[1]

    @cached_property
    def masses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Attention on each group (b, h, q, G), on content and on the rest (b, h, q, 1), in one product."""
        sides = torch.cat([self.columns, self.content, 1 - self.content], -1)
        return _times(self.tile.weights, sides).split([self.columns.shape[2], 1, 1], -1)  # pyright: ignore

    @property
    def mass(self) -> Tensor:
        """Attention on content (b, h, q, 1)."""
        return self.masses[1]

    @cached_property
    def products(self) -> Tensor:
        """p (s − max) of every key. Overwrites the logits."""
        return self.tile.logits.mul_(self.tile.weights)

    @cached_property
    def entropy(self) -> Tensor:
        """Centred entropy of the rows: log Z − Σ p (s − max), where log Z is −log of the largest weight."""
        return 0.0 - self.tile.peak.log() - self.products.sum(-1)  # 0.0 first: never −0.0

    @cached_property
    def seen(self) -> Tensor:
        """How much content a row sees (b, h|1, q|1, 1)."""
        return self.tile.over_keys(self.content)

    @cached_property
    def strong(self) -> bool:
        """Whether every row that sees content gives it enough that no digits are lost in its weights."""
        return not bool(((self.mass < STRONG) & (self.seen > 0)).any())

    @cached_property
    def alone(self) -> tuple[Tensor, Tensor]:
        """Logits and weights of the rows renormalised over content keys; of no meaning in rows that see none."""
        logits = self.tile.logits.masked_fill((self.content == 0).mT[:, None], HIDDEN)
        logits.sub_(logits.amax(-1, keepdim=True))
        return logits, logits.softmax(-1)

    @cached_property
    def within(self) -> tuple[Tensor, Tensor]:
        """Weights that on content keys are in proportion to those of content alone, and their sum there (…, 1)."""
        weights, total = (self.tile.weights, self.mass) if self.strong else (self.alone[1], None)
        total = _times(weights, self.content) if total is None else total
        return weights, total.clamp(min=torch.finfo(total.dtype).tiny)  # rows that see no content

    @cached_property
    def entropy_content(self) -> Tensor:
        """Entropy of the rows renormalised over content keys, in shares of log n. Overwrites the logits."""
        if self.strong:
            mass = self.mass[..., 0]
            entropy = mass.log() - self.tile.peak.log() - _times(self.products, self.content)[..., 0] / mass
        else:
            logits, weights = self.alone
            entropy = 0.0 - weights.amax(-1).log() - (logits * weights).sum(-1)
        return normalized(entropy.clamp(min=0.0), self.seen[..., 0])


@dataclass
class _Part:
    """Rows of a tile and some of the groups of their keys, by number, and which of them are indicators (b, G).

    norms: (b, h, k), those of the transformed values, if they are known.
    """

    rows: _Rows
    chosen: slice | list[int]
    indicators: Tensor
    norms: Tensor | None

    @cached_property
    def columns(self) -> Tensor:
        """Weights of the groups (b, k, G)."""
        return self.rows.columns[..., self.chosen]

    @cached_property
    def inner(self) -> Tensor:
        """The groups within the content (b, k, G)."""
        return self.columns * self.rows.content

    @cached_property
    def masses(self) -> Tensor:
        """m_g (b, h, q, G)."""
        return self.rows.masses[0][..., self.chosen]

    @cached_property
    def inside(self) -> Tensor:
        """G_g (b, h, q, G): weight of each group in the content softmax."""
        weights, total = self.rows.within
        if self.rows.strong and self.rows.nested:
            return self.masses / total
        return _times(weights, self.inner) / total

    @cached_property
    def outside(self) -> Tensor:
        """1 − G_g (b, h, q, G), summed over the rest of the content, so that little keeps its digits."""
        weights, total = self.rows.within
        return _times(weights, self.rows.content - self.inner) / total

    @cached_property
    def seen(self) -> Tensor:
        """Σ of a row's visible keys of each group within the content (b, h|1, q|1, G)."""
        return self.rows.tile.over_keys(self.inner)


def _times(weights: Tensor, columns: Tensor) -> Tensor:
    """Weights (b, h, q, k) times columns (b, k, G), with the few columns first: several times quicker."""
    product = columns.mT.contiguous() @ weights.flatten(1, 2).mT
    return product.mT.unflatten(1, weights.shape[1:3])


def _distance(rows: _Rows) -> Tensor:
    tile = rows.tile
    gaps = distances(tile.box, tile.offset, tile.logits.device).abs().to(tile.weights)
    return torch.einsum("bhqk,qk->bhq", tile.weights[..., : tile.box.keys], gaps)


def _lift(part: _Part) -> Tensor:
    seen = part.rows.tile.over_keys(part.columns)
    return part.masses * part.rows.tile.count[..., None] / torch.where(seen > 0, seen, torch.nan)


def _share(part: _Part) -> Tensor:
    return part.inside.masked_fill(part.seen == 0, torch.nan)


def _share_value(part: _Part) -> Tensor:
    assert part.norms is not None
    both = torch.cat([part.inner, part.rows.content], -1)  # (b, k, G+1)
    lengths = both.mT[:, None] * part.norms[:, :, None]  # (b, h, G+1, k)
    sums = (lengths @ part.rows.within[0].mT).mT  # (b, h, q, G+1)
    total = torch.where(sums[..., -1:] > 0, sums[..., -1:], torch.nan)
    return (sums[..., :-1] / total).masked_fill(part.seen == 0, torch.nan)


def _log_odds(part: _Part) -> Tensor:
    """Log-mean-exp difference of each indicator column and the rest of the content, from the content softmax.

    Where a side is so weak that float32 loses it, its logits are summed in log space instead.
    """
    sides = []
    for side, mass, count in (
        (part.inner, part.inside, part.seen),
        (part.rows.content - part.inner, part.outside, part.rows.seen - part.seen),
    ):
        weak = (mass < WEAK) & (count > 0) & part.indicators[:, None, None]
        logs = mass.log()
        if bool(weak.any()):
            logs = torch.where(weak, _log_sums(part.rows, side), logs)
        sides.append(torch.where(count > 0, logs - count.log(), torch.nan))
    return (sides[0] - sides[1]).masked_fill(~part.indicators[:, None, None], torch.nan)


def _log_sums(rows: _Rows, side: Tensor) -> Tensor:
    """log Σ_side p (b, h, q, G) of the content softmax in log space: a pass over the tile for each column."""
    logits, weights = rows.alone
    hidden = side == 0
    sums = [logits.masked_fill(hidden[:, None, None, :, g], HIDDEN).logsumexp(-1) for g in range(side.shape[2])]
    return torch.stack(sums, -1) + weights.amax(-1, keepdim=True).log()


def _entropy_between(part: _Part) -> Tensor:
    """The content's mass c is split by its own softmax: H(m_K, c·G, c·(1 − G))."""
    _, mass, sinks = part.rows.masses
    between = torch.special.entr(sinks) + torch.special.entr(mass * part.inside)
    between += torch.special.entr(mass * part.outside)
    return between.masked_fill(~part.indicators[:, None, None], torch.nan)


# Definitions, units and sources stand in rows.py. What keys received needs all tiles: see _Keeper.
ROWWISE: dict[str, Callable[[_Rows], Tensor]] = {
    "entropy": lambda rows: rows.entropy,
    "entropy_normalized": lambda rows: normalized(rows.entropy, rows.tile.count),
    "effective_keys": lambda rows: rows.entropy.exp(),
    "max_weight": lambda rows: rows.tile.peak,
    "renyi2": lambda rows: -2 * torch.linalg.vector_norm(rows.tile.weights, dim=-1).log(),
    "lse": lambda rows: rows.tile.lse,
    "distance": _distance,
    "entropy_content": lambda rows: rows.entropy_content,
}
GROUPWISE: dict[str, Callable[[_Part], Tensor]] = {
    "mass": lambda part: part.masses,
    "lift": _lift,
    "share": _share,
    "share_value": _share_value,
    "log_odds": _log_odds,
    "entropy_between": _entropy_between,
}


class _Keeper:
    """Keeps what tiles are reduced to."""

    def __init__(self, tiles: Tiles, wanted: Wanted):
        query, self.sinks = tiles.query, tiles.scores.sinks
        self.names = known(wanted.statistics)
        texts, heads, rows, _ = query.shape
        like = query.new_empty(0, dtype=tiles.dtype)
        if GROUPED.intersection(self.names):
            needed(wanted.groups)
        if "share_value" in self.names and wanted.norms is None:
            raise ShapeError("share_value needs norms of the transformed values: core.flow.value_norms gives them")
        self.groups, self.nested = None, False
        if wanted.groups is not None:
            weights, content = wanted.groups.columns(like, self.sinks is not None)
            self.groups, self.nested = (
                (weights, content[..., None]),
                not bool((weights * (1 - content[..., None])).any()),
            )
        self.indicators = None if wanted.groups is None else wanted.groups.indicators().to(query.device)
        valid = wanted.queries
        self.queries = query.new_ones(texts, rows, dtype=torch.bool) if valid is None else valid.to(query.device)
        sizes: dict[str, tuple[int, ...]] = {"row": (texts, heads, rows), "key": (texts, heads, tiles.keys.shape[1])}
        self.chosen = {name: wanted.columns.get(name) for name in self.names}
        self.kept = {}
        for name in self.names:
            chosen, size = self.chosen[name], sizes.get(STATISTICS[name].axes, ())
            if STATISTICS[name].axes == "group":
                assert self.groups is not None
                size = (texts, heads, rows, self.groups[0].shape[2] if chosen is None else len(chosen))
            self.kept[name] = like.new_zeros(size)
        self.norms = None if wanted.norms is None else wanted.norms.to(like)
        # Column sums of the map, and what the column sums of uniform rows, and of rows that give all, would be.
        self.sums = {name: like.new_zeros(sizes["key"]) for name in ("map", *self.names) if name in ("map", *RECEIVED)}

    def keep(self, tile: Tile) -> None:
        """Reduce the tile; rows without data become NaN."""
        box = tile.box
        rows, parts = _Rows(tile, None if self.groups is None else self._keys(box, *self.groups), self.nested), {}
        empty = (tile.count == 0) | ~self.queries[box.texts, None, box.queries]
        if len(self.sums) > 1:
            self._receive(tile, ~empty)
        for name in sorted(self.names, key=lambda name: SPENDING.index(name) if name in SPENDING else -1):
            if name in ROWWISE:
                value, hole = ROWWISE[name](rows), empty
            elif name in GROUPWISE:
                chosen = self.chosen[name]
                if chosen not in parts:
                    assert self.indicators is not None
                    some = slice(None) if chosen is None else list(chosen)
                    parts[chosen] = _Part(rows, some, self.indicators[box.texts][:, some], self._lengths(box))
                value, hole = GROUPWISE[name](parts[chosen]), empty[..., None]
            else:
                continue
            self.kept[name][box.texts, box.heads, box.queries] = value.masked_fill(hole, torch.nan)

    def _lengths(self, box: Box) -> Tensor | None:
        """Norms of the box's values; a null key has none."""
        if self.norms is None:
            return None
        norms = self.norms[box.texts, box.heads, : box.keys]
        return norms if self.sinks is None else torch.cat([norms, norms.new_zeros(*norms.shape[:2], 1)], -1)

    def _keys(self, box: Box, weights: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Groups of the box's keys; the null key stands last."""
        if self.sinks is None:
            return weights[box.texts, : box.keys], content[box.texts, : box.keys]
        keys = [*range(box.keys), weights.shape[1] - 1]
        return weights[box.texts][:, keys], content[box.texts][:, keys]

    def _receive(self, tile: Tile, valid: Tensor) -> None:
        """Add the tile's columns to what each key received, and to what other rows would have given it.

        valid: (b, h|1, q) rows that carry data.
        """
        box, keys = tile.box, slice(0, tile.box.keys)
        rows = valid.to(tile.weights)  # (b, h|1, q)
        for name, total in self.sums.items():
            if name == "map":
                columns = (rows[..., None, :] @ tile.weights[..., keys])[..., 0, :]
            else:
                columns = tile.over_rows(rows / tile.count.clamp(min=1) if name == "received" else rows)
            total[box.texts, box.heads, keys] += columns

    def finish(self) -> dict[str, Tensor]:
        """The statistics by name."""
        for name in RECEIVED:
            if name in self.kept:
                most = self.sums[name]
                self.kept[name] = self.sums["map"] / torch.where(most > 0, most, torch.nan)
        return self.kept
