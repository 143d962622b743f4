"""Slow oracles in float64, written from the formulas and nothing else; this file never imports attnlens.

One text, one head, one query at a time, in plain Python loops over visible keys.
"""

import decimal
import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Problem:
    """One attention: q (B, H, Q, D), k (B, H_kv, K, D), v (B, H_kv, K, Dv) and what shapes its logits."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scale: float = 1.0
    mask: np.ndarray | None = None  # bool, True = visible, broadcast to (B, H, Q, K)
    add: np.ndarray | None = None  # float, added after the softcap, broadcast to (B, H, Q, K)
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: np.ndarray | None = None
    groups: np.ndarray | None = None  # (B, K) integers
    queries: np.ndarray | None = None  # (B, Q) bool
    o: np.ndarray | None = None  # (H, Dv, M): each head's slice of the output projection
    results: dict = field(default_factory=dict)


def row(problem: Problem, b: int, h: int, i: int) -> tuple[list[int], list[float], float | None]:
    """Visible keys of one query, their logits, and the logit of the null key."""
    q, k = problem.q.astype(np.float64), problem.k.astype(np.float64)
    queries, keys = q.shape[2], k.shape[2]
    kv = h // (q.shape[1] // k.shape[1])
    position = i + keys - queries
    shape = (q.shape[0], q.shape[1], queries, keys)
    seen, logits = [], []
    for j in range(keys):
        if problem.causal and j > position:
            continue
        if problem.window is not None and abs(position - j) >= problem.window:
            continue
        if problem.mask is not None and not np.broadcast_to(problem.mask, shape)[b, h, i, j]:
            continue
        s = math.fsum(q[b, h, i, d] * k[b, kv, j, d] for d in range(q.shape[3])) * problem.scale
        if problem.softcap is not None:
            s = problem.softcap * math.tanh(s / problem.softcap)
        if problem.add is not None:
            s += float(np.broadcast_to(problem.add, shape)[b, h, i, j])
        seen.append(j)
        logits.append(s)
    return seen, logits, None if problem.sinks is None else float(problem.sinks[h])


def log_sum(values: list[float]) -> float:
    """log Σ exp, shifted by the maximum."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def statistics(problem: Problem) -> dict[str, np.ndarray]:
    """Every statistic of the registry, and the attention output, by definition."""
    B, H, Q, _ = problem.q.shape
    K = problem.k.shape[2]
    names = ("entropy entropy_normalized effective_keys max_weight renyi2 lse distance entropy_content").split()
    out = {name: np.full((B, H, Q), np.nan) for name in names}
    G = 0 if problem.groups is None else max(3, int(problem.groups.max()) + 1)
    grouped = ("mass", "share", "log_odds", "lift", "entropy_between", "share_value")
    out |= {name: np.full((B, H, Q, G), np.nan) for name in grouped}
    got, uniform, rows = np.zeros((B, H, K)), np.zeros((B, H, K)), np.zeros((B, H, K))
    output = np.zeros((B, H, Q, problem.v.shape[3]))
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                seen, logits, null = row(problem, b, h, i)
                everything = logits if null is None else [*logits, null]
                if not everything:
                    continue
                total = log_sum(everything)
                p = [math.exp(s - total) for s in logits]
                kv = h // (problem.q.shape[1] // problem.k.shape[1])
                for j, weight in zip(seen, p, strict=True):
                    output[b, h, i] += weight * problem.v[b, kv, j].astype(np.float64)
                if problem.queries is not None and not problem.queries[b, i]:
                    continue
                n = len(everything)
                outcomes = [math.exp(s - total) for s in everything]
                entropy = math.fsum(-w * (s - total) for w, s in zip(outcomes, everything, strict=True))
                out["entropy"][b, h, i] = entropy
                out["entropy_normalized"][b, h, i] = entropy / math.log(n) if n > 1 else math.nan
                out["effective_keys"][b, h, i] = math.exp(entropy)
                out["max_weight"][b, h, i] = max(outcomes)
                out["renyi2"][b, h, i] = -math.log(math.fsum(w * w for w in outcomes))
                out["lse"][b, h, i] = total
                out["distance"][b, h, i] = math.fsum(w * abs(i + K - Q - j) for w, j in zip(p, seen, strict=True))
                for j, weight in zip(seen, p, strict=True):
                    got[b, h, j] += weight
                    uniform[b, h, j] += 1 / n
                    rows[b, h, j] += 1
                if problem.groups is not None:
                    _grouped(
                        problem, out, (b, h, i), (seen, logits, p), 0.0 if null is None else math.exp(null - total)
                    )
    out["received"] = np.divide(got, uniform, out=np.full_like(got, np.nan), where=uniform > 0)
    out["received_mean"] = np.divide(got, rows, out=np.full_like(got, np.nan), where=rows > 0)
    out["output"] = output
    return out


def _grouped(problem: Problem, out: dict, where: tuple[int, int, int], keys: tuple, null: float) -> None:
    seen, logits, p = keys
    group = problem.groups[where[0]]
    inside = [at for at, j in enumerate(seen) if group[j] in (0, 1)]
    for g in range(out["mass"].shape[-1]):
        members = [at for at, j in enumerate(seen) if group[j] == g]
        out["mass"][where][g] = math.fsum(p[at] for at in members) + (null if g == 2 else 0.0)
        every, count = len(seen) + (problem.sinks is not None), len(members) + (problem.sinks is not None and g == 2)
        if count:
            out["lift"][where][g] = out["mass"][where][g] * every / count
        if g in (0, 1) and (group == g).any():
            other = math.fsum(p[at] for at in inside if group[seen[at]] != g)
            sinks = math.fsum(p[at] for at in range(len(seen)) if at not in inside) + null
            out["entropy_between"][where][g] = -math.fsum(
                m * math.log(m) for m in (out["mass"][where][g], other, sinks) if m > 0
            )
        if not inside:
            continue
        content = log_sum([logits[at] for at in inside])
        kept = [at for at in members if at in inside]
        if kept:
            out["share"][where][g] = math.fsum(math.exp(logits[at] - content) for at in kept)
            written = {at: math.exp(logits[at] - content) * _length(problem, where, seen[at]) for at in inside}
            out["share_value"][where][g] = math.fsum(written[at] for at in kept) / math.fsum(written.values())
        rest = [at for at in inside if at not in kept]
        if g in (0, 1) and kept and rest:
            sides = [log_sum([logits[at] for at in side]) - math.log(len(side)) for side in (kept, rest)]
            out["log_odds"][where][g] = sides[0] - sides[1]
    if len(inside) > 1:
        logs = [logits[at] - log_sum([logits[a] for a in inside]) for at in inside]
        out["entropy_content"][where] = math.fsum(-math.exp(x) * x for x in logs) / math.log(len(inside))


def _length(problem: Problem, where: tuple[int, int, int], j: int) -> float:
    """‖W_O v_j‖ of the head at `where`."""
    b, h, _ = where
    v, o = problem.v.astype(np.float64), problem.o.astype(np.float64)
    kv = h // (problem.q.shape[1] // problem.k.shape[1])
    written = [math.fsum(v[b, kv, j, d] * o[h, d, m] for d in range(v.shape[3])) for m in range(o.shape[2])]
    return math.sqrt(math.fsum(x * x for x in written))


def divergences(base: Problem, tuned: Problem) -> dict[str, np.ndarray]:
    """JSD, KL both ways and TV of two maps, with the probabilities of each row in 60 decimal digits."""
    B, H, Q, _ = base.q.shape
    out = {name: np.full((B, H, Q), np.nan) for name in ("jsd", "kl_forward", "kl_backward", "tv")}
    with decimal.localcontext(prec=60):
        for b, h, i in np.ndindex(B, H, Q):
            if base.queries is not None and not base.queries[b, i]:
                continue
            p, q = (_probabilities(*row(side, b, h, i)) for side in (base, tuned))
            if not p or not q:
                continue
            keys = p.keys() | q.keys()
            zero = decimal.Decimal(0)
            middle = {j: (p.get(j, zero) + q.get(j, zero)) / 2 for j in keys}
            out["jsd"][b, h, i] = (_divergence(p, middle) + _divergence(q, middle)) / 2
            out["kl_forward"][b, h, i] = _divergence(p, q)
            out["kl_backward"][b, h, i] = _divergence(q, p)
            out["tv"][b, h, i] = sum(abs(p.get(j, zero) - q.get(j, zero)) for j in keys) / 2
    return out


def _probabilities(seen: list[int], logits: list[float], null: float | None) -> dict[int, decimal.Decimal]:
    """Softmax by key; the null key has number −1."""
    pairs = [*zip(seen, logits, strict=True), *([] if null is None else [(-1, null)])]
    powers = {j: decimal.Decimal(s).exp() for j, s in pairs}
    total = sum(powers.values())
    return {j: power / total for j, power in powers.items()}


def _divergence(p: dict[int, decimal.Decimal], q: dict[int, decimal.Decimal]) -> decimal.Decimal:
    if not p.keys() <= q.keys():
        return decimal.Decimal("inf")
    return sum((w * (w / q[j]).ln() for j, w in p.items()), decimal.Decimal(0))


def of_weights(weights: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of softmax rows (B, H, Q, K) that are given, one row at a time; NaN on rows that are padding.

    queries (B, Q), keys (B, K): which are no padding. A row sees the keys that have weight in any head. What it misses
    to 1 in some head is the weight of a learned null key: a key like the others, but nobody asks what it received.
    """
    texts, heads, length, width = weights.shape
    out = {name: np.full((texts, heads, length), np.nan) for name in ("entropy", "max_weight", "renyi2")}
    received = {name: np.full((texts, heads, width), np.nan) for name in ("received", "received_mean")}
    for b in range(texts):
        seen = {i: [j for j in range(width) if weights[b, :, i, j].max() > 0] for i in range(length) if queries[b, i]}
        assert all(keys[b, j] for some in seen.values() for j in some), "padding receives attention"
        missed = {i: 1 - weights[b, :, i].sum(-1) for i in seen}
        null = {i: bool((missed[i] > 1e-4).any()) for i in seen}
        for h in range(heads):
            for i, some in seen.items():
                row = [float(weights[b, h, i, j]) for j in some] + ([float(missed[i][h])] if null[i] else [])
                out["entropy"][b, h, i] = -math.fsum(p * math.log(p) for p in row if p > 0)
                out["max_weight"][b, h, i] = max(row)
                out["renyi2"][b, h, i] = -math.log(math.fsum(p * p for p in row))
            for j in range(width):
                rows = [i for i, some in seen.items() if j in some]
                if rows:
                    total = math.fsum(float(weights[b, h, i, j]) for i in rows)
                    received["received"][b, h, j] = total / math.fsum(1 / (len(seen[i]) + null[i]) for i in rows)
                    received["received_mean"][b, h, j] = total / len(rows)
    return out | received
