"""The statistics of `rows.py` and the attention output straight from q, k, v: memory O(T·tile), never a T×T map.

Entropy is centred, H = log Z − Σ p (s − max), which loses fewer digits than L − Σ p s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError
from attnlens.core.rows import STATISTICS, Groups, known, needed
from attnlens.core.scores import HIDDEN, Box, Scores, distances
from attnlens.core.tiles import Tile, Tiles

# Below this a float32 mass has lost digits.
WEAK = 1e-30
# Computed last, in this order: they overwrite logits that others read, the first those of the content alone.
SPENDING = ("entropy_content", "entropy", "entropy_normalized", "effective_keys")
# What each key received over all rows that carry data.
RECEIVED = ("received", "received_mean")
GROUPED = {name for name, record in STATISTICS.items() if record.axes == "group"} | {"entropy_content"}


@dataclass(frozen=True)
class Wanted:
    """What to compute: names of the registry, token groups, rows that carry data (B, Q) bool (None: all).

    norms: (B, H, K) lengths of the transformed values, which `share_value` needs (core/flow.py).
    """

    statistics: tuple[str, ...]
    groups: Groups | None = None
    queries: Tensor | None = None
    norms: Tensor | None = None


def attend(
    query: Tensor, key: Tensor, value: Tensor | None, scores: Scores, wanted: Wanted
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Attention output and statistics of q (B, H, Q, D), k (B, H_kv, K, D) and v (B, H_kv, K, D_v) or None.

    Returns the output (B, H, Q, D_v) in the dtype of q (None without v; rows that see no key are 0) and a dictionary of
    (B, H, Q), (B, H, Q, G) or (B, H, K) tensors in float32 (float64 for float64 input), NaN on rows without data.
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        tiles = Tiles.of(query, key, value, scores)
        keeper = _Keeper(tiles, wanted)
        output = None if value is None else query.new_empty(*query.shape[:3], value.shape[-1])
        for box in tiles.boxes():
            tile = tiles.tile(box)
            if output is not None:
                output[box.texts, box.heads, box.queries] = tiles.output(tile).to(output.dtype)
            keeper.keep(tile)
        return output, keeper.finish()


@dataclass
class _Part:
    """A tile and the groups of its keys: weights (b, k, G) and content (b, k); which columns are indicators (b, G).

    norms: (b, h, k), those of the transformed values, if they are known.
    """

    tile: Tile
    groups: tuple[Tensor, Tensor] | None
    indicators: Tensor | None
    norms: Tensor | None

    @cached_property
    def entropy(self) -> Tensor:
        """Centred entropy of the rows. Overwrites the logits."""
        return _entropy(self.tile.logits, self.tile.weights, self.tile.peak)

    @cached_property
    def content(self) -> tuple[Tensor, Tensor]:
        """Logits and weights of the rows renormalised over content keys; of no meaning in rows that see none."""
        _, content = needed_columns(self.groups)
        logits = self.tile.logits.masked_fill((content == 0)[:, None, None], HIDDEN)
        logits.sub_(logits.amax(-1, keepdim=True))
        return logits, logits.softmax(-1)

    @cached_property
    def masses(self) -> Tensor:
        """m_g (b, h, q, G)."""
        return _times(self.tile.weights, needed_columns(self.groups)[0])

    @cached_property
    def inside(self) -> Tensor:
        """G_g (b, h, q, G): weight of each group in the content softmax."""
        return _times(self.content[1], needed_columns(self.groups)[0])

    @cached_property
    def outside(self) -> Tensor:
        """1 − G_g (b, h, q, G), summed over the rest of the content, so that little keeps its digits."""
        columns, content = needed_columns(self.groups)
        return _times(self.content[1], content[..., None] - columns * content[..., None])

    @cached_property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Σ of a row's visible keys: of each group within the content (b, h|1, q|1, G), and of the content (…, 1)."""
        columns, content = needed_columns(self.groups)
        counts = self.count(torch.cat([columns * content[..., None], content[..., None]], -1))
        return counts[..., :-1], counts[..., -1:]

    def count(self, columns: Tensor) -> Tensor:
        """Σ of a row's visible keys in each column (b, k, G): (b, h|1, q|1, G)."""
        if self.tile.visible is None:
            return columns.sum(1)[:, None, None]
        return self.tile.visible.to(columns.dtype) @ columns[:, None]


def needed_columns(groups: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Group weights and content of a tile; the keeper has refused statistics whose groups are missing."""
    assert groups is not None
    return groups


def _times(weights: Tensor, columns: Tensor) -> Tensor:
    """Weights (b, h, q, k) times columns (b, k, G), with the few columns first: several times quicker."""
    product = columns.mT.contiguous() @ weights.flatten(1, 2).mT
    return product.mT.unflatten(1, weights.shape[1:3])


def _entropy(logits: Tensor, weights: Tensor, peak: Tensor) -> Tensor:
    """log Z − Σ p (s − max), where log Z is −log of the largest weight. Overwrites the logits."""
    return 0.0 - peak.log() - logits.mul_(weights).sum(-1)  # 0.0 first: never −0.0


def _normalized(entropy: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 1, entropy / count.clamp(min=2).log(), torch.nan)


def _distance(part: _Part) -> Tensor:
    tile = part.tile
    gaps = distances(tile.box, tile.offset, tile.logits.device).abs().to(tile.logits.dtype)
    return torch.einsum("bhqk,qk->bhq", tile.weights[..., : tile.box.keys], gaps)


def _lift(part: _Part) -> Tensor:
    seen = part.count(needed_columns(part.groups)[0])
    return part.masses * part.tile.count[..., None] / torch.where(seen > 0, seen, torch.nan)


def _share(part: _Part) -> Tensor:
    return part.inside.masked_fill(part.seen[0] == 0, torch.nan)


def _share_value(part: _Part) -> Tensor:
    assert part.norms is not None
    columns, content = needed_columns(part.groups)
    both = torch.cat([columns * content[..., None], content[..., None]], -1)  # (b, k, G+1)
    lengths = both.mT[:, None] * part.norms[:, :, None]  # (b, h, G+1, k)
    sums = (lengths @ part.content[1].mT).mT  # (b, h, q, G+1)
    total = torch.where(sums[..., -1:] > 0, sums[..., -1:], torch.nan)
    return (sums[..., :-1] / total).masked_fill(part.seen[0] == 0, torch.nan)


def _log_odds(part: _Part) -> Tensor:
    """Log-mean-exp difference of each indicator column and the rest of the content, from the content softmax.

    Where a side is so weak that float32 loses it, its logits are summed in log space instead.
    """
    columns, content = needed_columns(part.groups)
    assert part.indicators is not None
    inside, (seen, all_seen) = columns * content[..., None], part.seen
    sides = []
    for side, mass, count in (
        (inside, part.inside, seen),
        (content[..., None] - inside, part.outside, all_seen - seen),
    ):
        weak = (mass < WEAK) & (count > 0) & part.indicators[:, None, None]
        logs = mass.log()
        if bool(weak.any()):
            logs = torch.where(weak, _log_sums(part, side), logs)
        sides.append(torch.where(count > 0, logs - count.log(), torch.nan))
    return torch.where(part.indicators[:, None, None], sides[0] - sides[1], torch.nan)


def _log_sums(part: _Part, side: Tensor) -> Tensor:
    """log Σ_side p (b, h, q, G) of the content softmax in log space: a pass over the tile for each column."""
    logits, weights = part.content
    hidden = side == 0
    sums = [logits.masked_fill(hidden[:, None, None, :, g], HIDDEN).logsumexp(-1) for g in range(side.shape[2])]
    return torch.stack(sums, -1) + weights.amax(-1, keepdim=True).log()


def _entropy_between(part: _Part) -> Tensor:
    """The content's mass c is split by its own softmax: H(m_K, c·G, c·(1 − G))."""
    assert part.indicators is not None
    _, content = needed_columns(part.groups)
    sinks, mass = _times(part.tile.weights, torch.stack([1 - content, content], -1)).split(1, -1)
    between = torch.special.entr(sinks) + torch.special.entr(mass * part.inside)
    between += torch.special.entr(mass * part.outside)
    return between.masked_fill(~part.indicators[:, None, None], torch.nan)


def _entropy_content(part: _Part) -> Tensor:
    logits, weights = part.content
    return _normalized(_entropy(logits, weights, weights.amax(-1)), part.seen[1][..., 0])


# Definitions, units and sources stand in rows.py. What keys received needs all tiles: see _Keeper.
REDUCE: dict[str, Callable[[_Part], Tensor]] = {
    "entropy": lambda part: part.entropy,
    "entropy_normalized": lambda part: _normalized(part.entropy, part.tile.count),
    "effective_keys": lambda part: part.entropy.exp(),
    "max_weight": lambda part: part.tile.peak,
    "renyi2": lambda part: -2 * torch.linalg.vector_norm(part.tile.weights, dim=-1).log(),
    "lse": lambda part: part.tile.lse,
    "distance": _distance,
    "mass": lambda part: part.masses,
    "lift": _lift,
    "share": _share,
    "share_value": _share_value,
    "log_odds": _log_odds,
    "entropy_content": _entropy_content,
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
        self.groups = None if wanted.groups is None else wanted.groups.columns(like, self.sinks is not None)
        self.indicators = None if wanted.groups is None else wanted.groups.indicators().to(query.device)
        valid = wanted.queries
        self.queries = query.new_ones(texts, rows, dtype=torch.bool) if valid is None else valid.to(query.device)
        sizes: dict[str, tuple[int, ...]] = {"row": (texts, heads, rows), "key": (texts, heads, tiles.keys.shape[1])}
        if self.groups is not None:
            sizes["group"] = (texts, heads, rows, self.groups[0].shape[2])
        self.kept = {name: like.new_zeros(sizes[STATISTICS[name].axes]) for name in self.names}
        self.norms = None if wanted.norms is None else wanted.norms.to(like)
        # Column sums of the map, and what the column sums of uniform rows, and of rows that give all, would be.
        self.sums = {name: like.new_zeros(sizes["key"]) for name in ("map", *self.names) if name in ("map", *RECEIVED)}

    def keep(self, tile: Tile) -> None:
        """Reduce the tile; rows without data become NaN."""
        box = tile.box
        groups = None if self.groups is None else self._keys(box, *self.groups)
        part = _Part(tile, groups, self._columns(box), self._lengths(box))
        empty = (tile.count == 0) | ~self.queries[box.texts, None, box.queries]
        if len(self.sums) > 1:
            self._receive(tile, ~empty)
        for name in sorted(self.names, key=lambda name: SPENDING.index(name) if name in SPENDING else -1):
            if name in RECEIVED:
                continue
            value = REDUCE[name](part)
            hole = empty if STATISTICS[name].axes == "row" else empty[..., None]
            self.kept[name][box.texts, box.heads, box.queries] = value.masked_fill(hole, torch.nan)

    def _lengths(self, box: Box) -> Tensor | None:
        """Norms of the box's values; a null key has none."""
        if self.norms is None:
            return None
        norms = self.norms[box.texts, box.heads, : box.keys]
        return norms if self.sinks is None else torch.cat([norms, norms.new_zeros(*norms.shape[:2], 1)], -1)

    def _columns(self, box: Box) -> Tensor | None:
        return None if self.indicators is None else self.indicators[box.texts]

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
        rows = valid.to(tile.weights)[..., None, :]  # (b, h|1, 1, q)
        shares = {"map": rows, "received": rows / tile.count.clamp(min=1)[..., None, :], "received_mean": rows}
        for name, total in self.sums.items():
            if name == "map":
                columns = rows @ tile.weights[..., keys]
            elif tile.visible is None:
                columns = shares[name].sum(-1, keepdim=True)
            else:
                columns = shares[name] @ tile.visible[..., keys].expand(-1, -1, rows.shape[-1], -1).to(rows)
            total[box.texts, box.heads, keys] += columns[..., 0, :]

    def finish(self) -> dict[str, Tensor]:
        """The statistics by name."""
        for name in RECEIVED:
            if name in self.kept:
                most = self.sums[name]
                self.kept[name] = self.sums["map"] / torch.where(most > 0, most, torch.nan)
        return self.kept
