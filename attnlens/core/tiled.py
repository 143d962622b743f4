"""The statistics of `rows.py` and the attention output straight from q, k, v: memory O(T·tile), never a T×T map.

Entropy is centred, H = log Z − Σ p (s − max), which loses fewer digits than L − Σ p s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attnlens.core.rows import STATISTICS, Groups, known, needed
from attnlens.core.scores import HIDDEN, Box, Scores, distances
from attnlens.core.tiles import Tile, Tiles

# Below this a float32 mass has lost digits.
WEAK = 1e-30
# Computed last: they overwrite logits that others read.
SPENDING = ("entropy", "entropy_normalized", "effective_keys", "entropy_content")


@dataclass(frozen=True)
class Wanted:
    """What to compute: names of the registry, token groups, rows that carry data (B, Q) bool (None: all)."""

    statistics: tuple[str, ...]
    groups: Groups | None = None
    queries: Tensor | None = None


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
    """A tile and the groups of its keys: weights (b, k, G) and content (b, k); which columns are indicators (b, G)."""

    tile: Tile
    groups: tuple[Tensor, Tensor] | None
    indicators: Tensor | None

    @cached_property
    def entropy(self) -> Tensor:
        """Centred entropy of the rows. Overwrites the logits."""
        return _entropy(self.tile.logits, self.tile.weights, self.tile.peak)

    @cached_property
    def content(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and weights of the rows renormalised over content keys, and the number of visible content keys."""
        _, content = needed_columns(self.groups)
        inside = (content > 0)[:, None, None]
        logits = self.tile.logits.masked_fill(~inside, HIDDEN)
        logits.sub_(logits.amax(-1, keepdim=True))
        seen = inside if self.tile.visible is None else inside & self.tile.visible
        return logits, logits.softmax(-1), seen.sum(-1, dtype=logits.dtype)

    def count(self, columns: Tensor) -> Tensor:
        """Σ of a row's visible keys in each column (b, k, G): (b, h|1, q|1, G)."""
        if self.tile.visible is None:
            return columns.sum(1)[:, None, None]
        return self.tile.visible.to(columns.dtype) @ columns[:, None]

    def grouped(self, weights: Tensor) -> Tensor:
        """Σ_j w_ij g_j (b, h, q, G) for w (b, h, q, k)."""
        return _times(weights, needed_columns(self.groups)[0])


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


def _share(part: _Part) -> Tensor:
    columns, content = needed_columns(part.groups)
    seen = part.count(columns * content[..., None])
    return part.grouped(part.content[1]).masked_fill(seen == 0, torch.nan)


def _log_odds(part: _Part) -> Tensor:
    """Log-mean-exp difference of each indicator column and the rest of the content, from the content softmax.

    Where a side is so weak that float32 loses it, its logits are summed in log space instead.
    """
    _, weights, _ = part.content
    columns, content = needed_columns(part.groups)
    assert part.indicators is not None
    inside = columns * content[..., None]
    sides = []
    for side in (inside, content[..., None] - inside):
        mass = _times(weights, side)
        count = part.count(side)
        weak = (mass < WEAK) & (count > 0) & part.indicators[:, None, None]
        logs = mass.log()
        if bool(weak.any()):
            logs = torch.where(weak, _log_sums(part, side), logs)
        sides.append(torch.where(count > 0, logs - count.log(), torch.nan))
    return torch.where(part.indicators[:, None, None], sides[0] - sides[1], torch.nan)


def _log_sums(part: _Part, side: Tensor) -> Tensor:
    """log Σ_side p (b, h, q, G) of the content softmax in log space: a pass over the tile for each column."""
    logits, weights, _ = part.content
    hidden = side == 0
    sums = [logits.masked_fill(hidden[:, None, None, :, g], HIDDEN).logsumexp(-1) for g in range(side.shape[2])]
    return torch.stack(sums, -1) + weights.amax(-1, keepdim=True).log()


def _entropy_content(part: _Part) -> Tensor:
    logits, weights, count = part.content
    return _normalized(_entropy(logits, weights, weights.amax(-1)), count)


# Definitions, units and sources stand in rows.py. `received` needs all tiles: see _Keeper.
REDUCE: dict[str, Callable[[_Part], Tensor]] = {
    "entropy": lambda part: part.entropy,
    "entropy_normalized": lambda part: _normalized(part.entropy, part.tile.count),
    "effective_keys": lambda part: part.entropy.exp(),
    "max_weight": lambda part: part.tile.peak,
    "renyi2": lambda part: -2 * torch.linalg.vector_norm(part.tile.weights, dim=-1).log(),
    "lse": lambda part: part.tile.lse,
    "distance": _distance,
    "mass": lambda part: part.grouped(part.tile.weights),
    "share": _share,
    "log_odds": _log_odds,
    "entropy_content": _entropy_content,
}


class _Keeper:
    """Keeps what tiles are reduced to."""

    def __init__(self, tiles: Tiles, wanted: Wanted):
        query, self.sinks = tiles.query, tiles.scores.sinks
        self.names = known(wanted.statistics)
        texts, heads, rows, _ = query.shape
        like = query.new_empty(0, dtype=tiles.dtype)
        if any(name in {"mass", "share", "log_odds", "entropy_content"} for name in self.names):
            needed(wanted.groups)
        self.groups = None if wanted.groups is None else wanted.groups.columns(like, self.sinks is not None)
        self.indicators = None if wanted.groups is None else wanted.groups.indicators().to(query.device)
        valid = wanted.queries
        self.queries = query.new_ones(texts, rows, dtype=torch.bool) if valid is None else valid.to(query.device)
        sizes: dict[str, tuple[int, ...]] = {"row": (texts, heads, rows), "key": (texts, heads, tiles.keys.shape[1])}
        if self.groups is not None:
            sizes["group"] = (texts, heads, rows, self.groups[0].shape[2])
        self.kept = {name: like.new_zeros(sizes[STATISTICS[name].axes]) for name in self.names}
        self.uniform = like.new_zeros(sizes["key"]) if "received" in self.names else None

    def keep(self, tile: Tile) -> None:
        """Reduce the tile; rows without data become NaN."""
        box = tile.box
        part = _Part(tile, None if self.groups is None else self._keys(box, *self.groups), self._columns(box))
        empty = (tile.count == 0) | ~self.queries[box.texts, None, box.queries]
        for name in sorted(self.names, key=SPENDING.__contains__):
            if name == "received":
                self._receive(tile, ~empty[..., None])
                continue
            value = REDUCE[name](part)
            hole = empty if STATISTICS[name].axes == "row" else empty[..., None]
            self.kept[name][box.texts, box.heads, box.queries] = value.masked_fill(hole, torch.nan)

    def _columns(self, box: Box) -> Tensor | None:
        return None if self.indicators is None else self.indicators[box.texts]

    def _keys(self, box: Box, weights: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Groups of the box's keys; the null key stands last."""
        if self.sinks is None:
            return weights[box.texts, : box.keys], content[box.texts, : box.keys]
        keys = [*range(box.keys), weights.shape[1] - 1]
        return weights[box.texts][:, keys], content[box.texts][:, keys]

    def _receive(self, tile: Tile, valid: Tensor) -> None:
        """Add the tile's columns to what each key received, and to what uniform rows would have given it."""
        assert self.uniform is not None
        box, keys = tile.box, slice(0, tile.box.keys)
        self.kept["received"][box.texts, box.heads, keys] += (tile.weights[..., keys] * valid).sum(-2)
        share = (valid / tile.count.clamp(min=1)[..., None]).expand(*valid.shape[:3], box.keys)
        if tile.visible is not None:
            share = share * tile.visible[..., keys]
        self.uniform[box.texts, box.heads, keys] += share.sum(-2)

    def finish(self) -> dict[str, Tensor]:
        """The statistics by name."""
        if self.uniform is not None:
            self.kept["received"] /= torch.where(self.uniform > 0, self.uniform, torch.nan)
        return self.kept
