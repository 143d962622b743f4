"""Run the models over the prepared texts under `record`; whole batches become atomic part files, so runs resume."""

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from attnlens.analysis.prepare import CONTROL, MATCHED, PER_DEFINITION, Batch, Prepared, assemble, plan
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.record import record
from attnlens.checkpoints.tape import Site
from attnlens.checkpoints.virtual import GROUP
from attnlens.core.errors import CheckpointError
from attnlens.core.pairs import PAIRS, Logits

STATISTICS = ("entropy", "entropy_content", "mass")
FOCUS = ("share", "log_odds", "received")
# Part files of a long run: one batch each until there would be more than this.
MOST_PARTS = 256
GIB = 2**30

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MeasureOptions:
    """How the forward passes run.

    memory: GiB that the queries and keys of one batch may take, kept from the base's pass until every tuned model
    has been held against them; larger batches are halved. parts: folder of part files (None: memory only).
    """

    batch_size: int = 16
    memory: float = 4.0
    parts: Path | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Subject:
    """A model to measure. reference: the models that follow are held against this one, up to the next reference."""

    checkpoint: Checkpoint
    reference: bool


def measure(subjects: Sequence[Subject], prepared: Prepared, options: MeasureOptions) -> tuple[Arrays, list[Site]]:
    """Row-averaged statistics of every model on every text, and the attention sites.

    Arrays (M, N, L, H), with a last axis S for share, focus, log-odds and received attention; NaN where a text has no
    data. Divergences (PAIRS) are NaN for a reference itself. Virtual tokens of a prompt are left out, and the
    attention that is left among the text's own tokens is scaled to 1, so that base and tuned have the same keys; where
    any model has some, `virtual_mass` is the attention on them.
    """
    found, weight = _first_look(subjects[0].checkpoint, prepared)
    batches = plan(prepared, options.batch_size, options.memory * GIB / weight)
    block = -(-len(batches) // MOST_PARTS)
    groups = [batches[start : start + block] for start in range(0, len(batches), block)]
    identity = None
    if options.parts is not None:
        options.parts.mkdir(parents=True, exist_ok=True)
        identity = _fingerprint(subjects, prepared, batches)
    done, parts = 0, []
    if options.progress is not None:
        options.progress(done, len(prepared.examples))  # the question made sense: work begins
    for number, group in enumerate(groups):
        path = None if options.parts is None else options.parts / f"{number:06d}.npz"
        part = None if path is None or not path.exists() else _read(path, identity)
        if part is None:
            part = _part(subjects, prepared, group)
            if path is not None:
                _write(path, part | {"identity": np.array(identity)})
        parts.append(part)
        done += sum(len(indices) for indices in group)
        if options.progress is not None:
            options.progress(done, len(prepared.examples))
    order = np.argsort(np.concatenate([part["example"] for part in parts]), kind="stable")
    names = [name for name in parts[0] if name not in ("example", "identity")]
    arrays = {name: np.concatenate([part[name] for part in parts], 1)[:, order] for name in names}
    return arrays, found


def _fingerprint(subjects: Sequence[Subject], prepared: Prepared, batches: list[np.ndarray]) -> str:
    """What a part file's numbers depend on: weights, tokens, groups, rows, batches."""
    digest = hashlib.sha256(repr((prepared.salience, [batch.tolist() for batch in batches])).encode())
    for encoded, columns, rows in zip(prepared.encodings, prepared.columns, prepared.rows, strict=True):
        digest.update(encoded.ids.tobytes() + columns.tobytes() + rows.tobytes())
    for subject in subjects:
        model, adapter = subject.checkpoint.model, subject.checkpoint.adapter
        settings = None if adapter is None else getattr(model, "peft_config", {}).get(adapter.name)
        digest.update(repr((subject.reference, adapter, settings, model.config)).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_look(checkpoint: Checkpoint, prepared: Prepared) -> tuple[list[Site], float]:
    """The attention sites, and the bytes of queries and keys a token takes, from a pass over the shortest text."""
    shortest = int(np.argmin([len(encoded.ids) for encoded in prepared.encodings]))
    batch = assemble(prepared, np.array([shortest]), checkpoint)
    with torch.inference_mode(), checkpoint.active(), record(checkpoint.backbone, ("max_weight",), keep=True) as tape:
        checkpoint.backbone(input_ids=batch.ids, attention_mask=batch.mask)
    call = tape.only()
    weight = sum(tensor.numel() * tensor.element_size() for site in call.logits for tensor in (site.query, site.key))
    return call.sites, weight / batch.ids.numel()


def _part(subjects: Sequence[Subject], prepared: Prepared, group: list[np.ndarray]) -> Arrays:
    """Statistics of all models on a few whole batches."""
    collected: list[Arrays] = []
    virtual = any(subject.checkpoint.virtual for subject in subjects)
    for indices in group:
        of_models, kept = [], []
        for subject in subjects:
            batch = assemble(prepared, indices, subject.checkpoint)
            arrays, logits = _reduce(subject, batch, len(prepared.salience), kept)
            if virtual:
                arrays["virtual_mass"] = _virtual_mass(subject.checkpoint, batch, arrays["entropy"])
            of_models.append(arrays)
            kept = logits if subject.reference else kept
        collected.append({name: np.stack([arrays[name] for arrays in of_models]) for name in of_models[0]})
    part = {name: np.concatenate([arrays[name] for arrays in collected], 1) for name in collected[0]}
    return {**part, "example": np.concatenate(group)}


def _reduce(
    subject: Subject, batch: Batch, definitions: int, against: Sequence[Logits]
) -> tuple[Arrays, Sequence[Logits]]:
    """One forward pass of one model, reduced to row means (B, L, H[, S]); the queries and keys of a reference."""
    checkpoint = subject.checkpoint
    names = STATISTICS + (FOCUS if definitions else ()) + (() if subject.reference else tuple(PAIRS))
    recorder = record(
        checkpoint.backbone,
        names,
        groups=batch.columns,
        rows=batch.rows,
        # Matched words and their controls are compared on the rows that see both.
        together=tuple(
            (start + MATCHED, start + CONTROL) for start in range(1, PER_DEFINITION * definitions, PER_DEFINITION)
        ),
        keep=subject.reference,
        against=None if subject.reference else against,
        without_virtual=True,
    )
    with torch.inference_mode(), checkpoint.active(), recorder as tape:
        checkpoint.backbone(input_ids=batch.ids, attention_mask=batch.mask)
    values = {name: tape[name].cpu().numpy().astype(np.float64) for name in names}
    selected = (batch.rows > 0).any(1).cpu().numpy()
    broken = np.isnan(values["entropy"]).any((1, 2)) & selected
    if broken.any():
        raise CheckpointError(
            f"{checkpoint.name} gives NaN attention on {int(broken.sum())} texts: "
            "its weights or activations are not finite"
        )
    result = {
        "entropy": values["entropy"],
        "entropy_content": values["entropy_content"],
        "content_mass": values["mass"][..., 0],
    }
    result |= {name: values.get(name, np.full_like(values["entropy"], np.nan)) for name in PAIRS}
    if definitions:
        marked, matched, control, random, swapped = (
            values["share"][..., 1 + kind :: PER_DEFINITION] for kind in range(PER_DEFINITION)
        )
        result["mass"] = values["mass"][..., 1::PER_DEFINITION]
        result |= {"share": marked, "share_matched": matched, "share_control": control, "focus": matched - control}
        result |= {"share_random": random, "share_swapped": swapped}
        result["log_odds"] = values["log_odds"][..., 1::PER_DEFINITION]
        received = _over_keys(values["received"], batch.columns.cpu().numpy().astype(np.float64))
        for kind, name in enumerate(("received", "received_matched", "received_control")):
            result[name] = received[..., 1 + kind :: PER_DEFINITION]
    return result, tape.only().logits


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


def _write(path: Path, part: Arrays) -> None:
    """A part appears whole or not at all: temporary name, fsync, rename."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **part)  # pyright: ignore[reportArgumentType]
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path, identity: str | None) -> Arrays | None:
    """The part as it was written; None where it is another run's or the disk has spoiled it: it is measured again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            part = {name: stored[name] for name in stored.files}
        return part if str(part.get("identity")) == identity else None
    except (OSError, EOFError, ValueError, BadZipFile, zlib.error):
        return None
