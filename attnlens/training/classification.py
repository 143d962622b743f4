"""The tasks of rows with labels: one class a text, or any number of them."""

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from transformers import DataCollatorWithPadding

from attnlens.core.errors import TrainingError, UnsupportedModel
from attnlens.text.corpus import Corpus, Example
from attnlens.training.base import Base
from attnlens.training.losses import balanced_weights, class_loss, label_loss, positive_weights
from attnlens.training.options import TrainOptions
from attnlens.training.scores import (
    classification_metrics,
    classification_table,
    multi_label_metrics,
    multi_label_table,
)
from attnlens.training.split import MULTI_LABEL, Split, taught
from attnlens.training.work import TEXT, Row, Work

OVERLAP = 0.25  # share of a window that the next one repeats


def classification(base: Base, data: Split, options: TrainOptions) -> Work:
    """Texts cut at the options' length or read in windows of it, with the number of their label, or 0 and 1 for each.

    The best step is that of the best macro-F1; where texts may have several labels that of the least loss, for no label
    is predicted, and F1 stays 0, until a probability passes 1/2: patience would run out first. Each window has the
    label of its text, and the logits of a text are the mean of its windows'. counts: `windows` are None where texts are
    cut, else their length, overlap and numbers; `class_weights` by label where there are any, of the positives where
    texts may have several.
    """
    several = data.task == MULTI_LABEL
    (train, truncated), (heldout, _) = (_rows(base, part, data, options) for part in (data.train, data.heldout))
    weights = None
    if options.class_weights:
        truth = np.array([row["labels"] for row in train])
        weights = positive_weights(truth) if several else balanced_weights(truth, len(data.labels))
    overlap = _overlap(base, options.length)
    windows = {"length": options.length, "overlap": overlap, "train": len(train), "heldout": len(heldout)}
    named = None if weights is None else dict(zip(data.labels, weights.tolist(), strict=True))
    pad = DataCollatorWithPadding(base.tokenizer)
    return Work(
        task=data.task,
        train=train,
        heldout=heldout,
        collate=lambda rows: pad([{name: value for name, value in row.items() if name != TEXT} for row in rows]),
        measure=multi_label_metrics if several else classification_metrics,
        best="loss" if several else "macro_f1",
        higher=not several,
        start=False,
        counts={
            "truncated": truncated,
            "windows": windows if options.windows else None,
            "class_weights": named,
            **({"threshold": 0.5} if several else {}),
        },
        reduce=_first,
        loss=label_loss(weights) if several else class_loss(weights),
        table=partial(multi_label_table if several else classification_table, labels=data.labels),
    )


def _rows(base: Base, corpus: Corpus, data: Split, options: TrainOptions) -> tuple[list[Row], int]:
    """One row of model inputs for each text or window, and how many texts were cut."""
    cutting: dict[str, Any] = {"truncation": True, "max_length": options.length}
    if options.windows:
        cutting |= {"return_overflowing_tokens": True, "stride": _overlap(base, options.length)}
    encoded = base.tokenizer([example.text for example in corpus], **cutting)
    owners = encoded.pop("overflow_to_sample_mapping", list(range(len(corpus))))
    truth = [_truth(example, data) for example in corpus]
    rows = list[Row]()
    for number, owner in enumerate(owners):
        example = corpus.examples[owner]
        row: Row = {name: values[number] for name, values in encoded.items()} | {"labels": truth[owner]}
        if not row["input_ids"]:
            raise TrainingError(f"the text of row {example.id!r} has no token for {base.name}: remove the row.")
        if base.model.config.is_encoder_decoder:
            _check_end(base, example.id, row["input_ids"])
        rows.append(row | ({TEXT: owner} if options.windows else {}))
    return rows, 0 if options.windows else sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])


def _truth(example: Example, data: Split) -> int | list[float]:
    """The number of the row's label, or of each label whether the row has it."""
    labels = taught(example, data.task)
    if data.task == MULTI_LABEL:
        return [float(label in labels) for label in data.labels]
    return data.labels.index(labels[0])


def _overlap(base: Base, length: int) -> int:
    """Tokens of a window that the next one repeats."""
    room = length - base.tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise TrainingError(f"max_length={length} leaves no room for text: raise --max-length.")
    return int(OVERLAP * room)


def _first(logits: Any, labels: Tensor) -> Tensor:
    """The logits without the hidden states that some models return beside them."""
    return logits[0] if isinstance(logits, tuple) else logits


def _check_end(base: Base, row: str, ids: list[int]) -> None:
    """An encoder–decoder classifies at the end-of-text token, of which each text must have one."""
    number = base.model.config.eos_token_id
    token = "(none)" if number is None else base.tokenizer.convert_ids_to_tokens(number)
    count = ids.count(number) if isinstance(number, int) else 0
    if count == 0:
        raise UnsupportedModel(
            f"{base.name} classifies at the end-of-text token {token!r}, which the tokenizer of {base.name} does not "
            "add: give it a tokenizer that ends texts with it."
        )
    if count > 1:
        raise TrainingError(
            f"the text of row {row!r} holds {token!r} {count} times, and {base.name} classifies at the only one: "
            "remove it from the text."
        )
