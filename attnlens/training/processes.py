"""Several processes of one run, as torchrun and accelerate launch start them: who writes, and how they agree."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from attnlens.core.errors import AttnlensError, TrainingError

Value = TypeVar("Value")
# One process may draw for hours what the others have measured.
PATIENCE = timedelta(days=30)


def processes() -> int:
    """How many processes carry this run; known from the environment before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def speaks() -> bool:
    """Whether this process tells its fault: the first of each machine, for another machine's may be its own."""
    return first() or os.environ.get("LOCAL_RANK", "0") == "0"


def own_device(device: str) -> str:
    """The device for this process: of several on one machine each takes its own GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and processes() > 1 else device


@contextmanager
def met() -> Iterator[None]:
    """The processes of this run as a group that passes words (gloo), while the block lasts; nothing for one alone."""
    import torch.distributed as dist  # here, as in `agreed`

    if processes() == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def agreed(value: Value) -> Value:
    """The first process's value, in all of them."""
    import torch.distributed as dist  # here, as the command line asks who is first before it loads torch

    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    with _reached():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def settled(fault: Exception | None) -> None:
    """Wait until every process has done its share; raise the fault of this one, else of the first that had one."""
    import torch.distributed as dist

    told: list[tuple[type[Exception], str] | None] = [None] * processes()
    if dist.is_available() and dist.is_initialized():
        kind = next(kind for kind in (AttnlensError, OSError, Exception) if fault is None or isinstance(fault, kind))
        with _reached():
            dist.all_gather_object(told, None if fault is None else (kind, str(fault) or type(fault).__name__))
    if fault is not None:
        raise fault
    for number, answer in enumerate(told):
        if answer is not None:
            kind, text = answer
            raise kind(f"process {number} of {processes()} stopped: {text}")


@contextmanager
def _reached() -> Iterator[None]:
    """A process that is gone is no fault of the user's question, and no bug of this one."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this run is gone: start the command again, what was finished is kept"
        ) from error


def check_sharding() -> None:
    """Refuse what accelerate launch may set up and this loop cannot serve."""
    chosen = {
        "FSDP": "ACCELERATE_USE_FSDP",
        "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    }
    for name, variable in chosen.items():
        if os.environ.get(variable, "false").lower() in {"1", "true"}:
            raise TrainingError(
                f"{name} cuts parameters into pieces that blocks share between processes, so that no block could be "
                "frozen, freed or saved alone: launch with plain data parallelism (torchrun, or accelerate launch "
                "--multi_gpu)."
            )
