"""Where a run leaves its checkpoint, and what it leaves as it was: other files and the global random states."""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import set_seed

from attnlens.checkpoints.files import alone, made
from attnlens.checkpoints.identity import home_free, read_record
from attnlens.checkpoints.seal import check_seal, read_facts, write_facts
from attnlens.checkpoints.source import ADAPTER_CONFIG
from attnlens.core.errors import CheckpointError, Diverged, OutputExists, TrainingError
from attnlens.training.intermediate import last_kept, steps_kept
from attnlens.training.options import TrainOptions
from attnlens.training.processes import first

RUN, ORDER = "run", "order.json"  # in the hidden folder: intermediate checkpoints, and whose they are


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


def partial_folder(destination: Path) -> Path:
    """The hidden folder beside a coming checkpoint in which its run lives."""
    return destination.with_name(f".{destination.name}.partial")


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What two runs were not told alike, in words; empty where they are the same run."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    pairs = {name: f"{name} was {before.get(name)}, now {now.get(name)}" for name in names}
    return ", ".join(pair if len(pair) < 80 else f"other {name}" for name, pair in pairs.items())  # not two checksums


def finished(destination: Path, order: dict[str, Any], options: TrainOptions) -> dict[str, Any] | None:
    """The record of the checkpoint that `resume` finds complete; refused where it is another run's."""
    if not options.resume or not destination.is_dir() or not any(destination.iterdir()):
        return None
    try:
        check_seal(destination, whole=True)
    except CheckpointError:
        if not options.force:
            raise
        return None  # to be replaced
    record = read_record(destination)
    different = differences(record.get("order") or {}, order) if record is not None else "without a record"
    if different and not options.force:
        raise OutputExists(
            f"{home_free(destination)} already holds another run ({different}): choose another output, or --force to "
            "replace it."
        )
    if not different and first():
        shutil.rmtree(partial_folder(destination), ignore_errors=True)  # of a run killed on its last step
    return None if different else record


@contextmanager
def published(destination: Path, order: dict[str, Any], options: TrainOptions) -> Iterator[Path]:
    """A hidden folder beside `destination`; what stands in its `checkpoint` at the end takes the name, by rename.

    The folder outlives an interruption, a kill included, if a checkpoint in it is worth going on from; `order` says of
    what run. Else it is removed on every way out, with the folders above it that were made for it. Of several processes
    the first does all this.
    """
    folder = partial_folder(destination)
    if not first():
        yield folder
        return
    kept = None
    refusal = f"another run is writing {home_free(destination)}: wait for it, or choose another output."
    try:
        with made(folder), alone(folder / "lock", refusal):
            try:
                _claim(folder, destination, order, options)
                yield folder
                if destination.exists():
                    destination.rename(folder / "replaced")
                (folder / "checkpoint").rename(destination)
            except Diverged:
                raise
            except BaseException:
                kept = next(iter(steps_kept(folder / RUN)), None)
                raise
            finally:
                if kept is None:
                    shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt as stop:
        if kept is None:
            raise
        raise KeyboardInterrupt(f"{_going_on(kept)}; the same command with --resume goes on from there") from stop
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        advice = f"; {_going_on(kept)}: --resume goes on from there" if kept is not None else ""
        raise TrainingError(f"cannot write {home_free(destination)}: {reason}{advice}.") from error


def _going_on(step: int) -> str:
    return f"the checkpoint of step {step} is kept"


def _claim(folder: Path, destination: Path, order: dict[str, Any], options: TrainOptions) -> None:
    """Take over what an interrupted run left, or clear it away."""
    steps = steps_kept(folder / RUN)
    if steps and not options.force and not options.resume:
        raise OutputExists(
            f"an interrupted run for {home_free(destination)} got to step {steps[0]}: --resume goes on from there, "
            "--force begins anew."
        )
    if steps and options.resume:
        if different := differences(read_facts(folder / ORDER) or {}, order):
            raise OutputExists(
                f"the interrupted run for {home_free(destination)} is another one ({different}): repeat its command, "
                "or --force without --resume to begin anew."
            )
        last_kept(folder / RUN)  # CheckpointError where none of them can be gone on from
    else:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        write_facts(folder / ORDER, order)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


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
