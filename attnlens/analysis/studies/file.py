"""The study file: what is compared with what, checked before anything runs, faults told with their line."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from attnlens.core.errors import AttnlensError, UnknownName
from attnlens.training.methods import METHODS, method_named
from attnlens.training.options import TrainOptions


def _method(name: str) -> str:
    if name not in METHODS:
        raise UnknownName.among("fine-tuning method", name, METHODS)
    return name


def _rates(value: object) -> object:
    return value if isinstance(value, tuple) else (value,)


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} stands there twice")
    return values


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rates = Annotated[tuple[Positive, ...], BeforeValidator(_rates), Field(min_length=1), AfterValidator(_each_once)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1), AfterValidator(_each_once)]
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^/\\\x00-\x1f]+$")]
TWIN = "shuffled twin"  # what a comparison calls the twin of an arm


class _Misplaced(ValueError):
    """A fault that only the whole file shows, with the entry that is to be changed."""

    def __init__(self, told: str, place: tuple[str | int, ...]):
        super().__init__(told)
        self.place = place


class Part(BaseModel):
    """A table of the file: no entry but those named, and no value bent into shape."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelPart(Part):
    """A base model: a folder, a hub id, or attnlens:all-MiniLM-L6-v2 of the demo."""

    name: Name
    checkpoint: str


class DataPart(Part):
    """A data set: files to train and to test on, or one that comes along, as attnlens:contracts_train.

    labels: keep the rows of so many commonest labels of the training data. window: cut texts to so many tokens around
    their spans. limit: at most so many training rows, spread over documents.
    """

    name: Name
    train: str
    test: str
    labels: Annotated[int, Field(ge=2)] | None = None
    window: Annotated[int, Field(ge=3)] | None = None
    limit: Count | None = None
    columns: dict[str, str] | None = None


class TrainingPart(Part):
    """What all arms share of `TrainOptions`."""

    max_steps: Count | None = None
    epochs: Positive = 3.0
    batch_size: Count = 16
    accumulation: Count = 1
    max_length: Count | None = None
    patience: Count = 4
    task: str | None = None
    class_weights: bool = False
    dtype: Literal["float32", "bfloat16"] | None = None
    checkpointing: bool = False


class MeasurePart(Part):
    """What all comparisons with the base share of `CompareOptions`; salience: the headline's definition first."""

    salience: tuple[str, ...] | None = None
    limit: Count | None = 200
    max_length: Annotated[int, Field(ge=3)] = 512
    batch_size: Count = 16
    rows: str | None = None
    sesoi: Annotated[float, Field(gt=0, lt=1)] = 0.02
    knockout: bool = False


SHARED = ("name", "method", "checkpoints", "learning_rate", "twin")  # of an arm; the rest are options of its method


class ArmPart(Part):
    """One way to fine-tune, or checkpoints that are there already.

    learning_rate: one, or a grid that is tried on the first seed. twin: train each seed on shuffled labels, too. The
    rest are options of the method.
    """

    name: Name
    method: Annotated[str, AfterValidator(_method)] | None = None
    checkpoints: tuple[str, ...] = ()
    learning_rate: Rates | None = None
    twin: bool = False
    k: Count | None = None
    layers: tuple[int, ...] | None = None
    budget: Annotated[float, Field(gt=0, le=1)] | None = None
    denominator: str | None = None
    score: str | None = None
    commit: bool | None = None
    rank: Count | None = None
    alpha: Positive | None = None
    virtual_tokens: Count | None = None
    bottleneck: Count | None = None
    variant: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ArmPart":
        """Trained here or there already; with options that its method knows."""
        if (self.method is None) == (not self.checkpoints):
            raise ValueError("give a method, or checkpoints that are trained already")
        if self.method is None and (self.twin or self.learning_rate or self.settings):
            raise ValueError("checkpoints are trained already: their arm takes a name and nothing else")
        if self.method is not None:
            method_named(self.method, TrainOptions(**self.settings))
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The options of its method that were set."""
        own = [name for name in type(self).model_fields if name not in SHARED]
        return {name: getattr(self, name) for name in own if getattr(self, name) is not None}

    @property
    def rates(self) -> tuple[float | None, ...]:
        """The learning rates to try; None is the method's default."""
        return self.learning_rate or (None,)


class StudyFile(Part):
    """A whole study.

    seeds: each trains every arm once, on the same rows held out and in the same order, from the same new head.
    reference: the arm that the others are held against (None: the first). margin: how much less accuracy, as a share of
    1, or how much more loss, in nats a token, still counts as not inferior. threads: of each cell's process.
    keep_checkpoints: keep the weights of every cell after it was measured.
    """

    title: str
    seeds: Seeds
    reference: str | None = None
    margin: Positive = 0.01
    threads: Count = 1
    keep_checkpoints: bool = True
    models: tuple[ModelPart, ...] = Field(min_length=1)
    data: tuple[DataPart, ...] = Field(min_length=1)
    training: TrainingPart = TrainingPart()
    measure: MeasurePart = MeasurePart()
    arms: tuple[ArmPart, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> "StudyFile":
        """Names are said once, and the reference is an arm."""
        for part in ("models", "data", "arms"):
            names = [each.name for each in getattr(self, part)]
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise _Misplaced(f"{name!r} stands twice among the {part}", (part, number, "name"))
        taken = {TWIN, *(model.name for model in self.models)}  # an arm is compared with its base and with its twin
        for number, arm in enumerate(self.arms):
            if arm.name in taken:
                raise _Misplaced(f"{arm.name!r} is the name of a model or of a twin", ("arms", number, "name"))
        if self.reference is not None and self.reference not in [arm.name for arm in self.arms]:
            told = UnknownName.among("arm", self.reference, [arm.name for arm in self.arms])
            raise _Misplaced(str(told), ("reference",))
        return self

    @property
    def held_against(self) -> str:
        """The arm that the others are held against."""
        return self.reference or self.arms[0].name


def read_study(path: str | Path) -> StudyFile:
    """The study file, checked; AttnlensError names the line of a fault and what would be right."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AttnlensError(f"{path} is no TOML: {error}") from error
    try:
        return StudyFile.model_validate(_frozen(values))
    except ValidationError as error:
        # A name that is not known comes first: what is missing is often that name, rightly spelled.
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        inner = first.get("ctx", {}).get("error")
        place = inner.place if isinstance(inner, _Misplaced) else first["loc"]
        raise AttnlensError(f"{path}, {_where(text, place)}: {_told(first, place)}") from error


def _frozen(value: Any) -> Any:
    """Lists as the tuples that the parts hold."""
    if isinstance(value, dict):
        return {name: _frozen(each) for name, each in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _told(fault: Any, place: Sequence[str | int]) -> str:
    """What is wrong, in words; of a name that is not known the nearest one that is."""
    name = str(place[-1]) if place else ""
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, _known(place), n=1)
        return f"{name!r} is not known here" + (f": did you mean {near[0]!r}?" if near else "")
    if fault["type"] == "missing":
        return f"{name!r} is missing"
    entry = next((str(part) for part in reversed(place) if isinstance(part, str)), "")
    if isinstance(inner := fault.get("ctx", {}).get("error"), ValueError):
        told = str(inner).rstrip(".")
        return f"{entry}: {told}" if place and place[-1] == entry else told
    message = (fault["msg"][0].lower() + fault["msg"][1:]).replace("tuple", "list")
    return f"{entry}: {message}; got {_listed(fault['input'])!r}"


def _known(place: Sequence[str | int]) -> list[str]:
    """The entries that may stand where a fault is."""
    parts: dict[str, type[Part]] = {
        "models": ModelPart,
        "data": DataPart,
        "training": TrainingPart,
        "measure": MeasurePart,
        "arms": ArmPart,
    }
    return list(parts.get(str(place[0]), StudyFile).model_fields if len(place) > 1 else StudyFile.model_fields)


def _where(text: str, place: Sequence[str | int]) -> str:
    """The line of an entry, by tables and keys as they stand in the file; of a missing one that of its table."""
    wanted = [str(part) for part in place if isinstance(part, str)]
    number = next((part for part in place if isinstance(part, int)), 0)
    table, seen, found = "", dict[str, int](), 1
    for line, words in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([\w-]+)\s*\]\]?", words):
            table = header[1]
            seen[table] = seen.get(table, -1) + 1
            if wanted and table == wanted[0] and seen[table] == number:
                found = line
        elif key := re.match(r"\s*([\w-]+)\s*=", words):
            here = [table, key[1]] if table else [key[1]]
            if here == wanted[: len(here)] and (not table or seen[table] == number):
                return f"line {line}"
    return f"line {found}"


def describe_arm(arm: ArmPart) -> str:
    """What an arm does, in a few words: its method's title and the options that were set."""
    if arm.method is None:
        return f"{len(arm.checkpoints)} checkpoints that were given"
    settings = [f"{name} {value}" for name, value in arm.settings.items()]
    return ", ".join([METHODS[arm.method].title, *settings])
