"""Everything that the weights of two checkpoints tell, and what was left out: no model runs."""

from dataclasses import dataclass

import pandas as pd

from attnlens.analysis.opening import Given, Opened, opened
from attnlens.analysis.weights import Progress, Spectra, by_layer, by_module, changes_of, heads_of
from attnlens.checkpoints.deltas import Adapted
from attnlens.core.weights import WeightChange, pool

# How many names a note lists before it only counts.
LISTED = 4


@dataclass(frozen=True)
class Difference:
    """Weight changes of one pair of checkpoints.

    changes: one row a matrix. layers, modules: the backbone's, pooled. heads: what each head computes with its
    weights. total: the backbone as one. notes: what was left out, and what is rounding, in plain words.
    """

    base: str
    tuned: str
    total: WeightChange
    changes: pd.DataFrame
    layers: pd.DataFrame
    modules: pd.DataFrame
    heads: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by name; layers and heads are counted from 0, −1 is outside the blocks."""
        return {"weights": self.changes, "layers": self.layers, "modules": self.modules, "heads": self.heads}


def difference(
    base: Given | None, tuned: Given, *, spectra: Spectra = "estimated", progress: Progress | None = None
) -> Difference:
    """Changes of all matrices, pooled and by head; base None: the one that the adapter `tuned` names.

    spectra: as of `weight_changes`.
    """
    with opened(base, tuned) as both:
        changes = changes_of(both, spectra=spectra, progress=progress)
        heads = heads_of(both)
    backbone = changes[changes["kind"] == "backbone"]
    fields = ["delta_norm", "base_norm", "entries", "identical"]
    total = pool(WeightChange(*row) for row in backbone[fields].itertuples(index=False, name=None))
    notes = (*_left_out(both, changes, heads), *_rounding(backbone))
    return Difference(*both.names, total, changes, by_layer(changes), by_module(changes), heads, notes)


def _left_out(both: Opened, changes: pd.DataFrame, heads: pd.DataFrame) -> list[str]:
    """What the tables by layer and module do not contain."""
    notes = []
    added = both.tuned.beside if isinstance(both.tuned, Adapted) else ()
    if added:
        what = f"{added[0]} beside them" if len(added) == 1 else f"{len(added)} tensors beside them ({added[0]}, …)"
        notes.append(
            f"The base's weights are untouched: {both.names[1]} adds {what}. They change what the layers compute and "
            "are not counted here."
        )
    beside = changes.loc[changes["kind"] == "head", "matrix"].tolist()
    if beside:
        notes.append(f"Task heads and poolers are not part of the layers: {_listed(beside)}.")
    for names, side in ((both.pairing.only_base, 0), (both.pairing.only_tuned, 1)):
        if names:
            notes.append(f"Only {both.names[side]} has {_listed(names)}: not compared.")
    if both.pairing.tied:
        notes.append(f"Tied to an embedding and counted once: {_listed(both.pairing.tied)}.")
    if heads.empty:
        unknown = "there is no config.json of an architecture that transformers knows"
        reason = unknown if both.geometry is None else "the layout of their matrices is unknown"
        notes.append(f"Changes by attention head are left out: {reason}.")
    return notes


def _rounding(backbone: pd.DataFrame) -> list[str]:
    """Which changes rounding alone explains."""
    old = backbone["base_norm"]
    floor = pool(WeightChange(*row, 1, 0) for row in zip(backbone["floor"] * old, old, strict=True)).relative
    if not floor > 0:
        return []
    changed = backbone[backbone["delta_norm"] > 0]
    rounded = int(changed["rounding"].sum())
    about = f"The checkpoints are stored in different dtypes, and rounding alone changes the weights by {floor:.2e}."
    if rounded == len(changed):
        return [f"{about} No matrix changed by more than its rounding: the two differ by rounding alone."]
    if rounded == 0:
        return [about]
    return [f"{about} {rounded} of {len(changed)} changed matrices did not change by more: those changes are rounding."]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
