"""The Triton programs of `kernels.py`: a first pass over a map, and second passes over its columns and over two maps.

The first pass is online over blocks of keys, so the maximum m of a softmax moves; the centred sum
E = Σ e^(s−m) (s − m) moves with it, E ← e^(m−m')(E + (m − m')·ℓ) + Σ e^(s−m') (s − m') (METRICS 8.2). The softmax of
content alone runs beside it with a maximum of its own, so that its shares keep their digits however little it gets.

Hidden logits are −1e30, never −∞; offsets of elements are 64-bit, as a mask of 131,072 rows and keys has more than 2³¹.
No atomics: one program owns what it stores, so that results repeat. `one` is a Map, `given` a Given, `left` a Left.
"""

# pyright: reportArgumentType=false
# A constant of a program is annotated as Triton wants it, and passed as the plain value that it is.

import triton
import triton.language as tl


@triton.jit
def cell(steps, text, head, row, column):
    """Offset of (text, head, row, column) in a tensor of these strides."""
    return text.to(tl.int64) * steps[0] + head.to(tl.int64) * steps[1] + row.to(tl.int64) * steps[2] + column * steps[3]


@triton.jit
def queries_of(one, sizes, text, head, rows, D: tl.constexpr):
    """Queries (M, D) of a block of rows, and what the mean key adds to each of their logits (M)."""
    wide = tl.arange(0, D)
    there = (rows[:, None] < sizes.queries) & (wide[None, :] < sizes.width)
    query = tl.load(one.query + cell(one.query_at, text, head, rows[:, None], wide[None, :]), there, other=0.0)
    shift = tl.zeros(rows.shape, tl.float32)
    if one.mean is not None:
        mean = _mean(one, sizes, text, head, D)
        shift += tl.sum(query.to(tl.float32) * mean[None, :], 1) * one.scale
    return query, shift


@triton.jit
def _mean(one, sizes, text, head, D: tl.constexpr):
    """The mean key (D)."""
    wide, number = tl.arange(0, D), text * (sizes.heads // sizes.repeats) + head // sizes.repeats
    return tl.load(one.mean + number * sizes.width + wide, wide < sizes.width, other=0.0)


@triton.jit
def reach(one, sizes, first, last, N: tl.constexpr):
    """Blocks of keys for rows first … last: low, left, right, high. Those of left … right are seen by every row."""
    offset = sizes.keys - sizes.queries
    low, left, right, high = 0, 0, sizes.keys // N, tl.cdiv(sizes.keys, N)
    if one.causal is not None:
        right = tl.minimum(right, tl.maximum(first + offset + 1, 0) // N)
        high = tl.minimum(high, tl.cdiv(tl.maximum(last + offset + 1, 0), N))
    if one.window is not None:
        low = tl.maximum(first + offset - one.window + 1, 0) // N
        left = tl.cdiv(tl.maximum(last + offset - one.window + 1, 0), N)
        if one.causal is None:
            right = tl.minimum(right, tl.maximum(first + offset + one.window, 0) // N)
            high = tl.minimum(high, tl.cdiv(tl.maximum(last + offset + one.window, 0), N))
    high = tl.maximum(high, low)
    left = tl.minimum(left, high)
    return low, left, tl.minimum(tl.maximum(right, left), high), high


@triton.jit
def sees(one, sizes, where, EDGE: tl.constexpr):
    """Which keys the rows see, bool (M, N). Without EDGE causality, window and the last key are not looked at."""
    text, head, rows, keys = where
    seen = (rows[:, None] >= 0) & (keys[None, :] >= 0)
    if EDGE:
        seen = (rows[:, None] < sizes.queries) & (keys[None, :] < sizes.keys)
        gap = rows[:, None] + (sizes.keys - sizes.queries) - keys[None, :]
        if one.causal is not None:
            seen = seen & (gap >= 0)
        if one.window is not None:
            seen = seen & (tl.abs(gap) < one.window)
    if one.mask is not None:
        inside = (rows[:, None] < sizes.queries) & (keys[None, :] < sizes.keys)
        tile = tl.load(one.mask + cell(one.mask_at, text, head, rows[:, None], keys[None, :]), inside, other=0)
        if one.floor is None:
            seen = seen & (tile != 0)
        else:
            seen = seen & (tile.to(tl.float32) > one.floor)
    return seen


@triton.jit
def logits_of(one, sizes, query, where, EDGE: tl.constexpr):
    """Logits (M, N) float32 without the part of the mean key, −1e30 where hidden, and what is seen."""
    text, head, rows, keys = where
    D: tl.constexpr = query.shape[1]
    wide = tl.arange(0, D)
    there = (keys[None, :] < sizes.keys) & (wide[:, None] < sizes.width)
    at = cell(one.key_at, text, head // sizes.repeats, keys[None, :], wide[:, None])
    key = tl.load(one.key + at, there, other=0.0)
    if one.mean is not None:
        key = key - _mean(one, sizes, text, head, D)[:, None]
    logits = tl.dot(query, key, input_precision="tf32x3") * one.scale
    if one.softcap is not None:
        logits = one.softcap * _tanh(logits / one.softcap)
    inside = (rows[:, None] < sizes.queries) & (keys[None, :] < sizes.keys)
    if one.bias is not None:
        bias = tl.load(one.bias + cell(one.bias_at, text, head, rows[:, None], keys[None, :]), inside, other=0.0)
        logits += tl.maximum(bias.to(tl.float32), -1e30)
    if one.floor is not None:
        tile = tl.load(one.mask + cell(one.mask_at, text, head, rows[:, None], keys[None, :]), inside, other=0.0)
        tile = tile.to(tl.float32)
        logits += tl.where(tile > one.floor, tile, 0.0)
    seen = sees(one, sizes, where, EDGE)
    return tl.where(seen, logits, -1e30), seen


@triton.jit
def _tanh(x):
    """The hyperbolic tangent, by its series where 1 − e⁻²ˣ would lose digits."""
    z = tl.minimum(x * x, 0.09)
    series = 1 + z * (-1 / 3 + z * (2 / 15 + z * (-17 / 315 + z * (62 / 2835 - z * (1382 / 155925)))))
    small = tl.exp(-2 * tl.abs(x))
    far = (1 - small) / (1 + small)
    return tl.where(x * x < 0.09, x * series, tl.where(x < 0, -far, far))


@triton.jit
def _softmax(logits, seen, top):
    """Weights of a tile (M, N) against the new maximum, that maximum, and the factor on all that came before."""
    peak = tl.maximum(top, tl.max(logits, 1))
    return tl.where(seen, tl.exp(logits - peak[:, None]), 0.0), peak, tl.exp(top - peak)


@triton.jit
def _add(state, tile, seen):
    """Maximum, Σ e^(s−m) and Σ e^(s−m) (s−m) of the rows with one more tile; the tile's weights, and the fading."""
    top, total, centred = state
    weights, peak, fade = _softmax(tile, seen, top)
    centred = fade * (centred + (top - peak) * total) + tl.sum(weights * (tile - peak[:, None]), 1)
    return (peak, fade * total + tl.sum(weights, 1), centred), weights, fade


@triton.jit
def _step(read, query, where, state, EDGE: tl.constexpr, WIDTHS: tl.constexpr):
    """The state of a block of rows with one more block of keys. WIDTHS: D_v, columns, both also padded."""
    one, sizes, given = read
    text, head, rows, keys = where
    whole, inner, squares, far, output, masses, inside, lengths = state
    logits, seen = logits_of(one, sizes, query, where, EDGE)
    whole, weights, fade = _add(whole, logits, seen)
    squares = fade * fade * squares + tl.sum(weights * weights, 1)
    gaps = tl.abs(rows[:, None] + (sizes.keys - sizes.queries) - keys[None, :]).to(tl.float32)
    far = fade * far + tl.sum(weights * gaps, 1)
    there = keys < sizes.keys
    if given.value is not None:
        wide = tl.arange(0, WIDTHS[2])
        at = cell(given.value_at, text, head // sizes.repeats, keys[:, None], wide[None, :])
        value = tl.load(given.value + at, there[:, None] & (wide[None, :] < WIDTHS[0]), other=0.0)
        output = tl.dot(weights.to(value.dtype), value, output * fade[:, None], input_precision="tf32x3")
    length = sizes.keys
    if one.sinks is not None:
        length = sizes.keys + 1
    place = text.to(tl.int64) * length + keys
    alone, ebb = weights, fade
    if given.content is not None:
        seen = seen & (tl.load(given.content + place, there, other=0.0) > 0)[None, :]
        inner, alone, ebb = _add(inner, tl.where(seen, logits, -1e30), seen)
    if given.columns is not None:
        wide = tl.arange(0, WIDTHS[3])
        at = place[:, None] * WIDTHS[1] + wide[None, :]
        columns = tl.load(given.columns + at, there[:, None] & (wide[None, :] < WIDTHS[1]), other=0.0)
        masses = tl.dot(weights, columns, masses * fade[:, None], input_precision="tf32x3")
        if given.content is not None:
            inside = tl.dot(alone, columns, inside * ebb[:, None], input_precision="tf32x3")
        if given.norms is not None:
            at = (text * sizes.heads + head).to(tl.int64) * sizes.keys + keys
            norms = tl.load(given.norms + at, there, other=0.0)
            lengths = tl.dot(alone * norms[None, :], columns, lengths * ebb[:, None], input_precision="tf32x3")
    return whole, inner, squares, far, output, masses, inside, lengths


@triton.jit
def _start(one, sizes, given, shift, where, WIDTHS: tl.constexpr):
    """The state before the first key: nothing, or a null key, whose logit is then the maximum."""
    text, head, rows, _keys = where
    nothing, wide = shift * 0, tl.arange(0, WIDTHS[3])
    masses = tl.zeros([rows.shape[0], WIDTHS[3]], tl.float32)
    whole, inner, squares = (nothing - 1e30, nothing, nothing), (nothing - 1e30, nothing, nothing), nothing
    if one.sinks is not None:
        whole, squares = (tl.load(one.sinks + head) - shift, nothing + 1, nothing), nothing + 1
        if given.columns is not None:
            null = (text.to(tl.int64) * (sizes.keys + 1) + sizes.keys) * WIDTHS[1]
            masses += tl.load(given.columns + null + wide, wide < WIDTHS[1], other=0.0)[None, :]
    output = tl.zeros([rows.shape[0], WIDTHS[2]], tl.float32)
    return whole, inner, squares, nothing, output, masses, masses * 0, masses * 0


@triton.jit
def _store(left, state, shift, sizes, rows, WIDTHS: tl.constexpr):
    """Write a block of rows down; a row that sees nothing has sums 0, and 0 for output and masses."""
    whole, inner, squares, far, output, masses, inside, lengths = state
    there, size = rows < sizes.queries, tl.num_programs(1).to(tl.int64) * sizes.queries
    at = tl.program_id(1).to(tl.int64) * sizes.queries + rows
    total, content = tl.maximum(whole[1], 1e-30), tl.maximum(inner[1], 1e-30)
    tl.store(left.rows + at, whole[0] + tl.log(total), there)
    tl.store(left.rows + size + at, shift, there)
    tl.store(left.rows + 2 * size + at, whole[1], there)
    tl.store(left.rows + 3 * size + at, whole[2], there)
    tl.store(left.rows + 4 * size + at, squares, there)
    tl.store(left.rows + 5 * size + at, far, there)
    tl.store(left.rows + 6 * size + at, inner[0] + tl.log(content), there)
    tl.store(left.rows + 7 * size + at, inner[1], there)
    tl.store(left.rows + 8 * size + at, inner[2], there)
    if left.output is not None:
        wide = tl.arange(0, WIDTHS[2])
        mine, to = there[:, None] & (wide[None, :] < WIDTHS[0]), at[:, None] * WIDTHS[0] + wide[None, :]
        tl.store(left.output + to, (output / total[:, None]).to(left.output.dtype.element_ty), mine)
    wide = tl.arange(0, WIDTHS[3])
    mine, to = there[:, None] & (wide[None, :] < WIDTHS[1]), at[:, None] * WIDTHS[1] + wide[None, :]
    if left.masses is not None:
        tl.store(left.masses + to, masses / total[:, None], mine)
    if left.inside is not None:
        tl.store(left.inside + to, inside / content[:, None], mine)
    if left.lengths is not None:
        tl.store(left.lengths + to, lengths / content[:, None], mine)


@triton.jit
def rows_program(one, sizes, given, left, BLOCKS: tl.constexpr, WIDTHS: tl.constexpr):
    """The first pass over one block of rows of one head. BLOCKS: rows, keys, padded width of q."""
    M: tl.constexpr = BLOCKS[0]
    N: tl.constexpr = BLOCKS[1]
    text, head = tl.program_id(1) // sizes.heads, tl.program_id(1) % sizes.heads
    # The last rows of a causal map have the most to do, and begin first.
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    rows = start + tl.arange(0, M)
    query, shift = queries_of(one, sizes, text, head, rows, BLOCKS[2])
    state = _start(one, sizes, given, shift, (text, head, rows, rows), WIDTHS)
    low, full, partial, high = reach(one, sizes, start, tl.minimum(start + M, sizes.queries) - 1, N)
    for block in range(full, partial):
        keys = block * N + tl.arange(0, N)
        state = _step((one, sizes, given), query, (text, head, rows, keys), state, False, WIDTHS)
    for edge in range(full - low + high - partial):
        block = tl.where(edge < full - low, low + edge, partial + edge - (full - low))
        keys = block * N + tl.arange(0, N)
        state = _step((one, sizes, given), query, (text, head, rows, keys), state, True, WIDTHS)
    _store(left, state, shift, sizes, rows, WIDTHS)


@triton.jit
def counts_program(one, sizes, columns, out, BLOCKS: tl.constexpr):
    """Σ of the visible keys' columns (B, K, C) in each row: out (B, h, Q, C). BLOCKS: rows, keys, padded C, C, h."""
    M: tl.constexpr = BLOCKS[0]
    N: tl.constexpr = BLOCKS[1]
    text, head = tl.program_id(1) // BLOCKS[4], tl.program_id(1) % BLOCKS[4]
    first = tl.program_id(0) * M
    rows, wide = first + tl.arange(0, M), tl.arange(0, BLOCKS[2])
    total = tl.zeros([M, BLOCKS[2]], tl.float32)
    low, _left, _right, high = reach(one, sizes, first, tl.minimum(first + M, sizes.queries) - 1, N)
    # A null key stands behind the others; every row sees it.
    length = sizes.keys
    if one.sinks is not None:
        length = sizes.keys + 1
        null = columns + (text.to(tl.int64) * length + sizes.keys) * BLOCKS[3]
        total += tl.load(null + wide, wide < BLOCKS[3], other=0.0)[None, :]
    for block in range(low, high):
        keys = block * N + tl.arange(0, N)
        there = (keys[:, None] < sizes.keys) & (wide[None, :] < BLOCKS[3])
        tile = tl.load(columns + (text * length + keys[:, None]).to(tl.int64) * BLOCKS[3] + wide[None, :], there, 0.0)
        seen = sees(one, sizes, (text, head, rows, keys), True)
        total += tl.dot(seen.to(tl.float32), tile, input_precision="tf32x3")
    at = (tl.program_id(1).to(tl.int64) * sizes.queries + rows[:, None]) * BLOCKS[3] + wide[None, :]
    tl.store(out + at, total, (rows[:, None] < sizes.queries) & (wide[None, :] < BLOCKS[3]))


@triton.jit
def columns_program(one, sizes, lse, factor, out, BLOCKS: tl.constexpr):
    """Σ over rows of factor (B, h, Q) times the weights, or times 1 where lse is None and the key is seen: (B, h, K).

    lse (B, h, Q) lacks the part of the mean key, as the logits do. BLOCKS: rows, keys, padded width, h.
    """
    M: tl.constexpr = BLOCKS[0]
    N: tl.constexpr = BLOCKS[1]
    text, head = tl.program_id(1) // BLOCKS[3], tl.program_id(1) % BLOCKS[3]
    offset, start = sizes.keys - sizes.queries, tl.program_id(0) * N
    keys, total = start + tl.arange(0, N), tl.zeros([N], tl.float32)
    first, stop = 0, sizes.queries
    if one.causal is not None:
        first = tl.maximum(start - offset, 0)
    if one.window is not None:
        stop = tl.minimum(stop, tl.maximum(start + N - 1 + one.window - offset, 0))
        if one.causal is None:
            first = tl.maximum(start - offset - one.window + 1, 0)
    for block in range(first // M, tl.cdiv(stop, M)):
        rows = block * M + tl.arange(0, M)
        at = tl.program_id(1).to(tl.int64) * sizes.queries + rows
        share = tl.load(factor + at, rows < sizes.queries, other=0.0)
        if lse is None:
            weights = sees(one, sizes, (text, head, rows, keys), True).to(tl.float32)
        else:
            query, _shift = queries_of(one, sizes, text, head, rows, BLOCKS[2])
            logits, seen = logits_of(one, sizes, query, (text, head, rows, keys), True)
            level = tl.load(lse + at, rows < sizes.queries, other=0.0)
            # No weight is above 1; a row that is not there has no log-sum to keep it so.
            weights = tl.where(seen, tl.exp(tl.minimum(logits - level[:, None], 0.0)), 0.0)
        total += tl.sum(weights * share[:, None], 0)
    tl.store(out + tl.program_id(1).to(tl.int64) * sizes.keys + keys, total, keys < sizes.keys)


@triton.jit
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


@triton.jit
def pairs_program(base, tuned, sizes, levels, out, BLOCKS: tl.constexpr):
    """Sums over the keys of each row of two maps; levels: their log-sums (B, H, Q) without the mean key's part.

    out (6, B, H, Q): JSD, KL both ways, Σ |difference|, and how many keys base alone sees, and tuned alone.
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
        null = tl.load(base.sinks + head) - left_shift - left_level
        other = tl.load(tuned.sinks + head) - right_shift - right_level
        jsd, forward, backward, moved = _apart(null, other)
    low, _left, _right, high = reach(base, sizes, first, last, N)
    from_low, _left, _right, to_high = reach(tuned, sizes, first, last, N)
    for block in range(tl.minimum(low, from_low), tl.maximum(high, to_high)):
        keys = block * N + tl.arange(0, N)
        left, in_base = logits_of(base, sizes, left_query, (text, head, rows, keys), True)
        right, in_tuned = logits_of(tuned, sizes, right_query, (text, head, rows, keys), True)
        left = tl.where(in_base, left - left_level[:, None], -1e30)
        right = tl.where(in_tuned, right - right_level[:, None], -1e30)
        a, b, c, d = _apart(left, right)
        jsd += tl.sum(a, 1)
        forward += tl.sum(b, 1)
        backward += tl.sum(c, 1)
        moved += tl.sum(d, 1)
        lost += tl.sum((in_base & ~in_tuned).to(tl.float32), 1)
        gained += tl.sum((in_tuned & ~in_base).to(tl.float32), 1)
    size = tl.num_programs(1).to(tl.int64) * sizes.queries
    tl.store(out + at, jsd, there)
    tl.store(out + size + at, forward, there)
    tl.store(out + 2 * size + at, backward, there)
    tl.store(out + 3 * size + at, moved, there)
    tl.store(out + 4 * size + at, lost, there)
    tl.store(out + 5 * size + at, gained, there)
