"""The first pass of Triton over an attention map: output and sums of each row, online over blocks of keys.

Softmax runs online, so its maximum m moves; the centred sum E = Σ e^(s−m) (s − m) moves with it,
E ← e^(m−m')(E + (m − m')·ℓ) + Σ e^(s−m') (s − m') (METRICS 8.2). The softmax of the content alone runs beside it with a
maximum of its own, so that its shares keep their digits however little the content gets.
"""

from typing import Any, NamedTuple

from attnlens.core.kernel_pairs import jit, logits_of, queries_of, reach, tl


class Given(NamedTuple):
    """What the first pass reads besides q and k, None where nothing asks for it; `_at` are strides.

    value: (B, H_kv, K, D_v). columns: (B, K', C), K' = K, and one more for a null key. content: (B, K'), 0 or 1.
    norms: (B, H, K).
    """

    value: Any
    value_at: Any
    columns: Any
    content: Any
    norms: Any


class Left(NamedTuple):
    """What the first pass writes, None where nothing asks for it; each contiguous.

    rows: (9, B, H, Q). output: (B, H, Q, D_v). masses, inside, lengths: (B, H, Q, C): the columns under the softmax,
    under that of the content, and there with each weight times the norm of its key.
    """

    rows: Any
    output: Any
    masses: Any
    inside: Any
    lengths: Any


@jit
def _softmax(logits, seen, top):
    """Weights of a tile (M, N) against the new maximum, that maximum, and the factor on all that came before."""
    peak = tl.maximum(top, tl.max(logits, 1))
    return tl.where(seen, tl.exp(logits - peak[:, None]), 0.0), peak, tl.exp(top - peak)


@jit
def _add(state, tile, seen):
    """Maximum, Σ e^(s−m) and Σ e^(s−m) (s−m) of the rows with one more tile; the tile's weights, and the fading."""
    top, total, centred = state
    weights, peak, fade = _softmax(tile, seen, top)
    centred = fade * (centred + (top - peak) * total) + tl.sum(weights * (tile - peak[:, None]), 1)
    return (peak, fade * total + tl.sum(weights, 1), centred), weights, fade


@jit
def _step(map, sizes, given, query, where, state, EDGE: tl.constexpr, WIDTHS: tl.constexpr):  # noqa: A002
    """The state of a block of rows with one more block of keys. WIDTHS: D_v, columns, both also padded."""
    text, head, rows, keys = where
    whole, inner, squares, far, output, masses, inside, lengths = state
    logits, seen = logits_of(map, sizes, query, text, head, rows, keys, EDGE)
    whole, weights, fade = _add(whole, logits, seen)
    squares = fade * fade * squares + tl.sum(weights * weights, 1)
    gaps = tl.abs(rows[:, None] + (sizes.keys - sizes.queries) - keys[None, :]).to(tl.float32)
    far = fade * far + tl.sum(weights * gaps, 1)
    there = keys < sizes.keys
    if given.value is not None:
        wide = tl.arange(0, WIDTHS[2])
        at = text.to(tl.int64) * given.value_at[0] + (head // sizes.repeats).to(tl.int64) * given.value_at[1]
        at += keys[:, None].to(tl.int64) * given.value_at[2] + wide[None, :] * given.value_at[3]
        value = tl.load(given.value + at, there[:, None] & (wide[None, :] < WIDTHS[0]), other=0.0)
        output = tl.dot(weights.to(value.dtype), value, output * fade[:, None], input_precision="tf32x3")
    length = sizes.keys
    if map.sinks is not None:
        length = sizes.keys + 1
    place = text.to(tl.int64) * length + keys
    if given.columns is not None:
        wide = tl.arange(0, WIDTHS[3])
        at = place[:, None] * WIDTHS[1] + wide[None, :]
        columns = tl.load(given.columns + at, there[:, None] & (wide[None, :] < WIDTHS[1]), other=0.0)
        masses = tl.dot(weights, columns, masses * fade[:, None], input_precision="tf32x3")
    if given.content is not None:
        seen = seen & (tl.load(given.content + place, there, other=0.0) > 0)[None, :]
        inner, weights, fade = _add(inner, tl.where(seen, logits, -1e30), seen)
        if given.columns is not None:
            inside = tl.dot(weights, columns, inside * fade[:, None], input_precision="tf32x3")
        if given.norms is not None:
            at = (text * sizes.heads + head).to(tl.int64) * sizes.keys + keys
            norms = tl.load(given.norms + at, there, other=0.0)
            lengths = tl.dot(weights * norms[None, :], columns, lengths * fade[:, None], input_precision="tf32x3")
    return whole, inner, squares, far, output, masses, inside, lengths


@jit
def _start(map, sizes, given, shift, where, WIDTHS: tl.constexpr):  # noqa: A002
    """The state before the first key: nothing, or a null key, whose logit is then the maximum."""
    text, head, rows, _keys = where
    nothing, wide = shift * 0, tl.arange(0, WIDTHS[3])
    masses = tl.zeros([rows.shape[0], WIDTHS[3]], tl.float32)
    whole, inner, squares = (nothing - 1e30, nothing, nothing), (nothing - 1e30, nothing, nothing), nothing
    if map.sinks is not None:
        whole, squares = (tl.load(map.sinks + head) - shift, nothing + 1, nothing), nothing + 1
        if given.columns is not None:
            null = (text.to(tl.int64) * (sizes.keys + 1) + sizes.keys) * WIDTHS[1]
            masses += tl.load(given.columns + null + wide, wide < WIDTHS[1], other=0.0)[None, :]
    output = tl.zeros([rows.shape[0], WIDTHS[2]], tl.float32)
    return whole, inner, squares, nothing, output, masses, masses * 0, masses * 0


@jit
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


@jit
def rows_program(map, sizes, given, left, BLOCKS: tl.constexpr, WIDTHS: tl.constexpr):  # noqa: A002
    """The first pass over one block of rows of one head. BLOCKS: rows, keys, padded width of q."""
    M: tl.constexpr = BLOCKS[0]
    N: tl.constexpr = BLOCKS[1]
    text, head = tl.program_id(1) // sizes.heads, tl.program_id(1) % sizes.heads
    # The last rows of a causal map have the most to do, and begin first.
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    rows = start + tl.arange(0, M)
    query, shift = queries_of(map, sizes, text, head, rows, BLOCKS[2])
    state = _start(map, sizes, given, shift, (text, head, rows, rows), WIDTHS)
    low, full, partial, high = reach(map, sizes, start, tl.minimum(start + M, sizes.queries) - 1, N)
    for block in range(full, partial):
        keys = block * N + tl.arange(0, N)
        state = _step(map, sizes, given, query, (text, head, rows, keys), state, False, WIDTHS)
    for edge in range(0, full - low + high - partial):
        block = tl.where(edge < full - low, low + edge, partial + edge - (full - low))
        keys = block * N + tl.arange(0, N)
        state = _step(map, sizes, given, query, (text, head, rows, keys), state, True, WIDTHS)
    _store(left, state, shift, sizes, rows, WIDTHS)
