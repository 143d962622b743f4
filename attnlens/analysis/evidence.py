"""The answer and its evidence ladder (METRICS 6.8): a verdict in plain words; five rungs, yes, no or not tested."""

import math

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.analysis.results import Answer, Rung
from attnlens.core.resampling import document_means

ALPHA = 0.05
QUESTIONS = (
    "Is it beyond the sampling of texts?",
    "Is it large enough to matter?",
    "Is it more than the same training on shuffled labels does?",
    "Does it repeat over training seeds?",
    "Do the outputs rely on these words?",
)


def decide(
    profile: pd.DataFrame, data: xr.Dataset, *, model: str, salience: str, sesoi: float, same_weights: bool
) -> Answer:
    """Answer for one tuned model under one salience definition.

    profile: the rows of family "profile", layers in order. "yes" iff some lower simultaneous bound > SESOI; "away" iff
    some upper bound < −SESOI and none is yes; both need the adjusted sign-flip p too, exact where documents are
    few. "no" iff all layers are equivalent to 0 at the SESOI, by test and with their whole interval; "identical" iff
    the models are; else "unclear".
    """
    low, high, estimate = (profile[name].to_numpy() for name in ("low", "high", "estimate"))
    tested = profile["p_adjusted"].to_numpy() < ALPHA
    toward, away = np.flatnonzero((low > sesoi) & tested), np.flatnonzero((high < -sesoi) & tested)
    shift = data.sel(model=model) - data.isel(model=0)
    same = all(bool((shift[name].fillna(0) == 0).all()) for name in ("entropy", "focus"))
    if same and same_weights:
        verdict, layers = "identical", np.array([], dtype=int)
    elif len(toward):
        verdict, layers = "yes", toward[np.argsort(-estimate[toward])]
    elif len(away):
        verdict, layers = "away", away[np.argsort(estimate[away])]
    elif (profile["p_equivalence"] < ALPHA).all() and (low > -sesoi).all() and (high < sesoi).all():
        verdict, layers = "no", np.array([], dtype=int)
    else:
        verdict, layers = "unclear", np.array([], dtype=int)
    if np.isnan(estimate).all() and verdict != "identical":
        return _without_data()
    known = np.nan_to_num(np.abs(estimate))
    shown = int(layers[0]) if len(layers) else int(known.argmax())
    headline = _headline(profile, data, model=model, salience=salience, layer=shown)
    layers_shown = tuple(int(layer) for layer in layers)
    sentence = _sentence(verdict, layers_shown, headline, sesoi)
    rungs = _rungs(verdict, profile, shown, sesoi)
    return Answer(verdict, sentence, layers_shown, headline, rungs)


def not_asked(texts: int, own_text: bool) -> Answer:
    """The answer where no word was marked: entropy, divergence and weights only."""
    reason = (
        f"Measured on {texts} general English sentences written for this tool; this says nothing about your task. "
        "Add --data FILE."
        if own_text
        else "No salience was asked for, so there is no focus answer."
    )
    return Answer("not asked", reason)


def _without_data() -> Answer:
    """The answer where no text has a number: a cut, a window or the rows of the task keep the words out of sight."""
    reason = "No measured row sees a marked word that has matched ordinary words."
    rungs = tuple(Rung(i + 1, question, "not tested", reason) for i, question in enumerate(QUESTIONS))
    return Answer("unclear", f"Unclear: there is no focus answer. {reason}", rungs=rungs)


def _headline(profile: pd.DataFrame, data: xr.Dataset, *, model: str, salience: str, layer: int) -> dict[str, float]:
    """Numbers of the first screen, in units of 100 of the attention on content, at one layer."""
    share = data["share"].sel(salience=salience).isel(layer=layer).mean("head")
    both = document_means(share.sel(model=[data["model"].values[0], model]).values.T, data["document"].values)
    both = both[~np.isnan(both).any(1)]
    before, after = 100 * both.mean(0) if len(both) else (np.nan, np.nan)
    row = profile.iloc[layer]
    return {
        "layer": layer + 1,
        "share_base": float(before),
        "share_tuned": float(after),
        "estimate": 100 * float(row["estimate"]),
        "low": 100 * float(row["low"]),
        "high": 100 * float(row["high"]),
        "p_adjusted": float(row["p_adjusted"]),
        "documents": int(row["n"]),
        "texts": int(share.notnull().any("model").sum()),
    }


def layer_names(layers: tuple[int, ...]) -> str:
    """Such as "layer 6" or "layers 3, 5 and 6": for readers, layers count from 1."""
    names = [str(layer + 1) for layer in sorted(layers)]
    if len(names) == 1:
        return f"layer {names[0]}"
    return f"layers {', '.join(names[:-1])} and {names[-1]}"


def signed(value: float, digits: int = 1) -> str:
    """`value` with its sign, a true minus, and no sign at zero: +1.2, −0.4, 0.0."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text


def _digits(*values: float) -> int:
    """Decimals that show the largest of some values: one, or as many as give it two digits."""
    largest = max((abs(value) for value in values if np.isfinite(value)), default=0.0)
    return 1 if largest >= 0.1 or largest == 0 else min(1 - math.floor(math.log10(largest)), 9)


def _interval(low: float, high: float, digits: int) -> str:
    if np.isnan(low) or np.isnan(high):
        return "no interval: too few documents"
    return f"95 % {signed(low, digits)} … {signed(high, digits)}"


def _documents(count: float) -> str:
    return f"{count:.0f} document{'' if count == 1 else 's'}"


def _sentence(verdict: str, layers: tuple[int, ...], headline: dict[str, float], sesoi: float) -> str:
    """The first paragraph of the first screen, in a reader's words (DESIGN 9)."""
    if verdict == "identical":
        return "Identical. The two checkpoints give exactly the same attention on every text."
    net = (headline["estimate"], headline["low"], headline["high"])
    counts = (
        f"In layer {headline['layer']:.0f}, of 100 units of attention on words, {headline['share_base']:.0f} went to "
        f"the marked words before tuning, {headline['share_tuned']:.0f} after. Net of matched ordinary words: "
        f"{signed(net[0], _digits(*net))} ({_interval(*net[1:], _digits(*net))}; {_documents(headline['documents'])})."
    )
    more = f" and also in {layer_names(layers[1:])}" if len(layers) > 1 else ""
    opening = {
        "yes": f"Yes, on these texts, mainly in {layer_names(layers[:1])}{more}." if layers else "",
        "away": f"No: away from the marked words, mainly in {layer_names(layers[:1])}{more}." if layers else "",
        "no": f"No. In every layer the net change is smaller than {100 * sesoi:.0f} of 100 units.",
        "unclear": "Unclear: these texts can neither show a change that matters nor rule it out.",
    }[verdict]
    return f"{opening} {counts}"


def _rungs(verdict: str, profile: pd.DataFrame, shown: int, sesoi: float) -> tuple[Rung, ...]:
    """Two checkpoints and no further runs can reach rungs 1 and 2; the rest says what would test it."""
    if verdict == "identical":
        return tuple(Rung(i + 1, question, "not applicable", "") for i, question in enumerate(QUESTIONS))
    low, high = profile["low"].to_numpy(), profile["high"].to_numpy()
    beyond = ((low > 0) | (high < 0)) & (profile["p_adjusted"].to_numpy() < ALPHA)
    large = beyond & ((low > sesoi) | (high < -sesoi))
    sizes = profile["estimate"].abs().to_numpy()
    told = beyond if beyond.any() else np.isfinite(low)  # few documents may leave the layer of the headline without one
    layer = shown if told[shown] and not beyond.any() else int(np.where(told, sizes, -1.0).argmax())
    row = profile.iloc[layer]
    bounds = (100 * row["low"], 100 * row["high"])
    margin = f"±{100 * sesoi:.0f} of 100, the smallest change declared to matter"
    clears = (
        f"clears it in {layer_names(tuple(np.flatnonzero(large).tolist()))}" if large.any() else "clears it nowhere"
    )

    found = f"Layer {layer + 1}: {_interval(*bounds, _digits(*bounds))}, simultaneous over layers; "
    if np.isfinite(low).any():
        sampling, size = ("yes" if shown.any() else "no" for shown in (beyond, large))
        details = f"{found}sign-flip p = {row['p_adjusted']:.2g}.", f"Against {margin}: the interval {clears}."
    else:
        sampling = size = "not tested"
        lacking = f"No interval: {_documents(row['n'])} with a marked word that has a match; give more documents."
        details = lacking, lacking
    return (
        Rung(1, QUESTIONS[0], sampling, details[0]),
        Rung(2, QUESTIONS[1], size, details[1]),
        Rung(
            3,
            QUESTIONS[2],
            "not tested",
            "Needs the same training on shuffled labels.",
            "attnlens finetune BASE --data TRAIN --seed SAME --null-twin -o AGAIN && attnlens report BASE AGAIN",
        ),
        Rung(
            4,
            QUESTIONS[3],
            "not tested",
            "Needs at least six runs that differ in the seed alone.",
            "attnlens finetune BASE --data TRAIN --seed 1 -o SEED1 (to 6), then report each",
        ),
        Rung(5, QUESTIONS[4], "not tested", "Attention alone cannot show it; it takes an intervention on these words."),
    )
