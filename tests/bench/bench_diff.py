"""What `diff` costs on two large checkpoints: against reading the files alone, and against modeldelta where it is here.

A pair of Llama-shaped checkpoints in bfloat16 (1.1 billion weights unless --layers says otherwise) with random weights,
a random change and a few strong directions, is written to FOLDER and kept there for the next run. Each way runs as a
command of its own, for its seconds and its peak memory, imports included. Ratios, not seconds, travel between machines.
Usage: python tests/bench/bench_diff.py [FOLDER] [--layers 22] [--repetitions 3] [--exact] [--rival PYTHON] [--write]
PYTHON: an interpreter in which `pip install modeldelta` was run; its own way takes minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from timing import keep

WIDTH, INNER, KEYS, VOCABULARY = 2048, 5632, 256, 32000
SHARD = 5e8  # bytes
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}
FORGET = """
import os
for path in sys.argv[1:]:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)  # what is not written yet would stay
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
"""
READ = """
import sys, time
room, start = bytearray(2**24), time.perf_counter()
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(room):
            pass
print(time.perf_counter() - start)
"""
OPENED = """
import sys, time
from attnlens.analysis.difference import difference
from attnlens.analysis.opening import opened
from attnlens.analysis.weights import changes_of
start = time.perf_counter()
"""
NORMS = (
    OPENED
    + """
with opened(sys.argv[1], sys.argv[2]) as both:
    changes_of(both, spectra="none")
print(time.perf_counter() - start)
"""
)
DIFF = (
    OPENED
    + """
difference(sys.argv[1], sys.argv[2], spectra=sys.argv[3])
print(time.perf_counter() - start)
"""
)


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama's weights."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (KEYS, WIDTH),
            "self_attn.v_proj": (KEYS, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER),
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
        }.items():
            yield f"{prefix}.{name}.weight", shape
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def write(folder: Path, layers: int) -> None:
    """Both checkpoints, shard by shard."""
    generator, sides = torch.Generator().manual_seed(0), [folder / "base", folder / "tuned"]
    index, shards, size = {}, ({}, {}), 0
    wanted = list(shapes(layers))
    for number, (name, shape) in enumerate(wanted):
        old = 0.02 * torch.randn(shape, generator=generator)
        change = 5e-4 * torch.randn(shape, generator=generator)
        if len(shape) == 2:
            left, right = (torch.randn(side, generator=generator) for side in ((shape[0], 8), (8, shape[1])))
            change += 5e-4 * (left * torch.logspace(0, -2, 8)) @ right
        for shard, tensor in zip(shards, (old, old + change), strict=True):
            shard[name] = tensor.bfloat16()
        index[name], size = f"model-{len(set(index.values())) + (size == 0):05d}.safetensors", size + 2 * old.numel()
        if size > SHARD or number + 1 == len(wanted):
            for side, shard in zip(sides, shards, strict=True):
                side.mkdir(parents=True, exist_ok=True)
                save_file(shard, side / index[name])
            shards, size = ({}, {}), 0
    for side in sides:
        (side / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
        (side / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def run(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak MiB and output of a command."""
    timed = ["/usr/bin/env", "python3", "-c", TIMER, *command]
    found = json.loads(subprocess.run(timed, capture_output=True, text=True, check=True).stdout)
    return found["seconds"], found["mib"], found["output"]


TIMER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - start
if done.returncode:
    sys.exit(done.stderr)
mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "mib": mib, "output": done.stdout}))
"""


def main() -> None:
    """Print a table, the ratios, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()) / "attnlens-bench")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--exact", action="store_true", help="also decompose every matrix")
    parser.add_argument("--write", action="store_true", help="keep the rows in figures/diff.csv")
    parser.add_argument("--rival", help="python with modeldelta")
    arguments = parser.parse_args()
    pair = arguments.folder / f"llama-{arguments.layers}"
    sides = [str(pair / side) for side in ("base", "tuned")]
    if not (pair / "tuned" / "model.safetensors.index.json").exists():
        write(pair, arguments.layers)
    files = [str(path) for side in sides for path in sorted(Path(side).glob("*.safetensors"))]
    gigabytes = sum(Path(path).stat().st_size for path in files) / 1e9
    reads, norms = [sys.executable, "-c", READ, *files], [sys.executable, "-c", NORMS, *sides]
    ways = {"cold read": reads, "cold norms": norms, "read": reads, "norms": norms}
    ways |= {how: [sys.executable, "-c", DIFF, *sides, how] for how in ("none", "estimated")}
    print(f"{gigabytes:.1f} GB in both, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f} on", end=" ")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    found: dict[str, tuple[float, float]] = {}
    inner: dict[str, float] = {}
    for _ in range(arguments.repetitions):
        for name, command in ways.items():
            if name.startswith("cold"):
                subprocess.run([sys.executable, "-c", "import sys\n" + FORGET, *files], check=True)
            seconds, mib, output = run(command)
            found[name] = min((seconds, mib), found.get(name, (seconds, mib)))
            if output.strip():
                inner[name] = min(float(output), inner.get(name, float("inf")))
    slow = {"exact": [sys.executable, "-c", DIFF, *sides, "exact"]} if arguments.exact else {}
    if arguments.rival:
        report = str(arguments.folder / "rival.json")
        slow["modeldelta"] = [arguments.rival, "-m", "modeldelta", *sides, "-o", report]
    for name, command in slow.items():
        start = time.perf_counter()
        found[name] = run(command)[:2]
        print(f"({name} took {time.perf_counter() - start:.0f} s)", flush=True)
    print(f"{'':12s} {'seconds':>9s} {'peak MiB':>9s}")
    for name, (seconds, mib) in found.items():
        print(f"{name:12s} {seconds:9.2f} {mib:9.0f}")
    rates = {name: gigabytes / inner[name] for name in ("cold read", "cold norms", "read", "norms")}
    print("GB/s without imports: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    if arguments.write:
        rows = [{"way": name, "seconds": both[0], "without_imports": inner.get(name)} for name, both in found.items()]
        keep("diff", [row | {"peak_mib": found[row["way"]][1]} for row in rows])
    print(f"norms / read, cold: {rates['cold norms'] / rates['cold read']:.2f}")
    for name in slow:
        times, memory = (mine / theirs for mine, theirs in zip(found[name], found["estimated"], strict=True))
        print(f"{name} / estimated: {times:.1f} × the time, {memory:.1f} × the memory")
    print(json.dumps({"gigabytes": gigabytes, "threads": torch.get_num_threads(), "found": found, "inner": inner}))


if __name__ == "__main__":
    main()
