"""A batch that memory does not hold is halved until it does, and says so."""

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from attnlens.analysis.prepare import Prepared
from attnlens.core.errors import AttnlensError

Result = TypeVar("Result")
# How devices without an error of its own for it say that memory is full: the CPU, and Apple's GPUs.
NO_MEMORY = ("DefaultCPUAllocator", "out of memory")


def fitting(work: Callable[[np.ndarray], Result], prepared: Prepared, indices: np.ndarray) -> list[Result]:
    """What `work` gives of these texts at once, or of parts of them in order where memory does not hold all.

    AttnlensError where it does not hold one text.
    """
    try:
        return [work(indices)]
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        longest = max(len(prepared.encodings[index].ids) for index in indices)
        if len(indices) == 1:
            raise AttnlensError(
                f"memory does not hold one text of {longest} tokens: shorten texts with --max-length, or choose "
                "another --device"
            ) from error
    # Outside of `except`, which keeps what the failed attempt had allocated.
    half = len(indices) // 2
    logging.getLogger("attnlens").warning(
        f"memory does not hold {len(indices)} texts of {longest} tokens at once: going on with {half}"
    )
    return [*fitting(work, prepared, indices[:half]), *fitting(work, prepared, indices[half:])]


def _lacks_memory(error: Exception) -> bool:
    """Whether fewer texts at once could mend it."""
    lacking = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return lacking or any(sign in str(error) for sign in NO_MEMORY)
