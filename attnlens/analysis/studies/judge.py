"""How good a checkpoint is on texts that had no part in its training: one number a text, not one for all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CorpusError, TrainingError
from attnlens.text.corpus import Corpus
from attnlens.training.language import language_rows
from attnlens.training.losses import IGNORED
from attnlens.training.split import CLASSIFICATION, LANGUAGE


@dataclass(frozen=True, eq=False)
class Judgement:
    """Quality on test texts. unit: "accuracy" or "loss"; higher: whether more is better.

    values (N,): of each text 1 where its label is named and 0 where not, or the mean loss of its predicted tokens in
    nats; NaN for a text without a token to predict. scores: numbers of the whole: accuracy and macro_f1 in 0..1, or
    loss and perplexity over all tokens.
    """

    unit: str
    higher: bool
    values: np.ndarray
    scores: dict[str, float]


def judge(
    checkpoint: Checkpoint, corpus: Corpus, record: dict[str, Any], *, max_length: int, batch_size: int
) -> Judgement:
    """A checkpoint that `attnlens.finetune` trained, on `corpus`. record: its training record, for task and labels.

    A classifier reads the first max_length tokens of a text. A language model predicts what it would learn from the
    text: all tokens but the first, of prompt and completion and of conversations what is answered. Raises TrainingError
    for tasks without one such number a text.
    """
    task = record.get("task")
    if task == CLASSIFICATION:
        return _classified(checkpoint, corpus, tuple(record["labels"]), max_length, batch_size)
    if task == LANGUAGE:
        return _predicted(checkpoint, corpus, max_length, batch_size)
    raise TrainingError(f"a study judges {CLASSIFICATION} and {LANGUAGE}; {checkpoint.name} was trained for {task}")


def _classified(
    checkpoint: Checkpoint, corpus: Corpus, labels: tuple[str, ...], max_length: int, batch_size: int
) -> Judgement:
    strange = sorted({str(example.label) for example in corpus} - set(labels))
    if strange:
        raise CorpusError(f"{corpus.name} has labels that were never trained: {', '.join(strange[:5])}")
    truth = np.array([labels.index(str(example.label)) for example in corpus])
    cutting: dict[str, Any] = {"truncation": True, "max_length": max_length}
    ids: Any = checkpoint.tokenizer([example.text for example in corpus], **cutting)["input_ids"]
    found = np.empty(len(ids), int)
    for numbers, logits in _logits(checkpoint, ids, batch_size):
        found[numbers] = logits.argmax(-1).cpu().numpy()
    right = (found == truth).astype(float)
    # Labels that no test text has and no answer names are out of the mean: of them nothing is known.
    scores = {"accuracy": float(right.mean()), "macro_f1": float(f1_score(truth, found, average="macro"))}
    return Judgement("accuracy", True, right, scores)


def _predicted(checkpoint: Checkpoint, corpus: Corpus, max_length: int, batch_size: int) -> Judgement:
    made = [language_rows(checkpoint.tokenizer, example, max_length)[0] for example in corpus]
    rows = [(owner, row["input_ids"], row["labels"]) for owner, some in enumerate(made) for row in some]
    sums, counts = np.zeros((2, len(made)))
    for numbers, logits in _logits(checkpoint, [ids for _, ids, _ in rows], batch_size):
        for given, number in zip(logits, numbers, strict=True):
            owner, _, labels = rows[number]
            wanted = torch.tensor(labels[1:], device=logits.device)
            loss = cross_entropy(given[: len(wanted)].double(), wanted, ignore_index=IGNORED, reduction="sum")
            sums[owner] += float(loss)
            counts[owner] += int((wanted != IGNORED).sum())
    values = np.divide(sums, counts, out=np.full(len(made), np.nan), where=counts > 0)
    loss = float(sums.sum() / counts.sum()) if counts.any() else float("nan")
    return Judgement("loss", False, values, {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0)))})


@torch.inference_mode()
def _logits(checkpoint: Checkpoint, ids: Sequence[list[int]], batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Logits of the texts in batches of like length, padded on the right, and the numbers of these texts."""
    model, pad = checkpoint.model, checkpoint.tokenizer.pad_token_id or 0
    order = np.argsort([len(text) for text in ids], kind="stable")
    with checkpoint.active():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            longest = max(len(ids[number]) for number in numbers)
            batch = torch.tensor([ids[number] + [pad] * (longest - len(ids[number])) for number in numbers])
            mask = torch.tensor([[1] * len(ids[number]) + [0] * (longest - len(ids[number])) for number in numbers])
            found = model(input_ids=batch.to(model.device), attention_mask=mask.to(model.device))
            # Virtual tokens stand before the text's.
            yield numbers, (found.logits[:, -longest:] if found.logits.ndim == 3 else found.logits).float()
