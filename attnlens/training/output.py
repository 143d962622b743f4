"""Where a run leaves its checkpoint, and what it leaves as it was: other files and the global random states."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import set_seed

from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.source import ADAPTER_CONFIG
from attnlens.core.errors import OutputExists, TrainingError


def check_output(output: str | Path, sources: list[str | Path], *, force: bool) -> Path:
    """The absolute path of the coming checkpoint, refused if something in use lies there.

    Without `force` only a missing or empty directory will do; with it another checkpoint may be replaced, but no
    other kind of folder, and none that holds one of the run's `sources`.
    """
    path = Path(output).expanduser().resolve()
    if path.is_dir():
        empty = not any(path.iterdir())
        if not empty and not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            raise OutputExists(
                f"{home_free(path)} is a folder but not a checkpoint, so it is never replaced: choose another output."
            )
        if not empty and not force:
            raise OutputExists(
                f"{home_free(path)} already holds a checkpoint: choose another output, or --force to replace it."
            )
    elif path.exists():
        raise OutputExists(f"{home_free(path)} is a file: needed the name of a new folder.")
    for source in sources:
        if Path(source).expanduser().resolve().is_relative_to(path):
            raise OutputExists(
                f"{home_free(path)} holds {home_free(source)}, which this run reads: choose another output."
            )
    return path


@contextmanager
def published(destination: Path) -> Iterator[Path]:
    """A hidden folder beside `destination`; what stands in its `checkpoint` at the end takes the name, by rename.

    The folder, and those above it that were made for it, are removed on every way out but a kill, which never leaves a
    partial `destination`.
    """
    folder = None
    above = [path for path in destination.parents if not path.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        yield folder
        if destination.exists():
            destination.rename(folder / "replaced")
        (folder / "checkpoint").rename(destination)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise TrainingError(f"cannot write {home_free(destination)}: {reason}.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for path in above:  # empty where nothing was published
            with suppress(OSError):
                path.rmdir()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator the Trainer draws from, and put their states back at the end."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 the Trainer uses numpy's global generator
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002 the Trainer's global generator, put back
