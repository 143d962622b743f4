"""The evidence ladder (METRICS 6.8): five rungs, each with its number, or with the command that would test it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Rung
from attnlens.analysis.wording import digits_of, documents_of, interval, layer_names, signed

ALPHA = 0.05
LEAST_SEEDS = 6  # a sign-flip test over fewer cannot reach p = .05: its smallest is 2^(1 − S)
QUESTIONS = (
    "Is it beyond the sampling of texts?",
    "Is it large enough to matter?",
    "Is it more than the same training on shuffled labels does?",
    "Does it repeat over training seeds?",
    "Do the outputs rely on these words?",
)
TWIN = "attnlens finetune BASE --data TRAIN --seed SAME --null-twin -o AGAIN && attnlens report BASE AGAIN"
SEEDS = (
    "attnlens finetune BASE --data TRAIN --validation HELDOUT --seed 1 -o SEED1 (to 5), then "
    "attnlens report BASE TUNED --data HELDOUT --seeds SEED1 --seeds SEED2 …"
)
KNOCKOUT = "attnlens report BASE TUNED --knockout"


@dataclass(frozen=True)
class Case:
    """One question: did this model's attention move to these words?

    sesoi: smallest change of interest, a share of the attention on content. regression: the net change is what a
    regression on position, length and frequency leaves, for want of matched words. same_weights: no weight of the
    backbone differs from the base's. null: name of the shuffled twin. runs: how many seeds of this training were
    measured. rival: the first tuned model, where it is another. knockout: what `attnlens.analysis.knockout` says of its
    outcome, where these words were knocked out.
    """

    model: str
    salience: str
    sesoi: float
    regression: bool = False
    same_weights: bool = False
    null: str = ""
    runs: int = 1
    rival: str = ""
    knockout: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Claim:
    """What the verdict says and the ladder is to bear out. layers: where, from 0; sign: towards the words +1, away −1.

    Without a verdict that names layers: the layer that changed most, in the direction of its change.
    """

    layers: tuple[int, ...]
    sign: int


def ladder(tests: pd.DataFrame, claim: Claim, case: Case) -> tuple[Rung, ...]:
    """All five rungs. tests: the rows of one model and one salience definition, all families."""
    family = {str(name): rows.reset_index(drop=True) for name, rows in tests.groupby("family", sort=False)}
    reliance = (_row(family, "causal focus"), _row(family, "reliance"))
    return (
        *_of_two_checkpoints(family["profile"], claim.layers[0], case.sesoi),
        _beyond_null(family.get("beyond null"), claim, case),
        _over_seeds(family.get("seeds"), claim, case),
        _relied_upon(*reliance, case),
    )


def empty_ladder(status: str, detail: str) -> tuple[Rung, ...]:
    """Five rungs of the same status, for the same reason."""
    return tuple(Rung(number, question, status, detail) for number, question in enumerate(QUESTIONS, start=1))


def _of_two_checkpoints(profile: pd.DataFrame, shown: int, sesoi: float) -> tuple[Rung, Rung]:
    """Rungs 1 and 2: base and tuned on these texts."""
    low, high = profile["low"].to_numpy(), profile["high"].to_numpy()
    beyond = ((low > 0) | (high < 0)) & (profile["p_adjusted"].to_numpy() < ALPHA)
    large = beyond & ((low > sesoi) | (high < -sesoi))
    sizes = profile["estimate"].abs().to_numpy()
    told = beyond if beyond.any() else np.isfinite(low)  # few documents may leave the layer of the headline without one
    layer = shown if told[shown] and not beyond.any() else int(np.where(told, sizes, -1.0).argmax())
    row = profile.iloc[layer]
    if not np.isfinite(low).any():
        lacking = f"No interval: {documents_of(row['n'])} with a marked word that has a match; give more documents."
        return Rung(1, QUESTIONS[0], "not tested", lacking), Rung(2, QUESTIONS[1], "not tested", lacking)
    clears = f"clears it in {layer_names(_numbers(large))}" if large.any() else "clears it nowhere"
    bounds = (100 * row["low"], 100 * row["high"])
    found = f"Layer {layer + 1}: {interval(*bounds, digits_of(*bounds))}, simultaneous over layers"
    margin = f"±{100 * sesoi:.0f} of 100, the smallest change declared to matter"
    return (
        Rung(1, QUESTIONS[0], _yes(beyond.any()), f"{found}; sign-flip p = {row['p_adjusted']:.2g}."),
        Rung(2, QUESTIONS[1], _yes(large.any()), f"Against {margin}: the interval {clears}."),
    )


def _beyond_null(rows: pd.DataFrame | None, claim: Claim, case: Case) -> Rung:
    """Rung 3: the model less its shuffled twin, in the layers and the direction of the claim."""
    if case.same_weights:
        detail = "No weight of the backbone differs from the base's: there is no training to repeat."
        return Rung(3, QUESTIONS[2], "not applicable", detail)
    if rows is None:
        return Rung(3, QUESTIONS[2], "not tested", "Needs the same training on shuffled labels.", TWIN)
    return _held_up(3, rows, claim, f"more than {case.null}, simultaneous over layers")


def _over_seeds(rows: pd.DataFrame | None, claim: Claim, case: Case) -> Rung:
    """Rung 4: the training procedure over seeds and documents, level B."""
    if case.runs < LEAST_SEEDS or rows is None:
        needed = f"at least {LEAST_SEEDS} runs that differ in the seed alone"
        detail = f"Needs {needed}." if case.runs == 1 else f"{case.runs} runs were given; it takes {needed}."
        return Rung(4, QUESTIONS[3], "not tested", detail, SEEDS)
    return _held_up(4, rows, claim, f"over {case.runs} seeds, for all layers together")


def _relied_upon(focus: pd.Series | None, reliance: pd.Series | None, case: Case) -> Rung:
    """Rung 5: what the outputs lose without these words, against as many ordinary ones; tuned against base."""
    if focus is None or reliance is None or case.knockout is None:
        detail = "Attention alone cannot show it; it takes an intervention on these words."
        return Rung(5, QUESTIONS[4], "not tested", detail, KNOCKOUT)
    if np.isnan(reliance["low"]):
        detail = f"No interval: {documents_of(reliance['n'])} with words that could be knocked out."
        return Rung(5, QUESTIONS[4], "not tested", detail)
    both = all(row["low"] > 0 and row["p"] < ALPHA for row in (focus, reliance))
    told = [f"{signed(row['estimate'], 3)} ({interval(row['low'], row['high'], 3)})" for row in (focus, reliance)]
    detail = (
        f"Hidden from all attention, these words move the {case.knockout['outcome']} by {told[0]} more than as many "
        f"ordinary ones do ({case.knockout['unit']}); that is {told[1]} more than in the base; "
        f"{documents_of(reliance['n'])}."
    )
    return Rung(5, QUESTIONS[4], _yes(both), detail)


def _held_up(number: int, rows: pd.DataFrame, claim: Claim, ending: str) -> Rung:
    """Whether the claim stands, in its direction, in one of its layers; told of the strongest of them."""
    places = list(claim.layers)
    if rows.loc[places, "low"].isna().all():
        lacking = f"No interval: {documents_of(rows.loc[places, 'n'].max())} with data."
        return Rung(number, QUESTIONS[number - 1], "not tested", lacking)
    nearest = rows["low"] if claim.sign > 0 else -rows["high"]
    stands = (nearest > 0) & (rows["p_adjusted"] < ALPHA)
    among = [place for place in places if stands[place]] or places
    strength = (claim.sign * rows["estimate"]).fillna(-np.inf)
    layer = max(among, key=strength.__getitem__)
    estimate, low, high = (100 * float(rows[name][layer]) for name in ("estimate", "low", "high"))
    digits = digits_of(estimate, low, high)
    told = f"Layer {layer + 1}: {signed(estimate, digits)} of 100 units ({interval(low, high, digits)}) {ending}."
    return Rung(number, QUESTIONS[number - 1], _yes(stands[places].any()), told)


def _row(family: Mapping[str, pd.DataFrame], name: str) -> pd.Series | None:
    return family[name].iloc[0] if name in family else None


def _numbers(chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(chosen).tolist())


def _yes(holds: bool | np.bool_) -> str:
    return "yes" if holds else "no"
