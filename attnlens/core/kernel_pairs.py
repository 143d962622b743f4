"""Triton programs that read an attention map tile by tile once its rows' log-sums are known, and what they share.

A tile of logits, which keys are seen, which blocks of keys a block of rows reaches; from them the columns of a map and
the divergences of two. Hidden logits are −1e30, never −∞; indices of elements are 64-bit, as a mask of 131,072 rows
and keys has more than 2³¹. No atomics: one program owns what it stores, so that results repeat.
"""

from typing import Any, NamedTuple

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch without CUDA come without
    triton = tl = None


def jit(program: Any) -> Any:
    """The function as a Triton program; as it is where there is no Triton to run it."""
    return program if triton is None else triton.jit(program)


class Map(NamedTuple):
    """What programs read of one map, None where it has none of it; `_at` are the strides (b, h, row, column).

    mean: (B·H_kv, D) float32, to be taken off the keys. floor: from where down a float mask hides; None: mask is 0/1.
    causal: 1 or None; None and 1 are known when a program is compiled.
    """

    query: Any
    query_at: Any
    key: Any
    key_at: Any
    mean: Any
    mask: Any
    mask_at: Any
    bias: Any
    bias_at: Any
    sinks: Any
    scale: float
    softcap: float | None
    floor: float | None
    causal: int | None
    window: int | None


class Sizes(NamedTuple):
    """Query heads, query heads to a key head, queries, keys, and the width of q and k."""

    heads: Any
    repeats: Any
    queries: Any
    keys: Any
    width: Any


class Terms(NamedTuple):
    """Where the pair program stores its rows (B·H·Q): see pairs.Sums; lost, gained: how many keys only one map sees."""

    jsd: Any
    forward: Any
    backward: Any
    moved: Any
    lost: Any
    gained: Any


@jit
def cell(steps, text, head, row, column):
    """Offset of (text, head, row, column) in a tensor of these strides."""
    return text.to(tl.int64) * steps[0] + head.to(tl.int64) * steps[1] + row.to(tl.int64) * steps[2] + column * steps[3]


@jit
def queries_of(map, sizes, text, head, rows, D: tl.constexpr):  # noqa: A002
    """Queries (M, D) of a block of rows, and what the mean key adds to each of their logits (M)."""
    wide = tl.arange(0, D)
    there = (rows[:, None] < sizes.queries) & (wide[None, :] < sizes.width)
    query = tl.load(map.query + cell(map.query_at, text, head, rows[:, None], wide[None, :]), there, other=0.0)
    shift = tl.zeros(rows.shape, tl.float32)
    if map.mean is not None:
        mean = _mean(map, sizes, text, head, D)
        shift += tl.sum(query.to(tl.float32) * mean[None, :], 1) * map.scale
    return query, shift


@jit
def _mean(map, sizes, text, head, D: tl.constexpr):  # noqa: A002
    """The mean key (D)."""
    wide, number = tl.arange(0, D), text * (sizes.heads // sizes.repeats) + head // sizes.repeats
    return tl.load(map.mean + number * sizes.width + wide, wide < sizes.width, other=0.0)


@jit
def reach(map, sizes, first, last, N: tl.constexpr):  # noqa: A002
    """Blocks of keys for rows first … last: low, left, right, high. Those of left … right are seen by every row."""
    offset = sizes.keys - sizes.queries
    low, left, right, high = 0, 0, sizes.keys // N, tl.cdiv(sizes.keys, N)
    if map.causal is not None:
        right = tl.minimum(right, tl.maximum(first + offset + 1, 0) // N)
        high = tl.minimum(high, tl.cdiv(tl.maximum(last + offset + 1, 0), N))
    if map.window is not None:
        low = tl.maximum(first + offset - map.window + 1, 0) // N
        left = tl.cdiv(tl.maximum(last + offset - map.window + 1, 0), N)
        if map.causal is None:
            right = tl.minimum(right, tl.maximum(first + offset + map.window, 0) // N)
            high = tl.minimum(high, tl.cdiv(tl.maximum(last + offset + map.window, 0), N))
    high = tl.maximum(high, low)
    left = tl.minimum(left, high)
    return low, left, tl.minimum(tl.maximum(right, left), high), high


@jit
def sees(map, sizes, text, head, rows, keys, EDGE: tl.constexpr):  # noqa: A002
    """Which keys the rows see, bool (M, N). Without EDGE causality, window and the last key are not looked at."""
    seen = (rows[:, None] >= 0) & (keys[None, :] >= 0)
    if EDGE:
        seen = (rows[:, None] < sizes.queries) & (keys[None, :] < sizes.keys)
        gap = rows[:, None] + (sizes.keys - sizes.queries) - keys[None, :]
        if map.causal is not None:
            seen = seen & (gap >= 0)
        if map.window is not None:
            seen = seen & (tl.abs(gap) < map.window)
    if map.mask is not None:
        inside = (rows[:, None] < sizes.queries) & (keys[None, :] < sizes.keys)
        tile = tl.load(map.mask + cell(map.mask_at, text, head, rows[:, None], keys[None, :]), inside, other=0)
        if map.floor is None:
            seen = seen & (tile != 0)
        else:
            seen = seen & (tile.to(tl.float32) > map.floor)
    return seen


@jit
def logits_of(map, sizes, query, text, head, rows, keys, EDGE: tl.constexpr):  # noqa: A002
    """Logits (M, N) float32 without the part of the mean key, −1e30 where hidden, and what is seen."""
    D: tl.constexpr = query.shape[1]
    wide = tl.arange(0, D)
    there = (keys[None, :] < sizes.keys) & (wide[:, None] < sizes.width)
    at = cell(map.key_at, text, head // sizes.repeats, keys[None, :], wide[:, None])
    key = tl.load(map.key + at, there, other=0.0)
    if map.mean is not None:
        key = key - _mean(map, sizes, text, head, D)[:, None]
    logits = tl.dot(query, key, input_precision="tf32x3") * map.scale
    if map.softcap is not None:
        logits = map.softcap * _tanh(logits / map.softcap)
    inside = (rows[:, None] < sizes.queries) & (keys[None, :] < sizes.keys)
    if map.bias is not None:
        bias = tl.load(map.bias + cell(map.bias_at, text, head, rows[:, None], keys[None, :]), inside, other=0.0)
        logits += tl.maximum(bias.to(tl.float32), -1e30)
    if map.floor is not None:
        tile = tl.load(map.mask + cell(map.mask_at, text, head, rows[:, None], keys[None, :]), inside, other=0.0)
        tile = tile.to(tl.float32)
        logits += tl.where(tile > map.floor, tile, 0.0)
    seen = sees(map, sizes, text, head, rows, keys, EDGE)
    return tl.where(seen, logits, -1e30), seen


@jit
def _tanh(x):
    """The hyperbolic tangent, by its series where 1 − e⁻²ˣ would lose digits."""
    z = tl.minimum(x * x, 0.09)
    series = 1 + z * (-1 / 3 + z * (2 / 15 + z * (-17 / 315 + z * (62 / 2835 - z * (1382 / 155925)))))
    small = tl.exp(-2 * tl.abs(x))
    far = (1 - small) / (1 + small)
    return tl.where(x * x < 0.09, x * series, tl.where(x < 0, -far, far))


@jit
def counts_program(map, sizes, columns, out, BLOCKS: tl.constexpr):  # noqa: A002
    """Σ of the visible keys' columns (B, K, C) in each row: out (B, h, Q, C). BLOCKS: rows, keys, padded C, C, h."""
    M: tl.constexpr = BLOCKS[0]
    N: tl.constexpr = BLOCKS[1]
    text, head = tl.program_id(1) // BLOCKS[4], tl.program_id(1) % BLOCKS[4]
    first = tl.program_id(0) * M
    rows, wide = first + tl.arange(0, M), tl.arange(0, BLOCKS[2])
    total = tl.zeros([M, BLOCKS[2]], tl.float32)
    low, _left, _right, high = reach(map, sizes, first, tl.minimum(first + M, sizes.queries) - 1, N)
    # A null key stands behind the others; every row sees it.
    length = sizes.keys
    if map.sinks is not None:
        length = sizes.keys + 1
        null = columns + (text.to(tl.int64) * length + sizes.keys) * BLOCKS[3]
        total += tl.load(null + wide, wide < BLOCKS[3], other=0.0)[None, :]
    for block in range(low, high):
        keys = block * N + tl.arange(0, N)
        there = (keys[:, None] < sizes.keys) & (wide[None, :] < BLOCKS[3])
        tile = tl.load(columns + (text * length + keys[:, None]).to(tl.int64) * BLOCKS[3] + wide[None, :], there, 0.0)
        seen = sees(map, sizes, text, head, rows, keys, True)
        total += tl.dot(seen.to(tl.float32), tile, input_precision="tf32x3")
    at = (tl.program_id(1).to(tl.int64) * sizes.queries + rows[:, None]) * BLOCKS[3] + wide[None, :]
    tl.store(out + at, total, (rows[:, None] < sizes.queries) & (wide[None, :] < BLOCKS[3]))


@jit
def columns_program(map, sizes, lse, factor, out, BLOCKS: tl.constexpr):  # noqa: A002
    """Σ over rows of factor (B, h, Q) times the weights, or times 1 where lse is None and the key is seen: (B, h, K).

    lse (B, h, Q) lacks the part of the mean key, as the logits do. BLOCKS: rows, keys, padded width, h.
    """
    M: tl.constexpr = BLOCKS[0]
    N: tl.constexpr = BLOCKS[1]
    text, head = tl.program_id(1) // BLOCKS[3], tl.program_id(1) % BLOCKS[3]
    offset, start = sizes.keys - sizes.queries, tl.program_id(0) * N
    keys, total = start + tl.arange(0, N), tl.zeros([N], tl.float32)
    first, stop = 0, sizes.queries
    if map.causal is not None:
        first = tl.maximum(start - offset, 0)
    if map.window is not None:
        stop = tl.minimum(stop, tl.maximum(start + N - 1 + map.window - offset, 0))
        if map.causal is None:
            first = tl.maximum(start - offset - map.window + 1, 0)
    for block in range(first // M, tl.cdiv(stop, M)):
        rows = block * M + tl.arange(0, M)
        at = tl.program_id(1).to(tl.int64) * sizes.queries + rows
        share = tl.load(factor + at, rows < sizes.queries, other=0.0)
        if lse is None:
            weights = sees(map, sizes, text, head, rows, keys, True).to(tl.float32)
        else:
            query, _shift = queries_of(map, sizes, text, head, rows, BLOCKS[2])
            logits, seen = logits_of(map, sizes, query, text, head, rows, keys, True)
            level = tl.load(lse + at, rows < sizes.queries, other=0.0)
            # No weight is above 1; a row that is not there has no log-sum to keep it so.
            weights = tl.where(seen, tl.exp(tl.minimum(logits - level[:, None], 0.0)), 0.0)
        total += tl.sum(weights * share[:, None], 0)
    tl.store(out + tl.program_id(1).to(tl.int64) * sizes.keys + keys, total, keys < sizes.keys)


@jit
def _apart(left, right):
    """From two log-weights, what a key adds to JSD, KL(left‖right), KL(right‖left) and Σ |difference|; none negative.

    M is the larger weight, a the gap of the logs, u = a/2. JSD: ½ M (1 + e⁻ᵃ)(u tanh u − log cosh u). The KL of the map
    in which the key is larger gets M (a − 1 + e⁻ᵃ), the other M (1 − e⁻ᵃ − a e⁻ᵃ); the surplus cancels over a row.
    Small gaps go by their series: each is then good to a few units in the last place.
    """
    larger, gap = tl.exp(tl.minimum(tl.maximum(left, right), 0.0)), tl.abs(left - right)
    a = tl.minimum(gap, 0.5)
    tail = a * a * (1 / 2 + a * (-1 / 6 + a * (1 / 24 + a * (-1 / 120 + a * (1 / 720 + a * (-1 / 5040 + a / 40320))))))
    power = tl.exp(-gap)
    small = gap < 0.5
    first = tl.where(small, tail, gap - 1 + power)
    second = tl.where(small, a * a - tail * (1 + a), 1 - power - gap * power)
    moved = tl.where(small, a - tail, 1 - power)
    z = a * a / 4
    series = z * (1 / 2 + z * (-1 / 4 + z * (1 / 9 + z * (-17 / 360 + z * (31 / 1575)))))
    half = gap / 2
    direct = half * (1 - power) / (1 + power) - half - tl.log((1 + power) / 2)
    jsd = larger * (1 + power) * tl.where(small, series, direct) / 2
    forward = larger * tl.where(left > right, first, second)
    return jsd, forward, larger * tl.where(left > right, second, first), larger * moved


@jit
def pairs_program(base, tuned, sizes, levels, out, BLOCKS: tl.constexpr):
    """Sums over the keys of each row of two maps; levels: their log-sums (B, H, Q) without the mean key's part.

    BLOCKS: rows, keys, padded width.
    """
    M: tl.constexpr = BLOCKS[0]
    N: tl.constexpr = BLOCKS[1]
    text, head = tl.program_id(1) // sizes.heads, tl.program_id(1) % sizes.heads
    first = tl.program_id(0) * M
    rows = first + tl.arange(0, M)
    there, last = rows < sizes.queries, tl.minimum(first + M, sizes.queries) - 1
    at = tl.program_id(1).to(tl.int64) * sizes.queries + rows
    left_level, right_level = tl.load(levels[0] + at, there, other=0.0), tl.load(levels[1] + at, there, other=0.0)
    left_query, left_shift = queries_of(base, sizes, text, head, rows, BLOCKS[2])
    right_query, right_shift = queries_of(tuned, sizes, text, head, rows, BLOCKS[2])
    jsd, forward, backward, moved = left_level * 0, left_level * 0, left_level * 0, left_level * 0
    lost, gained = left_level * 0, left_level * 0
    if base.sinks is not None:  # the null key is a key of both
        left = tl.load(base.sinks + head) - left_shift - left_level
        right = tl.load(tuned.sinks + head) - right_shift - right_level
        jsd, forward, backward, moved = _apart(left, right)
    low, _left, _right, high = reach(base, sizes, first, last, N)
    from_low, _left, _right, to_high = reach(tuned, sizes, first, last, N)
    for block in range(tl.minimum(low, from_low), tl.maximum(high, to_high)):
        keys = block * N + tl.arange(0, N)
        left, in_base = logits_of(base, sizes, left_query, text, head, rows, keys, True)
        right, in_tuned = logits_of(tuned, sizes, right_query, text, head, rows, keys, True)
        left = tl.where(in_base, left - left_level[:, None], -1e30)
        right = tl.where(in_tuned, right - right_level[:, None], -1e30)
        a, b, c, d = _apart(left, right)
        jsd += tl.sum(a, 1)
        forward += tl.sum(b, 1)
        backward += tl.sum(c, 1)
        moved += tl.sum(d, 1)
        lost += tl.sum((in_base & ~in_tuned).to(tl.float32), 1)
        gained += tl.sum((in_tuned & ~in_base).to(tl.float32), 1)
    tl.store(out.jsd + at, jsd, there)
    tl.store(out.forward + at, forward, there)
    tl.store(out.backward + at, backward, there)
    tl.store(out.moved + at, moved, there)
    tl.store(out.lost + at, lost, there)
    tl.store(out.gained + at, gained, there)
