"""Several processes of one run, as torchrun and accelerate launch start them: who writes, and how they agree."""

import os
from typing import TypeVar

from attnlens.core.errors import TrainingError

Value = TypeVar("Value")


def processes() -> int:
    """How many processes carry this run; known from the environment before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def agreed(value: Value) -> Value:
    """The first process's value, in all of them."""
    import torch.distributed as dist  # here, as the command line asks who is first before it loads torch

    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


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
