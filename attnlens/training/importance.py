"""What makes a block important: the scores by which ALF chooses, and the controls that they must beat.

One registry of frozen records. A score is either read off the weights at once, or taken by a meter over some steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

Blocks = Sequence[Sequence[Parameter]]


class Meter(Protocol):
    """Measures all blocks over the steps of one probe."""

    def gradients(self) -> None:
        """Take note that the gradient of a step is complete, where it comes in parts."""

    def step(self, rates: Sequence[float]) -> None:
        """Take note of an optimizer step that was made at `rates`, the learning rate of each block."""

    def scores(self) -> list[float]:
        """One number a block."""
        ...

    def close(self) -> None:
        """Leave nothing behind at the parameters."""


@dataclass(frozen=True)
class Score:
    """One way to tell how important a block is.

    meter: measures over a probe, whose first `skip` steps it leaves out. instant: needs no step; draws from the
    generator. updates: the blocks train while they are measured. high: whether a high number means important. A meter
    is made of the blocks, the steps it leaves out, and whether the gradient of a step comes in parts.
    """

    name: str
    title: str
    meter: Callable[[Blocks, int, bool], Meter] | None = None
    instant: Callable[[Blocks, np.random.Generator], list[float]] | None = None
    updates: bool = False
    high: bool = True

    def rank(self, value: float) -> float:
        """Importance, ≥ 0: the value itself, or its inverse where low values are wanted."""
        return value if self.high else 1 / (value + 1e-12)


def copied(parameters: Sequence[Parameter]) -> list[Tensor]:
    """The values of a block as they are now."""
    return [parameter.detach().clone() for parameter in parameters]


def block_norm(tensors: Sequence[Tensor]) -> float:
    """Length of all parameters of a block as one vector: a norm for each would divide by the 0 of a new bias."""
    return math.hypot(*(torch.linalg.vector_norm(each.detach(), dtype=torch.float32).item() for each in tensors))


class _WeightChange:
    """Length of the change over the window ÷ length at its start ÷ sum of its learning rates.

    The sum makes windows at different points of a schedule comparable. Hand example: weights (3, 4) become (3, 4.5) in
    two steps at 0.01 → 0.5 / 5 / 0.02 = 5.
    """

    def __init__(self, blocks: Blocks, skip: int, in_parts: bool):
        self._blocks, self._skip = blocks, skip
        self._start = [] if skip else [copied(block) for block in blocks]
        self._rates = [0.0] * len(blocks)

    def gradients(self) -> None:
        pass

    def step(self, rates: Sequence[float]) -> None:
        if self._skip:
            self._skip -= 1
            if not self._skip:
                self._start = [copied(block) for block in self._blocks]
            return
        self._rates = [before + rate for before, rate in zip(self._rates, rates, strict=True)]

    def scores(self) -> list[float]:
        found = []
        for block, start, rate in zip(self._blocks, self._start, self._rates, strict=True):
            change = block_norm([now.detach() - before for now, before in zip(block, start, strict=True)])
            # A block that cannot move has not changed, whatever the rate; 0 / 0 would stop the run.
            found.append(change / (block_norm(start) + 1e-12) / rate if change else 0.0)
        return found

    def close(self) -> None:
        self._start = []


class _GradRatio:
    """Root mean square of a block's gradient norm over the probe's steps ÷ length of its weights (Auto-RGN).

    Each gradient is counted and freed as soon as it is complete, so that the optimizer never sees it, the block does
    not move and no two gradients of blocks exist at once. A gradient that comes in parts, from several batches or
    processes, is complete when `gradients` says so: the norm of a mean is not the mean of norms, and a block would be
    judged by how a step was cut up. Hand example: weights (3, 4), gradients of length 1 and 7 →
    √((1 + 49) / 2) / 5 = 1.
    """

    def __init__(self, blocks: Blocks, skip: int, in_parts: bool):
        self._blocks = blocks
        self._squares: list[Tensor | float] = [0.0] * len(blocks)
        self._batches = 0
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._counted(number))
            for number, block in enumerate(blocks)
            for parameter in block
            if not in_parts
        ]

    def gradients(self) -> None:
        for number, block in enumerate(self._blocks):
            for parameter in block:
                if parameter.grad is not None:
                    self._counted(number)(parameter)

    def _counted(self, number: int) -> Callable[[Tensor], None]:
        def count(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._squares[number] += torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square()
            parameter.grad = None

        return count

    def step(self, rates: Sequence[float]) -> None:
        self._batches += 1

    def scores(self) -> list[float]:
        return [
            math.sqrt(float(square) / self._batches) / (block_norm(block) + 1e-12)
            for square, block in zip(self._squares, self._blocks, strict=True)
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _random(blocks: Blocks, generator: np.random.Generator) -> list[float]:
    return generator.random(len(blocks)).tolist()


def _last(blocks: Blocks, generator: np.random.Generator) -> list[float]:
    return [float(number) for number in range(len(blocks))]


def _inverse_rms(blocks: Blocks, generator: np.random.Generator) -> list[float]:
    """1 / RMS(W): what the weight change rate becomes under Adam, which moves every weight by about η a step."""
    sizes = [sum(parameter.numel() for parameter in block) for block in blocks]
    return [math.sqrt(size) / (block_norm(block) + 1e-12) for size, block in zip(sizes, blocks, strict=True)]


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("weight_change", "weight change rate", meter=_WeightChange, updates=True),
        Score("grad_ratio", "gradient norm over weight norm, without an update", meter=_GradRatio),
        Score("inverse", "low weight change rate (control)", meter=_WeightChange, updates=True, high=False),
        Score("random", "drawn anew at every selection (control)", instant=_random),
        Score("last_k", "depth (control)", instant=_last),
        Score("rms", "1 / RMS of the weights (control)", instant=_inverse_rms),
    )
}
