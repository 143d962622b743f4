"""The causal companion of focus: what a model loses when nobody may attend to the salient words (METRICS 3.10)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from attnlens.analysis.fitting import fitting
from attnlens.analysis.parts import Progress
from attnlens.analysis.prepare import Batch, Prepared, assemble, plan
from attnlens.checkpoints.causality import is_causal
from attnlens.checkpoints.config import read_config
from attnlens.checkpoints.hide import without_keys
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CheckpointError, CorpusError
from attnlens.salience.control_sets import ControlSets, control_sets
from attnlens.text.align import Encoded, token_weights
from attnlens.text.corpus import Corpus, Example

CLASSIFIER = "ForSequenceClassification"
SEVERAL = "multi_label_classification"
LABEL_LOSS, TOKEN_LOSS, HIDDEN_STATE = "label loss", "token loss", "hidden state"
UNITS = {LABEL_LOSS: "nats", TOKEN_LOSS: "nats a token", HIDDEN_STATE: "relative change"}


@dataclass(frozen=True)
class KnockoutOptions:
    """How words are knocked out.

    draws: sets of control words a text, each one forward pass. texts: at most so many, spread over documents. layers:
    numbers of the attentions where keys are hidden, in the order they run; None: all. seed: of texts and controls.
    """

    draws: int = 4
    texts: int = 100
    batch_size: int = 16
    layers: tuple[int, ...] | None = None
    seed: int = 0
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self):
        if self.draws < 1 or self.texts < 1 or self.batch_size < 1:
            raise CorpusError(
                f"a knockout needs at least one draw, one text and batches of one; got {self.draws}, {self.texts} "
                f"and {self.batch_size}"
            )


@dataclass(frozen=True)
class Outcome:
    """What is read off a model. name: `label loss`, `token loss` or `hidden state`; reason: why that one."""

    name: str
    reason: str


def knockout(models: Sequence[Checkpoint], prepared: Prepared, options: KnockoutOptions) -> xr.Dataset:
    """What every model loses without attention to the salient words, beside as many matched ordinary ones.

    models: the base, which comes first, and the tuned. The words are those of the headline definition that have a
    control of their own (`control_sets`); in `options.layers` no row sees their tokens, but for a token that would see
    nothing else and so sees itself.

    Variables: `knockout_effect` (M, N), the outcome without the salient words against the same model's outcome with
    all, and `knockout_control` the same for control words, mean over draws; losses in nats, which may fall below 0, or
    mean ‖h′ − h‖/‖h‖ ≥ 0 over the rows that the task reads (`Prepared.rows`). `causal_focus` is effect − control, and
    `reliance` that of the model less that of the base. Tuning made the outputs rely on these words where both
    `causal_focus` of the tuned model and `reliance` are above 0: a model that answers every text alike has no causal
    focus, and its reliance is the base's with the sign turned. NaN for texts that were not measured. `knocked_out`
    (N,): how many words. Attributes: salience, outcome, unit, reason, draws; texts `measured`, `without_control` (or
    without a row to read) and `left_out` (beyond `options.texts`); `kept`, the share of the marked words of the
    measured texts, as far as they were read, that was knocked out.

    Costs draws + 2 forward passes a model. Hand example: losses .3 with all words, 1.3 without the salient ones, and
    .4 and .6 without two sets of controls give effect 1, control .2, causal focus .8.
    Raises UnsupportedModel where keys cannot be hidden (see `without_keys`).
    """
    if not prepared.salience:
        raise CorpusError("a knockout needs words to knock out: ask for a --salience")
    lengths = [_readable(*pair) for pair in zip(prepared.encodings, prepared.columns, strict=True)]
    marks = prepared.marks[prepared.salience[0]]
    lengths = [np.pad(found, (0, len(mark) - len(found))) for found, mark in zip(lengths, marks, strict=True)]
    corpus = Corpus(prepared.examples, "the texts", "", True)
    sets = control_sets(corpus, marks, lengths, options.draws, options.seed)
    counts = np.array([found.salient.sum() for found in sets])
    usable = [i for i, rows in enumerate(prepared.rows) if counts[i] and rows.any()]
    chosen = _sample(prepared.examples, usable, options)
    outcome = choose_outcome(models, [prepared.examples[i] for i in chosen])
    values = np.full((len(models), len(counts), options.draws + 1), np.nan)
    if chosen:
        values[:, chosen] = _measure(models, _selected(prepared, chosen), [sets[i] for i in chosen], outcome, options)
    read = sum(int((marks[i] & (lengths[i] > 0)).sum()) for i in chosen)
    facts = {
        "salience": prepared.salience[0],
        "outcome": outcome.name,
        "unit": UNITS[outcome.name],
        "reason": outcome.reason,
        "draws": options.draws,
        "measured": len(chosen),
        "without_control": len(counts) - len(usable),
        "left_out": len(usable) - len(chosen),
        "kept": float(counts[chosen].sum() / read) if read else float("nan"),
    }
    return _dataset(models, prepared, values, np.where(np.isin(np.arange(len(counts)), chosen), counts, 0), facts)


def choose_outcome(models: Sequence[Checkpoint], examples: Sequence[Example]) -> Outcome:
    """The outcome that all models share: a loss where each has the same head of its own, else the hidden state."""
    classes = {type(model.model).__name__ for model in models}
    configs = [model.model.config for model in models]
    if len(classes) > 1:
        return Outcome(HIDDEN_STATE, f"the models have different heads ({', '.join(sorted(classes))})")
    if any(config.is_encoder_decoder for config in configs):
        return Outcome(HIDDEN_STATE, "of an encoder–decoder the encoder is measured, which has no head")
    name = classes.pop()
    if random := [model.name for model in models if not _own_head(model)]:
        return Outcome(HIDDEN_STATE, f"{random[0]} was saved without this head")
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and all(is_causal(model.backbone) for model in models):
        return Outcome(TOKEN_LOSS, "all models predict the next token")
    if CLASSIFIER not in name:
        return Outcome(HIDDEN_STATE, f"a {name} has no loss on whole texts")
    if any(
        (config.label2id, config.problem_type) != (configs[0].label2id, configs[0].problem_type) for config in configs
    ):
        return Outcome(HIDDEN_STATE, "the models classify into different labels")
    lacking = sum(_truth(example, configs[0]) is None for example in examples)
    if lacking:
        return Outcome(HIDDEN_STATE, f"{lacking} of {len(examples)} texts have no label that the models know")
    if any(is_causal(m.backbone) and m.model.config.pad_token_id != m.tokenizer.pad_token_id for m in models):
        return Outcome(
            HIDDEN_STATE, "the classifiers look for the last token before a padding that the tokenizer lacks"
        )
    return Outcome(LABEL_LOSS, "all models classify into the same labels")


def _own_head(checkpoint: Checkpoint) -> bool:
    """Whether the head came with the checkpoint: the base of an adapter is loaded in the adapter's class.

    Its head is then random where it was saved without one, or with one of another size.
    """
    config = checkpoint.model.config
    if checkpoint.source is None or (checkpoint.adapter is not None and checkpoint.adapter.name is not None):
        return True
    stored = read_config(checkpoint.source.config)
    return type(checkpoint.model).__name__ in (stored.architectures or ()) and stored.num_labels == config.num_labels


def _truth(example: Example, config: Any) -> int | list[float] | None:
    """The number of the text's label, or 0 and 1 for each where it may have several; None where it has none known."""
    number_of = config.label2id or {}
    if config.problem_type == SEVERAL:
        if example.labels is None or not set(example.labels) <= set(number_of):
            return None
        return [float(label in example.labels) for label in sorted(number_of, key=number_of.__getitem__)]
    if config.num_labels < 2 or example.label is None:
        return None
    return number_of.get(example.label)


def _readable(encoded: Encoded, columns: np.ndarray) -> np.ndarray:
    """Pieces of each word up to the last that was read; 0 where a piece of the word is no content, and cannot go."""
    inside = encoded.word_of >= 0
    every = np.bincount(encoded.word_of[inside])
    content = np.bincount(encoded.word_of[inside & (columns[:, 0] > 0)], minlength=len(every))
    return every * (content == every)


def _sample(examples: Sequence[Example], usable: list[int], options: KnockoutOptions) -> list[int]:
    """At most `options.texts` of the usable ones, spread over documents."""
    if not usable:
        return []
    corpus = Corpus(tuple(examples[i] for i in usable), "the texts", "", True)
    taken = {id(example) for example in corpus.sample(options.texts, options.seed)}
    return [i for i in usable if id(examples[i]) in taken]


def _selected(prepared: Prepared, chosen: list[int]) -> Prepared:
    """The chosen texts alone."""
    lists = {name: tuple(getattr(prepared, name)[i] for i in chosen) for name in ("examples", "encodings", "columns")}
    marks = {name: [marks[i] for i in chosen] for name, marks in prepared.marks.items()}
    return replace(prepared, **lists, rows=tuple(prepared.rows[i] for i in chosen), marks=marks)


def _measure(
    models: Sequence[Checkpoint],
    prepared: Prepared,
    sets: Sequence[ControlSets],
    outcome: Outcome,
    options: KnockoutOptions,
) -> np.ndarray:
    """Effects (M, N, 1 + k) of knocking out the salient words, and of each set of controls."""
    values = np.full((len(models), len(sets), options.draws + 1), np.nan)
    done = 0
    if options.progress is not None:
        options.progress(done, len(sets))
    work = partial(_of_batch, models, prepared, sets, outcome, options)
    for indices in plan(prepared, options.batch_size):
        values[:, indices] = np.concatenate(fitting(work, prepared, indices), 1)
        done += len(indices)
        if options.progress is not None:
            options.progress(done, len(sets))
    return values


def _of_batch(
    models: Sequence[Checkpoint],
    prepared: Prepared,
    sets: Sequence[ControlSets],
    outcome: Outcome,
    options: KnockoutOptions,
    indices: np.ndarray,
) -> np.ndarray:
    """Effects (M, B, 1 + k) on the texts of these indices."""
    values = np.empty((len(models), len(indices), options.draws + 1))
    for number, checkpoint in enumerate(models):
        batch = assemble(prepared, indices, checkpoint)
        run = _Run(checkpoint, batch, outcome.name, [prepared.examples[i] for i in indices], options.layers)
        # Nothing is hidden, on the same path: what differs below is the words, not the arithmetic.
        whole = run(torch.zeros_like(batch.mask, dtype=torch.bool))
        for kind in range(options.draws + 1):
            words = [sets[i].controls[kind - 1] if kind else sets[i].salient for i in indices]
            keys = _tokens([prepared.encodings[i] for i in indices], words, batch)
            values[number, :, kind] = _effect(whole, run(keys), batch.rows, outcome)
        if not np.isfinite(values[number]).all():
            raise CheckpointError(f"{checkpoint.name} gives NaN outputs: its weights are not finite")
    return values


def _tokens(encodings: Sequence[Encoded], words: Sequence[np.ndarray], batch: Batch) -> Tensor:
    """(B, T) bool: the tokens of the words."""
    keys = np.zeros(batch.mask.shape, dtype=bool)
    for row, (encoded, chosen) in enumerate(zip(encodings, words, strict=True)):
        keys[row, : len(encoded.ids)] = token_weights(encoded, chosen) > 0
    return torch.from_numpy(keys).to(batch.mask.device)


@dataclass(frozen=True, eq=False)
class _Run:
    """One model on one batch: call it with the tokens to hide."""

    checkpoint: Checkpoint
    batch: Batch
    outcome: str
    examples: Sequence[Example]
    layers: tuple[int, ...] | None

    def __call__(self, keys: Tensor) -> Tensor:
        """Final hidden states (B, T, D), or a loss for each text (B,); float64."""
        checkpoint, batch = self.checkpoint, self.batch
        model = checkpoint.backbone if self.outcome == HIDDEN_STATE else checkpoint.model
        with torch.inference_mode(), checkpoint.active(), without_keys(model, keys, self.layers):
            output = model(input_ids=batch.ids, attention_mask=batch.mask)
        if self.outcome == HIDDEN_STATE:
            return output[0][:, -batch.ids.shape[1] :].double()  # without virtual tokens
        if self.outcome == TOKEN_LOSS:
            return _token_loss(output.logits[:, -batch.ids.shape[1] :], batch)
        return _label_loss(output.logits.double(), self.examples, checkpoint.model.config)


def _token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean loss of the tokens at `rows`, each predicted from those before it: (B, T, V) -> (B,).

    There is one in every text: a row that sees words stands behind them.
    """
    losses = [
        cross_entropy(text[:-1][rows].double(), ids[1:][rows])  # text by text: wide vocabularies take gigabytes
        for text, ids, rows in zip(logits, batch.ids, batch.rows[:, 1:] > 0, strict=True)
    ]
    return torch.stack(losses)


def _label_loss(logits: Tensor, examples: Sequence[Example], config: Any) -> Tensor:
    """Loss on each text's own label, or mean over labels where it may have several: (B, C) -> (B,)."""
    truth = torch.tensor([_truth(example, config) for example in examples], device=logits.device)
    if config.problem_type == SEVERAL:
        return binary_cross_entropy_with_logits(logits, truth.double(), reduction="none").mean(1)
    return cross_entropy(logits, truth, reduction="none")


def _effect(whole: Tensor, hidden: Tensor, rows: Tensor, outcome: Outcome) -> np.ndarray:
    """(B,) float64: how much a loss rose, or by how much the hidden states of the rows changed, relative to them."""
    if outcome.name != HIDDEN_STATE:
        return (hidden - whole).cpu().numpy()
    change = (hidden - whole).norm(dim=-1) / whole.norm(dim=-1)
    rows = rows.double()
    return (torch.where(rows > 0, change, 0.0).sum(1) / rows.sum(1)).cpu().numpy()


def _dataset(
    models: Sequence[Checkpoint], prepared: Prepared, values: np.ndarray, words: np.ndarray, facts: dict[str, Any]
) -> xr.Dataset:
    """Effects (M, N, 1 + k) as named arrays."""
    effect, control = values[..., 0], values[..., 1:].mean(-1)
    focus = effect - control
    arrays = {
        "knockout_effect": effect,
        "knockout_control": control,
        "causal_focus": focus,
        "reliance": focus - focus[:1],
    }
    return xr.Dataset(
        {name: (("model", "example"), array) for name, array in arrays.items()}
        | {"knocked_out": (("example",), words)},
        coords={
            "model": [model.name for model in models],
            "id": ("example", [example.id for example in prepared.examples]),
            "document": ("example", [example.document for example in prepared.examples]),
        },
        attrs=facts,
    )
