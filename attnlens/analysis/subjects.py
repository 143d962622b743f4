"""Which models are run: loaded together, of one backbone and one dtype, and what rounding alone would do."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from attnlens.analysis.roles import Roles, roles_of
from attnlens.checkpoints.load import Checkpoint, load, load_all
from attnlens.core.errors import IncompatibleCheckpoints

SHAPE = ("num_hidden_layers", "num_attention_heads", "hidden_size", "num_key_value_heads")
Given = Checkpoint | str | Path


@dataclass(frozen=True)
class Subject:
    """A model to measure. reference: the models that follow are held against this one, up to the next reference."""

    checkpoint: Checkpoint
    reference: bool


@dataclass(frozen=True)
class Cast:
    """Every model of a comparison, base first, then the tuned, the named nulls, the seeds; and what each is for.

    given: as they were loaded; models: in one dtype, as they are run. answered: how many come before the seeds, which
    get no answer of their own.
    """

    given: list[Checkpoint]
    models: list[Checkpoint]
    names: list[str]
    roles: Roles
    answered: int

    @property
    def beside(self) -> dict[str, str]:
        """What an adapter adds beside the weights of its base, of the models where it does."""
        adapters = {name: model.adapter for name, model in zip(self.names, self.given, strict=True)}
        return {name: adapter.adds for name, adapter in adapters.items() if adapter is not None and adapter.adds}

    def rounded(self) -> list[Checkpoint]:
        """The first model stored widest, before and after a cast to the narrowest stored dtype: what rounding does."""
        stored = [model.model.dtype for model in self.given]
        narrowest, widest = min(stored, key=_bits), max(stored, key=_bits)
        if _bits(narrowest) == _bits(widest):
            return []
        source = self.models[stored.index(widest)]
        cast = copy.deepcopy(source)
        for parameter in cast.model.parameters():
            parameter.data = parameter.data.to(narrowest).to(parameter.dtype)
        name = f"rounding to {narrowest}".replace("torch.", "")
        return [replace(source, name=f"{name}: before"), replace(cast, name=name)]


def assembled(tuned: Sequence[Given], nulls: Sequence[Given], seeds: Sequence[Given]) -> Cast:
    """All models, loaded and checked. tuned: the base first."""
    given = _loaded([*tuned, *nulls, *seeds])
    models = _widened(given)
    names = _named(models)
    answered = len(names) - len(seeds)
    roles = roles_of(given, names, names[len(tuned) : answered], names[answered:])
    return Cast(given, models, names, roles, answered)


def _loaded(given: Sequence[Given]) -> list[Checkpoint]:
    """Checkpoints as they are; paths are loaded, together where all are paths, so that adapters share their base."""
    if len(given) < 2:
        raise IncompatibleCheckpoints("a comparison needs a base and at least one tuned checkpoint")
    if not any(isinstance(each, Checkpoint) for each in given):
        return load_all(given)  # pyright: ignore[reportArgumentType]
    return [each if isinstance(each, Checkpoint) else load(each) for each in given]


def _named(models: Sequence[Checkpoint]) -> list[str]:
    """Distinct names of the models, which must share one backbone."""
    base = models[0]
    for other in models[1:]:
        for key in ("model_type", *SHAPE):
            left, right = (getattr(model.model.config, key, None) for model in (base, other))
            if left != right:
                raise IncompatibleCheckpoints(
                    "base and tuned must share the backbone: "
                    f"{key} is {left} in {base.name} and {right} in {other.name}"
                )
    names: list[str] = []
    for model in models:
        name, number = model.name, 2
        while name in names:
            name, number = f"{model.name} ({number})", number + 1
        names.append(name)
    return names


def _widened(models: Sequence[Checkpoint]) -> list[Checkpoint]:
    """All models in one dtype that holds every stored weight: two models must not differ by their arithmetic."""
    dtypes = {model.model.dtype for model in models}
    if len(dtypes) == 1:
        return list(models)
    common = max(*dtypes, torch.float32, key=_bits)
    # Copied together: an adapter and its base stay one model.
    copies = copy.deepcopy([model for model in models if model.model.dtype != common])
    for model in copies:
        model.model.to(dtype=common)  # pyright: ignore[reportCallIssue]
    wider = iter(copies)
    return [model if model.model.dtype == common else next(wider) for model in models]


def split_floor(data: xr.Dataset, floor: Sequence[Checkpoint]) -> tuple[xr.Dataset, dict[str, Any] | None]:
    """The dataset without the rounded pair, and what rounding did, largest over layers."""
    if not floor:
        return data, None
    shift = abs((data.isel(model=-1) - data.isel(model=-2)).mean("head").mean("example"))
    sizes = {name: float(shift[name].max()) for name in ("focus", "entropy", "entropy_content") if name in shift}
    sizes["jsd"] = float(data["jsd"].isel(model=-1).mean("head").mean("example").max())
    if "hidden_change" in data:
        sizes["hidden_change"] = float(data["hidden_change"].isel(model=-1).mean("example").max())
    return data.isel(model=slice(0, -2)), {"model": floor[-1].name, **sizes}


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits
