"""The tables of a report: layers and heads counted from 1, attention in points of 100, safe in a spreadsheet."""

from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Answer, Comparison
from attnlens.core.resampling import document_means

MINIMUM_CONTENT = 5.0  # percent: a head with less attention on words says little about words (METRICS 3.4)
MEASURES = {"entropy_content": "entropy head", "focus": "focus head"}
ESTIMATES = ["estimate", "low", "high", "p", "p_adjusted", "n"]


def from_one(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with its columns layer and head counted from 1 as people read them; empty where it was −1."""
    counted = {
        name: (frame[name].astype("Int64") + 1).where(frame[name] >= 0)
        for name in ("layer", "head")
        if name in frame.columns
    }
    return frame.assign(**counted)


def in_order(comparison: Comparison, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `frame` with the models in the order of the comparison, so that each keeps its colour."""
    return frame.sort_values("model", key=lambda names: names.map(comparison.models.index), kind="stable")


def head_means(comparison: Comparison, name: str, salience: str = "") -> np.ndarray:
    """Mean of a variable over documents, (model, layer, head); documents without data left out, NaN where none has."""
    array = comparison.data[name]
    if salience:
        array = array.sel(salience=salience)
    values = array.transpose("example", "model", "layer", "head").values
    means = document_means(values, comparison.data["document"].values)
    known = ~np.isnan(means)
    return np.where(known, means, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def tests_table(comparison: Comparison, family: str) -> pd.DataFrame:
    """The rows of one family of tests, layers and heads from 1, estimate and interval in points of 100."""
    rows = from_one(in_order(comparison, comparison.tests[comparison.tests["family"] == family]))
    points = {name: 100 * rows[name] for name in ("estimate", "low", "high")}
    return rows.assign(**points).reset_index(drop=True)


def heads_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each tuned model, measure, salience definition, layer and head; base, tuned and change in points.

    content_mass: percent of the head's attention on words, the smaller of base and tuned; `shown` = at least 5.
    """
    content = 100 * head_means(comparison, "content_mass")
    frames = []
    for measure, family in MEASURES.items():
        tests = tests_table(comparison, family)
        for (model, salience), rows in tests.groupby(["model", "salience"], sort=False):
            means = 100 * head_means(comparison, measure, str(salience))
            tuned = comparison.models.index(str(model))
            place = (rows["layer"].to_numpy(int) - 1, rows["head"].to_numpy(int) - 1)
            frames.append(
                rows[["model", "salience", "layer", "head", *ESTIMATES]].assign(
                    measure=measure,
                    base=means[0][place],
                    tuned=means[tuned][place],
                    content_mass=np.minimum(content[0], content[tuned])[place],
                )
            )
    table = pd.concat(frames, ignore_index=True)
    order = ["model", "measure", "salience", "layer", "head", "base", "tuned", *ESTIMATES, "content_mass"]
    return table[order].assign(shown=table["content_mass"] >= MINIMUM_CONTENT)


def weight_layers(comparison: Comparison) -> pd.DataFrame:
    """Weight change per model and layer in percent of the layer's size; layer empty = outside the layers."""
    layers = from_one(in_order(comparison, comparison.layers()))
    return layers.assign(relative=100 * layers["relative"])


def layers_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each tuned model and layer: change of focus (by salience definition) and of entropy in points, with
    interval and adjusted p, and the weight change `relative` in percent.
    """
    table = weight_layers(comparison)
    wanted = [("profile", f"focus_{name}", name) for name in comparison.salience]
    for family, prefix, salience in [*wanted, ("entropy layer", "entropy_content", "")]:
        tests = tests_table(comparison, family)
        tests = tests[tests["salience"] == salience].set_index(["model", "layer"])
        columns = tests[["estimate", "low", "high", "p_adjusted"]].add_prefix(f"{prefix}_")
        table = table.join(columns, on=["model", "layer"])
    return table


def examples_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each model, text and layer: means over heads; the texts themselves are not in it."""
    data = comparison.data
    names = [name for name in ("entropy_content", "content_mass", "focus") if name in data]
    columns: dict[str, np.ndarray] = {}
    for name in names:
        # Layers with fewer heads hold NaN there; a text without a marked word holds NaN everywhere.
        means = data[name].mean("head", skipna=True).transpose("model", "example", "layer", ...)
        if "salience" in means.dims:
            for salience in comparison.salience:
                columns[f"{name}_{salience}"] = means.sel(salience=salience).values.ravel()
        else:
            columns[name] = means.values.ravel()
    models, texts, layers = data.sizes["model"], data.sizes["example"], data.sizes["layer"]
    index: dict[str, Any] = {"model": np.repeat(comparison.models, texts * layers)}
    for name in ("id", "document", "label", "tokens"):
        if name in data.coords:
            index[name] = np.tile(np.repeat(data[name].values, layers), models)
    index["layer"] = np.tile(np.arange(1, layers + 1), models * texts)
    return pd.DataFrame(index | columns)


def all_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """What `report` writes under tables/, by file name without its ending."""
    return {
        "tests": from_one(comparison.tests),
        "weights": from_one(comparison.weights),
        "layers": layers_table(comparison),
        "heads": heads_table(comparison),
        "examples": examples_table(comparison),
    }


def spreadsheet_safe(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` whose texts cannot be taken for formulas: a quote before a leading = + - @, tab or return."""

    def safe(cell: object) -> object:
        return "'" + cell if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell

    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name].dtype)]
    quoted = frame.copy()
    quoted[texts] = frame[texts].map(safe)
    return quoted.rename(columns=lambda name: safe(str(name)))


def csv(frame: pd.DataFrame) -> bytes:
    """`frame` as UTF-8 CSV; numbers to nine figures, empty where there is none."""
    return spreadsheet_safe(frame).to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()


def summary(comparison: Comparison) -> dict[str, Any]:
    """The answer and what stands behind it as plain values for JSON; layers from 1, NaN as null."""
    return {
        **_answer(comparison.answer),
        "models": comparison.models,
        "salience": comparison.salience,
        "texts": int(comparison.data.sizes["example"]),
        "documents": len(np.unique(comparison.data["document"].values)),
        "answers": {
            model: {salience: _answer(answer) for salience, answer in answers.items()}
            for model, answers in comparison.answers.items()
        },
        "warnings": list(comparison.provenance.get("warnings", [])),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "verdict": answer.verdict,
        "sentence": answer.sentence,
        "layers": [layer + 1 for layer in answer.layers],
        "headline": {name: None if np.isnan(value) else float(value) for name, value in answer.headline.items()},
        "rungs": [vars(rung) for rung in answer.rungs],
    }
