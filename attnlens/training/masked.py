"""The task of text alone on an encoder: tokens that a mask hides, judged by the mean loss of the hidden ones.

As Devlin et al. 2019, 3.1: of 15 % of the tokens, special ones never, 80 % become the mask, 10 % a random token and
10 % stay; all of them are predicted. A text of any length has at least one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus
from attnlens.training.base import Base
from attnlens.training.language import language_metrics, right_padded
from attnlens.training.losses import IGNORED, class_loss
from attnlens.training.options import TrainOptions
from attnlens.training.split import Split
from attnlens.training.work import Row, Work

SHARE, MASK, RANDOM = 0.15, 0.8, 0.1


def masked_modelling(base: Base, data: Split, options: TrainOptions, seed: int) -> Work:
    """Windows of the texts; the best step is that of the least loss on the held-out ones.

    What is hidden there is fixed by the seed, so that evaluations compare; in training it is drawn for each batch.
    counts: `heldout_tokens` are those that are predicted.
    """
    tokenizer = base.tokenizer
    train, heldout = (_windows(tokenizer, part, options.length) for part in (data.train, data.heldout))
    hidden = [hide(tokenizer, row["input_ids"], [seed, number]) for number, row in enumerate(heldout)]
    return Work(
        task=data.task,
        train=train,
        heldout=hidden,
        collate=partial(hidden_batch, tokenizer=tokenizer, seed=seed),
        measure=language_metrics,
        best="token_loss",
        higher=False,
        start=True,
        counts={
            "truncated": 0,
            "train_windows": len(train),
            "heldout_windows": len(heldout),
            "train_tokens": sum(len(row["input_ids"]) for row in train),
            "heldout_tokens": sum(label != IGNORED for row in hidden for label in row["labels"]),
        },
        reduce=hidden_losses,
        loss=class_loss(),
    )


def hide(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], seed: Sequence[int]) -> Row:
    """Ids as the model sees them, and those to predict as labels; drawn by the seed."""
    generator = np.random.default_rng(seed)
    known, special = np.array(ids), list(set(tokenizer.all_special_ids))
    open_ = np.flatnonzero(~np.isin(known, special))
    chosen = generator.choice(open_, max(1, round(SHARE * len(open_))), replace=False)
    fate = generator.random(len(chosen))
    words = np.setdiff1d(np.arange(len(tokenizer)), special)
    seen, labels = known.copy(), np.full(len(known), IGNORED)
    labels[chosen] = known[chosen]
    seen[chosen[fate < MASK]] = tokenizer.mask_token_id
    random = chosen[(fate >= MASK) & (fate < MASK + RANDOM)]
    seen[random] = generator.choice(words, len(random))
    return {"input_ids": seen.tolist(), "labels": labels.tolist()}


def hidden_batch(rows: list[Row], tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, Tensor]:
    """A batch; of rows without labels what is hidden is drawn anew in every pass.

    By the seed, the rows, which differ between processes, and torch's global generator, which a run that is taken up
    again finds as it was.
    """
    if "labels" in rows[0]:
        return right_padded(rows)
    numbers = [crc32(np.array(row["input_ids"]).tobytes()) for row in rows]
    state = [seed, int(torch.randint(2**31, ())), *numbers]
    return right_padded([hide(tokenizer, row["input_ids"], [*state, place]) for place, row in enumerate(rows)])


def hidden_losses(logits: Any, labels: Tensor) -> Tensor:
    """Sum of the losses of a row's hidden tokens, in nats, and their number: (B, T, V), (B, T) -> (B, 2)."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    sums = [
        cross_entropy(row.float(), target, ignore_index=IGNORED, reduction="sum")
        for row, target in zip(logits, labels, strict=True)
    ]
    return torch.stack([torch.stack(sums), (labels != IGNORED).sum(1).to(sums[0])], dim=1)


def _windows(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, length: int) -> list[Row]:
    """Windows of `length` tokens, the tokenizer's own included; every token of a text stands in one."""
    if length <= tokenizer.num_special_tokens_to_add():
        raise TrainingError(f"max_length={length} leaves no room for text: raise --max-length.")
    encoded = tokenizer(
        [example.text for example in corpus], truncation=True, max_length=length, return_overflowing_tokens=True
    )
    special = set(tokenizer.all_special_ids)
    kept = [ids for ids in encoded["input_ids"] if not special.issuperset(ids)]
    if not kept:
        raise TrainingError(f"the {len(corpus)} rows of {corpus.name} have no token to hide: give longer texts.")
    return [{"input_ids": ids} for ids in kept]
