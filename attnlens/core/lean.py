"""The commonest statistics for little more than the attention itself: weights that are never normalised, in bits.

Of a row with maximum m, e = 2^(s − m) and Z = Σ e give the output Σ e v / Z, masses Σ e g / Z, the largest weight 1/Z,
Σ p² = Σ e² / Z², the entropy ln 2 · (log₂ Z − Σ e (s − m) / Z), and λ from Σ e over a group and over the rest of the
content. In bits, as MKL's exp takes thirty times as long where its result is 0, which it is on hidden keys. Sums of all
tiles wait until the end: many small steps cost more than one large one.
"""

from functools import cached_property

import torch
from torch import Tensor

from attnlens.core.rows import needed, normalized
from attnlens.core.scores import HIDDEN, Box
from attnlens.core.tiles import BIT, Seen, Tiles, without
from attnlens.core.wanted import Wanted

ENTROPIES = ("entropy", "entropy_normalized", "effective_keys")
LEAN = {*ENTROPIES, "max_weight", "renyi2", "lse", "mass", "log_odds"}
# Of a sum of powers below this, float32 has lost some: it is taken from the logits.
WEAK = 1e-30


def serves(wanted: Wanted) -> bool:
    """Whether this is all that is wanted."""
    return wanted.against is None and not wanted.base and LEAN.issuperset(wanted.statistics)


def attend(tiles: Tiles, wanted: Wanted) -> tuple[Tensor | None, dict[str, Tensor]]:
    """As `tiled.attend`, of what this file serves."""
    sums = _Sums(tiles, wanted)
    output = None
    if tiles.values is not None:
        output = tiles.query.new_empty(*tiles.query.shape[:3], tiles.values.shape[-1])
    for box in tiles.boxes():
        seen, powers, top = tiles.powers(box)
        total = sums.keep(seen, powers, top)
        if output is not None:
            carried = without(tiles.carried(box, powers).div_(total[..., None]), seen)
            output[box.texts, box.heads, box.queries] = carried.to(output.dtype)
    return output, sums.finish()


class _Sides:
    """The columns that powers are summed over: groups, the rest of the content beside each, and last all keys.

    columns: (B, S, K), with a last key for a null key where there is one. mass, inside, outside: which columns are for
    the masses, and for the two sides of λ.
    """

    def __init__(self, tiles: Tiles, wanted: Wanted):
        null = tiles.scores.sinks is not None
        every = tiles.keys.new_ones(len(tiles.query), tiles.keys.shape[1] + null, 1)
        self.mass, self.inside, self.outside, self.columns = [], [], [], every.mT
        if {"mass", "log_odds"}.isdisjoint(wanted.statistics):
            return
        groups = needed(wanted.groups)
        weights, content = groups.columns(every, null)
        masses, odds = (
            list(wanted.columns.get(name, range(weights.shape[2]))) if name in wanted.statistics else []
            for name in ("mass", "log_odds")
        )
        used = sorted({*masses, *odds})
        self.mass, self.inside = ([used.index(column) for column in some] for some in (masses, odds))
        self.outside = [len(used) + number for number in range(len(odds))]
        rest = content[..., None] - weights[..., odds]
        self.columns = torch.cat([weights[..., used], rest, every], -1).mT.contiguous()
        self.indicators = groups.indicators().to(every.device)[:, odds]

    @property
    def counted(self) -> list[int]:
        """Columns of which must be known how many keys a row sees: both sides of λ, and all."""
        return [*self.inside, *self.outside, self.columns.shape[1] - 1]

    def of(self, seen: Seen) -> Tensor:
        """Columns of the keys of a tile (b, S, k)."""
        columns, keys = self.columns[seen.box.texts], seen.box.keys
        if seen.logits.shape[-1] == keys:
            return columns[..., :keys]
        return torch.cat([columns[..., :keys], columns[..., -1:]], -1)  # a null key stands last


class _Sums:
    """What the rows of all tiles are summed to: each (B, H, Q), and of the sides (B, H, Q, S)."""

    def __init__(self, tiles: Tiles, wanted: Wanted):
        self.names, self.tiles = tuple(wanted.statistics), tiles
        self.queries, self.sides = wanted.queries, _Sides(tiles, wanted)
        shape = tiles.query.shape[:3]
        self.rows = {name: tiles.keys.new_empty(shape) for name in ("level", "centred", "squares")}
        self.sums = tiles.keys.new_empty(*shape, self.sides.columns.shape[1])
        counts = _counts(tiles, self.sides)
        self.plain = counts is not None
        self.counts = tiles.keys.new_empty(*shape, len(self.sides.counted)) if counts is None else counts

    def keep(self, seen: Seen, powers: Tensor, top: Tensor) -> Tensor:
        """Sum a tile; the sum of its powers (b, h, q) is returned. Overwrites its logits."""
        box, place = seen.box, (seen.box.texts, seen.box.heads, seen.box.queries)
        sums = self.sides.of(seen) @ powers.flatten(1, 2).mT
        sums = sums.unflatten(2, powers.shape[1:3]).movedim(1, -1)
        self.sums[place] = sums
        found = {}
        if "lse" in self.names:
            found["level"] = self.tiles.shift(box).add_(top, alpha=BIT)
        if "renyi2" in self.names:
            found["squares"] = torch.linalg.vector_norm(powers, dim=-1)
        if not set(ENTROPIES).isdisjoint(self.names):
            found["centred"] = seen.logits.mul_(powers).sum(-1)
        for name, value in found.items():
            self.rows[name][place] = value
        if not self.plain:
            self.counts[place] = seen.over_keys(self.sides.of(seen)[:, self.sides.counted].mT)
        return sums[..., -1]

    @cached_property
    def total(self) -> Tensor:
        """Σ e (B, H, Q)."""
        return self.sums[..., -1].contiguous()

    @cached_property
    def entropy(self) -> Tensor:
        """Centred: log Z less the mean of s − m, so that no large number is taken off another."""
        return self.total.log() - self.rows["centred"].div_(self.total).mul_(BIT)

    @cached_property
    def odds(self) -> Tensor:
        """λ (B, H, Q, G): log of the mean power of one side over that of the other; of weak ones from their logits."""
        sides, counts = self.sides, self.counts[..., :-1]
        sums = self.sums[..., sides.counted[:-1]]
        known = sides.indicators.repeat(1, 2)[:, None, None]
        # A logarithm of 0 takes thirty times as long as another; what is raised here is weak, or there is none of it.
        weak, logs = (sums < WEAK) & (counts > 0) & known, sums.clamp(min=WEAK).log_()
        for box in self.tiles.boxes() if bool(weak.any()) else ():
            place = (box.texts, box.heads, box.queries)
            if bool(weak[place].any()):
                logs[place] = torch.where(weak[place], _log_sums(self.tiles.powers(box)[0], sides), logs[place])
        inside, outside = (logs - counts.clamp(min=1).log()).masked_fill_(counts == 0, torch.nan).chunk(2, -1)
        return (inside - outside).masked_fill_(~sides.indicators[:, None, None], torch.nan)

    def finish(self) -> dict[str, Tensor]:
        """The statistics by name, NaN on rows without data."""
        empty = self.counts[..., -1] == 0
        if self.queries is not None:
            empty = empty | ~self.queries.to(empty.device)[:, None]
        found = {}
        for name in self.names:
            value = self._value(name)
            found[name] = value.masked_fill_(empty if value.ndim == 3 else empty[..., None], torch.nan)
        return found

    def _value(self, name: str) -> Tensor:
        """One statistic, in memory of its own."""
        if name == "mass":
            return self.sums[..., self.sides.mass] / self.total[..., None]
        if name == "log_odds":
            return self.odds
        if name == "max_weight":
            return 1 / self.total
        if name == "renyi2":
            return (self.rows["squares"] / self.total).log_().mul_(-2)
        if name == "lse":
            return self.rows["level"] + self.total.log()
        if name == "entropy_normalized":
            return normalized(self.entropy, self.counts[..., -1])
        return self.entropy.exp() if name == "effective_keys" else self.entropy.clone()


def _counts(tiles: Tiles, sides: _Sides) -> Tensor | None:
    """How many keys of each counted column a row sees (B, 1, Q|1, 2G + 1), where they need not be looked at."""
    scores, (texts, heads, rows, _) = tiles.scores, tiles.query.shape
    hidden = scores.causal or scores.window is not None or scores.mask is not None
    if hidden and not scores.merely_causal:
        return None
    whole = Box(slice(0, texts), slice(0, heads), slice(0, rows), tiles.keys.shape[1])
    return Seen(whole, tiles.offset, scores, tiles.keys).over_keys(sides.columns[:, sides.counted].mT)


def _log_sums(seen: Seen, sides: _Sides) -> Tensor:
    """log Σ e over each side of λ (b, h, q, 2G), in nats, in log space: a pass over the tile for each column."""
    hidden = sides.of(seen)[:, sides.counted[:-1]] == 0
    logits = seen.logits * BIT
    sums = [logits.masked_fill(side[:, None, None], HIDDEN).logsumexp(-1) for side in hidden.unbind(1)]
    return torch.stack(sums, -1)
