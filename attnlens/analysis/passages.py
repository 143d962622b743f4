"""Texts for the eye: the attention each word receives in base and tuned."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from attnlens.analysis.prepare import Prepared, assemble
from attnlens.analysis.results import Passage
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.record import record
from attnlens.text.align import words

# Single heads shown beside the mean of each layer.
TOP_HEADS = 4


def choose_passages(
    models: Sequence[Checkpoint],
    prepared: Prepared,
    tests: pd.DataFrame,
    count: int,
    seed: int,
) -> tuple[Passage, ...]:
    """`count` texts drawn at random among those with a marked word (all, where none is marked), with their maps."""
    marks = next(iter(prepared.marks.values()), None)
    candidates = [
        i
        for i, encoded in enumerate(prepared.encodings)
        if (encoded.word_of >= 0).any()
        and (marks is None or (marks[i] & np.isin(np.arange(len(marks[i])), encoded.word_of)).any())
    ]
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(candidates)[:count].tolist())
    return tuple(_passage(models, prepared, tests, index) for index in chosen)


def top_heads(tests: pd.DataFrame) -> list[tuple[int, int]]:
    """The heads whose focus (entropy, where no word is marked) changed most, of the first tuned model."""
    family = "focus head" if (tests["family"] == "focus head").any() else "entropy head"
    rows = tests[tests["family"] == family]
    rows = rows[(rows["model"] == rows["model"].iloc[0]) & (rows["salience"] == rows["salience"].iloc[0])]
    largest = rows.assign(size=rows["estimate"].abs()).nlargest(TOP_HEADS, "size")
    return [(int(layer), int(head)) for layer, head in zip(largest["layer"], largest["head"], strict=True)]


def _passage(models: Sequence[Checkpoint], prepared: Prepared, tests: pd.DataFrame, index: int) -> Passage:
    example, encoded = prepared.examples[index], prepared.encodings[index]
    maps = np.stack([_received(model, prepared, index) for model in models])  # (M, L, H, T)
    heads = [(layer, -1) for layer in range(maps.shape[1])] + top_heads(tests)
    chosen = np.stack([np.nanmean(maps[:, layer], 1) if head < 0 else maps[:, layer, head] for layer, head in heads], 1)
    intervals = words(example.text)
    of_words = np.zeros((*chosen.shape[:2], len(intervals)))
    inside = encoded.word_of >= 0
    np.add.at(np.moveaxis(of_words, -1, 0), encoded.word_of[inside], np.moveaxis(chosen[..., inside], -1, 0))
    pieces, is_word, position = [], [], 0
    end = int(encoded.offsets[~encoded.special, 1].max(initial=0))  # what truncation left
    seen = [number for number, (_, stop) in enumerate(intervals) if stop <= end]
    for number in seen:
        start, stop = intervals[number]
        if start > position:
            pieces.append(example.text[position:start])
            is_word.append(False)
        pieces.append(example.text[start:stop])
        is_word.append(True)
        position = stop
    if position < end:
        pieces.append(example.text[position:end])
        is_word.append(False)
    marked = np.zeros(len(pieces), dtype=bool)
    received = np.zeros((*chosen.shape[:2], len(pieces)))
    received[..., np.array(is_word)] = of_words[..., seen]
    if prepared.marks:
        marked[np.array(is_word)] = next(iter(prepared.marks.values()))[index][seen]
    return Passage(
        example.id, example.label, tuple(pieces), tuple(is_word), tuple(marked.tolist()), tuple(heads), 100 * received
    )


def _received(checkpoint: Checkpoint, prepared: Prepared, index: int) -> np.ndarray:
    """(L, H, T) attention each token receives from the selected rows, as a share of what content receives.

    Received attention is counted against uniform rows (METRICS 3.5), so that early tokens of a decoder do not win by
    being visible more often; for a single row the two are the same.
    """
    batch = assemble(prepared, np.array([index]), checkpoint)
    recorder = record(checkpoint.backbone, ("received",), rows=batch.rows, without_virtual=True)
    with torch.inference_mode(), checkpoint.active(), recorder as tape:
        checkpoint.backbone(input_ids=batch.ids, attention_mask=batch.mask)
    content = batch.columns[0, :, 0].cpu().numpy()
    received = tape["received"][0].cpu().numpy().astype(np.float64) * content
    received = np.where((content > 0) & ~np.isnan(received), received, 0.0)  # no row may see a key through a window
    return received / np.maximum(received.sum(-1, keepdims=True), np.finfo(float).tiny)
