"""The task of rows without labels: the next token, judged by the mean loss of the predicted tokens."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction, PreTrainedTokenizerBase

from attnlens.core.errors import TrainingError
from attnlens.text.chat import assistant_turns
from attnlens.text.corpus import Example
from attnlens.training.base import Base
from attnlens.training.losses import IGNORED
from attnlens.training.options import TrainOptions
from attnlens.training.split import Split
from attnlens.training.work import Row, Work


def language_modelling(base: Base, data: Split, options: TrainOptions) -> Work:
    """Windows of plain texts, completions of prompts; the best step is that of the least held-out loss.

    counts: `truncated` rows lost their end, `dropped` ones had nothing to predict left, of both parts together.
    """
    length = options.length
    if length < 2:
        raise TrainingError(f"max_length={length} leaves nothing to predict a token from: needed at least 2.")
    counts = {"truncated": 0, "dropped": 0}
    parts = dict[str, list[Row]]()
    for name, corpus in {"train": data.train, "heldout": data.heldout}.items():
        parts[name] = []
        for example in corpus:
            made, cut = language_rows(base.tokenizer, example, length)
            parts[name] += made
            counts["truncated"] += cut
            counts["dropped"] += not made
        if not parts[name]:
            raise TrainingError(
                f"none of the {len(corpus)} {name} rows of {corpus.name} has a token to predict within {length} "
                "tokens: give completions or longer texts, or raise --max-length."
            )
        counts[f"{name}_windows"] = len(parts[name])
        counts[f"{name}_tokens"] = sum(label != IGNORED for row in parts[name] for label in row["labels"])
    return Work(
        task=data.task,
        train=parts["train"],
        heldout=parts["heldout"],
        collate=right_padded,
        measure=language_metrics,
        best="token_loss",
        higher=False,
        start=True,
        counts=counts,
        reduce=token_losses,
    )


def language_rows(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> tuple[list[Row], bool]:
    """Token ids and labels of one example, none where nothing is to be predicted; and whether its end was cut off.

    The tokens are those the tokenizer gives the whole text, with what it adds by itself. Plain text: windows of
    `max_length` tokens, each of which begins with the last token of the one before, so that every token but the first
    is predicted, and once. Prompt and completion, and conversations: one row, of which the completion (what the
    assistant says) is to be predicted; a completion ends with the end-of-text token, a conversation as its template
    ends it. A token that lies partly in the prompt belongs to the completion.
    """
    if example.messages is None and example.completion is None:
        ids = tokenizer(example.text)["input_ids"]
        step = max_length - 1
        windows = [ids[start : start + max_length] for start in range(0, len(ids) - 1, step)]
        return [{"input_ids": window, "labels": [IGNORED, *window[1:]]} for window in windows], False
    text, turns = example.text, [(example.completion or 0, len(example.text))]
    if example.messages is not None:
        text, turns = assistant_turns(example, tokenizer)
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    said = [
        any(start < end and begin < end and start < stop for begin, stop in turns)
        for start, end in encoded["offset_mapping"]
    ]
    if not ids:
        return [], False
    if example.messages is None and tokenizer.eos_token_id is not None:
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
            said.append(True)
        said[-1] = True
    labels = [token if predicted else IGNORED for token, predicted in zip(ids, said, strict=True)]
    row = {"input_ids": ids[:max_length], "labels": [IGNORED, *labels[1:max_length]]}
    return [row] if any(label != IGNORED for label in row["labels"]) else [], len(ids) > max_length


def right_padded(rows: list[Row]) -> dict[str, Tensor]:
    """A batch: ids, mask and labels (B, T). The mask hides the padding, so its id may be any and needs no token.

    Padding is marked by length, not by id: where the end-of-text token serves as padding too, it is still learnt.
    """
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def token_losses(logits: Any, labels: Tensor) -> Tensor:
    """Sum of the losses of a row's predicted tokens, in nats, and their number: (B, T, V), (B, T) -> (B, 2).

    All that is kept of the logits: those of the whole held-out data would be its tokens times the vocabulary.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    sums = [
        cross_entropy(row[:-1].float(), target[1:], ignore_index=IGNORED, reduction="sum")
        for row, target in zip(logits, labels, strict=True)
    ]
    return torch.stack([torch.stack(sums), (labels[:, 1:] != IGNORED).sum(1).to(sums[0])], dim=1)


def language_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Mean loss of the predicted tokens, each counting once, and perplexity = exp(loss); from `token_losses`.

    Hand example: rows of 6 nats in 3 tokens and 1 nat in 1 token → 7/4 = 1.75 (a mean of means gives 1.5), exp 5.7546.
    """
    total, tokens = np.asarray(prediction.predictions, dtype=np.float64).sum(0)
    with np.errstate(over="ignore"):
        return {"token_loss": float(total / tokens), "perplexity": float(np.exp(total / tokens))}
