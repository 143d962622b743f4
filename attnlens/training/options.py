"""What a user may set about a fine-tuning run, in the Trainer's words."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnlens.checkpoints.identity import home_free
from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus

WHOLE = (
    "max_steps",
    "batch_size",
    "accumulation",
    "max_length",
    "k",
    "patience",
    "rank",
    "virtual_tokens",
    "bottleneck",
)
UNSAID = ("force", "resume", "trust_remote_code", "progress")  # they change no number
DTYPES = (None, "float32", "bfloat16")
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainOptions:
    """Options of `finetune`; None means the default that the record then names.

    max_steps: optimizer steps, overriding `epochs`. batch_size: rows of one pass; accumulation: passes of one step.
    learning_rate: peak of a linear schedule with 10 % warm-up (None: the method's tested default). max_length: tokens
    that are read at once: of a text, or of each window of a text that is read in windows (None: 512, or fewer if the
    model reads fewer). validation: held-out data (None: a fifth of the training documents). patience: evaluations
    without a better macro-F1 (where a text has not one label: loss) before training stops.

    task: a name of `TASKS` (None: what the rows pose). class_weights: rare classes count as much as frequent ones.
    windows: a classifier reads long texts in windows, instead of their beginning.

    Of methods, each None by default: k: blocks in training at a time (a quarter, rounded up). layers: numbers of the
    blocks of `layers`. Of `alf`: budget: share of the parameters in training at a time (0.25); denominator: of all the
    model's ("total") or of its blocks' ("blocks"); score: what makes a block important ("weight_change"); commit:
    choose once, after the warm-up. rank and alpha of `lora`; virtual_tokens of `prompt`; bottleneck: width of an
    `adapter`, and variant: where it sits ("pfeiffer" or "houlsby"); merge: write the merged weights, not the adapter.

    dtype: "bfloat16" computes in it, the weights staying float32. checkpointing: activations are computed again in the
    backward pass, not kept. general: text on which forgetting is measured (None: the embedded general sentences).
    watch_attention: record the attention on a fixed batch while training. null_twin: train once more on shuffled labels
    or words, and keep that beside `output` (attnlens.training.twin). resume: go on with an interrupted run of the same
    arguments, where there is one. columns: our field name → the file's column name. device: "cpu", "cuda", … (None:
    what the machine has). force: replace a checkpoint at `output`, and without `resume` begin an interrupted run anew.
    trust_remote_code: run code that the base brings for an architecture of its own.
    progress: called after every step and evaluation with (step, total steps, logs).
    """

    max_steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float | None = None
    max_length: int | None = None
    validation: str | Path | Corpus | None = None
    patience: int = 4
    task: str | None = None
    class_weights: bool = False
    windows: bool = False
    k: int | None = None
    layers: tuple[int, ...] | None = None
    budget: float | None = None
    denominator: str | None = None
    score: str | None = None
    commit: bool | None = None
    rank: int | None = None
    alpha: float | None = None
    virtual_tokens: int | None = None
    bottleneck: int | None = None
    variant: str | None = None
    merge: bool | None = None
    dtype: str | None = None
    checkpointing: bool = False
    general: str | Path | Corpus | None = None
    watch_attention: bool = False
    null_twin: bool = False
    resume: bool = False
    columns: Mapping[str, str] | None = None
    device: str | None = None
    force: bool = False
    trust_remote_code: bool = False
    progress: Progress | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        for name in WHOLE:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise TrainingError(f"{name} must be a whole number of at least 1; got {value!r}.")
        for name in ("epochs", "learning_rate", "alpha"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise TrainingError(f"{name} must be a finite number above 0; got {value!r}.")
        if self.dtype not in DTYPES:
            raise TrainingError(
                f"dtype must be float32 or bfloat16; got {self.dtype!r}: float16 would need its loss scaled."
            )
        if self.budget is not None and not (isinstance(self.budget, int | float) and 0 < self.budget <= 1):
            raise TrainingError(f"budget must be a share above 0 and at most 1; got {self.budget!r}.")

    @property
    def length(self) -> int:
        """`max_length`, once a run has settled it."""
        assert self.max_length is not None
        return self.max_length

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values, without what belongs to the machine or the screen."""
        values = {name: value for name, value in vars(self).items() if name not in UNSAID}
        for name in ("validation", "general"):
            data = values[name].name if isinstance(values[name], Corpus) else values[name]
            values[name] = home_free(data) if data is not None else None
        values["columns"] = dict(self.columns) if self.columns is not None else None
        values["layers"] = list(self.layers) if self.layers is not None else None
        return values
