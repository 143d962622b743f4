"""The task of labelled spans: the class of each token, judged by token and by whole entity.

Scheme IO: a token has the class of the span that covers it, or "O"; an entity is a run of tokens of one class. Compared
with BIO that halves the classes, which small data needs, and it costs only this: two spans of one label that touch are
one entity. Every piece of a word has its class; special tokens have none. Where spans overlap, the first listed wins.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction

from attnlens.core.errors import TrainingError
from attnlens.text.align import encode
from attnlens.text.corpus import Corpus, Example
from attnlens.training.base import Base
from attnlens.training.language import right_padded
from attnlens.training.losses import IGNORED, balanced_weights, class_loss
from attnlens.training.options import TrainOptions
from attnlens.training.scores import class_table, macro_f1
from attnlens.training.split import Split
from attnlens.training.work import Row, Work


def token_classification(base: Base, data: Split, options: TrainOptions) -> Work:
    """Texts cut at the options' length with the class of each token; the best step is that of the least loss.

    Where spans are rare every token is first "O" and macro-F1 is 0 for long: patience would run out before it rises.
    """
    parts = {
        name: [token_row(base, example, data.labels, options.length) for example in corpus]
        for name, corpus in {"train": data.train, "heldout": data.heldout}.items()
    }
    outside = data.labels.index("O")  # a head that the base has for these labels keeps their order
    for name, corpus in {"train": data.train, "heldout": data.heldout}.items():
        _check_tokens(parts[name], corpus, options.length, outside)
    train, heldout = ([row for row, _ in rows] for rows in parts.values())
    classes = np.concatenate([row["labels"] for row in train])
    known = classes[classes != IGNORED]
    weights = balanced_weights(known, len(data.labels)) if options.class_weights else None
    return Work(
        task=data.task,
        train=train,
        heldout=heldout,
        collate=right_padded,
        measure=partial(token_metrics, outside=outside),
        best="token_loss",
        higher=False,
        start=False,
        counts={
            "truncated": sum(cut for _, cut in parts["train"]),
            "scheme": "IO",
            "class_weights": None if weights is None else dict(zip(data.labels, weights.tolist(), strict=True)),
            "train_tokens": len(known),
        },
        reduce=partial(token_guesses, weights=weights),
        loss=class_loss(weights),
        table=partial(_table, labels=data.labels),
    )


def token_row(base: Base, example: Example, labels: tuple[str, ...], length: int) -> tuple[Row, bool]:
    """Ids and classes of a text's tokens, and whether its end was cut off.

    A token belongs to a span that covers any of its characters, blanks before it aside: byte-level tokens begin with
    the blank that parts them from the word before.
    """
    encoded = encode(base.tokenizer, example.text, length)
    starts = [
        end - len(example.text[start:end].lstrip()) if example.text[start:end].strip() else start
        for start, end in encoded.offsets.tolist()
    ]
    ends = encoded.offsets[:, 1]
    classes = np.full(len(ends), labels.index("O"))
    for span in reversed(example.spans or ()):
        assert span.label is not None
        classes[(np.array(starts) < span.end) & (ends > span.start)] = labels.index(span.label)
    classes[encoded.special] = IGNORED
    cut = int(ends.max(initial=0)) < len(example.text.rstrip())
    return {"input_ids": encoded.ids.tolist(), "labels": classes.tolist()}, cut


def token_guesses(logits: Any, labels: Tensor, weights: np.ndarray | None = None) -> Tensor:
    """The class with the highest logit, and the loss of the true one: (B, T, C), (B, T) -> (B, T, 2)."""
    logits = (logits[0] if isinstance(logits, tuple) else logits).float()
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=logits.device)
    losses = cross_entropy(logits.transpose(1, 2), labels, weight, ignore_index=IGNORED, reduction="none")
    return torch.stack([logits.argmax(-1).to(losses), losses], dim=-1)


def token_metrics(prediction: EvalPrediction, outside: int = 0) -> dict[str, float]:
    """Of all tokens that have a class: mean loss, accuracy, macro-F1 of the classes that occur, "O" left out.

    outside: the number of "O".

    entity_f1: 2 · entities found with their exact borders and class / (true entities + predicted ones). Hand example:
    truth O A A O B, predicted O A A B B → accuracy 4/5, macro-F1 (1 + 2/3)/2 = 5/6; true entities A[1,3) B[4,5),
    predicted A[1,3) B[3,5): 2·1/4 = 1/2.
    """
    truth, guess, losses = _known(prediction)
    every, found = np.concatenate(truth), np.concatenate(guess)
    occurring = np.unique(every)
    real, claimed = ([entities(row, outside) for row in rows] for rows in (truth, guess))
    total = sum(map(len, real)) + sum(map(len, claimed))
    hits = sum(len(left & right) for left, right in zip(real, claimed, strict=True))
    return {
        "token_loss": float(np.concatenate(losses).mean()),
        "accuracy": float(accuracy_score(every, found)),
        "macro_f1": macro_f1(every, found, occurring[occurring != outside]),
        "entity_f1": 2 * hits / total if total else 0.0,
    }


def entities(classes: np.ndarray, outside: int = 0) -> set[tuple[int, int, int]]:
    """(first token, token behind the last, class) of each run of one class other than `outside`."""
    borders = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), len(classes)]
    runs = pairwise(borders)
    return {(start, end, int(classes[start])) for start, end in runs if end > start and classes[start] != outside}


def _table(prediction: EvalPrediction, labels: tuple[str, ...]) -> dict[str, Any]:
    truth, guess, _ = _known(prediction)
    return class_table(np.concatenate(truth), np.concatenate(guess), labels)


def _known(prediction: EvalPrediction) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """True classes, predicted classes and losses of each row's tokens, special ones and padding left out."""
    truth, kept = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
    masks = truth != IGNORED
    rows = list(zip(truth, kept, masks, strict=True))
    return (
        [row[mask] for row, _, mask in rows],
        [row[mask, 0].astype(int) for _, row, mask in rows],
        [row[mask, 1].astype(np.float64) for _, row, mask in rows],
    )


def _check_tokens(rows: list[tuple[Row, bool]], corpus: Corpus, length: int, outside: int) -> None:
    """Some token of each part must lie in a span, or there is nothing to learn or to judge."""
    if not any(label not in (outside, IGNORED) for row, _ in rows for label in row["labels"]):
        raise TrainingError(
            f"no token of the {len(corpus)} rows of {corpus.name} lies in a span within {length} tokens: raise "
            "--max-length, or cut the texts around their spans."
        )
