"""`tiled.attend` on a GPU: one fused pass of Triton gives output and row statistics, second passes columns and pairs.

Products are of the inputs' own dtype, sums and statistics float32. The mean key is taken off float32 keys only:
bfloat16 could not hold what is left. What the programs do not take goes to tiled torch.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlens.core import tiled
from attnlens.core.pairs import PAIRS, Logits, Sums
from attnlens.core.rows import STATISTICS, normalized
from attnlens.core.scores import Scores
from attnlens.core.tiled import GROUPED, WEAK
from attnlens.core.wanted import Wanted

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Widest head and most columns that a block holds, most programs along the second axis of a grid.
WIDEST, COLUMNS, MOST = 256, 64, 65535
# Rows of the tensor that the first pass leaves, each (B, H, Q).
LSE, SHIFT, TOTAL, CENTRED, SQUARES, FAR, CONTENT_LSE, CONTENT_TOTAL, CONTENT_CENTRED = range(9)
# Statistics of the softmax over content alone.
INNER = {"share", "share_value", "log_odds", "entropy_between", "entropy_content"}


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


NOTHING = Given(*[None] * 5)


def attend(
    query: Tensor, key: Tensor, value: Tensor | None, scores: Scores, wanted: Wanted
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """`tiled.attend`; on a GPU by Triton, where it is there and takes what is given."""
    by = fused if _ready(query) and _takes(query, key, value, scores, wanted) else tiled.attend
    return by(query, key, value, scores, wanted)


def fused(
    query: Tensor, key: Tensor, value: Tensor | None, scores: Scores, wanted: Wanted
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """As `tiled.attend`, by Triton, of what `attend` would send here."""
    scores.check(query, key)
    device = torch.cuda.device(query.device) if query.is_cuda else nullcontext()
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False), device:
        results = _Results(_Passes(query, key, scores), value, wanted)
        return results.first.output, results.statistics() | results.pairs()


def _ready(query: Tensor) -> bool:
    """Whether this lies where Triton can run: on a GPU that multiplies bfloat16."""
    if not query.is_cuda or torch.version.hip is not None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _takes(query: Tensor, key: Tensor, value: Tensor | None, scores: Scores, wanted: Wanted) -> bool:
    """Whether the programs can do this; what is wrong is left to tiled torch, which says so."""
    maps = [Logits(query, key, scores), *([] if wanted.against is None else [wanted.against])]
    tensors = [side for one in maps for side in (one.query, one.key)] + ([] if value is None else [value])
    added = [side for one in maps for side in (one.scores.mask, one.scores.bias)]
    groups = 0 if wanted.groups is None else wanted.groups.weights.shape[-1]
    names = set(wanted.statistics)
    return (
        names <= STATISTICS.keys()
        and PAIRS.keys() >= set(wanted.pairs)
        and (wanted.groups is not None or not GROUPED & names)
        and (wanted.norms is not None or "share_value" not in names)
        and all(one.ndim == 4 and one.shape[3] <= WIDEST and one.numel() > 0 for one in tensors)
        and all(one.dtype == query.dtype and one.device == query.device for one in tensors)
        and all(one is None or one.dtype in (torch.bool, *DTYPES) for one in added)
        and query.dtype in DTYPES
        and query.shape[0] * query.shape[1] <= MOST
        and 2 * groups + 2 <= COLUMNS
        and all(one.query.shape == query.shape and one.key.shape == key.shape for one in maps)
        and len({one.scores.sinks is None for one in maps}) == 1
    )


def _map(query: Tensor, key: Tensor, scores: Scores) -> Map:
    """What the programs read of a map; nothing of the size of its mask or bias is copied."""
    full, mask, bias, mean, floor = (*query.shape[:3], key.shape[2]), scores.mask, scores.bias, None, None
    if query.dtype == torch.float32 and scores.softcap is None:  # a softcap is not linear: there the offset must stay
        mean = key.mean(2).flatten(0, 1).contiguous()
    if mask is not None:
        floor = None if mask.dtype == torch.bool else torch.finfo(mask.dtype).min / 2
        mask = (mask.view(torch.uint8) if floor is None else mask).expand(full)
    bias = None if bias is None else bias.expand(full)
    return Map(
        *(query, query.stride(), key, key.stride(), mean),
        *(mask, None if mask is None else mask.stride(), bias, None if bias is None else bias.stride()),
        None if scores.sinks is None else scores.sinks.float().contiguous(),
        *(float(scores.scale), scores.softcap, floor, 1 if scores.causal else None, scores.window),
    )


def _blocks(query: Tensor, given: Given | None = None) -> tuple[int, int, int]:
    """Rows and keys of a block, and warps; without given: of a second pass.

    Found by compiling: the 99 KiB of shared memory that every GPU has hold them, 128 rows of bfloat16 on an H100 apart.
    """
    wide = query.shape[3] if given is None or given.value is None else max(query.shape[3], given.value.shape[3])
    size = _padded(wide) * (8 if query.dtype == torch.float32 else 2)  # products split float32 in two
    if size > 256:
        return (32, 32, 4) if size <= 512 else (16, 16, 4)
    return (64, 32, 4) if given is None or given.content is not None else (128, 64, 8)


def _padded(width: int) -> int:
    """The power of two that a block of this width needs; products take no less than 16."""
    return max(16, 1 << (width - 1).bit_length())


def _options(warps: int, fusion: bool = True) -> dict[str, Any]:
    """What a launch is given besides its arguments."""
    return {"num_warps": warps, "num_stages": 2, "enable_fp_fusion": fusion}


@dataclass(frozen=True)
class _Passes:
    """The programs, launched on one map."""

    query: Tensor
    key: Tensor
    scores: Scores

    @property
    def programs(self) -> Any:
        """Triton and what is written in it: imported where it runs, as not every machine has it."""
        return import_module("attnlens.core.programs")

    @cached_property
    def map(self) -> Map:
        """What the programs read."""
        return _map(self.query, self.key, self.scores)

    @cached_property
    def sizes(self) -> Sizes:
        """The numbers of heads, rows and keys."""
        heads, kv = self.query.shape[1], self.key.shape[1]
        return Sizes(heads, heads // kv, self.query.shape[2], self.key.shape[2], self.query.shape[3])

    @property
    def maskings(self) -> int:
        """How many heads differ in what they see: 1 or all."""
        return 1 if self.scores.mask is None else self.scores.mask.shape[1]

    def first(self, given: Given) -> Left:
        """Output and sums of all rows."""
        texts, heads, rows, width = self.query.shape
        like = self.query.new_empty(0, dtype=torch.float32)
        columns = 0 if given.columns is None else given.columns.shape[2]
        out = 0 if given.value is None else given.value.shape[3]
        sums = (texts, heads, rows, columns)
        left = Left(
            like.new_empty(9, texts, heads, rows),
            None if given.value is None else self.query.new_empty(texts, heads, rows, out),
            None if given.columns is None else like.new_empty(sums),
            None if given.columns is None or given.content is None else like.new_empty(sums),
            None if given.norms is None else like.new_empty(sums),
        )
        m, n, warps = _blocks(self.query, given)
        blocks, widths = (m, n, _padded(width)), (out, columns, _padded(out), _padded(columns))
        grid = -(-rows // m), texts * heads
        self.programs.rows_program[grid](self.map, self.sizes, given, left, blocks, widths, **_options(warps))
        return left

    def counts(self, columns: Tensor) -> Tensor:
        """Σ of the visible keys' columns (B, K', C) in each row (B, h, Q, C)."""
        (texts, _, rows, _), many = self.query.shape, columns.shape[2]
        out = columns.new_empty(texts, self.maskings, rows, many)
        m, n, warps = _blocks(self.query)
        grid, blocks = (-(-rows // m), texts * self.maskings), (m, n, _padded(many), many, self.maskings)
        self.programs.counts_program[grid](self.map, self.sizes, columns, out, blocks, **_options(warps))
        return out

    def columns(self, lse: Tensor | None, factor: Tensor) -> Tensor:
        """Sums over rows of factor (B, h, Q) times the weights, or times 1 for each key seen: (B, h, K)."""
        (texts, heads, _), keys = factor.shape, self.key.shape[2]
        out = factor.new_empty(texts, heads, keys)
        m, n, warps = _blocks(self.query)
        grid, blocks = (-(-keys // n), texts * heads), (m, n, _padded(self.query.shape[3]), heads)
        run = self.programs.columns_program[grid]
        run(self.map, self.sizes, lse, factor.contiguous(), out, blocks, **_options(warps))
        return out

    def pairs(self, base: "_Passes", levels: tuple[Tensor, Tensor]) -> Tensor:
        """Sums over the keys of each row of two maps (6, B, H, Q); levels: the log-sums of both, base first."""
        (texts, heads, rows, width), terms = self.query.shape, levels[0].new_empty(6, *levels[0].shape)
        m, n, warps = _blocks(self.query)
        grid, blocks = (-(-rows // m), texts * heads), (m, n, _padded(width))
        # Without fused products: both maps must be rounded alike, so that equal ones give exactly 0.
        run, options = self.programs.pairs_program[grid], _options(warps, fusion=False)
        run(base.map, self.map, self.sizes, levels, terms, blocks, **options)
        return terms


@dataclass(frozen=True)
class _Results:
    """The statistics of one call, made of the sums that the programs leave; their definitions stand in rows.py."""

    passes: _Passes
    value: Tensor | None
    wanted: Wanted

    @cached_property
    def groups(self) -> tuple[Tensor, Tensor]:
        """Columns (B, K', G) of the groups, none if nothing needs them, and content (B, K', 1); a null key is last."""
        (texts, _, keys, _), null = self.passes.key.shape, self.passes.scores.sinks is not None
        ones = self.passes.key.new_ones(texts, keys + null, 1, dtype=torch.float32)
        if self.wanted.groups is None or not GROUPED.intersection(self.wanted.statistics):
            return ones[..., :0], ones
        weights, content = self.wanted.groups.columns(ones, null)
        return weights, content[..., None]

    @cached_property
    def first(self) -> Left:
        """Output and sums of the rows."""
        weights, content = self.groups
        given = NOTHING._replace(value=self.value, value_at=None if self.value is None else self.value.stride())
        if GROUPED.intersection(self.wanted.statistics):
            given = given._replace(columns=torch.cat([weights, content, 1 - content, content - weights * content], -1))
        if INNER.intersection(self.wanted.statistics):
            given = given._replace(content=content.contiguous())
        if "share_value" in self.wanted.statistics:
            assert self.wanted.norms is not None
            given = given._replace(norms=self.wanted.norms.to(content).contiguous())
        return self.passes.first(given)

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Visible keys of each row in the groups, in their part within content (B, h, Q, G), in content, and in all."""
        weights, content = self.groups
        columns = torch.cat([weights, weights * content, content, torch.ones_like(content)], -1)
        return self.passes.counts(columns).split([weights.shape[2]] * 2 + [1, 1], -1)  # pyright: ignore[reportReturnType]

    @cached_property
    def empty(self) -> Tensor:
        """Rows without data (B, H, Q): they see nothing, or were not asked for."""
        nothing, valid = self.first.rows[TOTAL] == 0, self.wanted.queries
        return nothing if valid is None else nothing | ~valid.to(nothing.device)[:, None]

    def statistics(self) -> dict[str, Tensor]:
        """The statistics by name, NaN on rows without data."""
        found = {}
        for name in self.wanted.statistics:
            axes, chosen = STATISTICS[name].axes, self.wanted.columns.get(name)
            if axes == "key":
                found[name] = self._received(name)
            elif axes == "row":
                found[name] = self._row(name).masked_fill(self.empty, torch.nan)
            else:
                value = self._grouped(name).masked_fill(self.empty[..., None], torch.nan)
                found[name] = value if chosen is None else value[..., list(chosen)]
        return found

    def pairs(self) -> dict[str, Tensor]:
        """The statistics of this map and the one it is held against."""
        if self.wanted.against is None:
            return {}
        base, rows = _Passes(*self.wanted.against), self.first.rows
        left = base.first(NOTHING).rows
        jsd, forward, backward, moved, lost, gained = self.passes.pairs(base, (left[LSE], rows[LSE]))
        sums = Sums(moved, -2 * jsd, forward, backward, lost > 0, gained > 0)
        empty = self.empty | (left[TOTAL] == 0)
        return {name: PAIRS[name].of(sums).masked_fill(empty, torch.nan) for name in self.wanted.pairs}

    def _row(self, name: str) -> Tensor:
        """A statistic of rows (B, H, Q). The largest logit is m itself, so the largest weight is 1/ℓ."""
        rows = self.first.rows
        total = rows[TOTAL]
        entropy = 0.0 + (total.log() - rows[CENTRED] / total)
        if name == "entropy_content":
            inner = rows[CONTENT_TOTAL].log() - rows[CONTENT_CENTRED] / rows[CONTENT_TOTAL]
            return normalized(inner.clamp(min=0.0), self.counts[2][..., 0])
        if name == "entropy_normalized":
            return normalized(entropy, self.counts[3][..., 0])
        plain = {"entropy": entropy, "effective_keys": entropy.exp(), "max_weight": 1 / total}
        plain |= {"renyi2": 2 * total.log() - rows[SQUARES].log(), "lse": rows[LSE] + rows[SHIFT]}
        return (plain | {"distance": rows[FAR] / total})[name]

    def _grouped(self, name: str) -> Tensor:
        """A statistic of groups (B, H, Q, G)."""
        many, inside = self.groups[0].shape[2], self.first.inside
        masses, mass, rest, _ = self.first.masses.split([many, 1, 1, many], -1)
        if name == "mass":
            return masses
        seen, inner, content, every = self.counts
        if name == "lift":
            return masses * every / torch.where(seen > 0, seen, torch.nan)
        if name == "share":
            return inside[..., :many].masked_fill(inner == 0, torch.nan)
        if name == "share_value":
            lengths, total = self.first.lengths[..., :many], self.first.lengths[..., many : many + 1]
            return (lengths / torch.where(total > 0, total, torch.nan)).masked_fill(inner == 0, torch.nan)
        assert self.wanted.groups is not None
        indicators = self.wanted.groups.indicators().to(inside.device)[:, None, None]
        share, other = inside[..., :many], inside[..., many + 2 :]
        if name == "log_odds":
            weights, contents = self.groups
            left = self._logs(share, weights * contents, inner, indicators)
            right = self._logs(other, contents - weights * contents, content - inner, indicators)
            return (left - right).masked_fill(~indicators, torch.nan)
        between = torch.special.entr(rest) + torch.special.entr(mass * share) + torch.special.entr(mass * other)
        return between.masked_fill(~indicators, torch.nan)

    def _logs(self, share: Tensor, side: Tensor, count: Tensor, indicators: Tensor) -> Tensor:
        """Log of the mean weight of each side (B, K', G) under the softmax of content; NaN where a row sees none of it.

        What float32 has lost of a share comes from a pass over that side alone.
        """
        weak, logs = (share < WEAK) & (count > 0) & indicators, share.log()
        for column in weak.flatten(0, 2).any(0).nonzero().flatten().tolist():
            alone = self.passes.first(NOTHING._replace(content=side[..., column].contiguous())).rows[CONTENT_LSE]
            alone -= self.first.rows[CONTENT_LSE]
            logs[..., column] = torch.where(weak[..., column], alone, logs[..., column])
        return torch.where(count > 0, logs - count.log(), torch.nan)

    @cached_property
    def taken(self) -> Tensor:
        """Σ_i p_ij of the rows with data (B, H, K)."""
        return self.passes.columns(self.first.rows[LSE], (~self.empty).float())

    def _received(self, name: str) -> Tensor:
        """What keys received (B, H, K), over what uniform rows would have given them, or over the rows that see it."""
        seen = (~self.empty[:, : self.passes.maskings]).float()
        if name == "received":
            seen = seen / self.counts[3][..., 0].clamp(min=1)
        most = self.passes.columns(None, seen)
        return self.taken / torch.where(most > 0, most, torch.nan)
