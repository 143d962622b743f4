"""The commonest statistics for little more than the attention itself: weights that are never normalised, in bits.

Of a row with maximum m, e = 2^(s − m) and Z = Σ e give the output Σ e v / Z, masses Σ e g / Z, the largest weight 1/Z,
Σ p² = Σ e² / Z², and the entropy ln 2 · (log₂ Z − Σ e (s − m) / Z). In bits, as MKL's exp takes thirty times as long
where its result is 0, which it is on hidden keys. Sums of all tiles wait until the end: many small steps cost more than
one large one.
"""

from functools import cached_property

import torch
from torch import Tensor

from attnlens.core.rows import needed, normalized
from attnlens.core.tiles import BIT, Seen, Tiles, without
from attnlens.core.wanted import Wanted

ENTROPIES = ("entropy", "entropy_normalized", "effective_keys")
LEAN = {*ENTROPIES, "max_weight", "renyi2", "lse", "mass"}


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


class _Sums:
    """What the rows of all tiles are summed to, each (B, H, Q), and the masses (B, H, Q, G)."""

    def __init__(self, tiles: Tiles, wanted: Wanted):
        self.names, self.queries, self.shift = tuple(wanted.statistics), wanted.queries, tiles.shift
        like = tiles.keys.new_empty(tiles.query.shape[:3])
        self.rows = {name: torch.empty_like(like) for name in ("total", "level", "count", "centred", "squares")}
        self.sides, self.masses = None, None
        if "mass" in self.names:
            weights = needed(wanted.groups).columns(like, tiles.scores.sinks is not None)[0]
            chosen = wanted.columns.get("mass")
            weights = weights if chosen is None else weights[..., list(chosen)]
            self.masses = like.new_empty(*like.shape, weights.shape[2])
            self.sides = torch.cat([weights, torch.ones_like(weights[..., :1])], -1).mT.contiguous()  # (B, G + 1, K)

    def keep(self, seen: Seen, powers: Tensor, top: Tensor) -> Tensor:
        """Sum a tile; the sum of its powers (b, h, q) is returned. Overwrites its logits."""
        box, place = seen.box, (seen.box.texts, seen.box.heads, seen.box.queries)
        if self.sides is None or self.masses is None:
            total = powers.sum(-1)
        else:
            sides = self.sides[box.texts, :, : box.keys]
            if powers.shape[-1] > box.keys:  # a null key stands last
                sides = torch.cat([sides, self.sides[box.texts, :, -1:]], -1)
            products = (sides @ powers.flatten(1, 2).mT).unflatten(2, powers.shape[1:3])  # (b, G + 1, h, q)
            total = products[:, -1]
            self.masses[place] = products[:, :-1].movedim(1, -1)
        found = {"total": total, "count": seen.count}
        if "lse" in self.names:
            found["level"] = self.shift(box).add_(top, alpha=BIT)
        if "renyi2" in self.names:
            found["squares"] = torch.linalg.vector_norm(powers, dim=-1)
        if not set(ENTROPIES).isdisjoint(self.names):
            found["centred"] = seen.logits.mul_(powers).sum(-1)
        for name, value in found.items():
            self.rows[name][place] = value
        return total

    @cached_property
    def entropy(self) -> Tensor:
        """Centred: log Z less the mean of s − m, so that no large number is taken off another."""
        total = self.rows["total"]
        return total.log() - self.rows["centred"].div_(total).mul_(BIT)

    def finish(self) -> dict[str, Tensor]:
        """The statistics by name, NaN on rows without data."""
        total, count = self.rows["total"], self.rows["count"]
        empty = count == 0
        if self.queries is not None:
            empty |= ~self.queries.to(empty.device)[:, None]
        found = {}
        for name in self.names:
            if name == "mass":
                assert self.masses is not None
                found[name] = self.masses.div_(total[..., None]).masked_fill_(empty[..., None], torch.nan)
                continue
            if name == "max_weight":
                value = 1 / total
            elif name == "renyi2":
                value = (self.rows["squares"] / total).log() * -2
            elif name == "lse":
                value = self.rows["level"] + total.log()
            elif name == "entropy_normalized":
                value = normalized(self.entropy, count)
            else:
                value = self.entropy.exp() if name == "effective_keys" else self.entropy
            found[name] = value.masked_fill(empty, torch.nan)
        return found
