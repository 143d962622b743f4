"""What is watched while a model trains; each observer leaves its facts in the training record."""

from attnlens.training.attention_watch import AttentionWatch
from attnlens.training.cost import Cost
from attnlens.training.forgetting import Forgetting
from attnlens.training.job import Job
from attnlens.training.movement import Movement
from attnlens.training.observer import Observer
from attnlens.training.switching import LayerSwitching

__all__ = ["Observer", "observers"]


def observers(job: Job, switching: LayerSwitching | None = None) -> list[Observer]:
    """All that watch this run; `switching` chooses its blocks, if anything does.

    The cost comes first, so that no step's time holds what the others do at its end.
    """
    watching = [AttentionWatch(job)] if job.options.watch_attention else []
    return [Cost(job, switching), Movement(job), *watching, Forgetting(job)]
