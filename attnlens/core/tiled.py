"""The statistics of `rows.py` and the attention output straight from q, k, v: memory O(T·tile), never a T×T map.

Each tile holds whole rows, so softmax needs no rescaling; keys past the causal frontier are never touched. Logits are
float32 (float64 for float64 input) with the mean key of each head removed, which no softmax notices and which keeps
a common offset of the logits from eating the digits (METRICS 8.2); entropy is centred: H = log Z − Σ p (s − max).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attnlens.core.rows import STATISTICS, Groups, known, needed
from attnlens.core.scores import HIDDEN, Box, Scores, distances

# Elements of a logit tile: small enough for the cache of one core, large enough for few calls.
TILE = 1 << 19
# Below this a float32 mass has lost digits.
WEAK = 1e-30
# Queries of a tile. Under a causal mask a lower block wastes less above the diagonal.
ROWS, CAUSAL_ROWS = 128, 64


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
    scores.check(query, key)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        inputs = _Inputs.of(query, key, value, scores)
        keeper = _Keeper(inputs, wanted)
        output = None if value is None else query.new_empty(*query.shape[:3], value.shape[-1])
        for box in inputs.boxes():
            tile = keeper.tile(box)
            if output is not None:
                output[box.texts, box.heads, box.queries] = inputs.output(box, tile).to(output.dtype)
            keeper.keep(box, tile)
        return output, keeper.finish()


@dataclass(frozen=True)
class _Inputs:
    """q as it came, k and v in working precision, flattened to (B·H_kv, K, D) so that tiles are views."""

    query: Tensor
    keys: Tensor
    values: Tensor | None
    mean: Tensor | None
    key_heads: int
    scores: Scores
    dtype: torch.dtype

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores) -> "_Inputs":
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        keys, mean = key.to(dtype), None
        if scores.softcap is None:  # a softcap is not linear: there the offset must stay
            mean = keys.mean(2, keepdim=True)
            keys = keys - mean
        values = None if value is None else value.to(dtype).flatten(0, 1)
        return cls(query, keys.flatten(0, 1), values, mean, key.shape[1], scores, dtype)

    @property
    def repeats(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[1] // self.key_heads

    @property
    def offset(self) -> int:
        """Position of query 0 among the keys."""
        return self.keys.shape[1] - self.query.shape[2]

    def boxes(self) -> Iterator[Box]:
        """Tiles of about TILE elements: some texts with all heads, or some heads of one text."""
        texts, _, rows, _ = self.query.shape
        block = min(rows, CAUSAL_ROWS if self.scores.causal else ROWS)
        block = max(1, min(block, TILE // (self.repeats * self.keys.shape[1])))
        for start in range(0, rows, block):
            stop = min(rows, start + block)
            keys = self.keys.shape[1]
            if self.scores.causal:
                keys = max(1, min(keys, stop + self.offset))
            room = max(1, TILE // (self.repeats * (stop - start) * keys))
            many, few = max(1, room // self.key_heads), min(room, self.key_heads)
            for text in range(0, texts, many):
                for head in range(0, self.key_heads, few):
                    heads = slice(head * self.repeats, min(head + few, self.key_heads) * self.repeats)
                    yield Box(slice(text, min(text + many, texts)), heads, slice(start, stop), keys)

    def flat(self, box: Box) -> slice:
        """The box's range of the flattened text-and-key-head axis."""
        heads = (box.heads.stop - box.heads.start) // self.repeats
        start = box.texts.start * self.key_heads + box.heads.start // self.repeats
        return slice(start, start + (box.texts.stop - box.texts.start) * heads)

    def logits(self, box: Box) -> tuple[Tensor, Tensor]:
        """Logits (b, h, q, k) without the part of the mean key, and that part (b, h, q); nothing is hidden yet."""
        query = self.query[box.texts, box.heads, box.queries].to(self.dtype)
        texts, heads, rows, width = query.shape
        packed = query.reshape(-1, self.repeats * rows, width)
        keys = self.keys[self.flat(box), : box.keys].transpose(1, 2)
        tile = torch.baddbmm(query.new_zeros(()), packed, keys, beta=0, alpha=self.scores.scale)
        shift = query.new_zeros(texts, heads, rows)
        if self.mean is not None:
            mean = self.mean.flatten(0, 1)[self.flat(box)].transpose(1, 2)
            shift = (packed @ mean).mul_(self.scores.scale).view(texts, heads, rows)
        return self.scores.finish(tile.view(texts, heads, rows, box.keys), box), shift

    def output(self, box: Box, tile: "_Tile") -> Tensor:
        """Σ p v of the tile (b, h, q, D_v); a row that sees nothing gives 0, as torch's own attention does."""
        assert self.values is not None
        weights = tile.weights[..., : box.keys]
        packed = weights.reshape(-1, self.repeats * weights.shape[2], box.keys)
        output = torch.bmm(packed, self.values[self.flat(box), : box.keys]).view(*weights.shape[:3], -1)
        return output if tile.visible is None else output.masked_fill((tile.count == 0)[..., None], 0.0)


@dataclass
class _Tile:
    """Whole rows of the map: logits (b, h, q, k) with maximum 0, weights, what is visible, groups of the keys."""

    box: Box
    offset: int
    logits: Tensor
    weights: Tensor
    visible: Tensor | None
    lse: Tensor
    groups: tuple[Tensor, Tensor] | None
    indicators: Tensor | None

    @cached_property
    def count(self) -> Tensor:
        """n_i (b|1, h|1, q): visible keys, a null key included."""
        if self.visible is None:
            return self.logits.new_full((1, 1, 1), self.logits.shape[-1])
        return self.visible.sum(-1, dtype=self.logits.dtype)

    @cached_property
    def entropy(self) -> Tensor:
        """Centred entropy: the maximum logit is 0, so log Z is −log of the largest weight."""
        return _entropy(self.logits, self.weights)

    @cached_property
    def content(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and weights of the rows renormalised over content keys, and the number of visible content keys."""
        _, content = needed_columns(self.groups)
        inside = (content > 0)[:, None, None]
        logits = self.logits.masked_fill(~inside, HIDDEN)
        logits.sub_(logits.amax(-1, keepdim=True))
        seen = inside if self.visible is None else inside & self.visible
        return logits, logits.softmax(-1), seen.sum(-1, dtype=logits.dtype)

    def grouped(self, weights: Tensor) -> Tensor:
        """Σ_j w_ij g_j (b, h, q, G) for w (b, h, q, k)."""
        columns, _ = needed_columns(self.groups)
        return (weights.flatten(1, 2) @ columns).view(*weights.shape[:3], -1)


def needed_columns(groups: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Group weights and content of a tile; the keeper has refused statistics whose groups are missing."""
    assert groups is not None
    return groups


def _entropy(logits: Tensor, weights: Tensor) -> Tensor:
    return 0.0 - weights.amax(-1).log() - (weights * logits).sum(-1)  # 0.0 first: never −0.0


def _normalized(entropy: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 1, entropy / count.clamp(min=2).log(), torch.nan)


def _distance(tile: _Tile) -> Tensor:
    gaps = distances(tile.box, tile.offset, tile.logits.device).abs().to(tile.logits.dtype)
    return torch.einsum("bhqk,qk->bhq", tile.weights[..., : tile.box.keys], gaps)


def _share(tile: _Tile) -> Tensor:
    _, weights, count = tile.content
    return tile.grouped(weights).masked_fill((count == 0)[..., None], torch.nan)


def _log_odds(tile: _Tile) -> Tensor:
    """Log-mean-exp difference of each indicator column and the rest of the content, from the content softmax.

    Where a side is so weak that float32 loses it, its logits are summed in log space instead.
    """
    _, weights, _ = tile.content
    columns, content = needed_columns(tile.groups)
    assert tile.indicators is not None
    inside = columns * content[..., None]
    sides = []
    for side in (inside, content[..., None] - inside):
        mass = (weights.flatten(1, 2) @ side).view(*weights.shape[:3], -1)
        if tile.visible is None:
            count = side.sum(1)[:, None, None]
        else:
            count = tile.visible.to(side.dtype) @ side[:, None]
        weak = (mass < WEAK) & (count > 0) & tile.indicators[:, None, None]
        logs = mass.log()
        if torch.compiler.is_compiling() or bool(weak.any()):
            logs = torch.where(weak, _log_sums(tile, side), logs)
        sides.append(torch.where(count > 0, logs - count.log(), torch.nan))
    return torch.where(tile.indicators[:, None, None], sides[0] - sides[1], torch.nan)


def _log_sums(tile: _Tile, side: Tensor) -> Tensor:
    """log Σ_side p (b, h, q, G) of the content softmax in log space: a pass over the tile for each column."""
    logits, weights, _ = tile.content
    hidden = side == 0
    sums = [logits.masked_fill(hidden[:, None, None, :, g], HIDDEN).logsumexp(-1) for g in range(side.shape[2])]
    return torch.stack(sums, -1) + weights.amax(-1, keepdim=True).log()


# Definitions, units and sources stand in rows.py. `received` needs all tiles: see _Keeper.
REDUCE: dict[str, Callable[[_Tile], Tensor]] = {
    "entropy": lambda tile: tile.entropy,
    "entropy_normalized": lambda tile: _normalized(tile.entropy, tile.count),
    "effective_keys": lambda tile: tile.entropy.exp(),
    "max_weight": lambda tile: tile.weights.amax(-1),
    "renyi2": lambda tile: -2 * torch.linalg.vector_norm(tile.weights, dim=-1).log(),
    "lse": lambda tile: tile.lse,
    "distance": _distance,
    "mass": lambda tile: tile.grouped(tile.weights),
    "share": _share,
    "log_odds": _log_odds,
    "entropy_content": lambda tile: _normalized(_entropy(*tile.content[:2]), tile.content[2]),
}


class _Keeper:
    """Makes tiles and keeps what they are reduced to."""

    def __init__(self, inputs: _Inputs, wanted: Wanted):
        query, self.inputs = inputs.query, inputs
        self.names = known(wanted.statistics)
        self.sinks = inputs.scores.sinks
        texts, heads, rows, _ = query.shape
        like = query.new_empty(0, dtype=inputs.dtype)
        if any(name in {"mass", "share", "log_odds", "entropy_content"} for name in self.names):
            needed(wanted.groups)
        self.groups = None if wanted.groups is None else wanted.groups.columns(like, self.sinks is not None)
        self.indicators = None if wanted.groups is None else wanted.groups.indicators().to(query.device)
        valid = wanted.queries
        self.queries = query.new_ones(texts, rows, dtype=torch.bool) if valid is None else valid.to(query.device)
        sizes: dict[str, tuple[int, ...]] = {"row": (texts, heads, rows), "key": (texts, heads, inputs.keys.shape[1])}
        if self.groups is not None:
            sizes["group"] = (texts, heads, rows, self.groups[0].shape[2])
        self.kept = {name: like.new_zeros(sizes[STATISTICS[name].axes]) for name in self.names}
        self.uniform = like.new_zeros(sizes["key"]) if "received" in self.names else None

    def tile(self, box: Box) -> _Tile:
        """Logits, softmax and groups of one box."""
        logits, shift = self.inputs.logits(box)
        visible = self.inputs.scores.visible(box, self.inputs.offset, logits.device)
        if visible is not None:
            logits.masked_fill_(~visible, HIDDEN)
        if self.sinks is not None:
            sink = self.sinks[box.heads].to(logits.dtype)[None, :, None, None] - shift[..., None]
            logits = torch.cat([logits, sink], -1)
            if visible is not None:
                visible = torch.cat([visible, visible.new_ones(()).expand(*visible.shape[:3], 1)], -1)
        top = logits.amax(-1, keepdim=True)
        logits.sub_(top)
        weights = logits.softmax(-1)
        lse = top[..., 0] + shift - weights.amax(-1).log()
        groups = None if self.groups is None else self._keys(box, *self.groups)
        indicators = None if self.indicators is None else self.indicators[box.texts]
        return _Tile(box, self.inputs.offset, logits, weights, visible, lse, groups, indicators)

    def _keys(self, box: Box, weights: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Groups of the box's keys; the null key stands last."""
        if self.sinks is None:
            return weights[box.texts, : box.keys], content[box.texts, : box.keys]
        keys = [*range(box.keys), weights.shape[1] - 1]
        return weights[box.texts][:, keys], content[box.texts][:, keys]

    def keep(self, box: Box, tile: _Tile) -> None:
        """Reduce the tile; rows without data become NaN."""
        empty = (tile.count == 0) | ~self.queries[box.texts, None, box.queries]
        for name in self.names:
            if name == "received":
                self._receive(box, tile, ~empty[..., None])
                continue
            value = REDUCE[name](tile)
            hole = empty if STATISTICS[name].axes == "row" else empty[..., None]
            self.kept[name][box.texts, box.heads, box.queries] = value.masked_fill(hole, torch.nan)

    def _receive(self, box: Box, tile: _Tile, valid: Tensor) -> None:
        """Add the tile's columns to what each key received, and to what uniform rows would have given it."""
        assert self.uniform is not None
        keys = slice(0, box.keys)
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
