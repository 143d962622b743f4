"""The tables of what stands beside the answer: other definitions, controls, agreement of attention, the knockout."""

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.core.resampling import document_means
from attnlens.show.drawing import margin
from attnlens.show.plots import SIGNIFICANT, detected
from attnlens.show.tables import in_order, over_documents, tests_table
from attnlens.show.training_records import number
from attnlens.show.twins import kinds

MARKED, BY_VALUE = "marked words", "marked words, by value vectors"
MATCHED, EXPLAINED = "matched words", "what position, length and frequency explain"
# What a share is counted on, in the order to draw; the placebos may not follow the words that were marked.
SHARES = {
    "share_matched": MARKED,
    "share_value": BY_VALUE,
    "share_control": MATCHED,
    "share_random": "random words",
    "share_swapped": "marks of another text",
}
PLACEBOS = ("share_random", "share_swapped")
SCORES = {
    "received_auroc": "AUROC",
    "received_ap": "average precision",
    "received_precision": "precision at k",
}


def definitions_table(comparison: Comparison) -> pd.DataFrame:
    """Change of focus in the layer of the headline under every definition, tuned models and twins, in points."""
    answer = comparison.answer
    layer = number(answer.headline.get("layer"))
    rows = tests_table(comparison, "profile")
    if np.isnan(layer):
        of_first = rows[(rows["model"] == comparison.models[1]) & (rows["salience"].isin(comparison.salience[:1]))]
        sizes = of_first.set_index("layer")["estimate"].abs().dropna()
        layer = 1 + answer.layers[0] if answer.layers else sizes.idxmax() if len(sizes) else 1
    rows = rows[rows["layer"] == layer]
    rows = rows.assign(
        label=rows["salience"],
        kind=kinds(comparison, rows["model"]),
        margin=margin(comparison),
        filled=detected(rows, margin(comparison)),
    )
    order = rows["salience"].map(comparison.salience.index)
    rows = rows.loc[order.sort_values(kind="stable").index]
    columns = ["label", "model", "kind", "layer", "estimate", "low", "high", "p_adjusted", "n", "margin", "filled"]
    return rows.loc[rows["estimate"].notna(), columns].reset_index(drop=True)


def _changes(comparison: Comparison, name: str, scale: float) -> pd.DataFrame:
    """Base, tuned and change of a variable by model and layer, with the change's band; empty where it has no test."""
    rows = in_order(comparison, comparison.tests[comparison.tests["family"] == name])
    if rows.empty:
        return rows
    values = comparison.data[name].sel(salience=comparison.salience[0]).mean("head")
    by_document = document_means(
        values.transpose("example", "model", "layer").values, comparison.data["document"].values
    )
    level, layer = scale * over_documents(by_document), rows["layer"].to_numpy(int)
    tuned = level[[comparison.models.index(model) for model in rows["model"]], layer]
    scaled = {column: scale * rows[column] for column in ("estimate", "low", "high")}
    return rows.assign(**scaled, layer=1 + layer, base=level[0][layer], tuned=tuned)


def controls_table(comparison: Comparison) -> pd.DataFrame:
    """Share of attention on marked words and on their controls C1 to C3 by layer, in points, tuned against base.

    words: what the share is counted on; kind: "null" of the placebos, which no marking could move.
    """
    fitted = comparison.provenance.get("salience", {}).get(comparison.salience[0], {}).get("control") == "regression"
    frames = []
    for name, words in SHARES.items():
        if len(changes := _changes(comparison, name, 100.0)):
            told = EXPLAINED if fitted and words == MATCHED else words
            kind = "null" if name in PLACEBOS else "tuned"
            frames.append(changes.assign(words=told, kind=kind))
    if not frames:
        return pd.DataFrame(columns=["estimate"])
    table = pd.concat(frames, ignore_index=True)
    table = table.assign(filled=(table["low"] > 0) | (table["high"] < 0))
    columns = ["model", "words", "kind", "layer", "base", "tuned", "estimate", "low", "high", "n", "filled"]
    return table[columns]


def agreement_table(comparison: Comparison) -> pd.DataFrame:
    """How well received attention picks out the marked words by layer, of every model: three scores from 0 to 1.

    estimate: the score; change, low, high: against the base, with a band simultaneous over layers; filled: without 0.
    """
    frames = []
    for name, score in SCORES.items():
        changes = _changes(comparison, name, 1.0)
        if changes.empty:
            continue
        first = changes[changes["model"] == comparison.models[1]]
        base = first.assign(model=comparison.models[0], tuned=first["base"], estimate=np.nan, low=np.nan, high=np.nan)
        tuned = changes.assign(kind=kinds(comparison, changes["model"]))
        both = pd.concat([base.assign(kind="base"), tuned], ignore_index=True)
        frames.append(both.assign(measure=score))
    if not frames:
        return pd.DataFrame(columns=["estimate"])
    table = pd.concat(frames, ignore_index=True)
    table = table.rename(columns={"estimate": "change", "tuned": "estimate"})
    table = table.assign(filled=(table["low"] > 0) | (table["high"] < 0))
    return table[["measure", "model", "kind", "layer", "estimate", "change", "low", "high", "n", "filled"]]


def reliance_table(comparison: Comparison) -> pd.DataFrame:
    """What hiding the marked words costs beyond ordinary ones, and against the base, in the unit of the outcome."""
    tests = comparison.tests
    frames = [
        tests[tests["family"] == family].assign(label=label)
        for family, label in (("causal focus", "beyond ordinary words"), ("reliance", "and against the base"))
    ]
    rows = pd.concat(frames, ignore_index=True)
    rows = rows.assign(kind=kinds(comparison, rows["model"]), filled=(rows["low"] > 0) & (rows["p"] < SIGNIFICANT))
    columns = ["label", "model", "kind", "estimate", "low", "high", "p", "n", "filled"]
    return rows.loc[rows["estimate"].notna(), columns].reset_index(drop=True)
