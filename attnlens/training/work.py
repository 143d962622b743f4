"""A task made ready for the training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

Row = dict[str, Any]
TEXT = "text"  # key of a row that is a window: number of its text. No model reads it


@dataclass(frozen=True)
class Work:
    """The rows of a task, how they are batched, and how the model is judged on the held-out ones.

    best: the measure that chooses the step; higher: whether more of it is better. reduce: what is kept of the logits
    of a batch, None for all. start: whether the base is judged as well, which a new head makes pointless. counts: what
    became of the texts and of the classes, for the record. loss: takes the place of the model's own, (outputs, labels,
    num_items_in_batch=) -> scalar, the last being the labels of the whole optimizer step or None. table: scores of each
    class.
    """

    task: str
    train: list[Row]
    heldout: list[Row]
    collate: Callable[[list[Row]], Any]
    measure: Callable[[EvalPrediction], dict[str, float]]
    best: str
    higher: bool
    start: bool
    counts: dict[str, Any]
    reduce: Callable[[Any, Tensor], Any] | None = None
    loss: Callable[..., Tensor] | None = None
    table: Callable[[EvalPrediction], dict[str, Any]] | None = None

    def measure_of(self, rows: Sequence[Row]) -> Callable[[EvalPrediction], dict[str, float]]:
        """The measure of predictions for these rows: of whole texts, where the rows are windows."""
        return partial(_measured, self.measure, rows)

    @property
    def seen(self) -> list[Row]:
        """Training rows of at most as many texts as are held out, evenly spread: what overfitting is seen on."""
        texts = [row.get(TEXT, number) for number, row in enumerate(self.train)]
        held = len({row.get(TEXT, number) for number, row in enumerate(self.heldout)})
        step = -(-len(set(texts)) // held)
        return [row for text, row in zip(texts, self.train, strict=True) if text % step == 0]


def of_texts(prediction: EvalPrediction, rows: Sequence[Row]) -> EvalPrediction:
    """One prediction a text: the mean of its windows' logits, (rows, C) -> (texts, C); any other as it is."""
    if not rows or TEXT not in rows[0]:
        return prediction
    _, first, text = np.unique([row[TEXT] for row in rows], return_index=True, return_inverse=True)
    logits = np.asarray(prediction.predictions, dtype=np.float64)
    sums = np.zeros((len(first), logits.shape[1]))
    np.add.at(sums, text, logits)
    means = sums / np.bincount(text)[:, None]
    return EvalPrediction(predictions=means, label_ids=np.asarray(prediction.label_ids)[first])


def _measured(
    measure: Callable[[EvalPrediction], dict[str, float]], rows: Sequence[Row], prediction: EvalPrediction
) -> dict[str, float]:
    return measure(of_texts(prediction, rows))
