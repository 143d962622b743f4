"""Characters ↔ words ↔ tokens. Words come from the text alone, tokens join them by character offsets."""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from attnlens.core.errors import ShapeError, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Apostrophes, hyphens, the soft hyphen of typesetters, and the joiners of Persian and Indic scripts.
_INNER = "'’‐‑\u00ad\u200c\u200d-"


@cache
def _word_pattern() -> re.Pattern[str]:
    # `\w` holds no combining marks, so it would cut Devanagari words and decomposed accents in two.
    ranges = list[list[int]]()
    for code in (*range(0x20000), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(chr(code)).startswith("M"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    letter = rf"[^\W_{HAN}]"
    run = rf"{letter}+(?:[{marks}]+{letter}*)*"
    return re.compile(rf"{run}(?:[{_INNER}]{run})*|[{HAN}][{marks}]*")


def words(text: str) -> list[tuple[int, int]]:
    """Character intervals [start, end) of the words of a text: W of them, in order, disjoint.

    A word is a run of letters, digits and combining marks, with apostrophes and hyphens inside it ("licensor's",
    "co-branded"). Every Chinese character is a word; other scripts written without spaces come out as runs.
    """
    return [match.span() for match in _word_pattern().finditer(text)]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as a model reads it: T tokens and the word each belongs to."""

    ids: np.ndarray  # (T,) int64
    offsets: np.ndarray  # (T, 2) int64, characters [start, end)
    special: np.ndarray  # (T,) bool
    word_of: np.ndarray  # (T,) int64, index into words(text), -1 where a token is part of no word


def encode(tokenizer: "PreTrainedTokenizerBase", text: str, max_length: int) -> Encoded:
    """Tokens of `text`, cut at `max_length`, each with its characters and its word.

    A token belongs to the word it shares most characters with (the first one where it shares as many with two).
    Special tokens, also those spelled out in the text, and tokens without word characters belong to none.
    """
    if not tokenizer.is_fast:
        raise UnsupportedModel(
            "joining tokens to words needs the character offsets of a fast tokenizer; "
            f"{type(tokenizer).__name__} is a slow one. Save the checkpoint with a tokenizer.json."
        )
    batch = tokenizer(
        text,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ids = np.array(batch["input_ids"], dtype=np.int64)
    if len(ids) > max_length:
        # Where the special tokens alone fill the length, transformers does not truncate at all.
        needed = tokenizer.num_special_tokens_to_add()
        raise ShapeError(
            f"max_length needs room for {needed} special tokens and text; got {max_length}. Raise it above {needed}."
        )
    offsets = np.array(batch["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    # The mask of the tokenizer marks only what it added. The covered text tells "[SEP]" in the text from an
    # unknown character, which must stay content even where the padding token is the unknown token (Llama).
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    spelled = [
        index in added and text[start:end].strip() == added[index]
        for index, (start, end) in zip(ids.tolist(), offsets.tolist(), strict=True)
    ]
    special = np.array(batch["special_tokens_mask"], dtype=bool) | np.array(spelled, dtype=bool)
    word_of = np.where(special, -1, _owners(offsets, words(text)))
    return Encoded(ids, offsets, special, word_of)


def _owners(offsets: np.ndarray, intervals: list[tuple[int, int]]) -> np.ndarray:
    """Index of the word that each token overlaps most, or -1: (T, 2) int -> (T,) int."""
    starts, ends = np.array(intervals, dtype=np.int64).reshape(-1, 2).T
    first = np.searchsorted(ends, offsets[:, 0], side="right")  # first word that ends after the token starts
    last = np.searchsorted(starts, offsets[:, 1], side="left") - 1  # last word that starts before it ends
    touching = (first <= last) & (offsets[:, 0] < offsets[:, 1])
    owner = np.where(touching, first, -1)
    for token in np.flatnonzero(touching & (first < last)):
        span = slice(first[token], last[token] + 1)
        shared = np.minimum(ends[span], offsets[token, 1]) - np.maximum(starts[span], offsets[token, 0])
        owner[token] = first[token] + np.argmax(shared)
    return owner


def pieces(encoded: Encoded, n_words: int) -> np.ndarray:
    """Tokens of each word, 0 for words that truncation cut off: (n_words,) int64."""
    _check_words(encoded, n_words)
    return np.bincount(encoded.word_of[encoded.word_of >= 0], minlength=n_words)


def token_weights(encoded: Encoded, word_weights: np.ndarray) -> np.ndarray:
    """Weight of each token: its word's, 0 outside words: (W,) float -> (T,) float64."""
    _check_words(encoded, len(word_weights))
    outside = np.append(np.asarray(word_weights, dtype=np.float64), 0.0)
    return outside[encoded.word_of]  # index -1 is the appended 0


def partition(encoded: Encoded, marked: np.ndarray) -> np.ndarray:
    """Group of each token: 0 other content, 1 salient, 2 special; (W,) bool -> (T,) int64."""
    salient = token_weights(encoded, marked) > 0
    return np.where(encoded.special, 2, salient.astype(np.int64))


def _check_words(encoded: Encoded, n_words: int) -> None:
    needed = int(encoded.word_of.max(initial=-1)) + 1
    if n_words < needed:
        raise ShapeError(
            f"one value for each word of the text is needed, at least {needed}; got {n_words}. "
            "Count them with words(text)."
        )
