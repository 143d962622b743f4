"""Plant one fault at a time in core/ and run its tests: every mutant must die. Usage: python tests/mutants.py [pattern]

A metric that cannot fail its test is not tested. Works on a copy of the project; not part of `make test`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCORES, ROWS, TILES, TILED, PAIRS, LEAN = "scores.py", "rows.py", "tiles.py", "tiled.py", "pairs.py", "lean.py"
# The tests of these files; the rest of core/ has the rest.
ATTENTION = [f"tests/core/test_{name}.py" for name in ("rows", "tiled", "pairs", "matrix", "scores")]

MUTANTS = [
    (TILES, " * (self.last >= 0)[:, None]", ""),
    (TILES, " - self.last[0]", ""),
    (TILES, "weights.flip(-1).cumsum(-1).flip(-1)", "weights.cumsum(-1)"),
    (TILES, " + columns[:, keys:].sum(1, keepdim=True)", ""),
    (TILES, "columns[:, :keys].cumsum(1)", "columns[:, :keys]"),
    (LEAN, "used.index(column) for column in some", "number for number, _ in enumerate(some)"),
    (LEAN, "columns[..., -1:]], -1)  # a null", "columns[..., :1]], -1)  # a null"),
    (LEAN, ".div_(self.total).mul_(BIT)", ".div_(self.total)"),
    (LEAN, "self.total.log() - self.rows", "self.total.log() + self.rows"),
    (LEAN, 'self.rows["squares"] / self.total', 'self.rows["squares"]'),
    (LEAN, ".add_(top, alpha=BIT)", ".add_(top)"),
    (LEAN, "empty | ~self.queries", "empty & ~self.queries"),
    (LEAN, "masked_fill_(empty if value.ndim == 3 else empty[..., None], torch.nan)", "clone()"),
    (LEAN, ".div_(total[..., None]), seen)", ", seen)"),
    (LEAN, "content[..., None] - weights[..., odds]", "1 - weights[..., odds]"),
    (LEAN, "(logs - counts.log())", "logs"),
    (LEAN, "sums < WEAK", "sums < 0"),
    (LEAN, "(inside - outside).masked_fill_(~sides.indicators[:, None, None], torch.nan)", "inside - outside"),
    (LEAN, "seen.logits * BIT", "seen.logits"),
    (LEAN, " & (counts > 0) & known", " & known"),
    (TILES, "return self.count == 0", "return self.count < 0"),
    (TILES, "logits.mul_(unit)", "pass"),
    (TILES, "sink * unit], -1)", "sink], -1)"),
    (TILES, "self.scores.merely_causal and self.offset >= 0", "self.scores.merely_causal"),
    (PAIRS, ".clamp(max=1.0)", ""),
    (SCORES, "return (seen.to(dtype) - 1) * -HIDDEN", "return (seen.to(dtype) - 1) * 50.0"),
    (SCORES, "logits[..., first:] += _frontier", "logits[..., first:] += 0 * _frontier"),
    (TILED, "tile.shown[..., keys].expand(", "torch.ones_like(tile.shown[..., keys]).expand("),
    (TILED, "return self.tile.shown @ columns[:, None]", "return columns.sum(1)[:, None, None]"),
    (PAIRS, "rows if hidden is None else rows.masked_fill(hidden, inf)", "rows"),
    (PAIRS, "_divergence(sums.forward, sums.lost)", "_divergence(sums.forward, sums.gained)"),
    (PAIRS, "_divergence(sums.backward, sums.gained)", "_divergence(sums.backward, sums.lost)"),
    (PAIRS, "_divergence(sums.forward, sums.lost)", "_divergence(sums.backward, sums.lost)"),
    (PAIRS, "_divergence(sums.backward, sums.gained)", "_divergence(sums.forward, sums.gained)"),
    (PAIRS, "forward - both", "forward"),
    (PAIRS, "backward - both", "backward"),
    (PAIRS, "Sums(-x.mul_(larger).sum(-1), mixed)", "Sums(-x.sum(-1), mixed)"),
    (PAIRS, '"kl_forward", "kl_backward"}', '"kl_forward"}'),
    (PAIRS, ".clamp(0.0, log(2))", ""),
    (PAIRS, "torch.maximum(base.weights, tuned.weights", "torch.minimum(base.weights, tuned.weights"),
    (PAIRS, "torch.maximum(base.weights, tuned.weights", "torch.add(base.weights, tuned.weights"),
    (PAIRS, "torch.neg(a, out=x).expm1_()", "torch.neg(a, out=x).exp_().sub_(1)"),
    (PAIRS, "torch.mul(x, 0.5, out=terms)", "torch.mul(x, 0.6, out=terms)"),
    (PAIRS, "terms.addcmul_(terms, rest).addcmul_(a, rest)", "terms.addcmul_(a, rest)"),
    (PAIRS, "terms.addcmul_(terms, rest).addcmul_(a, rest)", "terms.addcmul_(terms, rest).add_(a)"),
    (PAIRS, "torch.add(a, x, out=terms).mul_(larger)", "torch.add(a, x, out=terms)"),
    (PAIRS, "rest.mul_(a).add_(x).mul_(larger)", "rest.mul_(a).add_(x)"),
    (PAIRS, "terms.add_(rest)  #", "terms.sub_(rest)  #"),
    (PAIRS, "torch.lt(d, 0, out=a)", "torch.gt(d, 0, out=a)"),
    (PAIRS, "torch.gt(d, 0, out=a)", "torch.lt(d, 0, out=a)"),
    (PAIRS, "(sees[0] & ~sees[1]).any(-1), (sees[1] & ~sees[0]).any(-1)", "(sees[1] & ~sees[0]).any(-1), (sees[0] & ~sees[1]).any(-1)"),
    ("agreement.py", "hits = np.take_along_axis(marked, order, -1) & used", "hits = np.take_along_axis(marked, order, -1)"),
    ("agreement.py", "slope = (inside - 1) / np.maximum(size - 1, 1)", "slope = 0 * inside"),
    ("agreement.py", "slope * (first + 1)) *", "slope * first) *"),
    ("agreement.py", "/ size + slope", "/ size"),
    ("agreement.py", "np.clip(most - first, 0, size)", "np.clip(most - first + 1, 0, size)"),
    ("agreement.py", "np.clip(most - first, 0, size) / size", "(most > first) * 1.0"),
    ("agreement.py", "- (size - inside) / 2", "- (size - inside)"),
    (SCORES, "seen = gaps >= 0 if", "seen = gaps > 0 if"),
    (SCORES, "gaps.abs() < self.window", "gaps.abs() <= self.window"),
    (SCORES, "logits.div_(self.softcap).tanh_().mul_(self.softcap)", "logits.div_(self.softcap).tanh_()"),
    (SCORES, "logits.add_(cut(self.bias, box).to(logits.dtype).clamp(min=HIDDEN))", "pass"),
    (SCORES, "else seen & allowed", "else seen | allowed"),
    (SCORES, "device=device)[:, None] + offset", "device=device)[:, None]"),
    (SCORES, "min / 2\n            seen", "min\n            seen"),
    (ROWS, "return torch.special.entr(attention.weights).sum(-1)", "return -(attention.weights * (attention.weights + 1e-9).log()).sum(-1)"),
    (ROWS, "count > 1, entropy / ", "count > 0, entropy / "),
    (ROWS, "return entropy(attention).exp()", "return 1 / attention.weights.square().sum(-1)"),
    (ROWS, "attention.weights.amax(-1)", "attention.weights[..., -1]"),
    (ROWS, "-attention.weights.square().sum(-1).log()", "1 / attention.weights.square().sum(-1)"),
    (ROWS, "weights.device).abs()).sum(-1)", "weights.device)).sum(-1).abs() * 2"),
    (ROWS, "weights[..., 0] + weights[..., 1], null=2", "weights[..., 0], null=2"),
    (ROWS, "row[..., self.null] = 1", "row[..., 0] = 1"),
    (ROWS, "mean = torch.where(part, logs, -torch.inf).logsumexp(-2) - count.log()", "mean = torch.where(part, logs, -torch.inf).logsumexp(-2)"),
    (SCORES, "first = max(0, before + 1)", "first = max(0, before + 2)"),
    (SCORES, "device=device).tril(lead)", "device=device).tril(lead + 1)"),
    (SCORES, "self.causal and self.window is None and", "self.causal and"),
    (SCORES, "self.window is None and self.mask is None", "self.window is None"),
    (ROWS, "outside = content & ~inside", "outside = ~inside"),
    (ROWS, "(attention.group_weights[:, :, None] > 0) & content", "attention.group_weights[:, :, None] > 0"),
    (ROWS, "~self.visible | (self.content == 0), -torch.inf", "self.content == 0, -torch.inf"),
    (ROWS, "self.weights.log() if self.logits is None else self.logits", "self.weights.log()"),
    (ROWS, " if scores.softcap is None else torch.zeros_like(repeated[:, :, :1])", ""),
    (ROWS, "repeated.mean(2, keepdim=True)", "0 * repeated.mean(2, keepdim=True)"),
    (ROWS, "[None, :, None, None] - shift", "[None, :, None, None] + 0 * shift"),
    (ROWS, "logits.logsumexp(-1) + shift[..., 0]", "logits.logsumexp(-1)"),
    (ROWS, "seen = attention.visible[..., None]", "seen = torch.ones_like(attention.visible)[..., None]"),
    (ROWS, "1.0 / attention.keys.clamp(min=1)[..., None], 0.0", "1.0, 0.0"),
    (ROWS, "empty = (attention.keys == 0) | ~attention.queries[:, None]", "empty = attention.keys == 0"),
    (ROWS, "| (weights < 0).any(-1)", ""),
    (ROWS, "binary & (self.weights <= self.content[..., None]).all(1)", "binary"),
    (TILES, "keys = keys - mean", "pass"),
    (TILES, "mul_(self.scores.scale).view(shape)", "view(shape)"),
    (TILES, "if scores.softcap is None:", "if True:"),
    (TILES, "keys = max(1, min(keys, stop + self.offset))", "keys = max(1, min(keys, stop))"),
    (TILES, "keys = max(1, min(keys, stop + self.offset))", "keys = max(1, min(keys, stop + self.offset - 1))"),
    (TILES, "output.masked_fill_(seen.blind[..., None], 0.0)", "output"),
    (TILES, "self.top + self.shift(self.box) - self.peak.log()", "self.top - self.peak.log()"),
    (TILES, "[None, :, None, None] - self.shift(box)[..., None]", "[None, :, None, None]"),
    (TILES, "(rows + self.offset + 1).clamp(0,", "(rows + 1).clamp(0,"),
    (TILES, ".clamp(0, self.box.keys)", ".clamp(1, self.box.keys)"),
    (TILES, ".clamp(0, self.box.keys) + (self.scores.sinks is not None)", ".clamp(0, self.box.keys)"),
    (TILES, "seen.new_ones(()).expand", "seen.new_zeros(()).expand"),
    (TILED, "sorted(self.names, key=lambda name: SPENDING.index(name) if name in SPENDING else -1)", "self.names"),
    (TILED, "return torch.where(count > 1, entropy / count.clamp(min=2).log(), torch.nan)", "return entropy / count.clamp(min=2).log()"),
    (TILED, "gaps = distances(tile.box, tile.offset, tile.logits.device).abs()", "gaps = distances(tile.box, 0, tile.logits.device).abs()"),
    (ROWS, "torch.where(seen > 0, attention.content_weights", "torch.where(seen >= 0, attention.content_weights"),
    (TILED, "logs - count.log()", "logs"),
    (TILED, "weak = (mass < WEAK)", "weak = (mass < 0)"),
    (TILED, "+ weights.amax(-1, keepdim=True).log()", ""),
    (TILED, "-2 * torch.linalg.vector_norm", "-1 * torch.linalg.vector_norm"),
    (TILED, "empty = (tile.count == 0) | ~self.queries", "empty = (tile.count == 0) | self.queries"),
    (TILED, "columns = rows @ tile.weights[..., keys]", "columns = torch.ones_like(rows) @ tile.weights[..., keys]"),
    (ROWS, "mass(attention) * attention.keys[..., None] / seen", "mass(attention) / seen"),
    (ROWS, "mass(attention) * attention.keys[..., None] / seen", "mass(attention) * attention.keys.mean() / seen"),
    (ROWS, "torch.where(share(attention).isnan(), torch.nan, lengths", "torch.where(total < 0, torch.nan, lengths"),
    (ROWS, "lengths = attention.content_weights * norms", "lengths = attention.content_weights"),
    (ROWS, "lengths = attention.content_weights * norms", "lengths = attention.weights * norms"),
    (ROWS, "parts = (inside, content - inside, 1 - content)", "parts = (inside, 1 - inside, 0 * content)"),
    (ROWS, "torch.where(attention.indicators, group", "torch.where(~attention.indicators | attention.indicators, group"),
    (ROWS, "& self.weights.any(1)", ""),
    (ROWS, "count = (attention.visible & valid).sum(-2,", "count = attention.visible.sum(-2,"),
    (TILED, '("entropy_content", "entropy", "entropy_normalized", "effective_keys")', '("entropy", "entropy_normalized", "effective_keys", "entropy_content")'),
    (TILED, "lengths = both.mT[:, None] * part.norms[:, :, None]", "lengths = both.mT[:, None] * part.norms[:, :1, None]"),
    (TILED, "torch.special.entr(mass * part.inside)", "torch.special.entr(part.inside)"),
    (TILED, "torch.special.entr(mass * part.outside)", "torch.special.entr(mass * (1 - part.inside))"),
    (TILED, "between.masked_fill(~part.indicators[:, None, None], torch.nan)", "between"),
    (TILED, '"received_mean": rows}', '"received_mean": torch.ones_like(rows)}'),
    (TILED, "rows / tile.count.clamp(min=1)[..., None, :]", "rows / tile.count.clamp(min=1).max()"),
    (TILED, ".expand(-1, -1, rows.shape[-1], -1)", ""),
    ("flow.py", "factor.reshape(key_heads, heads // key_heads * factor.shape[1], width)", "factor.reshape(heads // key_heads, key_heads * factor.shape[1], width)[:key_heads]"),
    ("flow.py", ".repeat_interleave(heads // value.shape[1], 1)", ".repeat(1, heads // value.shape[1], 1, 1)"),
    ("flow.py", "((alphas @ gram) * alphas)", "(alphas @ gram)"),
    ("flow.py", "squares.clamp(min=0).sqrt()", "squares.clamp(min=0)"),
    ("flow.py", "(mean + own) / 2", "mean"),
    ("flow.py", "weights.mean(1)", "weights[:, 0]"),
    ("flow.py", "step @ rolled", "rolled @ step"),
    ("flow.py", "torch.where(mean.isnan(), own, ", "torch.where(mean.isnan(), 0 * own, "),
    (SCORES, "torch.tensor(queries, device=device)[:, None] + keys - rows", "torch.tensor(queries, device=device)[:, None]"),
    (SCORES, "masked_fill(~seen, hidden)", "masked_fill(seen, hidden)"),
    (SCORES, "mask=mask, bias=some(self.bias), causal", "mask=mask, bias=None, causal"),
    (SCORES, "        mask = mask if seen is None else seen\n", "        mask = seen\n"),
    ("flow.py", "lengths.transpose(2, 3).reshape", "lengths.reshape"),
    ("flow.py", "torch.linalg.vector_norm(written.unflatten", "torch.linalg.vector_norm(1.001 * written.unflatten"),
    ("flow.py", "dtype = torch.float64 if value.dtype == torch.float64 else torch.float32", "dtype = value.dtype"),
    ("agreement.py", "higher - lower <= tie * np.maximum(abs(higher), abs(lower))", "higher - lower <= tie"),
    ("agreement.py", "higher - lower <= tie * np.maximum(abs(higher), abs(lower))", "higher == lower"),
    ("agreement.py", "(size - inside) / 2", "(size - inside)"),
    ("agreement.py", "(inside - 1) / np.maximum(size - 1, 1)", "inside / size"),
    ("agreement.py", "defined = (positives > 0) & (negatives > 0)", "defined = positives > 0"),
    ("agreement.py", "defined = (positives > 0) & (negatives > 0)", "defined = negatives > 0"),
    ("agreement.py", "~np.isnan(scores) & keys", "keys"),
    ("agreement.py", " | (used[..., :-1] != used[..., 1:])", ""),
    (PAIRS, "tuned.peak.log() - base.peak.log()", "base.peak.log() - tuned.peak.log()"),
    (PAIRS, "(left.count == 0) | (right.count == 0)", "left.count == 0"),
    (PAIRS, "(left.count == 0) | (right.count == 0)", "right.count == 0"),
    (PAIRS, "sees[0] & ~sees[1]", "sees[0] & sees[1]"),
    (PAIRS, "(base.scores.sinks is None) != (tuned.scores.sinks is None)", "False"),
    (ROWS, "torch.where(seen > 0, attention.content_weights @", "torch.where(seen > 0, attention.weights @"),
    (TILED, "0.0 - self.tile.peak.log() - self.products", "0.0 - self.products"),
    (TILED, "entropy.clamp(min=0.0), self.seen[..., 0])", "entropy.clamp(min=0.0), self.tile.count)"),
    (TILED, "entropy = mass.log() - self.tile.peak.log() -", "entropy = -self.tile.peak.log() -"),
    (TILED, "_times(self.products, self.content)[..., 0] / mass", "_times(self.products, self.content)[..., 0]"),
    (TILED, "0.0 - weights.amax(-1).log() - (logits * weights)", "0.0 - (logits * weights)"),
    (TILED, "part.inside.masked_fill(part.seen == 0, torch.nan)", "part.inside"),
    (TILED, "return self.rows.count(self.inner)", "return self.rows.count(self.columns)"),
    (TILED, "return self.columns * self.rows.content", "return self.columns"),
    (TILED, "if self.rows.strong and self.rows.nested:", "if self.rows.strong:"),
    (TILED, "if self.rows.strong and self.rows.nested:", "if self.rows.nested:"),
    (TILED, "STRONG = 1e-6", "STRONG = 0.0"),
    (TILED, "(self.mass < STRONG) & (self.seen > 0)", "(self.mass < 0) & (self.seen > 0)"),
    (TILED, "_times(weights, self.inner) / total", "_times(weights, self.inner)"),
    (TILED, "_times(weights, self.rows.content - self.inner) / total", "_times(weights, 1 - self.inner) / total"),
    (TILED, "self.content, 1 - self.content], -1)", "1 - self.content, self.content], -1)"),
    (TILED, "part.masses * part.rows.tile.count[..., None] /", "part.masses /"),
    (TILED, "seen = part.rows.count(part.columns)", "seen = part.seen"),
    (TILED, "both = torch.cat([part.inner, part.rows.content], -1)  #", "both = torch.cat([part.columns, torch.ones_like(part.rows.content)], -1)  #"),
    (TILED, "lengths @ part.rows.within[0].mT", "lengths @ part.rows.tile.weights.mT"),
    (TILED, "(sums[..., :-1] / total).masked_fill(part.seen == 0, torch.nan)", "sums[..., :-1] / total"),
    (TILED, "part.rows.seen - part.seen)", "part.rows.seen)"),
    (TILED, "chosen = self.chosen[name]\n", "chosen = None\n"),
    (TILED, "            if pairs is not None:  # before its logits are overwritten\n                pairs.keep(tile)\n            keeper.keep(tile)", "            keeper.keep(tile)\n            if pairs is not None:\n                pairs.keep(tile)"),
    (PAIRS, "self.tuned if self.base.scores.causal else self.base", "self.base if self.base.scores.causal else self.tuned"),
    (PAIRS, "empty = empty | ~self.queries", "empty = empty & ~self.queries"),
    ("weights.py", "return self.delta_norm / self.base_norm", "return self.delta_norm / (self.base_norm + self.delta_norm)"),
    ("weights.py", "math.fsum(change.delta_norm**2 for change", "math.fsum(change.delta_norm for change"),
    ("spectra.py", "return float(self.values.sum())", "return float(self.values.square().sum())"),
    ("spectra.py", "(self.values / top).square().sum()", "(self.values / top).sum()"),
    ("spectra.py", "torch.special.entr(self.values / total).sum().exp()", "(1 / (self.values / total).square().sum())"),
    ("spectra.py", "part = new - old\n", "part = new\n"),
    ("spectra.py", "torch.cat([factor, part])", "part"),
    ("spectra.py", "* abs(self.scale)", "* self.scale"),
    ("spectra.py", "- rows * columns", "- rows * self.shape[1]"),
    ("spectra.py", "k = min(k, side // 2)", "k = min(k, side - 1)"),
    ("spectra.py", "(share - k / side) / (1 - k / side)", "share"),
    ("spectra.py", "values[k - 1] / values[k]", "values[0] / values[k]"),
    ("spectra.py", "subspace_angles(old.numpy(), new.numpy())[0]", "subspace_angles(old.numpy(), new.numpy())[-1]"),
    ("spectra.py", "subspace_angles(old.numpy(), new.numpy())[0]", "torch.linalg.svdvals(old.T @ new).clamp(max=1).acos().max()"),
    ("spectra.py", "_tall_chunks(matrix.T):", "_tall_chunks(matrix):"),
    ("circuits.py", "left = torch.cat([new.left - old.left, old.left], 1)", "left = torch.cat([new.left - old.left, new.left], 1)"),
    ("circuits.py", "right = torch.cat([new.right, new.right - old.right], 1)", "right = torch.cat([old.right, new.right - old.right], 1)"),
    ("circuits.py", "_with_bias(_by_head(query, heads), bias)", "_by_head(query, heads)"),
    ("circuits.py", "matrix.repeat_interleave(heads // matrix.shape[0], 0)", "matrix.repeat(heads // matrix.shape[0], 1, 1)"),
    ("circuits.py", "_by_head(output.T, heads)", "_by_head(output, heads)"),
    ("circuits.py", "first @ second.transpose(1, 2)", "first.transpose(1, 2) @ second"),
    ("circuits.py", "(self.base_norm == 0) & (self.delta_norm > 0)", "self.base_norm < 0"),
    ("weights.py", "key=lambda dtype: torch.finfo(dtype).eps", "key=lambda dtype: -torch.finfo(dtype).bits"),
    ("weights.py", "replace(rounded, base_norm=weight_change(base, base).base_norm).relative", "rounded.relative"),
    ("weights.py", "wider = base if stored[1] == narrow else tuned", "wider = base"),
    ("weights.py", "lengths = math.sqrt(math.fsum(olds) * math.fsum(news))", "lengths = math.fsum(olds)"),
    ("moments.py", "self.m2 / ", "1.001 * self.m2 / "),
    ("multiplicity.py", '"bh")', '"by")'),
    ("resampling.py", "np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)", "sums / np.maximum(counts, 1)"),
]  # fmt: skip


def survives(mutant: tuple[str, str, str]) -> str | None:
    """Run the tests of core/ on a mutated copy; a line about the mutant if they pass."""
    name, old, new = mutant
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("attnlens", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "attnlens" / "core" / name
        source = path.read_text()
        if source.count(old) < 1:
            return f"{name}: {old!r} is not there any more"
        path.write_text(source.replace(old, new, 1))
        environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        attention = name in (SCORES, ROWS, TILES, TILED, PAIRS, LEAN)
        chosen = ATTENTION if attention else [f"tests/core/test_{Path(name).stem}.py"]
        command = [sys.executable, "-m", "pytest", *chosen, "-x", "-q", "-p", "no:cacheprovider"]
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True)
        return None if result.returncode == 1 else f"{name}: {old!r} → {new!r} (exit {result.returncode})"


def main() -> None:
    """Run all mutants, or those whose file or text contains the pattern."""
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutant for mutant in MUTANTS if any(pattern in part for part in mutant)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        left = [line for line in pool.map(survives, chosen) if line is not None]
    print("\n".join([*left, f"{len(chosen) - len(left)} of {len(chosen)} mutants killed"]))
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
