"""What the statistics cost on a GPU: the Triton pass against torch's flash attention, which gives the output alone.

Causal self-attention in bfloat16, one text: 32 query heads on 8 key heads, of width 128 and of 64. Three requests:
`lean` is the output, entropy, largest weight and Σ p²; `masses` adds three group masses; `content` adds share and
log-odds. Repetitions are interleaved, timed by CUDA events, and the minimum is kept. FLOP/s count the two products of
the causal half, 2·2·D·T(T + 1)/2 a head; bytes/s count q, k, v and the output once. Errors are against float64 at
T = 1024 on the GPU, in nats. Usage: python tests/bench/bench_gpu.py [--longest 131072] [--repetitions 5]
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlens.core import kernels, tiled
from attnlens.core.rows import Groups
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted

LENGTHS = [1 << power for power in range(10, 18)]
HEADS, KEY_HEADS, WIDTHS = 32, 8, (128, 64)
LEAN = ("entropy", "max_weight", "renyi2")
REQUESTS = {"lean": LEAN, "masses": (*LEAN, "mass"), "content": (*LEAN, "mass", "share", "log_odds")}


def problem(tokens: int, width: int) -> tuple[list[Tensor], Groups]:
    """Random q, k, v in bfloat16 and a partition of the tokens into three groups, on the GPU."""
    random = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, heads, tokens, width) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    tensors = [torch.randn(shape, generator=random, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    return tensors, Groups.of(torch.randint(0, 3, (1, tokens), generator=random, device="cuda"))


def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Torch's flash attention, nothing but the output."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def seconds(runs: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of each on the GPU, minimum over interleaved repetitions; the first of each compiles and is not kept."""
    best = dict.fromkeys(runs, float("inf"))
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            stop.synchronize()
            if repetition:
                best[name] = min(best[name], start.elapsed_time(stop) / 1e3)
    return best


def errors(width: int) -> dict[str, float]:
    """Largest difference from tiled torch in float64, in the unit of each statistic; of the output, as flash's own."""
    (query, key, value), groups = problem(LENGTHS[0], width)
    scores, wanted = Scores(width**-0.5, causal=True), Wanted(REQUESTS["content"], groups)
    output, got = kernels.fused(query, key, value, scores, wanted)
    right, exact = tiled.attend(query.double(), key.double(), value.double(), scores, wanted)
    assert output is not None and right is not None
    found = {name: (got[name] - exact[name]).abs().nan_to_num(0.0).max().item() for name in exact}
    outputs = {"output": output, "output of flash": flash(query, key, value)}
    return found | {name: (one - right).abs().max().item() for name, one in outputs.items()}


def row(tokens: int, width: int, repetitions: int) -> dict[str, object]:
    """Times of one length and width, and the rates of each."""
    given, groups = problem(tokens, width)
    scores = Scores(width**-0.5, causal=True)

    def recorded(names: tuple[str, ...]) -> Callable[[], object]:
        return lambda: kernels.fused(*given, scores, Wanted(names, groups))

    runs = {"flash": lambda: flash(*given)} | {name: recorded(names) for name, names in REQUESTS.items()}
    times = seconds(runs, repetitions)
    flop = 4 * width * HEADS * tokens * (tokens + 1) / 2
    moved = 2 * width * tokens * (2 * HEADS + 2 * KEY_HEADS)
    return {
        "tokens": tokens,
        "width": width,
        "seconds": times,
        "tflops": {name: flop / time / 1e12 for name, time in times.items()},
        "gbytes": {name: moved / time / 1e9 for name, time in times.items()},
    }


def main() -> None:
    """Print a table for each width, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=max(LENGTHS))
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing was measured")
        return
    names, rows, wrong = ("flash", *REQUESTS), [], {}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for width in WIDTHS:
        wrong[width] = errors(width)
        print(f"width {width}, largest error at T = {LENGTHS[0]}:")
        print("   " + ", ".join(f"{name} {error:.1e}" for name, error in wrong[width].items()))
        head = " ".join(f"{name:>8}" for name in names)
        print(f"{'T':>7}  {head} ms   {head} TFLOP/s   {head} GB/s   {'lean/flash':>10}")
        for tokens in (tokens for tokens in LENGTHS if tokens <= arguments.longest):
            found = row(tokens, width, arguments.repetitions)
            times, flops, moved = (found[part] for part in ("seconds", "tflops", "gbytes"))
            cells = " ".join(f"{times[name] * 1e3:8.2f}" for name in names)
            rates = " ".join(f"{flops[name]:8.1f}" for name in names)
            bytes_ = " ".join(f"{moved[name]:8.1f}" for name in names)
            ratio = times["lean"] / times["flash"]
            print(f"{tokens:7d}  {cells} ms   {rates} TFLOP/s   {bytes_} GB/s   {ratio:10.2f}", flush=True)
            rows.append(found)
    device = torch.cuda.get_device_name()
    print(json.dumps({"device": device, "torch": torch.__version__, "rows": rows, "errors": wrong}))


if __name__ == "__main__":
    main()
