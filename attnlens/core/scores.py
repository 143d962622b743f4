"""How one attention layer turns queries and keys into logits: scale, softcap, bias, mask, causality, window, sinks."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError

# Stands for "hidden" in a logit tile: exp of it is exactly 0, and 0 times it is still 0, which −inf is not.
HIDDEN = -1e30


class Box(NamedTuple):
    """A tile of the map: ranges of texts, query heads and queries, and how many leading keys it spans."""

    texts: slice
    heads: slice
    queries: slice
    keys: int


@dataclass(frozen=True)
class Scores:
    """One frozen record of everything between q·k and the softmax; s = softcap(scale·q·k) + bias, hidden where masked.

    scale: factor on q·k.
    mask: (B|1, H|1, Q, K), bool (True = visible) or float (≤ finfo.min/2 hides, anything else is added).
    causal, window: query i stands at position i + K − Q; it sees no later key, and at most `window` keys back.
    softcap: c·tanh(s/c), before bias and mask. bias: (B|1, H|1, Q, K), added.
    sinks: (H,) logits of a learned null key, which takes part in the softmax and has no value.
    """

    scale: float
    mask: Tensor | None = None
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None

    def check(self, query: Tensor, key: Tensor) -> None:
        """Raise ShapeError unless q (B, H, Q, D) and k (B, H_kv, K, D) fit each other and this record."""
        if query.ndim != 4 or key.ndim != 4 or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
            raise ShapeError(
                "query (B, H, Q, D) and key (B, H_kv, K, D) must share B and D; "
                f"got {tuple(query.shape)} and {tuple(key.shape)}"
            )
        if query.shape[1] % key.shape[1]:
            raise ShapeError(f"query heads must be a multiple of key heads; got {query.shape[1]} and {key.shape[1]}")
        full = (*query.shape[:3], key.shape[2])
        for name in ("mask", "bias"):
            tensor = getattr(self, name)
            if tensor is not None and any(a not in (1, b) for a, b in zip(tensor.shape, full, strict=True)):
                raise ShapeError(f"{name} must broadcast to (B, H, Q, K)={full}; got {tuple(tensor.shape)}")

    def to(self, device: torch.device) -> "Scores":
        """The same on this device."""
        parts = {name: getattr(self, name) for name in ("mask", "bias", "sinks")}
        return replace(self, **{name: None if part is None else part.to(device) for name, part in parts.items()})

    @property
    def merely_causal(self) -> bool:
        """Whether causality alone says what is hidden: then a box need not be looked at key by key."""
        return self.causal and self.window is None and self.mask is None

    @property
    def linear(self) -> bool:
        """Whether a logit is scale·q·k and nothing else, but for what is hidden."""
        return self.softcap is None and self.bias is None and (self.mask is None or self.mask.dtype == torch.bool)

    def visible(self, box: Box, offset: int, device: torch.device) -> Tensor | None:
        """Which keys of the box may be seen, bool (b|1, h|1, q, k); None where all may. offset: K − Q of the map."""
        seen = None
        if self.causal or self.window is not None:
            seen = self._reach(distances(box, offset, device))
        if self.mask is not None:
            tile = cut(self.mask, box)
            allowed = tile if tile.dtype == torch.bool else tile > torch.finfo(tile.dtype).min / 2
            allowed = allowed.expand(*allowed.shape[:3], box.keys)  # one value may stand for all keys
            seen = allowed if seen is None else seen & allowed
        return seen

    def _reach(self, gaps: Tensor) -> Tensor:
        """Which pairs, by the signed position (q, k) of query minus key, causality and window let see: (1, 1, q, k)."""
        seen = gaps >= 0 if self.causal else torch.ones_like(gaps, dtype=torch.bool)
        if self.window is not None:
            seen = seen & (gaps.abs() < self.window)
        return seen[None, None]

    def at(self, queries: list[int], rows: int, keys: int) -> "Scores":
        """The same scores of some of the queries, of a map of so many rows and keys: what hides is a mask now."""
        device = None if self.mask is None else self.mask.device
        seen = None
        if self.causal or self.window is not None:
            positions = torch.tensor(queries, device=device)[:, None] + keys - rows
            seen = self._reach(positions - torch.arange(keys, device=device))

        def some(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.shape[2] == 1 else tensor[:, :, queries]

        mask = some(self.mask)
        if mask is not None and seen is not None:
            hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            seen = mask.expand(*mask.shape[:2], *seen.shape[2:]).masked_fill(~seen, hidden)
        mask = mask if seen is None else seen
        return replace(self, mask=mask, bias=some(self.bias), causal=False, window=None)

    def hide(self, logits: Tensor, box: Box, offset: int) -> None:
        """Put HIDDEN where a key may not be seen, in place. offset: K − Q of the map."""
        if self.merely_causal:  # only the last keys of the box lie beyond some row's frontier
            before = box.queries.start + offset
            first = max(0, before + 1)
            shape = (box.queries.stop - box.queries.start, box.keys - first)
            logits[..., first:] += _frontier(shape, before - first, logits.dtype, logits.device)
        elif (seen := self.visible(box, offset, logits.device)) is not None:
            logits += _veil(seen, logits.dtype)

    def finish(self, logits: Tensor, box: Box) -> Tensor:
        """Softcap, bias and float mask on scaled q·k (b, h, q, k), in place; hiding is left to the caller."""
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.bias is not None:
            logits.add_(cut(self.bias, box).to(logits.dtype).clamp(min=HIDDEN))  # −∞ less −∞ is no number
        if self.mask is not None and self.mask.dtype != torch.bool:
            tile = cut(self.mask, box)
            logits.add_(tile.masked_fill(tile <= torch.finfo(tile.dtype).min / 2, 0.0))
        return logits


def _veil(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen, HIDDEN where not: added, that leaves nothing of a logit, and is quicker than a fill."""
    return (seen.to(dtype) - 1) * -HIDDEN


@lru_cache(maxsize=8)
def _frontier(shape: tuple[int, int], lead: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The veil over the last keys of a causal box: row i sees key i + lead and those before. Most boxes share one."""
    with torch.inference_mode(False):
        return _veil(torch.ones(shape, dtype=torch.bool, device=device).tril(lead), dtype)


def distances(box: Box, offset: int, device: torch.device) -> Tensor:
    """Signed position of query minus key, (q, k)."""
    position = torch.arange(box.queries.start, box.queries.stop, device=device)[:, None] + offset
    return position - torch.arange(box.keys, device=device)


def cut(tensor: Tensor, box: Box) -> Tensor:
    """The part of a broadcastable (B|1, H|1, Q|1, K|1) tensor that lies in the box."""
    ranges = (box.texts, box.heads, box.queries, slice(0, box.keys))
    return tensor[tuple(slice(None) if size == 1 else part for size, part in zip(tensor.shape, ranges, strict=True))]
