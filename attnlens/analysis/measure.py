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

from attnlens.analysis.prepare import PER_DEFINITION, Batch, Prepared, assemble, plan
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.record import record
from attnlens.checkpoints.tape import Site
from attnlens.core.errors import CheckpointError

STATISTICS = ("entropy", "entropy_content", "mass")
FOCUS = ("share", "log_odds")
# Part files of a long run: one batch each until there would be more than this.
MOST_PARTS = 256

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MeasureOptions:
    """How the forward passes run. selector: which rows count; parts: folder of part files (None: memory only)."""

    selector: str
    batch_size: int = 16
    parts: Path | None = None
    progress: Progress | None = None


def measure(models: Sequence[Checkpoint], prepared: Prepared, options: MeasureOptions) -> tuple[Arrays, list[Site]]:
    """Row-averaged statistics of every model on every text, and the attention sites.

    Arrays (M, N, L, H), with a last axis S for share, focus and log-odds; NaN where a text has no data.
    """
    batches = plan(prepared, options.batch_size)
    block = -(-len(batches) // MOST_PARTS)
    groups = [batches[start : start + block] for start in range(0, len(batches), block)]
    if options.parts is not None:
        options.parts.mkdir(parents=True, exist_ok=True)
    identity = None if options.parts is None else fingerprint(models, prepared, options)
    found = sites(models[0], prepared, options.selector)
    done, parts = 0, []
    if options.progress is not None:
        options.progress(done, len(prepared.examples))  # the question made sense: work begins
    for number, group in enumerate(groups):
        path = None if options.parts is None else options.parts / f"{number:06d}.npz"
        part = None if path is None or not path.exists() else _read(path, identity)
        if part is None:
            part = _part(models, prepared, group, options)
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


def fingerprint(models: Sequence[Checkpoint], prepared: Prepared, options: MeasureOptions) -> str:
    """What a part file's numbers depend on: weights, tokens, groups, rows, batches."""
    digest = hashlib.sha256(repr((options.selector, options.batch_size, prepared.salience)).encode())
    for encoded, columns in zip(prepared.encodings, prepared.columns, strict=True):
        digest.update(encoded.ids.tobytes() + columns.tobytes())
    for checkpoint in models:
        for name, tensor in checkpoint.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sites(checkpoint: Checkpoint, prepared: Prepared, selector: str) -> list[Site]:
    """The attention sites of a model, from one pass over the shortest text."""
    shortest = int(np.argmin([len(encoded.ids) for encoded in prepared.encodings]))
    batch = assemble(prepared, np.array([shortest]), selector=selector, checkpoint=checkpoint)
    with torch.inference_mode(), record(checkpoint.model.base_model, ("max_weight",)) as tape:
        checkpoint.model.base_model(input_ids=batch.ids, attention_mask=batch.mask)
    return tape.sites


def _part(models: Sequence[Checkpoint], prepared: Prepared, group: list[np.ndarray], options: MeasureOptions) -> Arrays:
    """Statistics of all models on a few whole batches."""
    collected: list[Arrays] = []
    for indices in group:
        of_models = []
        for checkpoint in models:
            batch = assemble(prepared, indices, selector=options.selector, checkpoint=checkpoint)
            of_models.append(_reduce(checkpoint, batch, len(prepared.salience)))
        collected.append({name: np.stack([arrays[name] for arrays in of_models]) for name in of_models[0]})
    part = {name: np.concatenate([arrays[name] for arrays in collected], 1) for name in collected[0]}
    return {**part, "example": np.concatenate(group)}


def _reduce(checkpoint: Checkpoint, batch: Batch, definitions: int) -> Arrays:
    """One forward pass of one model, reduced to row means (B, L, H[, S])."""
    names = STATISTICS + (FOCUS if definitions else ())
    backbone = checkpoint.model.base_model
    with torch.inference_mode(), record(backbone, names, groups=batch.columns, rows=batch.rows) as tape:
        backbone(input_ids=batch.ids, attention_mask=batch.mask)
    values = {name: tape[name].cpu().numpy().astype(np.float64) for name in names}
    selected = (batch.rows[..., 0] > 0).any(1).cpu().numpy()
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
    if definitions:
        marked, matched, control = (values["share"][..., 1 + kind :: PER_DEFINITION] for kind in range(PER_DEFINITION))
        result |= {"share": marked, "share_matched": matched, "share_control": control, "focus": matched - control}
        result["log_odds"] = values["log_odds"][..., 1::PER_DEFINITION]
    return result


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
