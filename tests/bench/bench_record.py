"""What the statistics cost: `record` against the plain forward pass and against eager attention with its maps.

GPT-2-small shape without LM head, entropy, three masses, largest weight, Σ p². Repetitions are interleaved and the
minimum is kept; each variant also runs once in a process of its own for its peak memory. Ratios, not seconds, travel
between machines. Usage: python tests/bench/bench_record.py [--threads 1] [--longest 2048]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2Model

from attnlens.checkpoints.record import record

SHAPES = {128: 16, 512: 4, 2048: 1, 8192: 1}
NAMES = ("entropy", "mass", "max_weight", "renyi2")
EAGER_LONGEST = 2048  # eager attention at 8192 would hold 38 GB of maps
VARIANTS = ("plain", "tiled", "exact", "eager")


def model_and_batch(tokens: int) -> tuple[GPT2Model, torch.Tensor, torch.Tensor]:
    """GPT-2 small, random weights; ids (B, T) and a partition of them into three groups."""
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_positions=8192, use_cache=False)).eval()
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
        with record(model, NAMES, groups=groups, exact=name == "exact"):
            model(ids)

    return recorded


def seconds(tokens: int, repetitions: int) -> dict[str, float]:
    """Minimum over interleaved repetitions."""
    setting = model_and_batch(tokens)
    runs = {name: variant(name, *setting) for name in VARIANTS if name != "eager" or tokens <= EAGER_LONGEST}
    best = dict.fromkeys(runs, float("inf"))
    with torch.inference_mode():
        for _ in range(repetitions):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


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


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--longest", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak[0], int(arguments.peak[1]))
        return
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    print(f"threads {arguments.threads}, load {load:.2f}, torch {torch.__version__}")
    print(f"{'T':>6} {'B':>3} {'plain s':>8} " + " ".join(f"{name:>7}" for name in VARIANTS[1:]) + "   extra MiB")
    rows = []
    for tokens in (length for length in SHAPES if length <= arguments.longest):
        times = seconds(tokens, arguments.repetitions)
        ratios = {name: times[name] / times["plain"] for name in times}
        memory = {name: peak(name, tokens) for name in times}
        cells = " ".join(f"{ratios.get(name, float('nan')):7.2f}" for name in VARIANTS[1:])
        extra = ", ".join(f"{name} {value:.0f}" for name, value in memory.items())
        print(f"{tokens:6d} {SHAPES[tokens]:3d} {times['plain']:8.3f} {cells}   {extra}", flush=True)
        rows.append({"tokens": tokens, "texts": SHAPES[tokens], "seconds": times, "ratio": ratios, "extra_mib": memory})
    print(json.dumps({"threads": arguments.threads, "load": load, "rows": rows}))


if __name__ == "__main__":
    main()
