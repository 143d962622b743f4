"""How wide attention is while a model trains: its entropy on texts that stay the same."""

import math
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from attnlens.checkpoints.record import record
from attnlens.training.cost import on_device
from attnlens.training.job import Job
from attnlens.training.movement import POINTS
from attnlens.training.observer import Observer, undisturbed

TEXTS = 16
PAUSE = 8  # steps between two looks at least: one costs a third of a step on as many texts


class AttentionWatch(Observer):
    """Entropy of each attention layer in nats, the mean over at most 16 held-out rows, spread evenly over all.

    At step 0 and at every n-th of the steps at which movement is measured. A row's entropy is the mean over its heads
    and queries, without dropout. A model whose attention cannot be recorded is refused before it trains.
    """

    key = "attention"

    def __init__(self, job: Job):
        step = math.ceil(len(job.work.heldout) / TEXTS)
        self._job, self._rows = job, job.work.heldout[::step]
        self._pause = 1
        self._layers: list[str] = []
        self._seen: dict[str, list[Any]] = {"steps": [], "entropy": []}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Settle how often to look, and look at the base."""
        every = math.ceil(state.max_steps / POINTS)
        self._pause = every * math.ceil(PAUSE / every)
        if not self._seen["steps"]:
            self._look(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Look again, after every pause."""
        if state.global_step % self._pause == 0:
            self._look(state.global_step)

    def facts(self) -> dict[str, Any]:
        """texts; layers: names of the attention modules in the order they run; entropy: [step][layer]."""
        return {"texts": len(self._rows), "layers": self._layers, **self._seen}

    def state(self) -> dict[str, Any]:
        """All that was seen."""
        return {"layers": self._layers, **self._seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the last look."""
        self._layers, self._seen = list(state["layers"]), {name: list(state[name]) for name in self._seen}

    def _look(self, step: int) -> None:
        # Before the first step a learnt prompt is noise before the text: the base is looked at without it.
        model = self._job.model if step else self._job.base.model
        virtual = step > 0 and getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
        with undisturbed(model):
            batch = on_device(self._job, self._rows)
            batch.pop("labels", None)
            with record(model, statistics=("entropy",), without_virtual=virtual) as tape:
                model(**batch)
        call = tape.only()
        self._layers = [site.name for site in call.sites]
        means = [entropy.flatten(1).nanmean(1).mean().item() for entropy in call.values["entropy"]]
        self._seen["steps"].append(step)
        self._seen["entropy"].append([mean if math.isfinite(mean) else None for mean in means])
