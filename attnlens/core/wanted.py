"""What is to be computed of a map, by whichever of the ways: tiled.py, lean.py, kernels.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from attnlens.core.pairs import Logits
from attnlens.core.rows import Groups


@dataclass(frozen=True)
class Wanted:
    """What to compute: names of the registry, token groups, rows that carry data (B, Q) bool (None: all).

    norms: (B, H, K) lengths of the transformed values, which `share_value` needs (core/flow.py).
    columns: of a statistic about groups, the columns that it is computed for, in this order; all where it is not named.
    pairs, against: names of PAIRS, with the map `against` as base and this one as tuned. base: others will be held
    against this map, so that its output must be, to the last bit, that of a pass with `against`.
    """

    statistics: tuple[str, ...]
    groups: Groups | None = None
    queries: Tensor | None = None
    norms: Tensor | None = None
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pairs: tuple[str, ...] = ()
    against: Logits | None = None
    base: bool = False
