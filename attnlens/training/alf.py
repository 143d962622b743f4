"""Adaptive layer-wise fine-tuning (Lee 2025): measure all blocks, train the important ones, measure again.

The controller knows parameters and an optimizer, neither Trainer nor model, so that a loop in a notebook can use it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from attnlens.core.errors import Diverged, TrainingError, UnknownName, UnsupportedModel
from attnlens.training.importance import SCORES, Blocks, Meter, copied

DENOMINATORS = ("total", "blocks")
LEAST = 6  # steps of a run that measures: two to probe, one of them skipped, and some to train


@dataclass(frozen=True)
class Plan:
    """What a controller does, and when; counts are optimizer steps.

    score: a name of `SCORES`. capacity: parameters of blocks that may train at once, k: blocks that may (None: no
    bound). warmup, probe, run: length of the first probe, of the later ones and of the training between them. until:
    last step after which blocks are chosen anew (None: no end). skip: steps of a probe before its window starts.
    smoothing: weight of the earlier probes in a score. hysteresis: share that is added to the score of a block in
    training. rollback: blocks never chosen lose what probes did to them. commit: choose once. seed: of random scores.
    in_parts: the gradient of a step comes from several batches or processes; `gradients` tells when it is complete.
    """

    score: str = "weight_change"
    capacity: int | None = None
    k: int | None = None
    warmup: int = 10
    probe: int = 8
    run: int = 32
    until: int | None = None
    skip: int = 2
    smoothing: float = 0.5
    hysteresis: float = 0.1
    rollback: bool = True
    commit: bool = False
    seed: int = 0
    in_parts: bool = False

    def __post_init__(self):
        if self.score not in SCORES:
            raise UnknownName.among("score", self.score, SCORES)
        if not 0 <= self.skip < min(self.warmup, self.probe):
            raise TrainingError(f"skip={self.skip} leaves no step of a probe of {min(self.warmup, self.probe)} steps.")
        for name in ("run", "k"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise TrainingError(f"{name} must be at least 1; got {value}.")

    def over(self, steps: int) -> "Plan":
        """The same plan with lengths for a run of `steps`: 5 % warm-up, 1.5 % a probe, 20 % between two probes.

        None in the last 20 %, where the learning rate falls to 0 and rates are noise. In short runs the warm-up takes a
        third at most, and the later probes a fifth of the time. Gradients alone need four batches.
        """
        score = SCORES[self.score]
        if score.meter is not None and steps < LEAST:
            raise TrainingError(f"score {self.score!r} needs a run of at least {LEAST} steps, got {steps}.")
        warmup, probe = (max(10, round(0.05 * steps)), max(8, round(0.015 * steps))) if score.updates else (4, 4)
        warmup = max(1, min(warmup, steps // 3))
        run = max(round(0.2 * steps), 4 * probe)
        skip = min(2, warmup - 1, probe - 1) if score.updates else 0
        return replace(self, warmup=warmup, probe=probe, run=run, until=int(0.8 * steps) - probe, skip=skip)


@dataclass(frozen=True)
class Choice:
    """One selection: steps done, what each block scored in this probe and over all probes, and the chosen blocks."""

    step: int
    scores: tuple[float, ...]
    smoothed: tuple[float, ...]
    active: tuple[int, ...]


@dataclass(frozen=True)
class Phase:
    """What happens from step `first` (counted from 1) on: kind "probe" or "run", and the blocks that may move."""

    first: int
    kind: str
    active: tuple[int, ...]


def capacity(budget: float, denominator: str, sizes: Sequence[int], head: int, total: int) -> int:
    """Parameters of blocks that a budget has room for; refused where it is too small for the smallest block.

    `total`: a share of all the model's parameters, from which the head, always in training, takes its part; embeddings
    count below the line, though they are frozen. `blocks`: a share of the parameters of all blocks.
    """
    if denominator not in DENOMINATORS:
        raise UnknownName.among("denominator", denominator, DENOMINATORS)
    whole, taken = (total, head) if denominator == "total" else (sum(sizes), 0)
    room = int(Fraction(str(budget)) * whole) - taken  # 0.29 · 100 in floats is 28.999…
    if room < min(sizes):
        least = (min(sizes) + taken) / whole
        raise TrainingError(
            f"budget={budget} of {denominator} parameters ({whole:,}) leaves {max(room, 0):,} for blocks, the smallest "
            f"of which has {min(sizes):,}: needed a budget of at least {least:.4f}."
        )
    return room


class LayerController:
    """Decides which blocks train, and enforces it on parameters and optimizer state.

    The optimizer must hold all parameters of blocks and head; whatever else it holds is frozen. Call `step` once after
    every optimizer step, before the scheduler's. A frozen parameter has no gradient and no optimizer state, so that it
    does not move by one bit, also under momentum and decay. Before a probe that trains, all blocks lose their state: a
    block whose state is younger moves about three times as fast and would always win. `active`: blocks in training;
    `probing`: whether all are being measured, so that the weights are not to be judged or saved; `last`: whether what
    trains now trains to the end.

    agree: makes the scores of several processes one. state: what `state` gave when the run was stopped; weights and
    optimizer are to be as they were then.

    >>> layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)), torch.nn.Linear(2, 1))
    >>> *blocks, head = [list(layer.parameters()) for layer in layers]
    >>> optimizer = torch.optim.AdamW(layers.parameters(), lr=0.01)
    >>> controller = LayerController(blocks, head, optimizer, Plan(k=1, warmup=4, run=10))
    >>> for _ in range(10):
    ...     layers(torch.ones(3, 2)).square().sum().backward()
    ...     optimizer.step()
    ...     controller.step()
    ...     optimizer.zero_grad()
    >>> controller.finish()
    >>> [phase.kind for phase in controller.phases], len(controller.active)
    (['probe', 'run'], 1)
    """

    def __init__(
        self,
        blocks: Blocks,
        head: Sequence[Parameter],
        optimizer: Optimizer,
        plan: Plan,
        *,
        agree: Callable[[list[float]], list[float]] = list,
        state: dict[str, Any] | None = None,
    ):
        self.blocks = tuple(tuple(block) for block in blocks)
        self.plan, self._agree = plan, agree
        self.active: tuple[int, ...] = ()
        self.choices: list[Choice] = []
        self.phases: list[Phase] = []
        self._optimizer, self._score = optimizer, SCORES[plan.score]
        self._generator = np.random.default_rng(plan.seed)
        self._steps, self._left = 0, 0
        self._meter: Meter | None = None
        self._kept: dict[int, list[Tensor]] = {}
        self._groups = _groups(self.blocks, head, optimizer)
        if plan.capacity is not None and not admitted(self.blocks, plan, range(len(self.blocks))):
            raise TrainingError(f"a capacity of {plan.capacity:,} parameters admits no block.")
        trained = {id(parameter) for parameters in (*self.blocks, head) for parameter in parameters}
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            _turn(optimizer, parameter, on=id(parameter) in trained)
        if state is None:
            self._begin()
        else:
            self._restore(state)

    @property
    def probing(self) -> bool:
        """Whether a probe is under way."""
        return self._meter is not None

    @property
    def last(self) -> bool:
        """Whether no probe and no choice will come."""
        ends, until = self._steps + self._left, self.plan.until
        return not self.probing and (self.plan.commit or (until is not None and ends > until))

    def state(self) -> dict[str, Any]:
        """What a controller needs to go on from here, in plain JSON values; within a probe there is no such thing."""
        assert not self.probing, "a probe's measurements cannot be taken up again"
        return {
            "steps": self._steps,
            "left": self._left,
            "active": list(self.active),
            "choices": [asdict(choice) for choice in self.choices],
            "phases": [asdict(phase) for phase in self.phases],
            "generator": self._generator.bit_generator.state,
        }

    def gradients(self) -> None:
        """Take note that the gradient of this step is complete, where it comes in parts; before it is clipped."""
        if self._meter is not None:
            self._meter.gradients()

    def step(self) -> None:
        """Take note of an optimizer step; at the end of a phase, begin the next.

        Gradients of frozen parameters are gone afterwards, those of the others stay.
        """
        self._steps += 1
        self._left -= 1
        if self._meter is not None:
            self._meter.step([float(self._optimizer.param_groups[group]["lr"]) for group in self._groups])
        if self._left > 0:
            return
        if self._meter is not None:
            scores = self._meter.scores()
            self._meter.close()
            self._meter = None
            self._choose(scores)
        elif not self.plan.commit and (self.plan.until is None or self._steps <= self.plan.until):
            self._begin()

    def finish(self) -> None:
        """End the run; a probe that is under way is broken off, and blocks never chosen lose what it did to them."""
        if self._meter is not None:
            self._meter.close()
            self._meter = None
            self._settle(self.active)

    def _restore(self, state: dict[str, Any]) -> None:
        self._steps, self._left, self.active = state["steps"], state["left"], tuple(state["active"])
        self.choices = [
            Choice(each["step"], *(tuple(each[name]) for name in ("scores", "smoothed", "active")))
            for each in state["choices"]
        ]
        self.phases = [Phase(each["first"], each["kind"], tuple(each["active"])) for each in state["phases"]]
        self._generator.bit_generator.state = state["generator"]
        self._turn_blocks(self.active)

    def _begin(self) -> None:
        """Start a probe of all blocks, or choose at once where the score needs none."""
        if self._score.instant is not None:
            self._choose(self._score.instant(self.blocks, self._generator))
            return
        assert self._score.meter is not None
        everything = tuple(range(len(self.blocks)))
        if self._score.updates:
            for parameter in (parameter for block in self.blocks for parameter in block):
                self._optimizer.state.pop(parameter, None)
            if self.plan.rollback:
                chosen = {number for choice in self.choices for number in choice.active}
                self._kept = {number: copied(self.blocks[number]) for number in everything if number not in chosen}
        self._turn_blocks(everything)
        self._meter = self._score.meter(self.blocks, self.plan.skip, self.plan.in_parts)
        self._left = self.plan.probe if self.choices else self.plan.warmup
        self.phases.append(Phase(self._steps + 1, "probe", everything if self._score.updates else ()))

    def _choose(self, scores: list[float]) -> None:
        """Select the best blocks that fit, and train them from the next step on."""
        scores = self._agree(scores)
        if not np.isfinite(scores).all():
            raise Diverged(f"a block's score is not a number at step {self._steps}")
        smoothed, weights = scores, [self._score.rank(score) for score in scores]
        if self._score.meter is not None:
            if self.choices:
                old, keep = self.choices[-1].smoothed, self.plan.smoothing
                smoothed = [keep * before + (1 - keep) * now for before, now in zip(old, scores, strict=True)]
            weights = [self._score.rank(score) for score in smoothed]
            for number in self.active:
                weights[number] *= 1 + self.plan.hysteresis
        order = sorted(range(len(weights)), key=lambda number: (-weights[number], number))
        self.active = admitted(self.blocks, self.plan, order)
        self.choices.append(Choice(self._steps, tuple(scores), tuple(smoothed), self.active))
        self._settle(self.active)
        self._left = self.plan.run

    def _settle(self, active: tuple[int, ...]) -> None:
        """Train `active` alone; blocks that are not in it and never were get back what they had before the probe."""
        with torch.no_grad():
            for number, values in self._kept.items():
                if number not in active:
                    for parameter, value in zip(self.blocks[number], values, strict=True):
                        parameter.copy_(value)
        self._kept = {}
        self._turn_blocks(active)
        self.phases.append(Phase(self._steps + 1, "run", active))

    def _turn_blocks(self, active: Sequence[int]) -> None:
        for number, block in enumerate(self.blocks):
            for parameter in block:
                _turn(self._optimizer, parameter, on=number in active)


def admitted(blocks: Blocks, plan: Plan, order: Sequence[int]) -> tuple[int, ...]:
    """The blocks that are taken in this order as long as there is room; a later, smaller one may still fit."""
    taken, used = list[int](), 0
    for number in order:
        size = sum(parameter.numel() for parameter in blocks[number])
        fits = plan.capacity is None or used + size <= plan.capacity
        if fits and (plan.k is None or len(taken) < plan.k):
            taken.append(number)
            used += size
    return tuple(sorted(taken))


def _turn(optimizer: Optimizer, parameter: Parameter, *, on: bool) -> None:
    parameter.requires_grad = on
    if not on:
        parameter.grad = None
        optimizer.state.pop(parameter, None)


def _groups(blocks: Blocks, head: Sequence[Parameter], optimizer: Optimizer) -> list[int]:
    """For each block the place of its parameter group, whose learning rate is the block's, after checking them all."""
    own = [parameter for block in blocks for parameter in block]
    if not blocks or not all(blocks):
        raise TrainingError("needed blocks to choose from, each with parameters.")
    if len({id(parameter) for parameter in [*own, *head]}) < len(own) + len(head):
        raise UnsupportedModel("a parameter belongs to two blocks or to a block and the head: none can be frozen.")
    if not all(parameter.is_floating_point() for parameter in own):
        raise UnsupportedModel("blocks of quantised weights cannot be trained, so none can be chosen.")
    places = {
        id(parameter): place for place, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    if not all(id(parameter) in places for parameter in [*own, *head]):
        raise TrainingError(
            "the optimizer lacks parameters of blocks or head, which would never move: build it while all require "
            "gradients."
        )
    return [places[id(block[0])] for block in blocks]
