"""A task made ready for the training loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import EvalPrediction

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The rows of a task, how they are batched, and how the model is judged on the held-out ones.

    best: the measure that chooses the step; higher: whether more of it is better. reduce: what is kept of the logits
    of a batch, None for all. start: whether the base is judged as well, which a new head makes pointless. counts: what
    became of the texts, for the record. loss: takes the place of the model's own, (outputs, labels, number of items in
    the whole optimizer step or None) -> scalar.
    """

    task: str
    train: list[Row]
    heldout: list[Row]
    collate: Callable[[list[Row]], Any]
    measure: Callable[[EvalPrediction], dict[str, float]]
    best: str
    higher: bool
    start: bool
    counts: dict[str, int]
    reduce: Callable[[Any, Tensor], Tensor] | None = None
    loss: Callable[..., Tensor] | None = None
