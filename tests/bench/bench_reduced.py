"""Memory of the second route: does it grow with one layer's map, or with all of them?

BLOOM, which computes attention past transformers' interface: hidden size 256, 8 heads, one text of 1,024 tokens (a map
of one layer is 32 MiB), 2 to 16 layers. Peak memory of a process of its own: the plain forward pass, `record`, and
`output_attentions`, reduced afterwards as others do. Printed beside the plain pass, in maps of one layer.
Usage: python tests/bench/bench_reduced.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import BloomConfig, BloomModel

from attnlens.checkpoints.record import record

LAYERS, TOKENS, HEADS = (2, 4, 8, 16), 1024, 8
MAP = HEADS * TOKENS * TOKENS * 4
WAYS = ("plain", "record", "output_attentions")
GOAL = 2.0  # maps of one layer that 16 layers may take more than 2 do, under record


def run(way: str, layers: int) -> None:
    """One forward pass; prints the peak of this process in bytes."""
    torch.set_num_threads(1)
    model = BloomModel(BloomConfig(vocab_size=1000, hidden_size=256, n_layer=layers, n_head=HEADS)).eval()
    ids = torch.randint(0, 1000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if way == "plain":
            model(ids)
        elif way == "record":
            with record(model, ("entropy", "max_weight", "renyi2")):
                model(ids)
        else:
            for weights in model(ids, output_attentions=True).attentions:
                torch.special.entr(weights).sum(-1), weights.amax(-1), weights.square().sum(-1)
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    print(int(peak) * 1024)


def peak(way: str, layers: int) -> int:
    """Bytes, in a process of its own."""
    command = [sys.executable, __file__, way, str(layers)]
    # Freed memory goes back to the system at once, so that the peak is what was alive.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    """The table, and one line of JSON."""
    found = {way: [peak(way, layers) for layers in LAYERS] for way in WAYS}
    print(f"{'layers':>20}" + "".join(f"{layers:>8}" for layers in LAYERS))
    more = {way: [(a - b) / MAP for a, b in zip(found[way], found["plain"], strict=True)] for way in WAYS[1:]}
    for way, maps in more.items():
        print(f"{way:>20}" + "".join(f"{value:8.1f}" for value in maps))
    grown = more["record"][-1] - more["record"][0]
    print(
        f"maps of one layer beyond the plain pass; record grew by {grown:.1f}: {'ok' if grown <= GOAL else 'TOO MUCH'}"
    )
    print(json.dumps({"layers": LAYERS, "maps": more, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
