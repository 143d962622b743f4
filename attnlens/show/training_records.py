"""Reading training records: a stranger may have written them, so nothing is taken for what its name promises."""

import math
from dataclasses import dataclass
from typing import Any

from attnlens.analysis.results import Comparison

MOST_BLOCKS = 1000  # of a record that can be true
# What a run may have measured on its held-out data, the first that is there being told.
QUALITIES = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "micro_f1": "micro-F1",
    "exact_match": "exact match",
    "entity_f1": "entity-F1",
    "perplexity": "perplexity",
}
LANGUAGE = ("causal-lm", "masked-lm")  # tasks whose twin reads its words shuffled, not its labels


@dataclass(frozen=True)
class Stretch:
    """Steps `first` to `last` of a run: kind "probe" or "run", the blocks that trained, and what chose them.

    scores: of all blocks at the choice that began a run; empty of a probe and where nothing was scored.
    """

    first: int
    last: int
    kind: str
    active: tuple[int, ...]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Switching:
    """Who trained when: the number of blocks, the stretches in order, the name of the score."""

    blocks: int
    stretches: tuple[Stretch, ...]
    score: str

    @property
    def chosen(self) -> list[tuple[int, ...]]:
        """The sets of blocks that trained between probes, in order."""
        return [stretch.active for stretch in self.stretches if stretch.kind == "run"]


def training_records(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The training record of each tuned model that brings one."""
    models = comparison.provenance.get("models", [])
    found = {name: model.get("training") for name, model in zip(comparison.models, models, strict=False)}
    return {name: record for name, record in list(found.items())[1:] if isinstance(record, dict)}


def null_word(record: dict[str, Any]) -> str:
    """What a twin was trained on: "shuffled labels", of a language model "shuffled words"."""
    return "shuffled words" if record.get("task") in LANGUAGE else "shuffled labels"


def number(value: object) -> float:
    """A finite number, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def numbers(value: object) -> list[float]:
    """The numbers of a list, NaN where an entry is none; empty for anything else."""
    return [number(entry) for entry in value] if isinstance(value, list) else []


def whole(value: object) -> int | None:
    """A whole number, None for anything else."""
    found = number(value)
    return int(found) if found == found and found == int(found) else None


def text(value: object) -> str:
    """A text as it is, nothing for anything else."""
    return value if isinstance(value, str) else ""


def texts(value: object) -> list[str]:
    """A list of texts; empty where any entry is none."""
    return value if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else []


def part(record: object, *path: str) -> dict[str, Any]:
    """What stands under a path of keys, where that is an object with content; {} elsewhere."""
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record if isinstance(record, dict) else {}


def entries(value: object) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def switching(record: dict[str, Any]) -> Switching | None:
    """The blocks that a method chose while training; None where none did or the record does not hold together."""
    told = part(record, "switching")
    names = texts(told.get("blocks"))
    last = whole(part(record, "metrics").get("steps"))
    if not 0 < len(names) <= MOST_BLOCKS or last is None:
        return None
    known = range(len(names))
    scores = {
        whole(choice.get("step")): tuple(numbers(choice.get("smoothed"))) for choice in entries(told.get("choices"))
    }
    phases = list[tuple[int, str, tuple[int, ...]]]()
    for phase in entries(told.get("phases")):
        first, active = whole(phase.get("first")), [whole(block) for block in numbered(phase.get("active"))]
        if first is None or not 1 <= first <= last or phase.get("kind") not in ("probe", "run"):
            continue
        phases.append((first, phase["kind"], tuple(block for block in active if block is not None and block in known)))
    if not phases:
        return None
    phases.sort(key=lambda phase: phase[0])
    ends = [*(first - 1 for first, _, _ in phases[1:]), last]
    stretches = []
    for (first, kind, active), end in zip(phases, ends, strict=True):
        found = scores.get(first - 1, ()) if kind == "run" else ()
        fits = len(found) == len(names) and not any(math.isnan(score) for score in found)
        if end >= first:
            stretches.append(Stretch(first, end, kind, active, found if fits else ()))
    return Switching(len(names), tuple(stretches), text(part(told, "plan").get("score")))


def numbered(value: object) -> list[Any]:
    """A list, empty for anything else."""
    return value if isinstance(value, list) else []
