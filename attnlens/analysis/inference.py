"""Inference (METRICS 6): the unit is the document, and the seed where there are several; layers in one family."""

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.analysis.roles import Roles
from attnlens.core.bands import equivalence, max_t, simultaneous_band
from attnlens.core.crossed import crossed_band
from attnlens.core.multiplicity import benjamini_hochberg
from attnlens.core.resampling import column_tests, document_means, estimate_mean

COLUMNS = (
    "model salience family layer head estimate low high p p_adjusted p_equivalence effect_size n n_seeds level"
).split()

# What stands beside the headline: shares of the marked words and of their controls, and how well received attention
# picks the marked words out.
BESIDE = (
    *("share_matched", "share_value", "share_control", "share_random", "share_swapped"),
    *("received_auroc", "received_ap", "received_precision"),
)


def infer(
    data: xr.Dataset, *, roles: Roles, sesoi: float, seed: int, noise: xr.DataArray | None = None
) -> pd.DataFrame:
    """Every test of a comparison, one row each (columns: COLUMNS; layer and head count from 0, −1 means all).

    Families of two checkpoints (level A, n documents): "profile", D_l by layer with its simultaneous band and max-T p
    (METRICS 3.4, 6.4); "total", Σ D_l, bootstrap-t; "entropy layer", change of content entropy by layer; "jsd layer",
    divergence of the maps by layer, without p: it is never below 0, so 0 is no null, and "jsd seeds" is, the same from
    the maps of other seeds of the training, mean over n_seeds − 1 of them; "focus head" and "entropy head",
    t intervals with BH; of the first definition also the change of each variable of BESIDE by layer, with a band and
    no p. Where there is more: "beyond null", D_l less that of the shuffled twin, as "profile"; "seeds",
    D_l of the training procedure by crossed t over n_seeds runs and n documents (level B); "against rival", D_l less
    that of the first tuned model's training, over paired seeds (level C); "causal focus" and "reliance"
    (`attnlens.analysis.knockout`), in the unit of their outcome; "noise band", of `noise`
    (`attnlens.analysis.noise`) the mean, least and largest D_l over n_seeds draws: a band to draw, no test. Models that
    are another's seed have no rows of their own.
    """
    tables = []
    documents = data["document"].values
    others = {name for names in roles.seeds.values() for name in names}
    for model in (name for name in data["model"].values[1:] if name not in others):
        shift = data.sel(model=model) - data.isel(model=0)
        entropy = shift["entropy_content"]
        frames = {
            "": [
                layer_tests("entropy layer", over_heads(entropy), documents, sesoi=np.nan, seed=seed),
                _heads("entropy head", entropy.values, documents, seed=seed),
                _divergence("jsd layer", over_heads(data["jsd"].sel(model=model)), documents, seed=seed),
            ]
        }
        if model in roles.seeds and "jsd_seeds" in data:
            between = _divergence("jsd seeds", over_heads(data["jsd_seeds"].sel(model=model)), documents, seed=seed)
            frames[""].append(between.assign(n_seeds=len(roles.runs(str(model)))))
        for name in data["salience"].values if "focus" in data else ():
            focus = shift["focus"].sel(salience=name)
            profile = over_heads(focus)
            frames[str(name)] = [
                layer_tests("profile", profile, documents, sesoi=sesoi, seed=seed),
                _total(profile, documents, seed=seed),
                _heads("focus head", focus.values, documents, seed=seed),
                *_against(str(model), data["focus"].sel(salience=name), documents, roles=roles, seed=seed),
            ]
        if "focus" in data:
            headline = str(data["salience"].values[0])
            frames[headline] += beside(shift.sel(salience=headline), documents, seed=seed)
        if "reliance" in data:
            frames[data["reliance"].attrs["salience"]] += [
                single_test(family, data[variable].sel(model=model).values, documents, seed=seed)
                for family, variable in (("causal focus", "causal_focus"), ("reliance", "reliance"))
            ]
        if noise is not None and model in noise["noised"]:
            for name in data["salience"].values:
                base = data["focus"].isel(model=0).sel(salience=name)
                drawn = (noise.sel(noised=model, salience=name) - base).transpose("draw", "example", "layer", "head")
                frames[str(name)].append(_drawn(over_heads(drawn), documents))
        tables += [frame.assign(model=str(model), salience=name) for name, some in frames.items() for frame in some]
    return pd.concat(tables, ignore_index=True).reindex(columns=COLUMNS)


def over_heads(values: xr.DataArray) -> np.ndarray:
    """(…, L): mean over the heads that have data."""
    return values.mean("head", skipna=True).values


def layer_tests(family: str, values: np.ndarray, documents: np.ndarray, *, sesoi: float, seed: int) -> pd.DataFrame:
    """One row a layer: simultaneous band, joint sign flips, equivalence to nothing."""
    means = document_means(values, documents)
    band = simultaneous_band(means, rng=np.random.default_rng(seed))
    flips = max_t(means, rng=np.random.default_rng(seed))
    single = column_tests(means, rng=np.random.default_rng(seed))
    return pd.DataFrame(
        {
            "family": family,
            "layer": np.arange(means.shape[1]),
            "head": -1,
            "estimate": band.estimate,
            "low": band.low,
            "high": band.high,
            "p": flips.p,
            "p_adjusted": flips.p_adjusted,
            "p_equivalence": np.nan if np.isnan(sesoi) else equivalence(means, sesoi),
            "effect_size": single.effect_size,
            "n": band.n,
            "n_seeds": 1,
            "level": band.level,
        }
    )


def _against(model: str, focus: xr.DataArray, documents: np.ndarray, *, roles: Roles, seed: int) -> list[pd.DataFrame]:
    """What a model's profile is held against: its shuffled twin, and the same training from other seeds.

    focus: (model, example, layer, head). The base cancels between a model and its twin, but not between seeds.
    """
    frames = []
    if model in roles.nulls:
        difference = focus.sel(model=model) - focus.sel(model=roles.nulls[model])
        frames.append(layer_tests("beyond null", over_heads(difference), documents, sesoi=np.nan, seed=seed))
    if model in roles.seeds:
        runs = [focus.sel(model=name) - focus.isel(model=0) for name in roles.runs(model)]
        frames.append(seed_tests("seeds", runs, documents, seed=seed))
    if pairs := roles.pairs(model):
        runs = [focus.sel(model=mine) - focus.sel(model=other) for mine, other in pairs]
        frames.append(seed_tests("against rival", runs, documents, seed=seed))
    return frames


def seed_tests(family: str, runs: list[xr.DataArray], documents: np.ndarray, *, seed: int) -> pd.DataFrame:
    """One row a layer: crossed t over seeds and documents, limits for all layers together. runs: (N, L, H) each."""
    values = np.stack([document_means(over_heads(run), documents) for run in runs])
    band = crossed_band(values, rng=np.random.default_rng(seed))
    fields = ("estimate", "low", "high", "p", "p_adjusted", "n_seeds", "level")
    found = {name: getattr(band, name) for name in fields}
    row = {"family": family, "layer": np.arange(values.shape[2]), "head": -1, "n": band.n_documents}
    return pd.DataFrame(row | found | dict.fromkeys(("p_equivalence", "effect_size"), np.nan))


def _drawn(values: np.ndarray, documents: np.ndarray) -> pd.DataFrame:
    """One row a layer: mean, least and largest over draws of the mean over documents. values (K, N, L).

    One more draw lies between the least and the largest of K with probability (K − 1)/(K + 1).
    """
    means = document_means(np.moveaxis(values, 0, 1), documents)  # (D, K, L)
    known = ~np.isnan(means).all((1, 2))
    draws, layers = values.shape[0], values.shape[2]
    profile = means[known].mean(0) if known.any() else np.full((draws, layers), np.nan)
    rows = {"family": "noise band", "layer": np.arange(layers), "head": -1, "estimate": profile.mean(0)}
    rows |= {"low": profile.min(0), "high": profile.max(0), "n": int(known.sum()), "n_seeds": draws}
    untested = dict.fromkeys(("p", "p_adjusted", "p_equivalence", "effect_size"), np.nan)
    return pd.DataFrame(rows | untested | {"level": (draws - 1) / (draws + 1)})


def beside(shift: xr.Dataset, documents: np.ndarray, *, seed: int) -> list[pd.DataFrame]:
    """Change of each variable of BESIDE that is there, by layer; shift: tuned less base, of one definition."""
    known = [name for name in BESIDE if name in shift]
    return [_banded(name, over_heads(shift[name]), documents, seed=seed) for name in known]


def _banded(family: str, values: np.ndarray, documents: np.ndarray, *, seed: int) -> pd.DataFrame:
    """One row a layer with its simultaneous band; no test."""
    band = simultaneous_band(document_means(values, documents), rng=np.random.default_rng(seed))
    columns = {"family": family, "layer": np.arange(values.shape[1]), "head": -1, "n_seeds": 1}
    untested = dict.fromkeys(("p", "p_adjusted", "p_equivalence", "effect_size"), np.nan)
    return pd.DataFrame(
        columns | {name: getattr(band, name) for name in ("estimate", "low", "high", "n", "level")} | untested
    )


def _divergence(family: str, values: np.ndarray, documents: np.ndarray, *, seed: int) -> pd.DataFrame:
    """One row a layer with its simultaneous band, cut at 0; no test."""
    table = _banded(family, values, documents, seed=seed)
    return table.assign(low=table["low"].clip(lower=0.0))


def _total(profile: np.ndarray, documents: np.ndarray, *, seed: int) -> pd.DataFrame:
    """Σ_l D_l over all layers, with its bootstrap interval."""
    return single_test("total", profile.sum(1), documents, seed=seed)


def single_test(family: str, values: np.ndarray, documents: np.ndarray, *, seed: int) -> pd.DataFrame:
    """One row: the mean of one number a text, (N,), over documents."""
    result = estimate_mean(document_means(values, documents), rng=np.random.default_rng(seed))
    row = {"family": family, "layer": -1, "head": -1, "p_adjusted": result.p, "p_equivalence": np.nan, "n_seeds": 1}
    fields = ("estimate", "low", "high", "p", "effect_size", "n", "level")
    return pd.DataFrame([row | {name: getattr(result, name) for name in fields}])


def _heads(family: str, values: np.ndarray, documents: np.ndarray, *, seed: int) -> pd.DataFrame:
    """One row a head: exploratory, false discovery rate over all heads."""
    means = document_means(values, documents)
    result = column_tests(means, rng=np.random.default_rng(seed))
    layer, head = np.indices(means.shape[1:])
    return pd.DataFrame(
        {
            "family": family,
            "layer": layer.ravel(),
            "head": head.ravel(),
            "estimate": result.estimate.ravel(),
            "low": result.low.ravel(),
            "high": result.high.ravel(),
            "p": result.p.ravel(),
            "p_adjusted": benjamini_hochberg(result.p).ravel(),
            "p_equivalence": np.nan,
            "effect_size": result.effect_size.ravel(),
            "n": result.n.ravel(),
            "n_seeds": 1,
            "level": result.level,
        }
    )
