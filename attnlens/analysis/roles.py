"""Which tuned models are answers, and which are what an answer is held against: shuffled twins and further seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import IncompatibleCheckpoints

Record = Mapping[str, Any]

# What two records must share for one to be the twin of the other; the labels differ, by the seed's own shuffle.
SAME = (("method",), ("seed",), ("base", "sha256"), ("data", "train", "sha256"), ("data", "heldout", "sha256"))
# What may differ in a run's order between seeds of one procedure: which rows are held out goes by the seed.
BY_SEED = {"seed", "rows", "step of the twin"}
# What tells which rows a run held out.
HELD_OUT = ("sha256", "rows")


@dataclass(frozen=True)
class Roles:
    """nulls: tuned model → its shuffled twin. seeds: tuned model → the same training from other seeds.

    answers: the tuned models that are neither; all of them, where there are only twins. numbers: model → the seed that
    its record tells.
    """

    answers: tuple[str, ...]
    nulls: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)

    def runs(self, model: str) -> tuple[str, ...]:
        """The model and the same training from other seeds."""
        return (model, *self.seeds.get(model, ()))

    def pairs(self, model: str) -> list[tuple[str, str]]:
        """Runs of a model and of the first answer, its rival, with the same seed, for level C (METRICS 6.2).

        Empty unless both have the same seeds, two at least.
        """
        mine, rival = ({self.numbers.get(run): run for run in self.runs(name)} for name in (model, self.answers[0]))
        paired = model != self.answers[0] and len(mine) > 1 and None not in mine and mine.keys() == rival.keys()
        return [(mine[number], rival[number]) for number in sorted(mine, key=str)] if paired else []


def is_null(record: Record | None) -> bool:
    """Whether a training record is a shuffled twin's: a run that had nothing to learn."""
    return record is not None and record.get("null_twin") is True


def is_twin_of(null: Record | None, real: Record | None) -> bool:
    """Whether `null` records the shuffled twin of the run that `real` records: the same base, data, method and seed."""
    if null is None or real is None or not is_null(null) or is_null(real):
        return False
    return all(_entry(null, path) == _entry(real, path) for path in SAME)


def roles_of(models: Sequence[Checkpoint], names: Sequence[str], nulls: Sequence[str], seeds: Sequence[str]) -> Roles:
    """Roles of the models by their training records, and by what was named as a null or as a seed.

    models, names: base first. A twin is known by its record. A model named as a null that has no record is the first
    answer's, one named as a seed likewise: then it is the caller's word. Raises IncompatibleCheckpoints where a record
    speaks against what was named.
    """
    records = {name: _record(model) for name, model in zip(names, models, strict=True)}
    shuffled = [name for name in names[1:] if name in nulls or is_null(records[name])]
    apart = {*shuffled, *seeds}
    answers = tuple(name for name in names[1:] if name not in apart) or tuple(names[1:])
    twin_of = dict[str, str]()
    for null in shuffled:
        for name in _owners(null, answers, records, named=null in nulls):
            twin_of.setdefault(name, null)
    runs = {name: [name] for name in answers}
    for seed in seeds:
        owner = _procedure(seed, answers, records)
        _check_seed(seed, runs[owner], records)
        runs[owner].append(seed)
    numbers = {name: (records[name] or {}).get("seed") for more in runs.values() for name in more}
    return Roles(
        answers,
        twin_of,
        {name: tuple(more[1:]) for name, more in runs.items() if len(more) > 1},
        {name: number for name, number in numbers.items() if number is not None},
    )


def held_out_otherwise(first: Record | None, other: Record | None) -> bool:
    """Whether two runs held out different rows, so that one may have learned texts that are new to the other."""
    if first is None or other is None:
        return False
    return any(_entry(first, ("data", "heldout", key)) != _entry(other, ("data", "heldout", key)) for key in HELD_OUT)


def _record(model: Checkpoint) -> Record | None:
    return model.provenance.get("training")


def _owners(null: str, answers: Sequence[str], records: Mapping[str, Record | None], *, named: bool) -> list[str]:
    """The models that a null is the twin of."""
    owners = [name for name in answers if is_twin_of(records[null], records[name])]
    if owners or not named:
        return owners
    if is_null(records[null]) and all(records[name] is not None for name in answers):
        raise IncompatibleCheckpoints(
            f"{null} was given as a shuffled twin, but of another run: base, data, method and seed must be those of "
            f"{' or '.join(answers)}"
        )
    return [answers[0]]


def _procedure(seed: str, answers: Sequence[str], records: Mapping[str, Record | None]) -> str:
    """The answer whose training a model repeats."""
    order = _order(records[seed])
    if order is None or _order(records[answers[0]]) is None:
        return answers[0]
    differences = {}
    for name in answers:
        mine = _order(records[name]) or {}
        differences[name] = [key for key in {**mine, **order} if mine.get(key) != order.get(key)]
        if not differences[name]:
            return name
    nearest = min(differences, key=lambda name: len(differences[name]))
    key = differences[nearest][0]
    mine = (_order(records[nearest]) or {}).get(key)
    raise IncompatibleCheckpoints(
        f"{seed} was given as another seed of {nearest}, but its {key} is {order.get(key)!r}, not {mine!r}: "
        "give runs that differ in the seed alone"
    )


def _order(record: Record | None) -> dict[str, Any] | None:
    """What a run's result depends on, but for its seed; None without a record of it."""
    order = None if record is None else record.get("order")
    return None if order is None else {key: value for key, value in order.items() if key not in BY_SEED}


def _check_seed(seed: str, runs: Sequence[str], records: Mapping[str, Record | None]) -> None:
    number = (records[seed] or {}).get("seed")
    for run in runs:
        if number is not None and (records[run] or {}).get("seed") == number:
            raise IncompatibleCheckpoints(
                f"{seed} and {run} were both trained with seed {number}: one run twice tells nothing of another seed"
            )


def _entry(record: Record, path: tuple[str, ...]) -> Any:
    found: Any = record
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
