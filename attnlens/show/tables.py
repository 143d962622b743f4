"""The tables of a report: layers and heads counted from 1, attention in points of 100, safe in a spreadsheet."""

from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Answer, Comparison
from attnlens.analysis.weights import SLACK
from attnlens.core.resampling import document_means
from attnlens.show.training_records import number
from attnlens.show.training_tables import (
    classes_table,
    cost_table,
    forgetting_table,
    overlap_table,
    training_table,
)

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


def measured(comparison: Comparison, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of weights or heads that belong to a measured stack: of an encoder–decoder, not the other stack's."""
    if "stack" not in frame:
        return frame
    return frame[frame["stack"].fillna("").isin(["", *comparison.data["stack"].values])]


def head_means(comparison: Comparison, name: str, salience: str = "") -> np.ndarray:
    """Mean of a variable over documents, (model, layer, head); documents without data left out, NaN where none has."""
    array = comparison.data[name]
    if salience:
        array = array.sel(salience=salience)
    values = array.transpose("example", "model", "layer", "head").values
    means = document_means(values, comparison.data["document"].values)
    return over_documents(means)


def over_documents(means: np.ndarray) -> np.ndarray:
    """Mean over the first axis, documents without data left out; NaN where none has."""
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


def shares_layers(comparison: Comparison) -> bool:
    """Whether several attention layers run through the same weights, as ALBERT's do: fewer queries than layers."""
    backbone = _backbone(comparison)
    queries = backbone["module"].isin(["query", "query+key+value"]) & backbone["matrix"].str.endswith("weight")
    return 0 < backbone.loc[queries, "matrix"].nunique() < comparison.data.sizes["layer"]


def _backbone(comparison: Comparison) -> pd.DataFrame:
    weights = measured(comparison, comparison.weights)
    return weights[weights["kind"] == "backbone"]


def rounding_alone(comparison: Comparison, model: str) -> bool:
    """Whether the weights of a tuned model differ from the base's by nothing but rounding."""
    backbone = _backbone(comparison)
    changed = backbone[(backbone["model"] == model) & (backbone["delta_norm"] > 0)]
    return "rounding" in changed and not changed.empty and bool(changed["rounding"].astype(bool).all())


def weight_layers(comparison: Comparison) -> pd.DataFrame:
    """Weight change per model and layer in percent of the layer's size; layer empty = outside the layers.

    Layers that share their weights have no row of their own: one row with an empty layer holds the whole backbone.
    floor: what rounding to the narrower stored dtype makes alone; rounding: nothing else happened in the layer.
    """
    backbone = _backbone(comparison)
    backbone = backbone.assign(layer=-1) if shares_layers(comparison) else backbone
    return _pooled(comparison, backbone, ["model", "layer"])


def weight_modules_table(comparison: Comparison) -> pd.DataFrame:
    """Weight change per model, kind of matrix and layer in percent, with floor and rounding as `weight_layers`.

    Where no matrix belongs to one layer alone, layer is empty and embeddings are among the kinds.
    """
    backbone = _backbone(comparison)
    inside = backbone[backbone["layer"] >= 0]
    alone = backbone.assign(layer=-1) if shares_layers(comparison) or inside.empty else inside
    return _pooled(comparison, alone, ["model", "module", "layer"])


def _pooled(comparison: Comparison, weights: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """√(ΣΔ²/ΣW²) over the matrices of each group, and the same of the floor; not the mean of the ratios."""
    floor = weights["floor"] if "floor" in weights else 0.0
    squares = weights.assign(
        delta=weights["delta_norm"] ** 2,
        size=weights["base_norm"] ** 2,
        floor=(floor * weights["base_norm"]) ** 2,
        # A matrix that did not change at all is no evidence against rounding.
        rounding=(weights["rounding"].astype(bool) if "rounding" in weights else False) | (weights["delta_norm"] == 0),
    )
    sums = squares.groupby(keys, sort=False).agg(
        {"delta": "sum", "size": "sum", "floor": "sum", "entries": "sum", "rounding": "all"}
    )
    size = sums["size"].where(sums["size"] > 0)
    table = sums.assign(
        relative=100 * np.sqrt(sums["delta"] / size),
        floor=100 * np.sqrt(sums["floor"] / size),
        rounding=sums["rounding"] & (sums["delta"] > 0),
    ).reset_index()
    ordered = table if "module" in keys else table.sort_values("layer", kind="stable")
    return from_one(in_order(comparison, ordered))[[*keys, "relative", "entries", "floor", "rounding"]].reset_index(
        drop=True
    )


def circuits_table(comparison: Comparison) -> pd.DataFrame:
    """Change of each head's QK and OV product in percent of its size: model, circuit, layer, head, relative.

    floor: what rounding to the narrower stored dtype makes; rounding: a change not above it. layer: of layers that
    share their weights, the number of the block that they run through.
    """
    heads = measured(comparison, comparison.heads)
    if shares_layers(comparison):
        blocks = heads["site"] if "site" in heads else heads["layer"]
        heads = heads.assign(layer=pd.factorize(blocks)[0])
    heads = from_one(in_order(comparison, heads))
    floor = heads["floor"].fillna(0.0) if "floor" in heads else 0.0
    rounding = (heads["relative"] > 0) & (heads["relative"] <= floor * SLACK)
    table = heads.assign(relative=100 * heads["relative"], floor=100 * floor, rounding=rounding)
    table = table[["model", "circuit", "layer", "head", "relative", "floor", "rounding"]]
    ordered = table.sort_values("circuit", key=lambda names: names != "QK", kind="stable")
    return in_order(comparison, ordered).reset_index(drop=True)


def layers_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each tuned model and layer: change of focus (by salience definition) and of entropy in points, with
    interval and adjusted p, JSD in percent of its maximum, and the weight change `relative` in percent; of the hidden
    states after the layer the change in percent of their length with its number of documents, and their CKA.
    sink_base, sink_tuned: percent of the heads with a sink.

    The layers are those of attention and those of weights: either may have some that the other has not.
    """
    attention = tests_table(comparison, "entropy layer")[["model", "layer"]]
    table = weight_layers(comparison).merge(attention, on=["model", "layer"], how="outer")
    table = in_order(comparison, table.sort_values("layer", na_position="first", kind="stable")).reset_index(drop=True)
    wanted = [("profile", f"focus_{name}", name) for name in comparison.salience]
    for family, prefix, salience in [*wanted, ("entropy layer", "entropy_content", "")]:
        tests = tests_table(comparison, family)
        tests = tests[tests["salience"] == salience].set_index(["model", "layer"])
        columns = tests[["estimate", "low", "high", "p_adjusted"]].add_prefix(f"{prefix}_")
        table = table.join(columns, on=["model", "layer"])
    jsd = jsd_table(comparison).set_index(["model", "layer"])[["estimate", "low", "high"]].add_prefix("jsd_")
    states = states_table(comparison).rename(columns={"depth": "layer", "n": "hidden_n"})
    states = states.set_index(["model", "layer"])[["hidden_change", "hidden_n", "cka"]]
    if comparison.data.sizes.get("depth") != comparison.data.sizes["layer"] + 1:
        states = states.head(0)  # not one attention layer to a state: the numbers would be of other places
    sinks = _sinks(comparison).set_index(["model", "layer"])
    return table.join(jsd, on=["model", "layer"]).join(states, on=["model", "layer"]).join(sinks, on=["model", "layer"])


def _sinks(comparison: Comparison) -> pd.DataFrame:
    """Percent of the heads with a sink by tuned model and layer: model, layer, sink_base, sink_tuned."""
    frames = [pd.DataFrame(columns=["model", "layer", "sink_base", "sink_tuned"])]
    if "sink_census" in comparison.data:
        level = 100 * over_documents(np.moveaxis(head_means(comparison, "sink_census"), 2, 0))  # (M, L)
        layers = np.arange(1, level.shape[1] + 1)
        frames = [
            pd.DataFrame({"model": model, "layer": layers, "sink_base": level[0], "sink_tuned": level[index]})
            for index, model in enumerate(comparison.models[1:], start=1)
        ]
    return pd.concat(frames, ignore_index=True)


def states_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each tuned model and depth: 0 = what enters the first layer, else what the layer so numbered gives.

    hidden_change: of the states, in percent of their length, mean over n documents; cka: over so many tokens.
    """
    table = comparison.states()
    return in_order(comparison, table).assign(hidden_change=100 * table["hidden_change"].astype(float))


def entropy_table(comparison: Comparison) -> pd.DataFrame:
    """Change of content entropy by layer in points, as tested; floor: what rounding the weights alone makes."""
    columns = ["model", "layer", "estimate", "low", "high", "p_adjusted", "n"]
    table = tests_table(comparison, "entropy layer")[columns]
    return table.assign(floor=100 * _rounding(comparison, "entropy_content", table["model"]))


def jsd_table(comparison: Comparison) -> pd.DataFrame:
    """Divergence of base and tuned maps by layer in percent of its maximum, log 2: estimate, low, high, n.

    floor: what rounding the weights alone makes.
    """
    return _jsd(comparison, "jsd layer")


def seeds_jsd_table(comparison: Comparison) -> pd.DataFrame:
    """The same between a tuned model and other seeds of its training, for those that have some."""
    return _jsd(comparison, "jsd seeds")


def _jsd(comparison: Comparison, family: str) -> pd.DataFrame:
    table = tests_table(comparison, family)[["model", "layer", "estimate", "low", "high", "n"]]
    table = table.assign(floor=100 * _rounding(comparison, "jsd", table["model"]))
    bounds = ["estimate", "low", "high", "floor"]
    return table.assign(**{name: table[name] / np.log(2) for name in bounds})  # 100 nats → percent


def _rounding(comparison: Comparison, name: str, models: pd.Series) -> pd.Series:
    """What a cast to the narrowest stored dtype made of a statistic, for the models that such a cast may explain."""
    known = comparison.provenance.get("rounding")
    value = number(known.get(name)) if isinstance(known, dict) else 0.0
    weights = comparison.weights
    cast = set(weights.loc[weights["floor"] > 0, "model"]) if "floor" in weights else set()
    return models.isin(cast) * np.nan_to_num(value)


def models_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each tuned model: its answer under the headline definition, where focus, entropy and maps changed
    most (layer and value), and the weight change of the whole backbone in percent.
    """
    families = {"entropy": tests_table(comparison, "entropy layer"), "jsd": jsd_table(comparison)}
    if comparison.salience:
        profile = tests_table(comparison, "profile")
        families = {"focus": profile[profile["salience"] == comparison.salience[0]]} | families
    backbone = comparison.weights[comparison.weights["kind"] == "backbone"]
    whole = _pooled(comparison, backbone.assign(layer=0), ["model", "layer"]).set_index("model")
    rows = []
    for model in comparison.models[1:]:
        row: dict[str, Any] = {"model": model, "verdict": next(iter(comparison.answers[model].values())).verdict}
        for name, tests in families.items():
            values = tests[(tests["model"] == model) & tests["estimate"].notna()].reset_index(drop=True)
            top = None if values.empty else values.iloc[int(values["estimate"].abs().to_numpy().argmax())]
            row |= {f"{name}_layer": np.nan if top is None else top["layer"]}
            row |= {name: np.nan if top is None else top["estimate"]}
        rows.append(row | {"weight_change": whole["relative"][model], "rounding": whole["floor"][model]})
    return pd.DataFrame(rows)


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
        "models": models_table(comparison),
        "layers": layers_table(comparison),
        "heads": heads_table(comparison),
        "examples": examples_table(comparison),
        **({"states": states} if len(states := states_table(comparison)) else {}),
        **{name: table for name, table in _training(comparison).items() if len(table)},
    }


def _training(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """What the checkpoints tell of their training."""
    return {
        "training": training_table(comparison),
        "cost": cost_table(comparison),
        "forgetting": forgetting_table(comparison),
        "selection_overlap": overlap_table(comparison),
        "classes": classes_table(comparison),
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
        "remarks": list(answer.remarks),
        "abstract": answer.abstract,
    }
