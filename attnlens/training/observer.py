"""What every observer of a training run is, and how one looks at a model without leaving a trace in the training."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback


class Observer(TrainerCallback, ABC):
    """A callback that reads and never changes; `facts` go into the record under `key`.

    `state` is what a resumed run needs to go on as if it had never stopped, in plain JSON values.
    """

    key: str

    @abstractmethod
    def facts(self) -> Any:
        """What was seen, in plain JSON values; called once, after the training."""

    def state(self) -> dict[str, Any]:
        """What has been seen so far."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what was seen before the run was stopped."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Forward passes without dropout and gradients; modes and random states are afterwards what they were."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
