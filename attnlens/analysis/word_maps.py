"""Who looks at whom in one text, word by word, kept at four bits a number: small enough for a page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnlens.text.align import Encoded

STEPS = 15  # the largest level of four bits
ONE = 65535  # a scale of 1
BETWEEN = "between words"


@dataclass(frozen=True, eq=False)
class WordMaps:
    """Maps of one text from unit to unit: rows look, columns are looked at.

    Units are the words of the text in order, then what is no word (`outside`): each special token, and all tokens
    between words (punctuation, a word that truncation cut) as one. A row is the mean over the pieces of the word that
    looks, a column the sum over the pieces of the word that is looked at, so that a row adds up to 1 (to less where a
    model has learned sinks). Virtual tokens of prompt tuning are left out, and the rest scaled to 1.

    silent: units without a token of their own, which look at nothing. levels: (model, map, unit, unit) uint8, 0 … 15.
    scales: (map, 2) uint16, the largest attention that a word and that another unit gets in that map, in 65535ths; one
    for all models, so that what tuning left alone stays equal. Attention ≈ (level / 15)² · scale. The root keeps small
    values apart: with s = scale, a value v is off by at most s·(√(v/s) / 15 + 1 / 900), which is below s / 14.
    """

    outside: tuple[str, ...]
    silent: tuple[int, ...]
    levels: np.ndarray
    scales: np.ndarray

    @property
    def words(self) -> int:
        """How many units are words: they come first."""
        return self.levels.shape[-1] - len(self.outside)

    @property
    def values(self) -> np.ndarray:
        """(model, map, unit, unit) attention, 0 … 1, as stored; the rows of silent units are NaN."""
        values = (self.levels / STEPS) ** 2 * _of_columns(self.scales / ONE, self.words, self.levels.shape[-1])
        values[..., self.silent, :] = np.nan
        return values


def quantised(maps: np.ndarray, outside: Sequence[str]) -> WordMaps:
    """`maps` (model, map, unit, unit) at four bits; the last units are `outside`, NaN rows hold no data."""
    silent = np.flatnonzero(np.isnan(maps).any((0, 1, 3)))
    known = np.nan_to_num(maps)
    units, words = known.shape[-1], known.shape[-1] - len(outside)
    parts = known[..., :words], known[..., words:]
    scales = np.stack([np.ceil(ONE * part.max((0, 2, 3), initial=0.0)) for part in parts], -1).clip(max=ONE)
    share = known / _of_columns(np.maximum(scales, 1) / ONE, words, units)
    levels = np.rint(STEPS * np.sqrt(share)).clip(max=STEPS)
    return WordMaps(tuple(outside), tuple(silent.tolist()), levels.astype(np.uint8), scales.astype(np.uint16))


def _of_columns(scales: np.ndarray, words: int, units: int) -> np.ndarray:
    """(map, 2) scales, of words and of other units, for each column: (map, 1, unit)."""
    return scales.repeat((words, units - words), -1)[:, None]


def units_of(encoded: Encoded, words: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The unit of each token, (T,), and the positions of the special tokens; `words` are the words that are whole.

    Units: the words, the special tokens, and the rest where there is any.
    """
    number = {word: unit for unit, word in enumerate(words)}
    special = np.flatnonzero(encoded.special)
    rest = len(number) + len(special)
    unit = np.array([number.get(word, rest) for word in encoded.word_of.tolist()], dtype=np.int64)
    unit[special] = len(number) + np.arange(len(special))
    return unit, special


def folded(maps: Tensor, unit: np.ndarray, units: int) -> Tensor:
    """Maps from token to token (N, T, T) as maps from unit to unit (N, U, U), NaN where no token of a unit looks.

    unit: (T,) the unit of each token. Mean over the tokens that look, sum over those looked at.
    """
    belongs = torch.from_numpy(unit)
    looks = ~maps[..., :1].isnan()  # (N, T, 1)
    counts = torch.zeros(len(maps), units, 1).index_add_(1, belongs, looks.float())
    rows = maps.new_zeros(len(maps), units, maps.shape[2]).index_add_(1, belongs, torch.where(looks, maps, 0.0))
    columns = maps.new_zeros(len(maps), units, units).index_add_(1, belongs, rows.transpose(1, 2).contiguous())
    return columns.transpose(1, 2) / counts
