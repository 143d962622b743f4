"""What the statistics cost: `record` against the plain forward pass and against eager attention with its maps.

GPT-2-small shape without LM head; entropy, three masses, λ, largest weight, Σ p² (`lean`). `least` has the largest
weight alone: what tiles of softmax take in torch's operators before a statistic is asked for. `tiled` has the share of
content besides, which takes the way of all other statistics; `exact` keeps the model's own attention; `compared` is
half of what base and tuned take with received attention and JSD besides. Repetitions are interleaved and the minimum is
kept, on one thread and on all; each variant also runs once in a process of its own for its peak memory. Ratios, not
seconds, travel between machines. About a quarter of an hour on two cores; `make bench-long` adds 16,384 tokens.
Usage: python tests/bench/bench_record.py [--threads 1] [--lengths 128 2048] [--repetitions 3] [--write]
--write keeps each length in figures/record.csv as soon as it is measured; `python figures/speed.py` draws it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import fastest, keep
from transformers import GPT2Config, GPT2Model

from attnlens.checkpoints.record import record

SHAPES = {128: 16, 512: 4, 2048: 1, 8192: 1, 16384: 1}  # tokens: texts
REPETITIONS = {128: 4, 512: 4, 2048: 2, 8192: 1, 16384: 1}
NAMES = ("entropy", "mass", "log_odds", "max_weight", "renyi2")
VARIANTS = ("plain", "least", "lean", "tiled", "exact", "compared", "eager")
EAGER_LONGEST = 2048
LAYERS, HEADS = 12, 12
# Time of lean, tiled, exact and compared recording over that of the plain pass: at most.
GOALS = {
    128: (1.05, 1.10, 1.15, 1.9),
    512: (1.05, 1.10, 1.20, 1.9),
    2048: (1.15, 1.25, 1.35, 1.9),
    8192: (1.30, 1.45, 1.65, 1.9),
    16384: (1.50, 1.70, 1.80, 1.9),
}


def model_and_batch(tokens: int) -> tuple[GPT2Model, torch.Tensor, torch.Tensor]:
    """GPT-2 small, random weights; ids (B, T) and a partition of them into three groups."""
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_positions=max(tokens, 8192), use_cache=False)).eval()
    ids = torch.randint(0, 50257, (SHAPES[tokens], tokens))
    return model, ids, torch.randint(0, 3, ids.shape)


def eager(model: GPT2Model, ids: torch.Tensor, groups: torch.Tensor) -> None:
    """The way of the peers: keep all maps, then reduce them."""
    model.set_attn_implementation("eager")
    columns = torch.nn.functional.one_hot(groups, 3).float()
    for weights in model(ids, output_attentions=True).attentions:
        torch.special.entr(weights).sum(-1), weights @ columns[:, None], weights.amax(-1), weights.square().sum(-1)
    model.set_attn_implementation("sdpa")


def variant(name: str, model: GPT2Model, ids: torch.Tensor, groups: torch.Tensor) -> Callable[[], object]:
    """One forward pass in the named way."""
    if name == "plain":
        return lambda: model(ids)
    if name == "eager":
        return lambda: eager(model, ids, groups)

    def recorded() -> None:
        names = {"tiled": (*NAMES, "share"), "least": ("max_weight",)}.get(name, NAMES)
        with record(model, names, groups=groups, exact=name == "exact"):
            model(ids)

    def compared() -> None:
        with record(model, (*NAMES, "received"), groups=groups, keep=True) as tape:
            model(ids)
        with record(model, (*NAMES, "received", "jsd"), groups=groups, against=tape.only().logits):
            model(ids)

    return compared if name == "compared" else recorded


def variants(tokens: int) -> list[str]:
    """The variants that can be run at this length."""
    return [name for name in VARIANTS if name != "eager" or tokens <= EAGER_LONGEST]


def seconds(tokens: int, repetitions: int) -> dict[str, float]:
    """Minimum over interleaved repetitions."""
    setting = model_and_batch(tokens)
    runs = {name: variant(name, *setting) for name in variants(tokens)}
    with torch.inference_mode():
        times = fastest(runs, repetitions)
    return times | {"compared": times["compared"] / 2}  # two models


def peak(name: str, tokens: int) -> float:
    """MiB that one forward pass adds to the peak of a fresh process."""
    command = [sys.executable, __file__, "--peak", name, str(tokens)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str, tokens: int) -> None:
    """Child process: resident memory before and after one pass."""
    setting = model_and_batch(tokens)
    with torch.inference_mode():
        setting[0](setting[1][:, :16])
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
        before = peak_rss()
        variant(name, *setting)()
    print(peak_rss() - before)


def peak_rss() -> float:
    """Peak resident memory of this process in MiB (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def goals(tokens: int, times: dict[str, float], memory: dict[str, float]) -> list[tuple[str, bool]]:
    """What was aimed at for this length, with the measured number, and whether it was reached."""
    found = []
    for name, most in zip(("lean", "tiled", "exact", "compared"), GOALS[tokens], strict=True):
        ratio = times[name] / times["plain"]
        found.append((f"{name}/plain {ratio:.2f} ≤ {most:.2f}", ratio <= most))
    if tokens == EAGER_LONGEST:
        speed, part = times["eager"] / times["lean"], memory["tiled"] / memory["eager"]
        found.append((f"eager/lean {speed:.1f} ≥ 3", speed >= 3))
        found.append((f"memory tiled/eager {part:.2f} ≤ 1/6", part <= 1 / 6))
    if tokens > EAGER_LONGEST:
        found.append((f"tiled {memory['tiled'] / 1024:.2f} GiB < 3", memory["tiled"] < 3 * 1024))
    return found


def print_row(tokens: int, times: dict[str, float], memory: dict[str, float]) -> None:
    """One line of numbers, one of goals."""
    cells = " ".join(f"{times[name] / times['plain']:7.2f}" if name in times else "      –" for name in VARIANTS[1:])
    extra = " ".join(f"{memory[name]:7.0f}" if name in memory else "      –" for name in VARIANTS)
    print(f"{tokens:6d} {SHAPES[tokens]:3d} {times['plain']:8.2f} {cells}   {extra}")
    for text, reached in goals(tokens, times, memory):
        print(f"           {text:32s} {'ok' if reached else 'missed'}")
    if tokens > EAGER_LONGEST:
        held = LAYERS * HEADS * SHAPES[tokens] * tokens**2 * 4
        print(f"           eager was not run: its maps alone would hold {held / 1e9:.0f} GB")
    sys.stdout.flush()


def flat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a variant."""
    shared = {name: row[name] for name in ("threads", "load", "tokens", "texts")}
    return [
        shared | {"way": way, "seconds": seconds, "extra_mib": row["extra_mib"][way]}
        for way, seconds in row["seconds"].items()
    ]


def main() -> None:
    """Print a table for each number of threads, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--lengths", type=int, nargs="+", choices=SHAPES, default=[128, 512, 2048, 8192])
    parser.add_argument("--repetitions", type=int, help="instead of fewer the longer the text")
    parser.add_argument("--write", action="store_true", help="keep the rows in figures/record.csv")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak[0], int(arguments.peak[1]))
        return
    memory: dict[int, dict[str, float]] = {}
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"threads {threads}, load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores, torch {torch.__version__}")
        print(f"{'T':>6} {'B':>3} {'plain s':>8} " + " ".join(f"{name:>7}" for name in VARIANTS[1:]), end="   ")
        print(" ".join(f"{name:>7}" for name in VARIANTS) + "  extra MiB")
        for tokens in arguments.lengths:
            if tokens not in memory:
                memory[tokens] = {name: peak(name, tokens) for name in variants(tokens)}
            load, times = os.getloadavg()[0], seconds(tokens, arguments.repetitions or REPETITIONS[tokens])
            print_row(tokens, times, memory[tokens])
            row = {"threads": threads, "load": load, "tokens": tokens, "texts": SHAPES[tokens], "seconds": times}
            missed = [text for text, reached in goals(tokens, times, memory[tokens]) if not reached]
            rows.append(row | {"extra_mib": memory[tokens], "missed": missed})
            if arguments.write:
                keep("record", [line for each in rows for line in flat(each)])
    print(json.dumps({"torch": torch.__version__, "cores": os.cpu_count(), "rows": rows}))


if __name__ == "__main__":
    main()
