"""Salience by leave-one-word-out: how far a text's embedding moves when a word is missing."""

import numpy as np
import torch
from torch import Tensor

from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import AttnlensError
from attnlens.salience.aids import Aids, Marked
from attnlens.salience.encoder import is_tested, read
from attnlens.salience.ranking import mark_top
from attnlens.text.align import Encoded
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import content_flags

BATCH = 32


def find_irreplaceable(corpus: Corpus, aids: Aids) -> Marked:
    """Top 15 % of each text's content words by c_w = 1 − cos(e(x), e(x without w)).

    Refused where the third model is under test: what base or tuned holds central is not to be measured by itself.
    """
    assert aids.encoder is not None
    if is_tested(aids):
        raise AttnlensError(
            f"salience 'leave_one_out' asks a third model; {aids.encoder.name} is one of those under test. "
            "Give another --encoder DIR."
        )
    marks, beyond = [], 0
    for example, (encoded, pool) in zip(corpus, read(corpus, aids.encoder), strict=True):
        beyond += int((content_flags(example.text) & ~pool).sum())
        marks.append(mark_top(centrality(aids.encoder, encoded, pool)))
    return Marked(marks, {"words_beyond_encoder": beyond})


def centrality(encoder: Checkpoint, encoded: Encoded, pool: np.ndarray) -> np.ndarray:
    """c_w of the words of the pool, 0 to 2, NaN for the others: (W,) bool -> (W,) float64.

    The word's tokens are taken out of the text, which moves up. A text of this word alone has no embedding without
    it: NaN.
    """
    scores = np.full(len(pool), np.nan)
    left_out = [word for word in np.flatnonzero(pool) if (encoded.word_of[~encoded.special] != word).any()]
    variants = [encoded.ids] + [encoded.ids[encoded.word_of != word] for word in left_out]
    # Texts of like length stand together, so that little is padding; the whole text is the longest, and comes first.
    order = np.argsort([-len(ids) for ids in variants], kind="stable")
    found = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        found |= dict(zip(chosen.tolist(), _embed(encoder, [variants[i] for i in chosen]), strict=True))
    for place, word in enumerate(left_out, start=1):
        scores[word] = 1 - torch.cosine_similarity(found[0], found[place], dim=0).item()
    return scores


def _embed(encoder: Checkpoint, texts: list[np.ndarray]) -> Tensor:
    """Mean of the last hidden states over the tokens of each text: (B, D) float64."""
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)  # what stands under the mask is not read
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), 1
    ids, mask = ids.to(encoder.model.device), mask.to(encoder.model.device)
    with torch.inference_mode(), encoder.active():
        states = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state[:, -longest:]
    weights = mask.to(device="cpu", dtype=torch.float64)[..., None]
    return (states.cpu().double() * weights).sum(1) / weights.sum(1)
