"""The one error tree: what was needed, what came, what to do.

AttnlensError(ValueError)
├── UnknownName            a name no registry knows (did you mean …?)
├── ShapeError             a tensor of the wrong shape
├── NotAttentionError      rows that are not softmax weights
├── UnsupportedModel       a model attnlens cannot measure, with the reason
├── EmptyTape              `record` closed without a complete forward pass
├── CheckpointError        a checkpoint that is missing, incomplete or unreadable
│   ├── Damaged            a file that is not the one that was written
│   └── OwnCode            an architecture of its own, whose code nobody asked to run
├── IncompatibleCheckpoints  base and tuned that cannot be compared
├── CorpusError            a data file attnlens cannot use
├── TrainingError          a fine-tuning run that cannot start or go on
│   └── Diverged           a loss or a score that is no longer a number
└── OutputExists           a folder that already holds another run
"""

import difflib
import re
from collections.abc import Iterable

# Control characters, line breaks, overrides of direction and halves of characters.
STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """One line: what steers a terminal or breaks a line is shown by its number."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


class AttnlensError(ValueError):
    """Root of every error attnlens raises for a user's fault.

    Its message is one line: what steers a terminal or breaks a line is shown by its number, as names in messages come
    from files of strangers.
    """

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class UnknownName(AttnlensError):
    """A name that is in no registry."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> "UnknownName":
        """Error for `name`, with the nearest known name or the whole list."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}."
        return cls(f"unknown {kind} {name!r}: {hint}")


class ShapeError(AttnlensError):
    """A tensor whose shape does not fit the others."""


class NotAttentionError(AttnlensError):
    """Rows that are not softmax weights: negative, or not summing to 1."""


class UnsupportedModel(AttnlensError):
    """A model whose attention cannot be measured exactly; the message names the reason."""


class EmptyTape(AttnlensError):
    """`record` was left before one forward pass was complete."""


class CheckpointError(AttnlensError):
    """A checkpoint that is missing, incomplete or unreadable."""


class Damaged(CheckpointError):
    """A file that is not the one that was written. fault: the message without what to do about it."""

    def __init__(self, fault: str, advice: str = ""):
        super().__init__(f"{fault}: {advice}" if advice else fault)
        self.fault = str(self).removesuffix(f": {advice}")


class OwnCode(CheckpointError):
    """A checkpoint that only code of its own can load, which nobody asked to run."""


class IncompatibleCheckpoints(AttnlensError):
    """Base and tuned that do not share backbone or token ids."""


class CorpusError(AttnlensError):
    """A data file that cannot be read as a corpus."""


class TrainingError(AttnlensError):
    """A fine-tuning run that cannot start or go on."""


class Diverged(TrainingError):
    """A loss or a score that is no longer a number; the message ends with the step."""


class OutputExists(AttnlensError):
    """An output folder that already holds something else."""
