"""How far one matrix moved: norms of the change, pooled over matrices, and the floor set by rounding."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnlens.core.errors import ShapeError

# Entries widened to float64 at a time: a cache holds them, and they are enough for torch to use several threads.
CHUNK = 2**17
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number, to compare its bits


@dataclass(frozen=True)
class WeightChange:
    """Change of one matrix, or of several pooled.

    delta_norm: ‖W′ − W‖_F; base_norm: ‖W‖_F; entries: how many numbers; identical: how many of them are the same
    bit for bit once widened to float64 (so +0 and −0 differ, and 1.0 in bfloat16 equals 1.0 in float32).
    along: Σ W (W′ − W), NaN where it was not measured.
    """

    delta_norm: float
    base_norm: float
    entries: int
    identical: int
    along: float = math.nan

    @property
    def relative(self) -> float:
        """‖W′ − W‖_F / ‖W‖_F, at least 0: exactly 0 for equal matrices.

        NaN where it does not exist: no entries, or an all-zero base that was changed.
        """
        if self.base_norm == 0:
            return 0.0 if self.entries and self.delta_norm == 0 else math.nan
        return self.delta_norm / self.base_norm

    @property
    def cosine(self) -> float:
        """cos(vec W, vec W′): 1 where only the length changed; NaN where either is all zeros."""
        base = self.base_norm**2
        tuned = math.fsum((base, 2 * self.along, self.delta_norm**2))
        return (base + self.along) / (self.base_norm * math.sqrt(tuned)) if base > 0 and tuned > 0 else math.nan


def weight_change(base: Tensor, tuned: Tensor) -> WeightChange:
    """Frobenius norm of the change of one matrix, in float64 whatever the stored dtype, in one pass over both.

    base, tuned: equal shapes, any float dtype, any device → norms in the unit of the weights.
    Hand example: [3, 4] → [3, 5]: delta 1, base 5, relative .2, one of two entries identical.
    The change of a query or key matrix alone is not what attention sees: W_Q and W_K can be turned together
    without any effect on attention.
    """
    if base.shape != tuned.shape:
        raise ShapeError(
            f"base and tuned must have one shape; got {tuple(base.shape)} and {tuple(tuned.shape)}. "
            "Pair the tensors of one module, in one orientation."
        )
    parts = list(zip(*(tensor.detach().reshape(-1).split(CHUNK) for tensor in (base, tuned)), strict=True))
    # Room for two chunks, used again and again: fresh memory for each would cost more than the sums.
    room = torch.empty(2, min(CHUNK, base.numel()), dtype=torch.float64)
    found = [_squares(old.cpu(), new.cpu(), room[:, : len(old)]) for old, new in parts]
    return WeightChange(
        delta_norm=math.sqrt(math.fsum(part.change for part in found)),
        base_norm=math.sqrt(math.fsum(part.base for part in found)),
        entries=base.numel(),
        identical=sum(part.same for part in found),
        along=math.fsum(part.along for part in found),
    )


class _Sums(NamedTuple):
    """Σ(w′ − w)², Σw², Σw(w′ − w) and how many numbers are the same, of one chunk."""

    change: float
    base: float
    along: float
    same: int


def _squares(old: Tensor, new: Tensor, room: Tensor) -> _Sums:
    """The sums of two chunks, in the float64 of their room (2, n)."""
    base, change = room[0].copy_(old), room[1].copy_(new)
    left, right = (old, new) if old.dtype == new.dtype else (base, change)
    bits = [side.view(INTEGERS[side.itemsize]).numpy() for side in (left, right)]
    same = int(np.count_nonzero(bits[0] == bits[1]))  # NumPy counts several times quicker than torch
    change.sub_(base)
    return _Sums(float(change @ change), float(base @ base), float(base @ change), same)


def pool(changes: Iterable[WeightChange]) -> WeightChange:
    """Several matrices as one: `relative` is √(ΣΔ² / ΣW²), never a mean of ratios.

    A mean of ratios lets a bias of ten numbers weigh as much as a matrix of a million.
    Hand example: deltas 3 and 4 on bases 6 and 8 → 5 / 10. No changes at all → relative NaN.
    """
    changes = tuple(changes)
    return WeightChange(
        delta_norm=math.sqrt(math.fsum(change.delta_norm**2 for change in changes)),
        base_norm=math.sqrt(math.fsum(change.base_norm**2 for change in changes)),
        entries=sum(change.entries for change in changes),
        identical=sum(change.identical for change in changes),
    )


def coarser(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """The one of two float dtypes that keeps fewer digits."""
    return max(first, second, key=lambda dtype: torch.finfo(dtype).eps)


def precision_floor(base: Tensor, tuned: Tensor, stored: tuple[torch.dtype, torch.dtype] | None = None) -> float:
    """The relative change that rounding alone makes: the wider of the two cast to the narrower's dtype and back.

    stored: dtypes of base and tuned in their files, where they were computed with since. Relative to the norm of the
    base, as the change is; 0 where the stored dtypes are equal. A relative change not above this floor is no tuning.
    """
    stored = stored or (base.dtype, tuned.dtype)
    if stored[0] == stored[1]:
        return 0.0
    narrow = coarser(*stored)
    wider = base if stored[1] == narrow else tuned
    rounded = weight_change(wider, wider.to(narrow))
    return replace(rounded, base_norm=weight_change(base, base).base_norm).relative
