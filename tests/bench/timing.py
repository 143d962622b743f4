"""How the benches of this folder time (interleaved repetitions, minima), and where they keep what they measured."""

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[2] / "figures"


def fastest(runs: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of each, minimum over interleaved repetitions."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def keep(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write what has been measured so far to figures/NAME.csv, with the processor it was measured on."""
    machine = processor()
    with (FIGURES / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine"])
        writer.writeheader()
        writer.writerows(row | {"machine": machine} for row in rows)


def processor() -> str:
    """The processor by its family, model and what it multiplies with, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in ("avx2", "avx512f", "amx_bf16") if unit in told.get("flags", "").split()]
    count = sum(line.startswith("processor") for line in lines)
    return f"{told.get('model name', 'unknown')}, {count} cores, {told.get('cpu MHz', '?')} MHz, {' '.join(units)}"
