"""What tuning did to the weights, read from the files matrix by matrix: no model runs, none is held in memory."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from attnlens.analysis.opening import Given, Opened, opened
from attnlens.checkpoints.deltas import Adapted
from attnlens.checkpoints.heads import Geometry, circuits, sites
from attnlens.checkpoints.tensors import Pair, Tensors
from attnlens.core.circuits import Factors, ProductChange, product_change
from attnlens.core.errors import CheckpointError
from attnlens.core.lanczos import Estimate, estimated_spectrum
from attnlens.core.spectra import LowRank, Spectrum, change_spectrum, subspace_turn
from attnlens.core.weights import WeightChange, coarser, pool, precision_floor, weight_change

Progress = Callable[[int, int], None]
CHANGE = ("delta_norm", "base_norm", "relative", "entries", "identical")
SPECTRUM = ("spectral_norm", "stable_rank", "effective_rank", "nuclear_norm")
ERRORS = tuple(f"{name}_error" for name in SPECTRUM)
Spectra = Literal["none", "estimated", "exact"]
# On the shorter side of a matrix: a decomposition this small takes no longer than an estimate.
SMALL = 512
PRODUCT = ("delta_norm", "base_norm", "relative", "floor", "rounding")
HEADS = ("model", "site", "stack", "layer", "head", "circuit", *PRODUCT)
# A floor is the very change that rounding makes; sums in another order may differ in the last digits.
SLACK = 1 + 1e-9


def weight_changes(
    base: Given | None, tuned: Given, *, spectra: Spectra = "estimated", progress: Progress | None = None
) -> pd.DataFrame:
    """Change of every matrix in float64, one row each (METRICS 5), from the files as stored.

    Columns: model, matrix, module, layer (−1 outside the blocks), stack, kind (backbone or head), delta_norm,
    base_norm, relative, entries, identical, floor (the relative change that rounding to the narrower stored dtype
    makes; 0 where the dtypes are equal), rounding (a change not above the floor); with `spectra` also spectral_norm,
    stable_rank, effective_rank and nuclear_norm of the change and the relative error of each, cosine, and, from a
    decomposition alone, spectral_relative and of the subspace of the k leading singular vectors the largest angle
    (radians), overlap (0 random, 1 the same) and gap σ_k/σ_{k+1} of the base. Those of vectors are NaN.
    spectra: "estimated" decomposes matrices of up to 512 on their shorter side, and estimates the others
    (core/lanczos.py); "exact" decomposes all; "none". base None: the one that the adapter `tuned` names; the change of
    LoRA comes from its factors, never from a merged copy.
    """
    with opened(base, tuned) as both:
        return changes_of(both, spectra=spectra, progress=progress)


def changes_of(both: Opened, *, spectra: Spectra = "estimated", progress: Progress | None = None) -> pd.DataFrame:
    """`weight_changes` of two checkpoints that are open."""
    rows = []
    for done, matched in enumerate(both.pairing.pairs):
        rows.append(_row(both, matched, spectra))
        if progress is not None:
            progress(done + 1, len(both.pairing.pairs))
    return pd.DataFrame(rows)


def _row(both: Opened, matched: Pair, spectra: Spectra) -> dict[str, Any]:
    """One matrix; its factors stand for the change where there are any, and no change where nothing was touched."""
    old = both.base.read(matched.base)
    factors = None
    untouched = False
    if isinstance(both.tuned, Adapted) and not isinstance(both.base, Adapted):
        factors = both.tuned.low_rank(matched.tuned)
        untouched = both.tuned.untouched(matched.tuned)
    new = old if untouched else both.tuned.read(matched.tuned) if factors is None or spectra != "none" else None
    change, spectrum = _measured(old, new, factors, spectra)
    for value, name, side in (
        (change.base_norm, matched.base, 0),
        (change.delta_norm, matched.tuned, 1),
    ):
        if not math.isfinite(value):
            raise CheckpointError(f"{name} of {both.names[side]} holds NaN or infinite numbers")
    stored = both.base.dtype(matched.base), both.tuned.dtype(matched.tuned)
    floor = 0.0 if factors is not None or new is None else precision_floor(old, new, stored)
    row = {
        "model": both.names[1],
        **{field: getattr(matched, field) for field in ("matrix", "module", "layer", "stack", "kind")},
        **{field: getattr(change, field) for field in CHANGE},
        "floor": floor,
        "rounding": change.delta_norm > 0 and change.relative <= floor * SLACK,
    }
    return row | _shape(old, new, spectrum, change) if spectra != "none" and new is not None else row


def _measured(
    old: Tensor, new: Tensor | None, factors: LowRank | None, spectra: Spectra
) -> tuple[WeightChange, Spectrum | Estimate | None]:
    """Norms of the change, and its spectrum where it is asked for and there is one."""
    if factors is not None:
        spectrum = factors.spectrum()
        whole = weight_change(old, old if new is None else new)
        along = math.nan if new is None else whole.along
        return WeightChange(spectrum.norm, whole.base_norm, old.numel(), factors.unchanged(), along), spectrum
    assert new is not None
    change = weight_change(old, new)
    if spectra == "none" or old.ndim != 2 or not 0 < change.delta_norm < math.inf:
        return change, None
    if spectra == "exact" or min(old.shape) <= SMALL:
        return change, change_spectrum(old, new)
    # Within bfloat16 a change is a small multiple of the last digit, which bfloat16 holds.
    narrow = old.dtype == new.dtype == torch.bfloat16
    return change, estimated_spectrum(new - old if narrow else new.float() - old.float(), change.delta_norm)


def _shape(old: Tensor, new: Tensor, spectrum: Spectrum | Estimate | None, change: WeightChange) -> dict[str, float]:
    """What needs spectra, of the change and of both matrices; an unchanged matrix has turned by exactly 0."""
    row: dict[str, float] = dict.fromkeys(
        (*SPECTRUM, *ERRORS, "spectral_relative", "cosine", "angle", "overlap", "gap"), math.nan
    )
    row |= {"k": 0, "cosine": change.cosine}
    if old.ndim != 2:
        return row
    if change.delta_norm == 0 or spectrum is None:
        still = dict.fromkeys(("spectral_norm", "nuclear_norm", "spectral_relative", "angle", *ERRORS), 0.0)
        return row | still | {"overlap": 1.0}
    row |= {name: getattr(spectrum, name) for name in SPECTRUM}
    if isinstance(spectrum, Estimate):
        return row | {name: getattr(spectrum, name) for name in ERRORS}
    row |= dict.fromkeys(ERRORS, 0.0)
    turn = subspace_turn(old, new)
    row |= {name: getattr(turn, name) for name in ("k", "angle", "overlap", "gap")}
    return row | {"spectral_relative": spectrum.spectral_norm / turn.spectral_norm if turn.spectral_norm else math.nan}


def by_layer(changes: pd.DataFrame) -> pd.DataFrame:
    """Backbone changes pooled as √(ΣΔ²/ΣW²) over each layer (−1: outside the blocks)."""
    return _pooled(changes, ["model", "stack", "layer"])


def by_module(changes: pd.DataFrame) -> pd.DataFrame:
    """Backbone changes pooled as √(ΣΔ²/ΣW²) over each kind of module, largest share of the change first."""
    pooled = _pooled(changes, ["model", "module"])
    return pooled.sort_values(["model", "share"], ascending=[True, False], kind="stable", ignore_index=True)


def _pooled(changes: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row a group: relative, the share of the model's whole ΣΔ², floor (pooled alike), entries and identical."""
    backbone = changes[changes["kind"] == "backbone"]
    whole = dict((backbone["delta_norm"] ** 2).groupby(backbone["model"]).sum())
    rows = []
    for group, part in backbone.groupby(keys, sort=True):
        change = pool(WeightChange(*row) for row in _fields(part))
        floors = zip(part["floor"] * part["base_norm"], part["base_norm"], strict=True)
        floor = pool(WeightChange(rounded, old, 1, 0) for rounded, old in floors).relative
        total = whole[group[0]]
        rows.append(
            dict(zip(keys, group, strict=True))
            | {
                "relative": change.relative,
                "share": change.delta_norm**2 / total if total > 0 else math.nan,
                "floor": floor,
                "rounding": change.delta_norm > 0 and change.relative <= floor * SLACK,
                "entries": change.entries,
                "identical": change.identical,
            }
        )
    columns = [*keys, "relative", "share", "floor", "rounding", "entries", "identical"]
    return pd.DataFrame(rows, columns=columns)


def _fields(part: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    return part[["delta_norm", "base_norm", "entries", "identical"]].itertuples(index=False, name=None)


def head_changes(base: Given | None, tuned: Given) -> pd.DataFrame:
    """Change of what each head computes with its weights: the products W_QᵀW_K ("QK") and W_O W_V ("OV").

    Columns: model, site (the attention module), stack, layer, head, circuit, delta_norm, base_norm, relative, floor
    and rounding (as of `weight_changes`: what rounding to the narrower stored dtype does to the product). The key bias
    is left out: attention does not see it. Empty where the number of heads or the layout of the matrices is unknown.
    See core/circuits.py for what the products do and do not catch.
    """
    with opened(base, tuned) as both:
        return heads_of(both)


def heads_of(both: Opened) -> pd.DataFrame:
    """`head_changes` of two checkpoints that are open."""
    rows = []
    modules = {} if both.geometry is None else sites(both.pairing.pairs)
    for site, parts in modules.items():
        assert both.geometry is not None
        first = next(iter(parts.values()))
        for circuit, change, floor in _products(both, parts, both.geometry):
            rounding = (change.delta_norm > 0) & (change.relative <= floor * SLACK)
            columns = (column.tolist() for column in (*change, change.relative, floor, rounding))
            for head, values in enumerate(zip(*columns, strict=True)):
                rows.append((both.names[1], site, first.stack, first.layer, head, circuit, *values))
    numbers = {**dict.fromkeys(PRODUCT, float), "layer": int, "head": int, "rounding": bool}  # also without a row
    return pd.DataFrame(rows, columns=list(HEADS)).astype(numbers)


def _products(
    both: Opened, parts: Mapping[str, Pair], geometry: Geometry
) -> Iterator[tuple[str, ProductChange, Tensor]]:
    """Each circuit of one attention module with its change, and (H,) the floor of that."""
    base, tuned = {role: pair.base for role, pair in parts.items()}, {role: pair.tuned for role, pair in parts.items()}
    narrow = {role: coarser(both.base.dtype(base[role]), both.tuned.dtype(tuned[role])) for role in parts}
    old, new = circuits(both.base, base, geometry), circuits(both.tuned, tuned, geometry)
    old_rounded = _rounded(both.base, base, geometry, narrow)
    new_rounded = _rounded(both.tuned, tuned, geometry, narrow)
    for circuit, factors in old.items():
        change = product_change(factors, new[circuit])
        lost = torch.zeros_like(change.delta_norm)
        if old_rounded is not None:
            lost += product_change(factors, old_rounded[circuit]).delta_norm
        if new_rounded is not None:
            lost += product_change(new_rounded[circuit], new[circuit]).delta_norm
        yield circuit, change, ProductChange(lost, change.base_norm).relative


def _rounded(
    tensors: Tensors, names: Mapping[str, str], geometry: Geometry, narrow: Mapping[str, torch.dtype]
) -> dict[str, Factors] | None:
    """The circuits with every weight rounded that is stored wider than `narrow`; None where none is."""
    wider = {role: dtype for role, dtype in narrow.items() if tensors.dtype(names[role]) != dtype}
    return circuits(tensors, names, geometry, wider) if wider else None
