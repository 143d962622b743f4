"""How the benches of this folder time: interleaved repetitions, minima."""

import time
from collections.abc import Callable


def fastest(runs: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of each, minimum over interleaved repetitions."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best
