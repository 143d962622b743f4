"""Run the models over the prepared texts under `record`, in parts of whole batches, and join what was found."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnlens.analysis import hidden
from attnlens.analysis.fitting import fitting
from attnlens.analysis.parts import Arrays, Parts, Progress, fingerprint, silent
from attnlens.analysis.prepare import (
    CONTROL,
    MARKED,
    MATCHED,
    PER_DEFINITION,
    RANDOM,
    SWAPPED,
    Batch,
    Prepared,
    assemble,
    plan,
)
from attnlens.analysis.subjects import Subject
from attnlens.checkpoints.causality import is_causal
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.record import record
from attnlens.checkpoints.tape import Site
from attnlens.checkpoints.virtual import GROUP
from attnlens.core.agreement import agreement
from attnlens.core.errors import CheckpointError
from attnlens.core.pairs import PAIRS, Logits

ROWS = ("entropy", "entropy_normalized", "effective_keys", "entropy_content")
STATISTICS = (*ROWS, "mass", "received_mean")
# Those of marked words alone, and those of all columns of a definition.
MARKED_ONLY = ("lift", "log_odds", "entropy_between", "share_value")
FOCUS = (*MARKED_ONLY, "share", "received")
# A head with more mean attention than this on a special or first key has a sink (Gu et al. 2025).
SINK = 0.3
# Received attention is a sum of hundreds of float32 weights: nearer scores are ties.
TIE = 1e-6
# Part files of a long run: one batch each until there would be more than this.
MOST_PARTS = 256
GIB = 2**30


@dataclass(frozen=True)
class MeasureOptions:
    """How the forward passes run.

    memory: GiB that the queries, keys and hidden states of one batch may take, kept from the base's pass until every
    tuned model has been held against them; larger batches are halved. parts: folder of part files (None: memory only).
    """

    batch_size: int = 16
    memory: float = 4.0
    parts: Path | None = None
    progress: Progress | None = None


class Measured(NamedTuple):
    """What `measure` found: arrays by name, the attention sites, and of each model why a statistic is NaN in a site."""

    arrays: Arrays
    sites: list[Site]
    reasons: list[dict[str, str]]


class Look(NamedTuple):
    """Of one model: its attention sites, the bytes a token takes of `memory`, why a statistic will be NaN."""

    sites: list[Site]
    weight: float
    reasons: dict[str, str]


class Kept(NamedTuple):
    """What a reference leaves of a batch to the models that follow: queries and keys, hidden states."""

    logits: Sequence[Logits] = ()
    states: Sequence[Tensor] | None = None


def measure(subjects: Sequence[Subject], prepared: Prepared, options: MeasureOptions) -> Measured:
    """Row-averaged statistics of every model on every text, and the attention sites.

    Arrays (M, N, L, H), with a last axis S for all that is about marked words; NaN where a text has no data.
    Divergences (PAIRS) are NaN for a reference itself. Virtual tokens of a prompt are left out, and the attention that
    is left among the text's own tokens is scaled to 1, so that base and tuned have the same keys; where any model has
    some, `virtual_mass` is the attention on them.

    Exact for each text, because all are means over the same rows: entropy = entropy_between + spread within sinks,
    marked and other words; and with G = mass / content_mass, Δmass = mean content_mass · ΔG + mean G · Δcontent_mass
    (refocusing and sink release, METRICS 3.2), mean of base and tuned. A mean of row-wise G would not do that:
    rows are not paired between models.

    received_auroc, _ap and _precision say how well received attention picks the marked word pieces out of the content
    (core/agreement.py). sink_census is 1 where some special or first key receives a mean weight over SINK from the
    measured rows that see it, else 0: its mean is the share of heads with a sink; descriptive.

    From the same passes: hidden_change (M, N, L + 1), mean over a text's tokens of ‖h′ − h‖ / ‖h‖, cka and cka_tokens
    (M, L + 1), as analysis/hidden.py has them; NaN for a reference itself, missing where a model gives no states.
    """
    work, looks = _planned(subjects, prepared, options)
    arrays = _joined(work.collected(options.progress or silent), sum(work.sizes))
    return Measured(arrays, looks[0].sites, [look.reasons for look in looks])


def measure_share(subjects: Sequence[Subject], prepared: Prepared, options: MeasureOptions) -> None:
    """Write the part files of this process, for the one that calls `measure`; done when those of all are there."""
    _planned(subjects, prepared, options)[0].share(options.progress or silent)


def _planned(subjects: Sequence[Subject], prepared: Prepared, options: MeasureOptions) -> tuple[Parts, list[Look]]:
    """What there is to measure, in parts, and what a look at each model told."""
    shortest = np.array([np.argmin([len(encoded.ids) for encoded in prepared.encodings])])
    looks = [fitting(partial(_first_look, subject.checkpoint, prepared), prepared, shortest)[0] for subject in subjects]
    batches = plan(prepared, options.batch_size, options.memory * GIB / looks[0].weight)
    block = -(-len(batches) // MOST_PARTS)
    groups = [batches[start : start + block] for start in range(0, len(batches), block)]
    identity = ""
    if options.parts is not None:
        options.parts.mkdir(parents=True, exist_ok=True)
        identity = fingerprint(subjects, prepared, batches)
    sizes = [sum(len(indices) for indices in group) for group in groups]
    return Parts(lambda number: _part(subjects, prepared, groups[number]), sizes, options.parts, identity), looks


def _joined(parts: Iterable[Arrays], texts: int) -> Arrays:
    """The arrays of all parts, every text in its place: one part beside the whole is in memory."""
    arrays, similarity = {}, []
    for part in parts:
        place = part.pop("example")
        part.pop("identity", None)
        if hidden.SUMS in part:
            similarity.append(part.pop(hidden.SUMS))
        if not arrays:
            arrays = {name: np.full((len(part[name]), texts, *part[name].shape[2:]), np.nan) for name in part}
        if part.keys() != arrays.keys():
            names = ", ".join(sorted(part.keys() ^ arrays.keys()))
            raise CheckpointError(f"part files of two versions of attnlens ({names}): remove the folder of part files")
        for name, values in part.items():
            arrays[name][:, place] = values
    return arrays | (hidden.merged(np.concatenate(similarity, 1)) if similarity else {})


def _first_look(checkpoint: Checkpoint, prepared: Prepared, shortest: np.ndarray) -> Look:
    """What a pass over the shortest text tells."""
    batch = assemble(prepared, shortest, checkpoint)
    names = ("max_weight", *(("share_value",) if prepared.salience else ()))
    recorder = record(checkpoint.backbone, names, groups=batch.columns, keep=True, without_virtual=True)
    with torch.inference_mode(), checkpoint.active(), recorder as tape:
        output = checkpoint.backbone(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    call = tape.only()
    kept = [tensor for site in call.logits for tensor in (site.query, site.key)]
    states = hidden.states_of(output, batch.ids.shape[1])
    reasons = call.reasons | ({hidden.CHANGE: hidden.MISSING} if states is None else {})
    # Hidden states twice: those of the base wait while a tuned model makes its own.
    weight = sum(tensor.numel() * tensor.element_size() for tensor in (*kept, *(states or []), *(states or [])))
    return Look(call.sites, weight / batch.ids.shape[1], reasons)


def _part(subjects: Sequence[Subject], prepared: Prepared, group: list[np.ndarray]) -> Arrays:
    """Statistics of all models on a few whole batches."""
    work = partial(_of_batch, subjects, prepared)
    collected = [arrays for indices in group for arrays in fitting(work, prepared, indices)]
    part = {name: np.concatenate([arrays[name] for arrays in collected], 1) for name in collected[0]}
    return {**part, "example": np.concatenate(group)}


def _of_batch(subjects: Sequence[Subject], prepared: Prepared, indices: np.ndarray) -> Arrays:
    """Statistics of all models on one batch, (M, B, …)."""
    of_models, kept = [], Kept()
    virtual = any(subject.checkpoint.virtual for subject in subjects)
    for subject in subjects:
        batch = assemble(prepared, indices, subject.checkpoint)
        values, left = _recorded(subject, batch, prepared, kept)
        arrays = _reduced(values, batch, prepared)
        if virtual:
            arrays["virtual_mass"] = _virtual_mass(subject.checkpoint, batch, arrays["entropy"])
        of_models.append(arrays)
        kept = left if subject.reference else kept
    return {name: np.stack([arrays[name] for arrays in of_models]) for name in of_models[0]}


def _recorded(subject: Subject, batch: Batch, prepared: Prepared, base: Kept) -> tuple[Arrays, Kept]:
    """One forward pass of one model: row means (B, L, H[, G]) by statistic, and how far its hidden states are from the
    base's; what a reference leaves to the models that follow.
    """
    checkpoint = subject.checkpoint
    definitions = len(prepared.salience)
    names = STATISTICS + (FOCUS if definitions else ()) + (() if subject.reference else tuple(PAIRS))
    marked = tuple(range(1 + MARKED, 1 + PER_DEFINITION * definitions, PER_DEFINITION))
    recorder = record(
        checkpoint.backbone,
        names,
        groups=batch.columns,
        rows=batch.rows,
        # Matched words and their controls are compared on the rows that see any of them: looking back, the rows
        # between two of them see the earlier one alone, and a mean without those would take nearness for focus.
        together=tuple(
            (start + MATCHED, start + CONTROL) for start in range(1, PER_DEFINITION * definitions, PER_DEFINITION)
        ),
        columns={"mass": (0, *marked)} | dict.fromkeys(MARKED_ONLY, marked),
        keep=subject.reference,
        against=None if subject.reference else base.logits,
        without_virtual=True,
    )
    with torch.inference_mode(), checkpoint.active(), recorder as tape:
        output = checkpoint.backbone(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    values = {name: tape[name].cpu().numpy().astype(np.float64) for name in names}
    selected = (batch.rows > 0).any(1).cpu().numpy()
    broken = np.isnan(values["entropy"]).any((1, 2)) & selected
    if broken.any():
        raise CheckpointError(
            f"{checkpoint.name} gives NaN attention on {int(broken.sum())} texts: "
            "its weights or activations are not finite"
        )
    states = hidden.states_of(output, batch.ids.shape[1])
    if states is not None:
        valid = hidden.counted(prepared, batch, decoder=is_causal(checkpoint.backbone))
        hidden.check_finite(checkpoint.name, states, valid)
        values |= hidden.moved(None if subject.reference else base.states, states, valid)
    return values, Kept(tape.only().logits, states)


def _reduced(values: Arrays, batch: Batch, prepared: Prepared) -> Arrays:
    """The arrays of `measure` for one batch, (B, L, H[, S]), from what was recorded."""
    result = {name: values[name] for name in ROWS} | {"content_mass": values["mass"][..., 0]}
    result |= {name: values.get(name, np.full_like(values["entropy"], np.nan)) for name in PAIRS}
    result |= {name: values[name] for name in hidden.STREAMED if name in values}
    result["sink_census"] = _sink_census(values["received_mean"], batch, prepared)
    if not prepared.salience:
        return result

    def of(array: np.ndarray, kind: int) -> np.ndarray:
        return array[..., 1 + kind :: PER_DEFINITION]

    result |= {"mass": values["mass"][..., 1:]} | {name: values[name] for name in MARKED_ONLY}
    result["share"] = of(values["share"], MARKED)
    for kind, name in ((MATCHED, "matched"), (CONTROL, "control"), (RANDOM, "random"), (SWAPPED, "swapped")):
        result[f"share_{name}"] = of(values["share"], kind)
    result["focus"] = result["share_matched"] - result["share_control"]
    columns = batch.columns.cpu().numpy().astype(np.float64)
    received = _over_keys(values["received"], columns)
    for kind, name in ((MARKED, "received"), (MATCHED, "received_matched"), (CONTROL, "received_control")):
        result[name] = of(received, kind)
    marked = of(columns, MARKED).transpose(0, 2, 1)[:, None, None]  # (B, 1, 1, S, K)
    content = columns[:, None, None, None, :, 0] > 0
    ranks = agreement(values["received"][..., None, :], marked, content, tie=TIE)
    names = ("received_auroc", "received_ap", "received_precision")
    return result | dict(zip(names, ranks, strict=True))


def _sink_census(mean: np.ndarray, batch: Batch, prepared: Prepared) -> np.ndarray:
    """(B, L, H): 1 where a special or the first key receives more than SINK of a row on average, else 0.

    mean: (B, L, H, K); NaN where no measured row sees such a key.
    """
    sinks = np.zeros((len(batch.indices), mean.shape[-1]), dtype=bool)
    for text, index in enumerate(batch.indices):
        special = prepared.encodings[index].special
        sinks[text, : len(special)] = special
        sinks[text, 0] = True
    most = np.where(sinks[:, None, None] & ~np.isnan(mean), mean, -1.0).max(-1)
    return np.where(most >= 0, most > SINK, np.nan)


def _virtual_mass(checkpoint: Checkpoint, batch: Batch, like: np.ndarray) -> np.ndarray:
    """Attention of the selected rows on virtual tokens, (B, L, H); NaN where `like` is, 0 for a model without any."""
    if not checkpoint.virtual:
        return np.where(np.isnan(like), np.nan, 0.0)
    recorder = record(checkpoint.backbone, ("mass",), groups=batch.mask - 1, rows=batch.rows)
    with torch.inference_mode(), checkpoint.active(), recorder as tape:
        checkpoint.backbone(input_ids=batch.ids, attention_mask=batch.mask)
    return tape["mass"][..., GROUP].cpu().numpy().astype(np.float64)


def _over_keys(received: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mean of received attention (B, L, H, K) over the keys of columns (B, K, G): (B, L, H, G), NaN without data."""
    seen = ~np.isnan(received)
    total = np.einsum("blhk,bkg->blhg", np.where(seen, received, 0.0), columns)
    count = np.einsum("blhk,bkg->blhg", seen.astype(np.float64), columns)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
