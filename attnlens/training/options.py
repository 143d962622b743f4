"""What a user may set about a fine-tuning run, in the Trainer's words."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnlens.checkpoints.identity import home_free
from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainOptions:
    """Options of `finetune`; None means the default that the record then names.

    max_steps: optimizer steps, overriding `epochs`. learning_rate: peak of a linear schedule with 10 % warm-up
    (None: the method's tested default). max_length: tokens that are read at once: of a text, or of each window of a
    language model's text (None: 512, or fewer if the model reads fewer). validation: held-out data (None: a fifth of
    the training documents). k: blocks in training at a time, of methods that count them (None: a quarter, rounded up).
    Of `alf`: budget: share of the parameters in training at a time (None: 0.25); denominator: of all the model's
    ("total", the default) or of its blocks' ("blocks"); score: what makes a block important (None: "weight_change");
    commit: choose once, after the warm-up. patience: evaluations without a better macro-F1 (of a
    language model: loss) before training stops. columns: our field name → the file's column name. device: "cpu",
    "cuda", … (None: what the machine has). force: replace a checkpoint at `output`. progress: called after every step
    and evaluation with (step, total steps, logs).
    """

    max_steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 16
    learning_rate: float | None = None
    max_length: int | None = None
    validation: str | Path | Corpus | None = None
    k: int | None = None
    budget: float | None = None
    denominator: str | None = None
    score: str | None = None
    commit: bool | None = None
    patience: int = 4
    columns: Mapping[str, str] | None = None
    device: str | None = None
    force: bool = False
    progress: Progress | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        whole = {"max_steps": 1, "batch_size": 1, "max_length": 1, "k": 1, "patience": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise TrainingError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise TrainingError(f"{name} must be a finite number above 0; got {value!r}.")
        if self.budget is not None and not (isinstance(self.budget, int | float) and 0 < self.budget <= 1):
            raise TrainingError(f"budget must be a share above 0 and at most 1; got {self.budget!r}.")

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values, without what belongs to the machine or the screen."""
        values = {name: value for name, value in vars(self).items() if name not in {"force", "progress", "validation"}}
        validation = self.validation
        if isinstance(validation, Corpus):
            validation = validation.name
        values["validation"] = home_free(validation) if validation is not None else None
        values["columns"] = dict(self.columns) if self.columns is not None else None
        return values
