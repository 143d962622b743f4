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
SCORES, ROWS, TILED = "scores.py", "rows.py", "tiled.py"
MUTANTS = [
    (SCORES, "seen = distance >= 0 if", "seen = distance > 0 if"),
    (SCORES, "distance.abs() < self.window", "distance.abs() <= self.window"),
    (SCORES, "logits.div_(self.softcap).tanh_().mul_(self.softcap)", "logits.div_(self.softcap).tanh_()"),
    (SCORES, "logits.add_(cut(self.bias, box))", "pass"),
    (SCORES, "else seen & allowed", "else seen | allowed"),
    (SCORES, "device=device)[:, None] + offset", "device=device)[:, None]"),
    (SCORES, "min / 2\n            seen", "min\n            seen"),
    (ROWS, "return torch.special.entr(attention.weights).sum(-1)", "return -(attention.weights * (attention.weights + 1e-9).log()).sum(-1)"),
    (ROWS, "count > 1, entropy(attention)", "count > 0, entropy(attention)"),
    (ROWS, "return entropy(attention).exp()", "return 1 / attention.weights.square().sum(-1)"),
    (ROWS, "attention.weights.amax(-1)", "attention.weights[..., -1]"),
    (ROWS, "-attention.weights.square().sum(-1).log()", "1 / attention.weights.square().sum(-1)"),
    (ROWS, "weights.device).abs()).sum(-1)", "weights.device)).sum(-1).abs() * 2"),
    (ROWS, "weights[..., 0] + weights[..., 1], null=2", "weights[..., 0], null=2"),
    (ROWS, "row[..., self.null] = 1", "row[..., 0] = 1"),
    (ROWS, "mean = torch.where(part, logs, -torch.inf).logsumexp(-2) - count.log()", "mean = torch.where(part, logs, -torch.inf).logsumexp(-2)"),
    (ROWS, "(attention.content[..., None] > 0) & ~inside", "~inside"),
    (ROWS, "seen = attention.visible[..., None]", "seen = torch.ones_like(attention.visible)[..., None]"),
    (ROWS, "kept / (attention.weights * content).sum(-1, keepdim=True)", "kept"),
    (ROWS, "1.0 / attention.keys.clamp(min=1)[..., None], 0.0", "1.0, 0.0"),
    (ROWS, "empty = (attention.keys == 0) | ~attention.queries[:, None]", "empty = attention.keys == 0"),
    (ROWS, "| (weights < 0).any(-1)", ""),
    (ROWS, "binary & (self.weights <= self.content[..., None]).all(1)", "binary"),
    (TILED, "keys = keys - mean", "pass"),
    (TILED, "mul_(self.scores.scale).view(texts, heads, rows)", "view(texts, heads, rows)"),
    (TILED, "if scores.softcap is None:", "if True:"),
    (TILED, "keys = max(1, min(keys, stop + self.offset))", "keys = max(1, min(keys, stop))"),
    (TILED, "keys = max(1, min(keys, stop + self.offset))", "keys = max(1, min(keys, stop + self.offset - 1))"),
    (TILED, "output.masked_fill((tile.count == 0)[..., None], 0.0)", "output"),
    (TILED, "0.0 - weights.amax(-1).log() - (weights * logits).sum(-1)", "0.0 - (weights * logits).sum(-1)"),
    (TILED, "lse = top[..., 0] + shift - weights", "lse = top[..., 0] - weights"),
    (TILED, "[None, :, None, None] - shift[..., None]", "[None, :, None, None] + 0 * shift[..., None]"),
    (TILED, "return torch.where(count > 1, entropy / count.clamp(min=2).log(), torch.nan)", "return entropy / count.clamp(min=2).log()"),
    (TILED, "gaps = distances(tile.box, tile.offset, tile.logits.device).abs()", "gaps = distances(tile.box, 0, tile.logits.device).abs()"),
    (TILED, ".masked_fill((count == 0)[..., None], torch.nan)", ""),
    (TILED, "logs - count.log()", "logs"),
    (TILED, "weak = (mass < WEAK)", "weak = (mass < 0)"),
    (TILED, "+ weights.amax(-1, keepdim=True).log()", ""),
    (TILED, "-2 * torch.linalg.vector_norm", "-1 * torch.linalg.vector_norm"),
    (TILED, "return tile.grouped(weights).masked_fill", "return tile.grouped(tile.weights).masked_fill"),
    (TILED, "empty = (tile.count == 0) | ~self.queries", "empty = (tile.count == 0) | self.queries"),
    (TILED, "(tile.weights[..., keys] * valid).sum(-2)", "tile.weights[..., keys].sum(-2)"),
    (TILED, "share = share * tile.visible[..., keys]", "pass"),
    (TILED, "logits.masked_fill_(~visible, HIDDEN)", "logits.masked_fill_(~visible, -50.0)"),
    (TILED, "seen = inside if self.visible is None else inside & self.visible", "seen = inside"),
    ("weights.py", "return self.delta_norm / self.base_norm", "return self.delta_norm / (self.base_norm + self.delta_norm)"),
    ("weights.py", "math.fsum(change.delta_norm**2 for change", "math.fsum(change.delta_norm for change"),
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
        tests = ["tests/core", "-x", "-q", "-p", "no:cacheprovider"]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *tests], cwd=copy, env=environment, capture_output=True
        )
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
