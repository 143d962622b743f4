"""Statistics of an attention map: the registry, and one readable definition of each on a dense map.

`tiled.py` computes the same numbers from q and k without the map; tests hold the two together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import NotAttentionError, ShapeError, UnknownName
from attnlens.core.scores import HIDDEN, Box, Scores, distances


class Groups(NamedTuple):
    """Weights of token groups, and which tokens are content (METRICS 1).

    weights: (B, K, G), a column per group, 0/1 or soft. content: (B, K), 1 for content tokens (S ∪ O), 0 for sinks.
    null: the column to which a learned null key belongs, if any.
    """

    weights: Tensor
    content: Tensor
    null: int | None = None

    @classmethod
    def of(cls, groups: Tensor) -> "Groups":
        """From integers (B, K), 0 other content, 1 salient, 2 sink, 3 virtual, −1 padding, or from weights (B, K, G).

        A partition becomes its indicator columns 0, 1, 2 (and 3 where it occurs). Of weights, column 0 is the content.
        """
        if groups.ndim == 2 and not groups.is_floating_point():
            columns = max(3, int(groups.max()) + 1)
            weights = torch.stack([(groups == column).float() for column in range(columns)], -1)
            return cls(weights, weights[..., 0] + weights[..., 1], null=2)
        if groups.ndim != 3 or not groups.is_floating_point():
            raise ShapeError(
                f"groups must be integers (B, K) or float weights (B, K, G); got {groups.dtype} {tuple(groups.shape)}"
            )
        if not ((groups[..., 0] == 0) | (groups[..., 0] == 1)).all():
            raise ShapeError("column 0 of float groups is the content and must hold 0 and 1 only")
        return cls(groups, groups[..., 0])

    def columns(self, like: Tensor, null: bool) -> tuple[Tensor, Tensor]:
        """Weights (B, K, G) and content (B, K) on the device and in the dtype of `like`; a last row for a null key."""
        weights, content = self.weights.to(like), self.content.to(like)
        if null:
            row = weights.new_zeros(len(weights), 1, weights.shape[2])
            if self.null is not None:
                row[..., self.null] = 1
            weights, content = (
                torch.cat([weights, row], 1),
                torch.cat([content, content.new_zeros(len(content), 1)], 1),
            )
        return weights, content

    def indicators(self) -> Tensor:
        """Bool (B, G): columns of 0 and 1 within the content, not all 0: they split the content in two."""
        binary = ((self.weights == 0) | (self.weights == 1)).all(1) & self.weights.any(1)
        return binary & (self.weights <= self.content[..., None]).all(1)


def normalized(entropy: Tensor, count: Tensor) -> Tensor:
    """Entropy over the log of the number of keys; NaN below two."""
    return torch.where(count > 1, entropy / count.clamp(min=2).log(), torch.nan)


def needed(groups: Groups | None) -> Groups:
    """The groups, or an error where a statistic needs them and none were given."""
    if groups is None:
        raise ShapeError(
            "mass, share, log_odds and all about content need groups: pass integers (B, K) or weights (B, K, G)"
        )
    return groups


@dataclass(frozen=True)
class AttentionMap:
    """Softmax rows with what their statistics need.

    weights (B, H, Q, K); visible (B, H, Q, K) bool; lse (B, H, Q) or None; groups or None.
    queries (B, Q) bool: rows that carry data (no padding). A learned null key may stand as a last column: `null`.
    logits (B, H, Q, K) or None: log-weights up to a constant of the row, also where a float holds no weight.
    norms (B, H, K) or None: ‖f(x_j)‖ of core/flow.py, how long a vector each key would write with all of the weight.
    """

    weights: Tensor
    visible: Tensor
    queries: Tensor
    lse: Tensor | None = None
    groups: Groups | None = None
    null: bool = False
    logits: Tensor | None = None
    norms: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        """n_i (B, H, Q): how many keys each row sees, the null key included."""
        return self.visible.sum(-1, dtype=self.weights.dtype)

    @property
    def group_weights(self) -> Tensor:
        """(B, 1, K, G), with a row for the null key."""
        return needed(self.groups).columns(self.weights, self.null)[0][:, None]

    @property
    def content(self) -> Tensor:
        """(B, 1, 1, K) content indicator; the null key is none."""
        return needed(self.groups).columns(self.weights, self.null)[1][:, None, None]

    @property
    def indicators(self) -> Tensor:
        """(B, 1, 1, G) bool: the columns that split the content in two."""
        return needed(self.groups).indicators()[:, None, None].to(self.weights.device)

    @property
    def logs(self) -> Tensor:
        """Log-weights, up to a constant of the row."""
        return self.weights.log() if self.logits is None else self.logits

    @property
    def content_weights(self) -> Tensor:
        """p / (m_S + m_O) on the content keys (B, H, Q, K), 0 elsewhere; NaN in rows that see none."""
        return self.logs.masked_fill(~self.visible | (self.content == 0), -torch.inf).softmax(-1)


@dataclass(frozen=True)
class Statistic:
    """What the registry knows of one statistic: it feeds tables, axis labels, limits and the law tests.

    axes: "row" (B, H, Q), "group" (B, H, Q, G) or "key" (B, H, K).
    low, high: bounds; high is a function of the number n of visible keys.
    """

    name: str
    axes: str
    unit: str
    low: float
    high: Callable[[int], float]
    reference: str
    of: Callable[[AttentionMap], Tensor]


STATISTICS: dict[str, Statistic] = {}


def statistic(*, axes: str, unit: str, low: float, high: Callable[[int], float], reference: str):
    """Enter a definition in the registry under its own name; the function itself is returned."""

    def enter(of: Callable[[AttentionMap], Tensor]) -> Callable[[AttentionMap], Tensor]:
        STATISTICS[of.__name__] = Statistic(of.__name__, axes, unit, low, high, reference, of)
        return of

    return enter


def known(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names themselves, or UnknownName with the nearest one."""
    for name in names:
        if name not in STATISTICS:
            raise UnknownName.among("statistic", name, STATISTICS)
    return names


@statistic(axes="row", unit="nats", low=0.0, high=math.log, reference="Shannon 1948")
def entropy(attention: AttentionMap) -> Tensor:
    """H = −Σ p log p: spread of a row, 0 for one key, log n for n equal keys. [1/2, 1/4, 1/4] → 1.0397."""
    return torch.special.entr(attention.weights).sum(-1)


@statistic(axes="row", unit="share of log n", low=0.0, high=lambda n: 1.0, reference="Shannon 1948; METRICS 4")
def entropy_normalized(attention: AttentionMap) -> Tensor:
    """Ĥ = H / log n over the n visible keys; no data below two keys. [1/2, 1/4, 1/4] → 0.9464."""
    return normalized(entropy(attention), attention.keys)


@statistic(axes="row", unit="keys", low=1.0, high=float, reference="Hill 1973, order 1")
def effective_keys(attention: AttentionMap) -> Tensor:
    """exp H: the number of equal keys with this entropy. [1/2, 1/4, 1/4] → 2.8284."""
    return entropy(attention).exp()


@statistic(axes="row", unit="share", low=0.0, high=lambda n: 1.0, reference="Voita et al. 2019")
def max_weight(attention: AttentionMap) -> Tensor:
    """Largest weight of the row ("confidence"). [1/2, 1/4, 1/4] → 1/2."""
    return attention.weights.amax(-1)


@statistic(axes="row", unit="nats", low=0.0, high=math.log, reference="Rényi 1961, order 2")
def renyi2(attention: AttentionMap) -> Tensor:
    """−log Σ p²; its exponential is the participation ratio. [1/2, 1/4, 1/4] → log 8/3 = 0.9808."""
    return -attention.weights.square().sum(-1).log()


@statistic(axes="row", unit="nats", low=-math.inf, high=lambda n: math.inf, reference="METRICS 1")
def lse(attention: AttentionMap) -> Tensor:
    """L = log Σ exp s of the row's logits. Logits [0, 0] → log 2. Needs scores, not weights."""
    if attention.lse is None:
        raise ShapeError("lse needs the logits: build the map from q and k, not from weights")
    return attention.lse


@statistic(axes="row", unit="positions", low=0.0, high=lambda n: math.inf, reference="Vig & Belinkov 2019")
def distance(attention: AttentionMap) -> Tensor:
    """Σ p |i − j|: mean distance between query and key; a null key has none. Row 2 of [1/2, 1/4, 1/4] → 1.25."""
    weights = attention.weights[..., :-1] if attention.null else attention.weights
    queries, keys = weights.shape[-2:]
    box = Box(slice(None), slice(None), slice(0, queries), keys)
    return (weights * distances(box, keys - queries, weights.device).abs()).sum(-1)


@statistic(axes="group", unit="share", low=0.0, high=lambda n: 1.0, reference="METRICS 1")
def mass(attention: AttentionMap) -> Tensor:
    """m_g = Σ_j p_ij w_jg: attention on each group. [1/2, 1/4, 1/4] with group {1, 2} → 1/2."""
    return attention.weights @ attention.group_weights


@statistic(axes="group", unit="share of content", low=0.0, high=lambda n: 1.0, reference="METRICS 3.2")
def share(attention: AttentionMap) -> Tensor:
    """G_g = m_g / (m_S + m_O), for the part of a group within the content: its share of the attention on content.

    No data in rows that see none of the group: they give it 0 by necessity (METRICS 1). [1/2, 1/4, 1/4] with group
    {1, 2} of content {0, 1, 2} → 1/2.
    """
    seen = (attention.visible.to(attention.weights) * attention.content) @ attention.group_weights
    return torch.where(seen > 0, attention.content_weights @ attention.group_weights, torch.nan)


@statistic(axes="group", unit="times uniform", low=0.0, high=float, reference="METRICS 3.1")
def lift(attention: AttentionMap) -> Tensor:
    """m_g·n_i / n_g over all visible keys: mean attention on a key of the group, over that on any; 1 if uniform.

    Of soft columns n_g is the sum of the visible weights. No data in rows that see none of the group. Not corrected for
    sinks or position: see `share`. [1/2, 1/4, 1/4] with group {1, 2} → (1/2)·3/2 = 3/4.
    """
    seen = attention.visible.to(attention.weights) @ attention.group_weights
    return torch.where(seen > 0, mass(attention) * attention.keys[..., None] / seen, torch.nan)


@statistic(axes="group", unit="share of content", low=0.0, high=lambda n: 1.0, reference="Kobayashi et al. 2020")
def share_value(attention: AttentionMap) -> Tensor:
    """Σ_g α‖f‖ / Σ_content α‖f‖: the share of what a row takes over from content, in lengths of vectors (METRICS 3.7).

    f(x_j) is the value of key j behind the head's slice of the output projection. No data where `share` has none, and
    where all visible vectors of content are 0. [1/2, 1/4, 1/4] with norms [1, 2, 4] and group {2} of content {0, 1, 2}
    → 1/(1/2 + 1/2 + 1) = 1/2.
    """
    if attention.norms is None:
        raise ShapeError("share_value needs norms of the transformed values: core.flow.value_norms gives them")
    norms = attention.norms.to(attention.weights)[:, :, None]
    if attention.null:  # it has no value
        norms = torch.cat([norms, norms.new_zeros(*norms.shape[:3], 1)], -1)
    lengths = attention.content_weights * norms
    total = lengths.sum(-1, keepdim=True)
    return torch.where(share(attention).isnan(), torch.nan, lengths @ attention.group_weights / total)


@statistic(axes="group", unit="nats", low=-math.inf, high=lambda n: math.inf, reference="METRICS 3.3")
def log_odds(attention: AttentionMap) -> Tensor:
    """λ_g = (L_g − log n_g) − (L_O − log n_O) with O the rest of the content; 0 for uniform rows.

    Only for 0/1 columns within the content, and where both sides are visible; else NaN.
    [1/2, 1/4, 1/4] with group {0} → log 2.
    """
    logs = attention.logs[..., None]  # (B, H, Q, K, 1); constants of the row cancel
    content = attention.content[..., None] > 0  # (B, 1, 1, K, 1)
    inside = (attention.group_weights[:, :, None] > 0) & content
    outside = content & ~inside
    seen = attention.visible[..., None]
    sides = []
    for part in (inside & seen, outside & seen):
        count = part.sum(-2, dtype=logs.dtype)
        mean = torch.where(part, logs, -torch.inf).logsumexp(-2) - count.log()
        sides.append(torch.where(count > 0, mean, torch.nan))
    return torch.where(attention.indicators, sides[0] - sides[1], torch.nan)


@statistic(axes="row", unit="share of log n", low=0.0, high=lambda n: 1.0, reference="METRICS 4")
def entropy_content(attention: AttentionMap) -> Tensor:
    """Entropy of the row renormalised over content keys, over the log of their number; no data below two."""
    rows = torch.special.entr(attention.content_weights).sum(-1)
    count = (attention.visible & (attention.content > 0)).sum(-1, dtype=rows.dtype)
    return torch.where(count > 1, rows / count.clamp(min=2).log(), torch.nan)


@statistic(axes="group", unit="nats", low=0.0, high=lambda n: math.log(3), reference="METRICS 4")
def entropy_between(attention: AttentionMap) -> Tensor:
    """H(m_K, m_g, m_O): entropy of where the attention goes, sinks, group or other content, whichever key it is there.

    What is left of `entropy` is spread within the three, Σ m·H: entropy = between + within, exactly, in every row,
    also one that sees none of the group. NaN in texts without the group, and for columns that are not 0/1 within the
    content: a soft column is no part of the keys, and the identity fails. [1/2, 1/4, 1/4] with sink {0}, group {1} and
    other {2} → 1.0397, all between.
    """
    inside = attention.group_weights
    content = attention.content.mT  # (B, 1, K, 1)
    parts = (inside, content - inside, 1 - content)
    group, other, sinks = (torch.special.entr(attention.weights @ part) for part in parts)
    return torch.where(attention.indicators, group + other + sinks, torch.nan)


@statistic(axes="key", unit="times uniform", low=0.0, high=lambda n: math.inf, reference="METRICS 3.5")
def received(attention: AttentionMap) -> Tensor:
    """R̃_j = Σ_i p_ij / Σ_{i: j visible} 1/n_i: attention a key receives; 1 for every key under uniform attention."""
    valid = attention.queries[:, None, :, None]
    uniform = torch.where(attention.visible & valid, 1.0 / attention.keys.clamp(min=1)[..., None], 0.0).sum(-2)
    total = (attention.weights * valid).sum(-2) / torch.where(uniform > 0, uniform, torch.nan)
    return total[..., :-1] if attention.null else total


@statistic(axes="key", unit="share", low=0.0, high=lambda n: 1.0, reference="Gu et al. 2025")
def received_mean(attention: AttentionMap) -> Tensor:
    """R_j = Σ_i p_ij / #{i: j visible}: mean attention on a key of the rows that see it. Says who is a sink.

    Rows [1/2, 1/2] and [1/4, 3/4] → 3/8 and 5/8. Under a causal mask even uniform rows favour early keys: `received`.
    """
    valid = attention.queries[:, None, :, None]
    count = (attention.visible & valid).sum(-2, dtype=attention.weights.dtype)
    total = (attention.weights * valid).sum(-2) / torch.where(count > 0, count, torch.nan)
    return total[..., :-1] if attention.null else total


def row_statistics(attention: AttentionMap, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The named statistics of a dense map; NaN on rows without visible keys and on padding rows.

    Raises NotAttentionError for negative weights or rows that do not sum to 1 (tolerance of the dtype, bf16 3e-3).
    """
    check_attention(attention)
    empty = (attention.keys == 0) | ~attention.queries[:, None]
    result = {}
    for name in known(names):
        value = STATISTICS[name].of(attention)
        if STATISTICS[name].axes != "key":
            value = value.masked_fill(empty if STATISTICS[name].axes == "row" else empty[..., None], torch.nan)
        result[name] = value
    return result


def check_attention(attention: AttentionMap) -> None:
    """The door: weights (B, H, Q, K), non-negative, each row with a visible key summing to 1."""
    weights, visible = attention.weights, attention.visible
    if weights.ndim != 4 or visible.shape != weights.shape:
        raise ShapeError(
            f"weights and visible must both be (B, H, Q, K); got {tuple(weights.shape)} and {tuple(visible.shape)}"
        )
    sums = weights.float().sum(-1)
    tolerance = max(torch.finfo(weights.dtype).eps, 1e-5)
    bad = ((sums - 1).abs() > tolerance) & visible.any(-1) | (weights < 0).any(-1)
    if bad.any():
        raise NotAttentionError(
            f"attention rows must be non-negative and sum to 1; {int(bad.sum())} of {bad.numel()} do not. "
            "Pass softmax weights, not logits."
        )


def dense_map(
    query: Tensor,
    key: Tensor,
    scores: Scores,
    *,
    groups: Groups | None = None,
    queries: Tensor | None = None,
    norms: Tensor | None = None,
) -> AttentionMap:
    """The whole map of q (B, H, Q, D) and k (B, H_kv, K, D): O(Q·K) memory, for reference and for the eye."""
    scores.check(query, key)
    (texts, heads, rows, _), keys = query.shape, key.shape[2]
    box = Box(slice(0, texts), slice(0, heads), slice(0, rows), keys)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, repeated = query.to(dtype), key.to(dtype).repeat_interleave(heads // key.shape[1], 1)
    # The mean key moves a row as a whole; taken off, no common offset eats digits. A softcap would notice.
    mean = repeated.mean(2, keepdim=True) if scores.softcap is None else torch.zeros_like(repeated[:, :, :1])
    logits = scores.finish(query @ (repeated - mean).transpose(2, 3) * scores.scale, box)
    shift = query @ mean.transpose(2, 3) * scores.scale  # (B, H, Q, 1)
    seen = scores.visible(box, keys - rows, query.device)
    visible = torch.ones_like(logits, dtype=torch.bool) if seen is None else seen.expand_as(logits)
    logits = logits.masked_fill(~visible, HIDDEN)
    if scores.sinks is not None:
        sink = scores.sinks.to(dtype)[None, :, None, None] - shift
        logits, visible = (
            torch.cat([logits, sink], -1),
            torch.cat([visible, torch.ones_like(sink, dtype=torch.bool)], -1),
        )
    weights = logits.softmax(-1).masked_fill(~visible, 0.0)
    valid = torch.ones(texts, rows, dtype=torch.bool, device=query.device) if queries is None else queries
    lse = logits.logsumexp(-1) + shift[..., 0]
    return AttentionMap(weights, visible, valid, lse, groups, scores.sinks is not None, logits, norms)
