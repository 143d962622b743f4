"""Whole batches as atomic part files: a killed run resumes, and several processes share the work."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attnlens.analysis.prepare import Prepared
from attnlens.analysis.subjects import Subject
from attnlens.core.errors import CheckpointError
from attnlens.training.processes import processes, rank, settled

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """What is measured, in parts of whole batches, each computed by itself; folder: of their files, None for none.

    identity: what the numbers depend on; a file of other numbers is no part of this run. sizes: texts of each part.
    """

    compute: Callable[[int], Arrays]
    sizes: Sequence[int]
    folder: Path | None = None
    identity: str = ""

    def collected(self, progress: Progress) -> Iterator[Arrays]:
        """All parts in order, one at a time in memory. progress: called with the texts done and all texts.

        Where there is a folder, every file is written before the first is read, so that memory does not grow while
        the models run. Of several processes each writes its share; a fault of one is raised in all.
        """
        total, done = sum(self.sizes), 0
        progress(0, total)  # the question made sense: work begins
        if self.folder is not None:
            self.share(progress)
            progress = silent
        for number, size in enumerate(self.sizes):
            yield self._one(number)
            done += size
            progress(done, total)

    def share(self, progress: Progress) -> None:
        """Write the files of this process; done when those of all processes are there."""
        if processes() == 1:
            self._write_share(progress)
            return
        fault = None
        try:
            self._write_share(progress)
        except Exception as error:  # whatever stops this process, the others must hear of it
            fault = error
        settled(fault)

    def _write_share(self, progress: Progress) -> None:
        left = list(range(rank(), len(self.sizes), processes()))
        while left:
            self._one(left[0])
            del left[0]
            ready = (size for part, size in enumerate(self.sizes) if part not in left and self._path(part).exists())
            progress(sum(ready), sum(self.sizes))

    def _one(self, number: int) -> Arrays:
        """A part from its file, else computed and written."""
        if self.folder is None:
            return self.compute(number)
        path = self._path(number)
        part = _read(path, self.identity) if path.exists() else None
        if part is None:
            part = self.compute(number) | {"identity": np.array(self.identity)}
            _write(path, part)
        return part

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.npz"


def fingerprint(subjects: Sequence[Subject], prepared: Prepared, batches: list[np.ndarray]) -> str:
    """What a part file's numbers depend on: weights, tokens, groups, rows, batches.

    What a hook of the user's does to a forward pass cannot be read off it, so models with one are refused.
    """
    digest = hashlib.sha256(repr((prepared.salience, [batch.tolist() for batch in batches])).encode())
    for encoded, columns, rows in zip(prepared.encodings, prepared.columns, prepared.rows, strict=True):
        digest.update(encoded.ids.tobytes() + columns.tobytes() + rows.tobytes())
    for subject in subjects:
        model, adapter = subject.checkpoint.model, subject.checkpoint.adapter
        if hooked := _foreign_hooks(model):
            raise CheckpointError(
                f"{subject.checkpoint.name} has forward hooks ({', '.join(hooked[:3])}), and part files cannot tell it "
                "from the same weights without them: measure it without part files, or take the hooks off"
            )
        settings = None if adapter is None else getattr(model, "peft_config", {}).get(adapter.name)
        digest.update(repr((subject.reference, adapter, settings, model.config)).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _foreign_hooks(model: torch.nn.Module) -> list[str]:
    """Names of hooks that change or watch a forward pass and come from none of the libraries below.

    Those libraries' hooks follow from weights and configuration, which the fingerprint holds.
    """
    found = []
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            function = getattr(hook, "func", hook)  # of a partial
            name = getattr(function, "__qualname__", type(function).__qualname__)
            origin = getattr(function, "__module__", None) or type(function).__module__
            if origin.split(".")[0] not in ("attnlens", "transformers", "peft", "accelerate"):
                found.append(f"{origin}.{name}")
    return list(dict.fromkeys(found))


def silent(done: int, total: int) -> None:
    """No progress."""


def _write(path: Path, part: Arrays) -> None:
    """A part appears whole or not at all: temporary name, fsync, rename."""
    temporary = path.with_suffix(f".{rank()}.tmp")  # two processes may find the same part spoiled
    with temporary.open("wb") as file:
        np.savez(file, **part)  # pyright: ignore[reportArgumentType]
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path, identity: str) -> Arrays | None:
    """The part as it was written; None where it is another run's or the disk has spoiled it: it is measured again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            part = {name: stored[name] for name in stored.files}
        return part if str(part.get("identity")) == identity else None
    except Exception:  # NumPy, zipfile and zlib have a dozen for bytes that make no sense
        return None
