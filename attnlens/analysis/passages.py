"""Texts for the eye: the attention each word receives in base and tuned, and where each word looks."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attnlens.analysis.prepare import Prepared, assemble
from attnlens.analysis.results import Passage
from attnlens.analysis.word_maps import BETWEEN, folded, quantised, units_of
from attnlens.checkpoints.dense import MAP
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.record import record
from attnlens.text.align import words

# Texts up to so many tokens show every head; longer ones the mean of each layer and the heads that changed most.
SHORT = 64
TOP_HEADS = 8
TINY = np.finfo(float).tiny
LONG = 512  # tokens; above, who looks at whom is too much for the eye, and for a page


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


def head_tests(tests: pd.DataFrame, model: str) -> pd.DataFrame:
    """The tests of one tuned model's heads: of their focus, or of their entropy where no word is marked."""
    family = "focus head" if (tests["family"] == "focus head").any() else "entropy head"
    rows = tests[(tests["family"] == family) & (tests["model"] == model)]
    return rows[rows["salience"] == rows["salience"].iloc[0]] if len(rows) else rows


def top_heads(tests: pd.DataFrame, model: str) -> list[tuple[int, int]]:
    """The heads of a tuned model whose focus (entropy, where no word is marked) changed most, the first the most."""
    rows = head_tests(tests, model)
    largest = rows.assign(size=rows["estimate"].abs()).nlargest(TOP_HEADS, "size")
    return [(int(layer), int(head)) for layer, head in zip(largest["layer"], largest["head"], strict=True)]


def _passage(models: Sequence[Checkpoint], prepared: Prepared, tests: pd.DataFrame, index: int) -> Passage:
    example, encoded = prepared.examples[index], prepared.encodings[index]
    end = int(encoded.offsets[~encoded.special, 1].max(initial=0))  # what truncation left
    intervals = words(example.text)
    seen = [number for number, (_, stop) in enumerate(intervals) if stop <= end]
    pieces, is_word = _pieces(example.text[:end], [intervals[number] for number in seen])
    unit, special = units_of(encoded, seen)
    outside = [str(name) for name in models[0].tokenizer.convert_ids_to_tokens(encoded.ids[special].tolist())]
    outside += [BETWEEN] if int(unit.max(initial=0)) == len(seen) + len(special) else []
    chosen, maps, heads = [], [], []
    for model in models:
        received, dense = _looked(model, prepared, index)
        heads = _heads(received, tests, len(encoded.ids))
        chosen.append(_chosen(received, heads))
        maps += [] if dense is None else [folded(_chosen(dense, heads), unit, len(seen) + len(outside))]
    received = torch.stack(chosen).numpy()
    of_words = np.zeros((*received.shape[:2], len(pieces)))
    place = np.flatnonzero(is_word)[unit[unit < len(seen)]]
    np.add.at(np.moveaxis(of_words, -1, 0), place, np.moveaxis(received[..., unit < len(seen)], -1, 0))
    marked = np.zeros(len(pieces), dtype=bool)
    if prepared.marks:
        marked[np.array(is_word)] = next(iter(prepared.marks.values()))[index][seen]
    return Passage(
        id=example.id,
        label=example.label,
        words=tuple(pieces),
        is_word=tuple(is_word),
        marked=tuple(marked.tolist()),
        heads=tuple(heads),
        received=100 * of_words,
        maps=quantised(torch.stack(maps).numpy(), outside) if maps else None,
    )


def _pieces(text: str, intervals: Sequence[tuple[int, int]]) -> tuple[list[str], list[bool]]:
    """The words of a text and what stands between them, in order, and which are words."""
    pieces, is_word, position = [], [], 0
    for start, stop in intervals:
        if start > position:
            pieces.append(text[position:start])
            is_word.append(False)
        pieces.append(text[start:stop])
        is_word.append(True)
        position = stop
    if position < len(text):
        pieces.append(text[position:])
        is_word.append(False)
    return pieces, is_word


def _heads(received: Tensor, tests: pd.DataFrame, tokens: int) -> list[tuple[int, int]]:
    """Which maps are kept: the mean of each layer (head −1), then all heads, of a long text those that changed most."""
    of_layers = [(layer, -1) for layer in range(len(received))]
    if tokens <= SHORT:  # a layer may have fewer heads than another
        return of_layers + [(layer, head) for layer, head in (~received.isnan().all(-1)).nonzero().tolist()]
    return of_layers + top_heads(tests, str(tests["model"].iloc[0]))


def _chosen(maps: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
    """Maps (L, H, …) of the chosen heads, (N, …); head −1 is the mean over the heads that are there."""
    return torch.stack([maps[layer].nanmean(0) if head < 0 else maps[layer, head] for layer, head in heads])


def _looked(checkpoint: Checkpoint, prepared: Prepared, index: int) -> tuple[Tensor, Tensor | None]:
    """From one pass: (L, H, T) attention each token receives, and the maps (L, H, T, T) unless the text is very long.

    Received attention is from the selected rows, as a share of what content receives, and counted against uniform rows
    (METRICS 3.5), so that early tokens of a decoder do not win by being visible more often; for a single row the two
    are the same. NaN where a layer has no such head.
    """
    batch, backbone = assemble(prepared, np.array([index]), checkpoint), checkpoint.backbone
    receiving = record(backbone, ("received",), rows=batch.rows, without_virtual=True)
    looking = record(backbone, (MAP,), without_virtual=True) if batch.ids.shape[1] <= LONG else nullcontext()
    with torch.inference_mode(), checkpoint.active(), receiving as received, looking as looked:
        backbone(input_ids=batch.ids, attention_mask=batch.mask)
    content = batch.columns[0, :, 0].double()
    shares = received["received"][0].double() * content
    there = ~shares.isnan().all(-1, keepdim=True)
    shares = torch.where(content > 0, shares, 0.0).nan_to_num(0.0)  # no row may see a key through a window
    shares = torch.where(there, shares / shares.sum(-1, keepdim=True).clamp(min=TINY), torch.nan)
    return shares.cpu(), None if looked is None else looked[MAP][0].cpu()
