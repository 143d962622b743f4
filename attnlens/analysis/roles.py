"""Which tuned models are answers and which are what an answer is held against: shuffled twins, and further seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import UnknownName

# What two records must share for one to be the twin of the other; the labels differ, by the seed's own shuffle.
SAME = (("method",), ("seed",), ("base", "sha256"), ("data", "train", "sha256"), ("data", "heldout", "sha256"))


@dataclass(frozen=True)
class Roles:
    """nulls: tuned model → its shuffled twin. seeds: models that differ from the first tuned one by the seed alone."""

    nulls: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[str, ...] = ()


def is_null(record: Mapping[str, Any] | None) -> bool:
    """Whether a training record is a shuffled twin's: a run that had nothing to learn."""
    return record is not None and record.get("null_twin") is True


def is_twin_of(null: Mapping[str, Any] | None, real: Mapping[str, Any] | None) -> bool:
    """Whether `null` records the shuffled twin of the run that `real` records: the same base, data, method and seed."""
    if null is None or real is None or not is_null(null) or is_null(real):
        return False
    return all(_entry(null, path) == _entry(real, path) for path in SAME)


def _entry(record: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = record
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def roles_of(
    models: Sequence[Checkpoint], names: Sequence[str], nulls: Mapping[str, str] | None, seeds: Sequence[str]
) -> Roles:
    """Roles of the models by their training records, and by what was named (`nulls`, `seeds`), which comes first.

    models, names: base first. Raises UnknownName where a role names no tuned model.
    """
    named = dict(nulls or {})
    for name in (*named, *named.values(), *seeds):
        if name not in names[1:]:
            raise UnknownName.among("tuned model", name, names[1:])
    records = dict(zip(names, (model.provenance.get("training") for model in models), strict=True))
    for name in names[1:]:
        twins = [other for other in names[1:] if is_twin_of(records[other], records[name])]
        if twins and name not in seeds:
            named.setdefault(name, twins[0])
    return Roles(named, tuple(seeds))
