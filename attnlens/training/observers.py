"""What is watched while a model trains; each observer leaves its facts in the training record."""

from typing import Any

from transformers import TrainerCallback

from attnlens.training.job import Job


class Observer(TrainerCallback):
    """A callback that reads and never changes; `facts` go into the record under `key`.

    `state` is what a resumed run needs to go on as if it had never stopped, in plain JSON values.
    """

    key: str

    def facts(self) -> Any:
        """What was seen, in plain JSON values."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What has been seen so far."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what was seen before the run was stopped."""


def observers(job: Job) -> list[Observer]:
    """All that watch this run."""
    return []
