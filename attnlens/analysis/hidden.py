"""How far the hidden states of each layer moved on the same texts: debiased CKA and the relative change, streamed.

Axes: M model, N text, B text of a batch, T token, D width. There are L + 1 states, their axis is called depth: what
enters the first block is number 0, then what each block gives; the last is the model's own last hidden state, in most
decoders after the final norm. Tokens that count are those that are neither padding nor special, nor position 0 of a
decoder: as a sink it has a norm hundreds of times that of any word, and CKA would see nothing else.
CKA holds the tokens of one batch against each other and averages over batches: it moves a little with their size.
"""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlens.analysis.prepare import Batch, Prepared
from attnlens.core.errors import CheckpointError, ShapeError
from attnlens.core.similarity import Similarity, relative_change

Array = NDArray[np.float64]

# Tokens of a batch that CKA sees, evenly spread: HSIC₁ is unbiased for any number, and its cost grows with it.
MOST_TOKENS = 256
CHANGE, SUMS = STREAMED = ("hidden_change", "similarity")
MISSING = "the model gives no hidden states of the text's tokens"


def counted(prepared: Prepared, batch: Batch, *, decoder: bool) -> Tensor:
    """(B, T) bool: tokens of a batch that are neither padding nor special, nor position 0 of a decoder."""
    valid = torch.zeros(batch.ids.shape, dtype=torch.bool)
    for row, index in enumerate(batch.indices):
        special = prepared.encodings[index].special
        valid[row, : len(special)] = torch.from_numpy(~special)
    if decoder:
        valid[:, 0] = False
    return valid.to(batch.ids.device)


def states_of(output: Any, tokens: int) -> list[Tensor] | None:
    """The L + 1 states (B, T, D) of the text's own T = `tokens` from a model's output; None where it has none."""
    found = getattr(output, "hidden_states", None)
    if not found or any(state.shape[1] < tokens for state in found):
        return None
    return [state[:, -tokens:] for state in found]  # virtual tokens stand in front


def check_finite(name: str, states: Sequence[Tensor], valid: Tensor) -> None:
    """CheckpointError where states of tokens that count are no numbers: what an earlier layer broke, the last shows."""
    if not bool(states[-1][valid].isfinite().all()):
        raise CheckpointError(
            f"{name} gives hidden states that are no numbers: its weights or activations are not finite"
        )


def moved(base: Sequence[Tensor] | None, tuned: Sequence[Tensor], valid: Tensor) -> dict[str, Array]:
    """One batch of one model: CHANGE (B, L + 1), and SUMS (1, L + 1, 5) of CKA for `merged`.

    base, tuned: L + 1 states (B, T, D); base None: of a model that nothing is held against, whose change is no data.
    valid (B, T) bool: the tokens that count. One layer at a time: beside the states it takes two float64 copies of
    that layer's counted tokens, and at most MOST_TOKENS² numbers.
    """
    rows, sums = np.full((len(valid), len(tuned)), np.nan), np.zeros((1, len(tuned), len(astuple(Similarity()))))
    if base is None:
        return {CHANGE: rows, SUMS: sums}
    shapes = {tuple(state.shape[:2]) for state in (*base, *tuned)}
    if len(base) != len(tuned) or shapes != {tuple(valid.shape)}:
        raise ShapeError(
            f"the same layers and tokens of both models are needed; got {len(base)} and {len(tuned)} states over "
            f"{sorted(shapes)} and valid {tuple(valid.shape)}. Run both models on one batch."
        )
    valid = valid.cpu()  # of no device: the layers of a model may lie on several
    text = valid.nonzero()[:, 0].numpy()
    counts = np.bincount(text, minlength=len(valid))
    seen = np.unique(np.linspace(0, len(text) - 1, min(len(text), MOST_TOKENS)).round().astype(np.int64))
    some = torch.from_numpy(seen)
    for depth, (old, new) in enumerate(zip(base, tuned, strict=True)):
        old, new = old[valid].to(new.device), new[valid]  # (B, T, D) -> (n, D)
        sums[0, depth] = astuple(Similarity.of(old[some], new[some]))
        total = np.bincount(text, relative_change(old, new).cpu().numpy(), minlength=len(valid))
        rows[counts > 0, depth] = total[counts > 0] / counts[counts > 0]
    return {CHANGE: rows, SUMS: sums}


def merged(similarity: Array) -> dict[str, Array]:
    """`cka` and `cka_tokens`, the tokens it saw, both (M, L + 1), from the sums (M, batches, L + 1, 5) of all batches.

    NaN where CKA is unknown, and without tokens, as of a model that nothing is held against. The order of the batches
    is that of the plan, so that a run that was resumed adds the same numbers in the same order.
    """
    total = [[Similarity(*sums) for sums in row] for row in similarity.sum(1)]
    return {
        "cka": np.array([[each.cka for each in row] for row in total]),
        "cka_tokens": np.array([[each.tokens or np.nan for each in row] for row in total]),
    }
