"""The answer (METRICS 6.8): a verdict in plain words, its evidence ladder, what agrees with it, and an abstract."""

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.analysis.ladder import ALPHA, LEAST_SEEDS, Case, Claim, empty_ladder, ladder
from attnlens.analysis.results import Answer, Rung
from attnlens.analysis.split import refocusing_and_release
from attnlens.analysis.wording import digits_of, documents_of, interval, layer_names, signed
from attnlens.core.resampling import document_means


def decide(tests: pd.DataFrame, data: xr.Dataset, case: Case) -> Answer:
    """Answer for one tuned model under one salience definition.

    tests: their rows, all families; those of "profile" hold the layers in order. "yes" iff some lower simultaneous
    bound > SESOI; "away" iff some upper bound < −SESOI and none is yes; both need the adjusted sign-flip p too, exact
    where documents are few. "no" iff all layers are equivalent to 0 at the SESOI, by test and with their whole
    interval; "identical" iff the models are; else "unclear".
    """
    profile = tests[tests["family"] == "profile"].reset_index(drop=True)
    estimate = profile["estimate"].to_numpy()
    if _identical(data, case):
        sentence = "Identical. The two checkpoints give exactly the same attention on every text."
        return Answer("identical", sentence, rungs=empty_ladder("not applicable", ""))
    if np.isnan(estimate).all():
        return _without_data()
    verdict, layers = _verdict(profile, case.sesoi)
    shown = layers[0] if layers else int(np.nan_to_num(np.abs(estimate)).argmax())
    headline = _headline(profile, data, case, layer=shown)
    claim = Claim(layers or (shown,), -1 if estimate[shown] < 0 else 1)
    rungs = ladder(tests, claim, case)
    return Answer(
        verdict,
        _sentence(verdict, layers, headline, case),
        layers,
        headline,
        rungs,
        remarks=(*_remarks(data, case, shown), *against_rival(tests, case, shown)),
        abstract=_abstract(verdict, layers, headline, rungs, case),
    )


def agreement(answers: dict[str, Answer]) -> str:
    """How many of the declared salience definitions give the headline's verdict; empty where no two have data."""
    verdicts = {name: answer.verdict for name, answer in answers.items() if answer.headline}
    if len(verdicts) < 2 or not next(iter(answers.values())).headline:
        return ""
    first = next(iter(verdicts.values()))
    agree = [name for name, verdict in verdicts.items() if verdict == first]
    others = [f"{name} says {verdict}" for name, verdict in verdicts.items() if verdict != first]
    told = f"{len(agree)} of {len(verdicts)} definitions of the words that matter say {first} ({', '.join(agree)})"
    return f"{told}; {', '.join(others)}." if others else f"{told}."


def _identical(data: xr.Dataset, case: Case) -> bool:
    shift = data.sel(model=case.model) - data.isel(model=0)
    return case.same_weights and all(bool((shift[name].fillna(0) == 0).all()) for name in ("entropy", "focus"))


def _verdict(profile: pd.DataFrame, sesoi: float) -> tuple[str, tuple[int, ...]]:
    """The verdict, and the layers it names: the one that changed most comes first."""
    low, high, estimate = (profile[name].to_numpy() for name in ("low", "high", "estimate"))
    tested = profile["p_adjusted"].to_numpy() < ALPHA
    toward, away = np.flatnonzero((low > sesoi) & tested), np.flatnonzero((high < -sesoi) & tested)
    if len(toward):
        return "yes", tuple(toward[np.argsort(-estimate[toward])].tolist())
    if len(away):
        return "away", tuple(away[np.argsort(estimate[away])].tolist())
    if (profile["p_equivalence"] < ALPHA).all() and (low > -sesoi).all() and (high < sesoi).all():
        return "no", ()
    return "unclear", ()


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
    return Answer("unclear", f"Unclear: there is no focus answer. {reason}", rungs=empty_ladder("not tested", reason))


def _headline(profile: pd.DataFrame, data: xr.Dataset, case: Case, *, layer: int) -> dict[str, float]:
    """Numbers of the first screen, in units of 100 of the attention on content, at one layer."""
    share = data["share"].sel(salience=case.salience).isel(layer=layer).mean("head")
    both = document_means(share.sel(model=[data["model"].values[0], case.model]).values.T, data["document"].values)
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


def _sentence(verdict: str, layers: tuple[int, ...], headline: dict[str, float], case: Case) -> str:
    """The first paragraph of the first screen, in a reader's words (DESIGN 9)."""
    net = (headline["estimate"], headline["low"], headline["high"])
    digits = digits_of(*net)
    counts = (
        f"In layer {headline['layer']:.0f}, of 100 units of attention on words, {headline['share_base']:.0f} went to "
        f"the marked words before tuning, {headline['share_tuned']:.0f} after. Net of {_net_of(case)}: "
        f"{signed(net[0], digits)} ({interval(*net[1:], digits)}; {documents_of(headline['documents'])})."
    )
    more = f" and also in {layer_names(layers[1:])}" if len(layers) > 1 else ""
    opening = {
        "yes": f"Yes, on these texts, mainly in {layer_names(layers[:1])}{more}." if layers else "",
        "away": f"No: away from the marked words, mainly in {layer_names(layers[:1])}{more}." if layers else "",
        "no": f"No. In every layer the net change is smaller than {100 * case.sesoi:.0f} of 100 units.",
        "unclear": "Unclear: these texts can neither show a change that matters nor rule it out.",
    }[verdict]
    return f"{opening} {counts}"


def _net_of(case: Case) -> str:
    return "what position, length and frequency explain" if case.regression else "matched ordinary words"


def _remarks(data: xr.Dataset, case: Case, layer: int) -> tuple[str, ...]:
    """What stands beside the ladder (METRICS 6.8), of the layer that the headline shows."""
    pair = data.sel(salience=case.salience, model=[data["model"].values[0], case.model]).isel(layer=layer)
    documents = data["document"].values
    change = _mean(pair["log_odds"].diff("model").mean("head").values[0], documents)
    terms = refocusing_and_release(data, case.model, case.salience)[:, :, layer]  # (2, N, H)
    heads = xr.DataArray(terms, dims=("term", "example", "head")).mean("head").values
    refocused, released = (100 * _mean(term, documents) for term in heads)
    found = []
    if np.isfinite(change):
        found.append(
            f"The log-odds of attention on a marked word against another, which no sink can move, changed by "
            f"{signed(change, 2)} nats in layer {layer + 1}."
        )
    if np.isfinite(refocused + released):
        digits = digits_of(refocused, released)
        larger = "refocusing among words" if abs(refocused) >= abs(released) else "release from special tokens"
        found.append(
            f"Of all attention in layer {layer + 1}, marked words gained {signed(refocused + released, digits)} units "
            f"of 100: {signed(refocused, digits)} by refocusing among words, {signed(released, digits)} by release "
            f"from special tokens; {larger} is the larger part."
        )
    return tuple(found)


def against_rival(tests: pd.DataFrame, case: Case, layer: int) -> tuple[str, ...]:
    """The training against that of the first tuned model, over paired seeds (level C)."""
    rows = tests[tests["family"] == "against rival"]
    if rows.empty:
        return ()
    row = rows.iloc[layer]
    estimate, low, high = (100 * float(row[name]) for name in ("estimate", "low", "high"))
    digits = digits_of(estimate, low, high)
    few = "" if row["n_seeds"] >= LEAST_SEEDS else f"; under {LEAST_SEEDS} seeds this is no test"
    found = interval(low, high, digits)
    if np.isfinite(low):
        found += f", for all layers together; p = {row['p_adjusted']:.2g}"
    return (
        f"Against the training of {case.rival}, over {row['n_seeds']:.0f} paired seeds: {signed(estimate, digits)} of "
        f"100 units in layer {layer + 1} ({found}){few}.",
    )


def _mean(values: np.ndarray, documents: np.ndarray) -> float:
    """Mean over documents of one number a text; NaN without data."""
    means = document_means(values, documents)
    known = means[~np.isnan(means)]
    return float(known.mean()) if len(known) else float("nan")


def _abstract(
    verdict: str, layers: tuple[int, ...], headline: dict[str, float], rungs: tuple[Rung, ...], case: Case
) -> str:
    """One sentence for an abstract: the finding with its interval, then what it has and has not been held against."""
    estimate, low, high = (headline[name] for name in ("estimate", "low", "high"))
    digits = digits_of(estimate, low, high)
    net = (
        f"{signed(estimate, digits)} of 100 units of attention on words, net of {_net_of(case)}; "
        f"{interval(low, high, digits)}, simultaneous over layers"
    )
    where = layer_names(layers) if layers else f"layer {headline['layer']:.0f}"
    largest = f"largest in layer {headline['layer']:.0f}" if len(layers) > 1 else where
    words = f"the words marked by {case.salience}"
    margin = f"{100 * case.sesoi:.0f} of 100 units of attention on words"
    finding = {
        "yes": f"fine-tuning moved attention towards {words} in {where} ({largest}: {net})",
        "away": f"fine-tuning moved attention away from {words} in {where} ({largest}: {net})",
        "no": f"fine-tuning changed the net attention on {words} by less than {margin} in every layer",
        "unclear": f"whether fine-tuning moved attention to {words} stayed open (most in {where}: {net})",
    }[verdict]
    claims = {
        3: ("this exceeds", "this was not shown to exceed", "what the same training on shuffled labels does"),
        4: ("it repeats", "it was not shown to repeat", "over training seeds"),
        5: ("the outputs rely", "the outputs were not shown to rely", "on these words"),
    }
    told = [
        f"{claims[rung.number][0 if rung.status == 'yes' else 1]} {claims[rung.number][2]}"
        for rung in rungs
        if rung.number in claims and rung.status in ("yes", "no")
    ]
    open_questions = {3: "a shuffled-label control", 4: "repetition over seeds", 5: "reliance of the outputs"}
    untested = [open_questions[r.number] for r in rungs if r.number in open_questions and r.status == "not tested"]
    last = f"not tested: {', '.join(untested)}" if untested else ""
    return "; ".join([f"On {documents_of(headline['documents'])}, {finding}", *told, *([last] if last else [])]) + "."
