"""Everything about the texts before a model runs: tokens, salient words, their controls, groups and rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlens.checkpoints.causality import is_causal
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CorpusError, IncompatibleCheckpoints, UnknownName
from attnlens.salience import Aids, find_words, mark_words
from attnlens.salience.controls import Control, match_rate, matched_controls
from attnlens.salience.placebos import random_words, swapped_words
from attnlens.salience.regression import regression_controls
from attnlens.text.align import Encoded, encode, pieces, token_weights, words
from attnlens.text.corpus import Corpus, Example

SELECTORS = {
    "cls": "the first token, which the classifier reads",
    "last": "the last token, which the classifier reads",
    "content": "every token that is not special",
    "completion": "the tokens of the completion, looking at the words of the prompt",
}
# The columns of each salience definition: all marked words; those with a control, and the controls (C1); as many random
# words (C2); and the words that another document's salience falls on (C3).
PER_DEFINITION = 5
MARKED, MATCHED, CONTROL, RANDOM, SWAPPED = range(PER_DEFINITION)
# Where fewer salient words find a match, the control is a regression (METRICS 2).
LEAST_MATCHED = 0.5
# Above this share of tokens, spans are whole passages; the headline then asks for the key words inside them.
LONG_SPANS = 0.20


@dataclass(frozen=True)
class Reading:
    """How texts are read.

    selector: which rows count (a name of SELECTORS). salience: definitions, the headline first. aids: what
    they look at besides the texts. max_length: tokens of a text. seed: of the drawn placebos (C2, C3).
    """

    selector: str
    salience: tuple[str, ...] = ()
    aids: Aids = field(default_factory=Aids)
    max_length: int = 512
    seed: int = 0

    def __post_init__(self):
        if self.selector not in SELECTORS:
            raise UnknownName.among("row selector", self.selector, SELECTORS)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tokenised texts with their group columns.

    columns: for each text (T, 1 + 5·S) float32: content, then marked, matched, control, random and swapped words of
    each definition (MARKED … SWAPPED).
    rows: for each text (T,) bool: the selected rows that see content.
    marks: for each definition, for each text, (W,) bool. facts: per definition, what was marked and matched.
    """

    examples: tuple[Example, ...]
    encodings: tuple[Encoded, ...]
    columns: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]
    marks: dict[str, list[np.ndarray]]
    facts: dict[str, dict[str, Any]]

    @property
    def salience(self) -> tuple[str, ...]:
        """Names of the definitions, the headline first."""
        return tuple(self.marks)


def choose_salience(corpus: Corpus, aids: Aids) -> tuple[str, ...]:
    """The default: the spans of the data, else keyness where it marks any word, else TextRank; the headline first.

    Keyness needs labels and enough training documents (the background). Spans that cover more than 20 % of the words
    stand second, behind the key words inside them (METRICS 2).
    """
    labels = len(corpus.labels) > 1
    if any(example.spans for example in corpus):
        marks = mark_words("spans", corpus, aids)
        share = np.concatenate(marks).mean()
        return ("spans_keyness", "spans") if share > LONG_SPANS and labels else ("spans",)
    if labels and any(mark.any() for mark in mark_words("keyness", corpus, aids)):
        return ("keyness",)
    return ("textrank",)


def prepare(corpus: Corpus, models: Sequence[Checkpoint], reading: Reading) -> Prepared:
    """Tokenise `corpus` for all models at once, mark salient words and draw their controls.

    Raises IncompatibleCheckpoints where the tokenizers disagree on any text, CorpusError where no text has a salient
    word within `max_length` tokens.
    """
    encodings = tuple(encode(models[0].tokenizer, example.text, reading.max_length) for example in corpus)
    for other in models[1:]:
        if other.tokenizer is not models[0].tokenizer:
            _check_same_ids(corpus, encodings, models[0], other, reading.max_length)
    decoder = is_causal(models[0].backbone)
    sides = [_sides(*pair, reading.selector, decoder) for pair in zip(corpus, encodings, strict=True)]
    rows = tuple(row & _sees(content, decoder) for content, row in sides)
    if not any(row.any() for row in rows):
        raise CorpusError(
            f"{corpus.name}: no text has a row to measure ({SELECTORS[reading.selector]}) within {reading.max_length} "
            "tokens; give other texts or a larger --max-length"
        )
    seen = [_seen_words(example, reading.selector) for example in corpus]
    counts = [pieces(encoded, len(inside)) * inside for encoded, inside in zip(encodings, seen, strict=True)]
    columns = [[content.astype(np.float32)] for content, _ in sides]
    marks, facts = {}, {}
    for name in reading.salience:
        found = find_words(name, corpus, reading.aids)
        marks[name] = [mark & inside for mark, inside in zip(found.words, seen, strict=True)]
        controls, rate = _controls(corpus, marks[name], counts)
        visible = [mark & (count > 0) for mark, count in zip(marks[name], counts, strict=True)]
        random = random_words(corpus, visible, counts, np.random.default_rng((reading.seed, RANDOM)))
        swapped = swapped_words(corpus, visible, counts, np.random.default_rng((reading.seed, SWAPPED)))
        for i, encoded in enumerate(encodings):
            for weights in (visible[i], controls[i].matched, controls[i].weights, random[i], swapped[i]):
                columns[i].append(token_weights(encoded, weights.astype(np.float32)) * sides[i][0])
        facts[name] = _facts(visible, counts, controls, rate) | _cut(marks[name], visible) | found.facts
        if not facts[name]["texts_with_salient_word"]:
            raise CorpusError(
                f"{corpus.name}: no text has a salient word by {name!r} within {reading.max_length} tokens; "
                "try another --salience or a larger --max-length"
            )
    stacked = tuple(np.stack(column, -1).astype(np.float32) for column in columns)
    return Prepared(corpus.examples, encodings, stacked, rows, marks, facts)


def _sides(example: Example, encoded: Encoded, selector: str, decoder: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are looked at and which look, (T,) bool each: content, and the rows of the selector.

    Content are no specials, nor position 0 of a decoder, whatever stands there (METRICS 4).
    """
    content = ~encoded.special
    rows = content.copy()
    if decoder:
        content[:1] = False
    if selector == "completion":
        if example.completion is None:
            raise CorpusError(f"row {example.id!r} has no completion: rows of the completion need one in every text")
        late = encoded.offsets[:, 1] > example.completion  # as in training, a token across the border is completion
        content, rows = content & ~late, rows & late
    elif selector != "content":
        rows = np.zeros(len(rows), dtype=bool)
        rows[{"cls": slice(0, 1), "last": slice(-1, None)}[selector]] = True
    return content, rows


def _seen_words(example: Example, selector: str) -> np.ndarray:
    """(W,) bool: words that rows may look at; with completion rows those of the prompt."""
    end = example.completion if selector == "completion" and example.completion is not None else len(example.text)
    return np.array([stop <= end for _, stop in words(example.text)], dtype=bool)


def _controls(corpus: Corpus, marks: list[np.ndarray], counts: list[np.ndarray]) -> tuple[list[Control], float]:
    """Control C1 and the match rate: matched words, or per text a regression where too few words have a match."""
    controls = matched_controls(corpus, marks, counts)
    rate = match_rate(controls)
    return (regression_controls(corpus, marks, counts) if rate < LEAST_MATCHED else controls), rate


def _facts(visible: list[np.ndarray], counts: list[np.ndarray], controls: list[Control], rate: float) -> dict[str, Any]:
    """What page one and the tables need: how much is in sight, and what it is held against."""
    tokens = sum(int(count.sum()) for count in counts)
    salient = sum(int(count[mark].sum()) for count, mark in zip(counts, visible, strict=True))
    without = sum(mark.any() and not control.weights.any() for mark, control in zip(visible, controls, strict=True))
    return {
        "token_share": salient / tokens if tokens else float("nan"),
        "texts_with_salient_word": float(sum(bool(mark.any()) for mark in visible)),
        "texts_without_salient_word": float(sum(not mark.any() for mark in visible)),
        "match_rate": rate,  # NaN where no content word is marked
        "control": "regression" if rate < LEAST_MATCHED else "matched",
        "texts_without_control": float(without),  # of those with a salient word
    }


def _cut(marks: list[np.ndarray], visible: list[np.ndarray]) -> dict[str, Any]:
    """How much was marked before truncation, and how much it cost."""
    total = sum(len(mark) for mark in marks)
    salient = sum(int(mark.sum()) for mark in marks)
    seen = sum(int(mark.sum()) for mark in visible)
    return {"marked_share": salient / max(total, 1), "salient_words_cut": float(salient - seen)}


def salience_warnings(prepared: Prepared) -> list[str]:
    """What page one must say about what was marked, and what it was held against."""
    texts, found = len(prepared.examples), []
    for name, facts in prepared.facts.items():
        if facts.get("circular"):
            found.append(
                f"The words of {name} come from a model under test: that its attention lies on them is circular, "
                "and no evidence of focus."
            )
        if facts["control"] == "regression":
            found.append(
                f"Only {facts['match_rate']:.0%} of the words marked by {name} have a matched ordinary word nearby: "
                "the net change is, text by text, what a regression on position, pieces and frequency leaves to them."
            )
        if facts["texts_without_control"]:
            without = f"{facts['texts_without_control']:.0f} of {texts}"
            found.append(f"{without} texts have words marked by {name} but no control for them: no net change there.")
        if facts["texts_without_salient_word"]:
            found.append(f"{facts['texts_without_salient_word']:.0f} of {texts} texts have no word marked by {name}.")
        if facts["salient_words_cut"]:
            found.append(f"{facts['salient_words_cut']:.0f} words marked by {name} lie beyond the cut.")
        if facts.get("words_beyond_encoder"):
            found.append(f"{facts['words_beyond_encoder']} content words lie beyond what the encoder of {name} reads.")
    return found


def _check_same_ids(
    corpus: Corpus, encodings: Sequence[Encoded], base: Checkpoint, tuned: Checkpoint, max_length: int
) -> None:
    for example, encoded in zip(corpus, encodings, strict=True):
        other = encode(tuned.tokenizer, example.text, max_length)
        if not np.array_equal(encoded.ids, other.ids):
            raise IncompatibleCheckpoints(
                f"{base.name} and {tuned.name} tokenise text {example.id!r} differently: "
                "base and tuned must give the same token ids"
            )


def unknown_share(prepared: Prepared, checkpoint: Checkpoint) -> float:
    """Share of content tokens the tokenizer does not know."""
    unknown = checkpoint.tokenizer.unk_token_id
    ids = np.concatenate([encoded.ids[~encoded.special] for encoded in prepared.encodings])
    return float((ids == unknown).mean()) if unknown is not None and len(ids) else 0.0


def row_selector(tuned: Checkpoint, corpus: Corpus) -> str:
    """Which rows the task reads: `completion` where there is one, `cls` or `last` for a classifier, else `content`.

    METRICS 1.
    """
    if any(example.completion is not None for example in corpus):
        return "completion"
    if "ForSequenceClassification" not in type(tuned.model).__name__ or tuned.model.config.is_encoder_decoder:
        return "content"
    if getattr(tuned.model.config, "classifier_pooling", "cls") == "mean":
        return "content"
    if tuned.virtual and not is_causal(tuned.backbone):
        return "content"  # the first token, which it reads, is a virtual one
    return "last" if is_causal(tuned.backbone) else "cls"


def _sees(content: np.ndarray, backwards: bool) -> np.ndarray:
    """(T,) bool: rows that see content; with attention that looks back only, those at or after the first."""
    return np.logical_or.accumulate(content) if backwards else np.full(len(content), content.any())


@dataclass(frozen=True, eq=False)
class Batch:
    """Some texts padded on the right: ids and mask (B, T), group columns (B, T, G), rows of 0 and 1 (B, T)."""

    indices: np.ndarray
    ids: Tensor
    mask: Tensor
    columns: Tensor
    rows: Tensor


def plan(prepared: Prepared, batch_size: int, most_tokens: float = math.inf) -> list[np.ndarray]:
    """Batches of example indices, texts of like length together; the same plan for the same corpus.

    A batch of more than `most_tokens` tokens, padding included, is halved until it fits or is a single text.
    """
    lengths = np.array([len(encoded.ids) for encoded in prepared.encodings])
    order = np.argsort(lengths, kind="stable")
    queue = [order[start : start + batch_size] for start in reversed(range(0, len(order), batch_size))]
    batches = []
    while queue:
        batch = queue.pop()
        if len(batch) > 1 and len(batch) * lengths[batch].max() > most_tokens:
            queue += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
        else:
            batches.append(batch)
    return batches


def assemble(prepared: Prepared, indices: np.ndarray, checkpoint: Checkpoint) -> Batch:
    """One padded batch on the device of the model."""
    padding = checkpoint.tokenizer.pad_token_id or 0
    longest = max(len(prepared.encodings[i].ids) for i in indices)
    ids = np.full((len(indices), longest), padding)
    mask = np.zeros((len(indices), longest), dtype=np.int64)
    columns = np.zeros((len(indices), longest, prepared.columns[0].shape[1]), dtype=np.float32)
    rows = np.zeros(ids.shape, dtype=np.float32)
    for row, index in enumerate(indices):
        length = len(prepared.encodings[index].ids)
        ids[row, :length], mask[row, :length] = prepared.encodings[index].ids, 1
        columns[row, :length], rows[row, :length] = prepared.columns[index], prepared.rows[index]
    tensors = (torch.from_numpy(array).to(checkpoint.model.device) for array in (ids, mask, columns, rows))
    return Batch(indices, *tensors)
