"""What a selection of blocks comes to: is it more than the last blocks, than small weights, than a draw?

Under Adam every weight moves by about the learning rate a step, so a weight change rate can be a mere reading of the
size of the weights (FINETUNING.md 4.2). Only a selection that differs from its controls was made by the data.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from attnlens.checkpoints.blocks import transformer_blocks
from attnlens.training.alf import LayerController
from attnlens.training.importance import SCORES


def jaccard(one: Iterable[int], other: Iterable[int]) -> float:
    """Members of both over members of either, 0..1; two empty sets are the same set.

    Hand example: {0, 1} and {1, 2} → 1/3.
    """
    first, second = set(one), set(other)
    return len(first & second) / len(first | second) if first | second else 1.0


def expected_jaccard(blocks: int, drawn: int, fixed: int) -> float:
    """Exact mean of the Jaccard of `drawn` of `blocks`, without replacement, with a given set of `fixed`.

    The number in both, m, is hypergeometric: Σ C(fixed, m) C(blocks − fixed, drawn − m) / C(blocks, drawn) · m /
    (drawn + fixed − m). Hand example: 2 of 3 with a set of 2 → 1/3 · 1 + 2/3 · 1/3 = 5/9.
    """
    if not drawn + fixed:
        return 1.0
    both = range(max(0, drawn + fixed - blocks), min(drawn, fixed) + 1)
    ways = [math.comb(fixed, m) * math.comb(blocks - fixed, drawn - m) * m / (drawn + fixed - m) for m in both]
    return sum(ways) / math.comb(blocks, drawn)


def inverse_rms(model: PreTrainedModel) -> tuple[float, ...]:
    """1 / RMS(W) of every block as it is now: to be taken of the base, before it trains."""
    rms = SCORES["rms"].instant
    assert rms is not None
    return tuple(rms([list(block.parameters()) for block in transformer_blocks(model)], np.random.default_rng(0)))


def selection_overlap(
    controller: LayerController, rms: Sequence[float], kept: int, real: Sequence[int] | None = None
) -> dict[str, Any] | None:
    """How far the set that was last chosen is that of a control of equal number, for the record; None without one.

    rms: `inverse_rms` of the base. kept: the step whose weights were saved; later choices have no part in them. real:
    for a shuffled twin, the set of the real run. `chance` is what a random
    set of that number expects of any of the Jaccards. `stability` is the mean Jaccard of successive choices, and
    `stability_chance` what independent draws of their sizes expect; both None after a single choice.
    """
    until = kept + SCORES[controller.plan.score].updates  # what a training probe chose keeps the probe's steps
    chosen = [choice.active for choice in controller.choices if choice.step < until]
    if not chosen:
        return None
    active, blocks = chosen[-1], len(controller.blocks)
    best = sorted(range(blocks), key=lambda number: (-rms[number], number))
    count = len(active)
    controls = {"last_k": range(blocks - count, blocks), "first_k": range(count), "rms": best[:count]}
    found = {name: jaccard(active, control) for name, control in controls.items()}
    steps = list(pairwise(chosen))
    return {
        "active": list(active),
        "jaccard": found,
        "chance": expected_jaccard(blocks, count, count),
        "stability": _mean([jaccard(one, two) for one, two in steps]),
        "stability_chance": _mean([expected_jaccard(blocks, len(one), len(two)) for one, two in steps]),
        **({"real": jaccard(active, real)} if real is not None else {}),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
