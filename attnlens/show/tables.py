"""The tables of a report: layers and heads counted from 1, attention in points of 100, safe in a spreadsheet."""

from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Answer, Comparison
from attnlens.core.resampling import column_tests, document_means

MINIMUM_CONTENT = 5.0  # percent: a head with less attention on words says little about words (METRICS 3.4)
MEASURES = {"entropy_content": "entropy head", "focus": "focus head"}
# What a training history may hold, in the order of the table.
CURVES = ("step", "loss", "learning_rate", "heldout_loss", "accuracy", "macro_f1", "perplexity")
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
    return _mean(means)


def _mean(means: np.ndarray) -> np.ndarray:
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


def weight_layers(comparison: Comparison) -> pd.DataFrame:
    """Weight change per model and layer in percent of the layer's size; layer empty = outside the layers.

    floor: what rounding to the narrower stored dtype makes alone; rounding: nothing else happened in the layer.
    """
    weights = measured(comparison, comparison.weights)
    return _pooled(comparison, weights[weights["kind"] == "backbone"], ["model", "layer"])


def weight_modules_table(comparison: Comparison) -> pd.DataFrame:
    """Weight change per model, kind of matrix and layer in percent, with floor and rounding as `weight_layers`."""
    weights = measured(comparison, comparison.weights)
    inside = weights[(weights["kind"] == "backbone") & (weights["layer"] >= 0)]
    return _pooled(comparison, inside, ["model", "module", "layer"])


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
    """Change of each head's QK and OV product in percent of its size: model, circuit, layer, head, relative."""
    heads = from_one(in_order(comparison, measured(comparison, comparison.heads)))
    table = heads.assign(relative=100 * heads["relative"])[["model", "circuit", "layer", "head", "relative"]]
    ordered = table.sort_values("circuit", key=lambda names: names != "QK", kind="stable")
    return in_order(comparison, ordered).reset_index(drop=True)


def received_table(comparison: Comparison) -> pd.DataFrame:
    """Received attention (times uniform) of marked words and their controls under the headline salience, by layer.

    change: marked minus control, tuned minus base, with its t interval over documents, each layer for itself.
    """
    data = comparison.data
    names = ("received_matched" if "received_matched" in data else "received", "received_control")
    # (N, M, L): mean over heads, which hold NaN where a layer has fewer
    marked, control = (
        data[name].sel(salience=comparison.salience[0]).mean("head").transpose("example", "model", "layer").values
        for name in names
    )
    means = document_means(np.stack([marked, control], 1), data["document"].values)  # (D, 2, M, L)
    level = _mean(means)
    frames = []
    for index, model in enumerate(comparison.models[1:], start=1):
        gap = means[:, 0] - means[:, 1]
        test = column_tests(gap[:, index] - gap[:, 0], rng=np.random.default_rng(0))
        columns = {
            "model": model,
            "layer": np.arange(1, level.shape[-1] + 1),
            "marked_base": level[0, 0],
            "marked_tuned": level[0, index],
            "control_base": level[1, 0],
            "control_tuned": level[1, index],
            "change": test.estimate,
            "low": test.low,
            "high": test.high,
            "n": test.n,
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def refocusing_table(comparison: Comparison) -> pd.DataFrame:
    """The change of attention on marked words of every head, split in two (METRICS 3.2), in points of all attention.

    With c = 1 − m_K and G of a text before and after: Δ(c·G) = c̄·ΔG (refocusing) + Ḡ·Δc (sink release), exactly.
    """
    data = comparison.data
    order = ("example", "model", "layer", "head")
    content = data["content_mass"].transpose(*order).values
    share = data["share"].sel(salience=comparison.salience[0]).transpose(*order).values
    documents, frames = data["document"].values, []
    for index, model in enumerate(comparison.models[1:], start=1):
        (c0, c1), (g0, g1) = ((values[:, 0], values[:, index]) for values in (content, share))
        terms = np.stack([(c0 + c1) / 2 * (g1 - g0), (g0 + g1) / 2 * (c1 - c0)], 1)  # (N, 2, L, H)
        means = document_means(terms, documents)
        refocused, released = 100 * _mean(means)
        layer, head = np.nonzero(np.isfinite(refocused))
        columns = {
            "model": model,
            "layer": layer + 1,
            "head": head + 1,
            "refocusing": refocused[layer, head],
            "sink_release": released[layer, head],
            "change": (refocused + released)[layer, head],
            "n": np.isfinite(means[:, 0]).sum(0)[layer, head],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def curves_table(comparison: Comparison) -> pd.DataFrame:
    """Training histories as the checkpoints tell them: model, step and what was recorded at it; empty where none is."""
    frames = []
    for model, record in training_records(comparison).items():
        history = record.get("history")
        rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
        known = [{name: row[name] for name in CURVES if isinstance(row.get(name), int | float)} for row in rows]
        frames.append(pd.DataFrame([row for row in known if "step" in row]).assign(model=model))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if "step" not in table:
        return pd.DataFrame(columns=["model", "step"])
    return table[["model", *(name for name in CURVES if name in table)]]


def training_records(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The training record of each tuned model that brings one."""
    models = comparison.provenance.get("models", [])
    found = {name: model.get("training") for name, model in zip(comparison.models, models, strict=False)}
    return {name: record for name, record in list(found.items())[1:] if isinstance(record, dict)}


def layers_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each tuned model and layer: change of focus (by salience definition) and of entropy in points, with
    interval and adjusted p, JSD in percent of its maximum, and the weight change `relative` in percent.
    """
    table = weight_layers(comparison)
    wanted = [("profile", f"focus_{name}", name) for name in comparison.salience]
    for family, prefix, salience in [*wanted, ("entropy layer", "entropy_content", "")]:
        tests = tests_table(comparison, family)
        tests = tests[tests["salience"] == salience].set_index(["model", "layer"])
        columns = tests[["estimate", "low", "high", "p_adjusted"]].add_prefix(f"{prefix}_")
        table = table.join(columns, on=["model", "layer"])
    jsd = jsd_table(comparison).set_index(["model", "layer"])[["estimate", "low", "high"]].add_prefix("jsd_")
    return table.join(jsd, on=["model", "layer"])


def jsd_table(comparison: Comparison) -> pd.DataFrame:
    """Divergence of base and tuned maps by layer in percent of its maximum, log 2: estimate, low, high, n."""
    table = tests_table(comparison, "jsd layer")[["model", "layer", "estimate", "low", "high", "n"]]
    bounds = ["estimate", "low", "high"]
    return table.assign(**{name: table[name] / np.log(2) for name in bounds})  # 100 nats → percent


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


def training_table(comparison: Comparison) -> pd.DataFrame:
    """How each tuned model was trained, as its checkpoint tells it; empty where none does."""
    rows = []
    for model, record in training_records(comparison).items():
        counts, metrics = record.get("parameters") or {}, record.get("metrics") or {}
        trainable, total = (_number(counts.get(name)) for name in ("trainable", "total"))
        row = {"model": model, "method": str(record.get("method") or ""), "task": str(record.get("task") or "")}
        row |= {"seed": _number(record.get("seed")), "trained": 100 * trainable / total if total else np.nan}
        row |= {"seconds": _number(record.get("seconds"))}
        names = ("best_step", "loss", "accuracy", "macro_f1", "perplexity")
        rows.append(row | {name: _number(metrics.get(name)) for name in names})
    return pd.DataFrame(rows)


def _number(value: object) -> float:
    """A number of a record that a stranger may have written."""
    return float(value) if isinstance(value, int | float) else np.nan


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
        **({} if (training := training_table(comparison)).empty else {"training": training}),
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
