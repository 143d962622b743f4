"""The cells of a study: what each is, where it lies, and what is known of it on disk."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from attnlens.analysis.studies.data import Files
from attnlens.analysis.studies.file import ArmPart, StudyFile
from attnlens.checkpoints.seal import read_facts
from attnlens.core.errors import AttnlensError, OutputExists

CELLS, BEGUN, TRAINED, ROW, FAILED = "cells", "begun.json", "trained.json", "row.json", "failed.json"


@dataclass(frozen=True)
class Cell:
    """One training run of a study with its comparison: names of the parts of the study file, and a seed.

    rate: learning rate, None for the method's default and for checkpoints that were given.
    """

    model: str
    data: str
    arm: str
    rate: float | None
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        rate = "" if self.rate is None else f" at {self.rate:g}"
        return f"{self.model}, {self.data}: {self.arm}{rate}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Where it lies, in the folder of the study."""
        rate = "rate-default" if self.rate is None else f"rate-{self.rate:g}"
        return Path(CELLS, *map(slug, (self.model, self.data, self.arm)), rate, f"seed-{self.seed}")


def slug(name: str) -> str:
    """A name as a folder: letters, digits, dots, hyphens."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


@dataclass(frozen=True)
class Plan:
    """A study in its folder: the file, where models and data lie, given checkpoints by seed, checksums of weights.

    trusted: whether the models may run code of their own.
    """

    file: StudyFile
    folder: Path
    models: dict[str, str]
    files: dict[tuple[str, str], Files]
    given: dict[str, dict[int, str]]
    weights: dict[str, str]
    trusted: bool = False

    def arm(self, name: str) -> ArmPart:
        """The arm of this name."""
        return next(arm for arm in self.file.arms if arm.name == name)

    def grid(self) -> list[Cell]:
        """The cells that try learning rates, on the first seed; those whose rate wins are cells of the study, too."""
        return [
            Cell(model, data, arm.name, rate, self.file.seeds[0])
            for model, data, arm in self.lines()
            for rate in arm.rates
            if len(arm.rates) > 1
        ]

    def cells(self) -> list[Cell]:
        """The cells of the study as far as their learning rates are known, seed by seed, so that all arms advance."""
        rates = {line: self.chosen(*line) for line in self.lines()}
        known = {
            (model, data, arm.name): rate
            for (model, data, arm), rate in rates.items()
            if len(arm.rates) == 1 or rate is not None
        }
        of_seeds = [(seed, line) for seed in self.file.seeds for line in known]
        return [Cell(*line, known[line], seed) for seed, line in of_seeds if seed in self.seeds_of(line[2])]

    def possible(self) -> list[Cell]:
        """Every cell that may become one of the study's, whatever learning rates are chosen."""
        return [
            Cell(model, data, arm.name, rate, seed)
            for model, data, arm in self.lines()
            for rate in arm.rates
            for seed in self.seeds_of(arm.name)
        ]

    def seeds_of(self, arm: str) -> Sequence[int]:
        """All seeds of the study; of checkpoints that were given those at hand."""
        return [seed for seed in self.file.seeds if arm not in self.given or seed in self.given[arm]]

    @property
    def size(self) -> int:
        """How many cells the study has, those with a learning rate that is still open included."""
        return sum(len(self.seeds_of(arm.name)) for _, _, arm in self.lines())

    def lines(self) -> Iterator[tuple[str, str, ArmPart]]:
        """Every arm on every model and data set."""
        for model, data, arm in product(self.file.models, self.file.data, self.file.arms):
            yield model.name, data.name, arm

    def chosen(self, model: str, data: str, arm: ArmPart) -> float | None:
        """The learning rate of an arm: of a grid the one that is best on the held-out rows; None until all are tried.

        Runs that failed are out of the choice; of equals the smaller rate wins.
        """
        if len(arm.rates) == 1:
            return arm.rates[0]
        scores = dict[float, float]()
        for rate in arm.rates:
            assert rate is not None
            cell = Cell(model, data, arm.name, rate, self.file.seeds[0])
            if (facts := read_facts(self.folder / cell.path / TRAINED)) is not None:
                scores[rate] = facts["held_out"]
            elif read_facts(self.folder / cell.path / FAILED) is None:
                return None
        return max(sorted(scores), key=lambda rate: scores[rate]) if scores else None

    def key(self, cell: Cell) -> str:
        """What the numbers of a cell depend on; a row with another key is of another study."""
        arm = self.arm(cell.arm).model_dump(mode="json", exclude={"name", "learning_rate", "checkpoints"})
        given = [self.given[cell.arm][cell.seed]] if cell.arm in self.given else []
        content = {
            "cell": asdict(cell),
            "weights": [self.weights[path] for path in (self.models[cell.model], *given)],
            "files": [file.sha256 for file in self.files[cell.model, cell.data]],
            "arm": arm,
            "training": self.file.training.model_dump(mode="json"),
            "measure": self.file.measure.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse to mix with cells that another study file left here."""
        for cell in self.strange(cells):
            raise OutputExists(
                f"{self.folder} holds cells of another study file, or of other data ({cell.name} was trained or "
                "measured otherwise): choose another -o, or --force to run such cells again"
            )

    def strange(self, cells: Sequence[Cell], *, damaged: bool = False) -> list[Cell]:
        """Those that lie here trained or measured otherwise, and if asked for those of which facts are damaged."""
        found = []
        for cell in cells:
            try:
                facts = [read_facts(self.folder / cell.path / name) for name in (TRAINED, ROW)]
            except AttnlensError:
                if not damaged:
                    raise
                found.append(cell)
                continue
            if any(fact is not None and fact["key"] != self.key(cell) for fact in facts):
                found.append(cell)
        return found

    def folders(self) -> None:
        """Refuse names that would share a folder."""
        for part in ("models", "data", "arms"):
            names = [each.name for each in getattr(self.file, part)]
            slugs = [slug(name).casefold() for name in names]
            for name, folder in zip(names, slugs, strict=True):
                if slugs.count(folder) > 1:
                    raise AttnlensError(f"the name {name!r} among the {part} differs from another by signs alone")
