"""An attention map cut into tiles of whole rows: logits and softmax of one box at a time, memory O(T·tile).

Each tile holds whole rows, so softmax needs no rescaling; keys past the causal frontier are never touched. Logits are
float32 (float64 for float64 input) with the mean key of each head removed, which no softmax notices and which keeps
a common offset of the logits from eating the digits (METRICS 8.2).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from attnlens.core.scores import Box, Scores

# Elements of a logit tile for each thread: small enough for the cache of its core, large enough for few calls.
TILE = 1 << 18
# Queries of a tile. Under a causal mask a lower block wastes less above the diagonal, a higher one multiplies faster.
ROWS, CAUSAL_ROWS, LONG = 128, 64, 1024
# Fewer rows at a time than this multiply slowly, whatever the cache holds.
FEWEST = 128
BIT = math.log(2)  # in nats


@dataclass
class Seen:
    """Whole rows of a map: logits (b, h, q, k) with maximum 0, and what they see; a learned null key stands last.

    The logits lie in memory that the next tile reuses.
    """

    box: Box
    offset: int
    scores: Scores
    logits: Tensor

    @cached_property
    def visible(self) -> Tensor | None:
        """Which keys a row sees, bool (b|1, h|1, q, k); None where it sees all."""
        seen = self.scores.visible(self.box, self.offset, self.logits.device)
        if seen is None or self.scores.sinks is None:
            return seen
        return torch.cat([seen, seen.new_ones(()).expand(*seen.shape[:3], 1)], -1)

    @cached_property
    def shown(self) -> Tensor | None:
        """`visible` as 0 and 1 (b|1, h|1, q, k), to be multiplied with."""
        return None if self.visible is None else self.visible.to(self.logits.dtype)

    @cached_property
    def last(self) -> Tensor:
        """The last key that each row of a merely causal map sees (q,); below 0 where it sees none."""
        return self.offset + torch.arange(self.box.queries.start, self.box.queries.stop, device=self.logits.device)

    @cached_property
    def count(self) -> Tensor:
        """n_i (b|1, h|1, q): visible keys, a null key included."""
        if self.scores.merely_causal:
            seen = (self.last + 1).clamp(0, self.box.keys) + (self.scores.sinks is not None)
            return seen.to(self.logits.dtype)[None, None]
        if self.shown is None:
            return self.logits.new_full((1, 1, 1), self.logits.shape[-1])
        return self.shown.sum(-1)

    def over_keys(self, columns: Tensor) -> Tensor:
        """Σ of the visible keys of each row in columns (b, k, G), a null key's row last: (b, h|1, q|1, G)."""
        if self.scores.merely_causal:
            keys = self.box.keys
            sums = columns[:, :keys].cumsum(1)[:, self.last.clamp(min=0)] * (self.last >= 0)[:, None]
            return (sums + columns[:, keys:].sum(1, keepdim=True))[:, None]
        return columns.sum(1)[:, None, None] if self.shown is None else self.shown @ columns[:, None]

    def over_rows(self, weights: Tensor) -> Tensor:
        """Σ of weights of rows (b, h|1, q) over those that see each key, no null key: (b, h|1, k|1)."""
        if self.scores.merely_causal:
            later = torch.cat([weights.flip(-1).cumsum(-1).flip(-1), torch.zeros_like(weights[..., :1])], -1)
            first = torch.arange(self.box.keys, device=weights.device) - self.last[0]  # of the rows that see a key
            return later[..., first.clamp(0, weights.shape[-1])]
        if self.shown is None:
            return weights.sum(-1, keepdim=True)
        shown = self.shown[..., : self.box.keys].expand(-1, -1, weights.shape[-1], -1)
        return (weights[..., None, :] @ shown)[..., 0, :]

    @cached_property
    def blind(self) -> Tensor | None:
        """Rows that see no key, bool (b|1, h|1, q); None where it is plain that there are none."""
        if self.scores.sinks is not None or (self.scores.merely_causal and self.offset >= 0) or self.visible is None:
            return None
        return self.count == 0


@dataclass
class Tile(Seen):
    """Whole rows with their softmax, in memory that the next tile reuses.

    top (b, h, q): the maximum that was taken off the logits. shift: gives the part of the mean key that was.
    """

    weights: Tensor
    top: Tensor
    shift: Callable[[Box], Tensor]

    @cached_property
    def peak(self) -> Tensor:
        """Largest weight of each row (b, h, q). The maximum logit is 0, so log Z is −log of it."""
        return self.weights.amax(-1)

    @property
    def lse(self) -> Tensor:
        """log Σ exp of the row's logits (b, h, q), mean key and maximum put back."""
        return self.top + self.shift(self.box) - self.peak.log()


def without(output: Tensor, seen: Seen) -> Tensor:
    """The attention output (b, h, q, D_v) with 0 in rows that see nothing, in place."""
    return output if seen.blind is None else output.masked_fill_(seen.blind[..., None], 0.0)


@dataclass(frozen=True)
class Tiles:
    """q as it came, k and v in working precision, flattened to (B·H_kv, K, D) so that tiles are views."""

    query: Tensor
    keys: Tensor
    values: Tensor | None
    mean: Tensor | None
    key_heads: int
    scores: Scores
    dtype: torch.dtype
    memory: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores) -> "Tiles":
        """Check the shapes, take the mean key off, lay k and v out flat."""
        scores.check(query, key)
        if scores.causal and scores.window is not None and scores.window >= key.shape[2]:
            scores = replace(scores, window=None)  # it hides nothing, and a merely causal map is cheaper to look at
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
        """Tiles of about TILE elements a thread: some texts with all heads, or some heads of one text."""
        texts, _, rows, _ = self.query.shape
        tile = TILE * torch.get_num_threads()
        block = min(rows, CAUSAL_ROWS if self.scores.causal and rows < LONG else ROWS)
        block = min(block, max(tile // (self.repeats * self.keys.shape[1]), -(-FEWEST // self.repeats)))
        for start in range(0, rows, block):
            stop = min(rows, start + block)
            keys = self.keys.shape[1]
            if self.scores.causal:
                keys = max(1, min(keys, stop + self.offset))
            room = max(1, tile // (self.repeats * (stop - start) * keys))
            many, few = max(1, room // self.key_heads), min(room, self.key_heads)
            for text in range(0, texts, many):
                for head in range(0, self.key_heads, few):
                    heads = slice(head * self.repeats, min(head + few, self.key_heads) * self.repeats)
                    yield Box(slice(text, min(text + many, texts)), heads, slice(start, stop), keys)

    def tile(self, box: Box) -> Tile:
        """Logits and softmax of one box."""
        logits, top = self._centred(box, 1.0)
        weights = torch.softmax(logits, -1, out=self.room("weights", logits.shape))
        return Tile(box, self.offset, self.scores, logits, weights, top, self.shift)

    def powers(self, box: Box) -> tuple[Seen, Tensor, Tensor]:
        """One box in bits: its logits, 2 to their power, and the maximum that was taken off the rows (b, h, q)."""
        logits, top = self._centred(box, 1 / BIT)
        powers = torch.exp2(logits, out=self.room("weights", logits.shape))
        return Seen(box, self.offset, self.scores, logits), powers, top

    def shift(self, box: Box) -> Tensor:
        """The part of the mean key in the logits of a box's rows (b, h, q), in nats; a tile's logits are without it."""
        query = self._packed(box)
        shape = (box.texts.stop - box.texts.start, -1, box.queries.stop - box.queries.start)
        if self.mean is None:
            return query.new_zeros(len(query), query.shape[1]).view(shape)
        mean = self.mean.flatten(0, 1)[self._flat(box)].transpose(1, 2)
        return (query @ mean).mul_(self.scores.scale).view(shape)

    def carried(self, box: Box, weights: Tensor) -> Tensor:
        """Values of the box under some weights (b, h, q, k): (b, h, q, D_v); a null key has none."""
        assert self.values is not None
        weights = weights[..., : box.keys]
        packed = weights.reshape(-1, self.repeats * weights.shape[2], box.keys)
        return torch.bmm(packed, self.values[self._flat(box), : box.keys]).view(*weights.shape[:3], -1)

    def _packed(self, box: Box) -> Tensor:
        """Queries of the box in working precision: (texts · key heads, repeats · rows, D)."""
        query = self.query[box.texts, box.heads, box.queries].to(self.dtype)
        return query.reshape(-1, self.repeats * query.shape[2], query.shape[3])

    def _centred(self, box: Box, unit: float) -> tuple[Tensor, Tensor]:
        """Logits (b, h, q, k) with their maximum taken off, and that maximum (b, h, q), both times `unit`."""
        packed, keys = self._packed(box), self.keys[self._flat(box), : box.keys].transpose(1, 2)
        room, linear = self.room("logits", (*packed.shape[:2], box.keys)), self.scores.linear
        alpha = self.scores.scale * unit if linear else self.scores.scale
        product = torch.baddbmm(packed.new_zeros(()), packed, keys, beta=0, alpha=alpha, out=room)
        shape = (box.texts.stop - box.texts.start, -1, box.queries.stop - box.queries.start, box.keys)
        logits = self.scores.finish(product.view(shape), box)
        if unit != 1 and not linear:
            logits.mul_(unit)
        self.scores.hide(logits, box, self.offset)
        if self.scores.sinks is not None:
            sink = self.scores.sinks[box.heads].to(logits)[None, :, None, None] - self.shift(box)[..., None]
            logits = torch.cat([logits, sink * unit], -1)
        top = logits.amax(-1, keepdim=True)
        return logits.sub_(top), top[..., 0]

    def _flat(self, box: Box) -> slice:
        """The box's range of the flattened text-and-key-head axis."""
        heads = (box.heads.stop - box.heads.start) // self.repeats
        start = box.texts.start * self.key_heads + box.heads.start // self.repeats
        return slice(start, start + (box.texts.stop - box.texts.start) * heads)

    def room(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory that all tiles share: fresh pages for each would cost more than some of the passes over them."""
        size = math.prod(shape)
        if name not in self.memory or self.memory[name].numel() < size:
            self.memory[name] = self.keys.new_empty(max(size, TILE))
        return self.memory[name][:size].view(shape)
