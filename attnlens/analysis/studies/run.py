"""A study from its file to its finished cells."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from attnlens.analysis.studies.cells import Plan, slug
from attnlens.analysis.studies.data import Places, prepared
from attnlens.analysis.studies.file import StudyFile, read_study
from attnlens.analysis.studies.queue import State, run_cells
from attnlens.checkpoints.files import alone
from attnlens.checkpoints.identity import files_sha256, read_record
from attnlens.checkpoints.remote_code import check_code, code_facts, trusted, trusting
from attnlens.checkpoints.source import Source, locate
from attnlens.core.errors import AttnlensError, CheckpointError, OutputExists

DATA, COPY, LOCK = "data", "study.toml", ".lock"


@dataclass(frozen=True)
class StudyOptions:
    """How a study is run.

    output: its folder; None: the name of the file without .toml, here. data_root: what {data_root} in the file stands
    for. processes: cells at a time. force: run the cells in the folder that were trained or measured otherwise again.
    trust_remote_code: run code that models bring for an architecture of their own. watch: called with the state
    whenever it has changed.
    """

    output: str | Path | None = None
    data_root: str | Path | None = None
    processes: int = 1
    force: bool = False
    trust_remote_code: bool = False
    watch: Callable[[State], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if isinstance(self.processes, bool) or not isinstance(self.processes, int) or self.processes < 1:
            raise AttnlensError(f"processes must be a whole number of at least 1; got {self.processes!r}")


def planned(path: str | Path, options: StudyOptions) -> Plan:
    """The study in its folder, with the rows of every cell made ready; nothing is run.

    Raises OutputExists where the folder holds cells of another study file, unless `force` will clear them away.
    """
    path = Path(path)
    file, folder = read_study(path), _folder(path, options)
    places = Places(path.parent, Path(options.data_root).expanduser() if options.data_root is not None else None)
    models = {part.name: places.of_model(part.checkpoint) for part in file.models}
    given = {arm.name: _by_seed(file, arm.checkpoints, places) for arm in file.arms if arm.checkpoints}
    paths = [*models.values(), *(path for some in given.values() for path in some.values())]
    sources = {path: locate(path) for path in paths}
    weights = {path: _sha256(source) for path, source in sources.items()}
    if not (folder / COPY).is_file():  # from here on it is the study's, though a fault in the data may end this
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / COPY)
    files = {
        (name, part.name): prepared(
            part, model, places, folder / DATA / slug(name) / slug(part.name), task=file.training.task
        )
        for name, model in models.items()
        for part in file.data
    }
    plan = Plan(file, folder, models, files, given, weights, trusted())
    plan.folders()
    if not options.force:
        plan.check(plan.possible())
    shutil.copyfile(path, folder / COPY)
    return plan


def run(path: str | Path, options: StudyOptions | None = None) -> tuple[Plan, State]:
    """Run what is missing of a study: its cells, and what became of them."""
    options = StudyOptions() if options is None else options
    with held(path, options) as plan:
        for cell in plan.strange(plan.possible(), damaged=options.force):  # there are none without `force`
            shutil.rmtree(plan.folder / cell.path)
        return plan, run_cells(plan, options.processes, options.watch or (lambda state: None))


@contextmanager
def held(path: str | Path, options: StudyOptions) -> Iterator[Plan]:
    """The study planned, its folder held against any other run: that one reads the rows that planning writes.

    The system lets go of the folder at a kill.
    """
    read_study(path)  # a faulty file makes no folder
    folder = _folder(Path(path), options)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / LOCK, f"another run is at work in {folder}: wait for it, or choose another -o"):
        with trusting(options.trust_remote_code or trusted()):
            yield planned(path, options)


def _folder(path: Path, options: StudyOptions) -> Path:
    """Where the study lies; OutputExists where something else does."""
    folder = Path(options.output or path.stem)
    strangers = [each for each in folder.glob("*") if each.name != LOCK]
    if strangers and not (folder / COPY).is_file():
        raise OutputExists(f"{folder} is a folder but not a study's, so it is never written into: choose another -o")
    return folder


def _sha256(source: Source) -> str:
    """Checksum of a checkpoint's weights, and of the modules that it runs; which ones is said, or refused."""
    for place in source.described:
        check_code(place, tokenizer=place != source.config)
    code = code_facts(*source.described)
    weights = files_sha256(source.files)
    return weights if code is None else f"{weights} {json.dumps(code, sort_keys=True)}"


def _by_seed(file: StudyFile, checkpoints: tuple[str, ...], places: Places) -> dict[int, str]:
    """Given checkpoints by the seed that their records tell, else in the order of the study's seeds."""
    found = dict[int, str]()
    if len(checkpoints) > len(file.seeds):
        raise CheckpointError(f"{len(checkpoints)} checkpoints were given for {len(file.seeds)} seeds")
    for place, name in enumerate(checkpoints):
        path = places.of_model(name)
        record = read_record(path) if Path(path).is_dir() else None
        seed = file.seeds[place] if record is None else record.get("seed")
        if seed not in file.seeds or seed in found:
            fault = "another checkpoint of its arm has" if seed in found else "is none of the study's"
            raise CheckpointError(f"{name} was trained with seed {seed}, which {fault}")
        found[seed] = path
    return found
