"""The tables inside the report's page: what is written in a cell, and what it is sorted by."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.analysis.wording import p_value, signed
from attnlens.show.plots import percent, plain
from attnlens.show.tables import heads_table, layers_table, models_table, states_table
from attnlens.show.training_records import QUALITIES
from attnlens.show.training_tables import classes_table, cost_table, forgetting_table, training_table
from attnlens.show.twins import twins, verdict_of

SHOWN_HEADS = 40
Cell = Callable[[Any], tuple[str, Any]]  # a row of a table → what is written, and what is sorted by
TEXTS = ("model", "answer", "method", "text", "class")  # columns of words, set flush left


def page_tables(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The tables of the page by name, without those that have no row; `models` only where there are several."""
    several = len(comparison.models) > 2
    found = {
        "models": model_rows(comparison) if several else None,
        "layers": layer_rows(comparison),
        "heads": head_rows(comparison),
        "training": training_rows(comparison),
        "cost": cost_rows(comparison),
        "forgetting": forgetting_rows(comparison),
        "classes": class_rows(comparison),
    }
    return {name: table for name, table in found.items() if table and table["rows"]}


def model_rows(comparison: Comparison) -> dict[str, Any]:
    """The tuned models side by side: answer, largest changes, size of the weight change, quality."""
    frame = models_table(comparison)
    null = twins(comparison)
    columns: dict[str, Cell] = {"model": _text("model")}
    if comparison.salience:
        columns |= {
            "answer": lambda row: (verdict_of(row["model"], row["verdict"], null), row["verdict"]),
            "largest change of focus (points)": lambda row: _placed(row, "focus", signed),
        }
    columns["largest change of entropy (points)"] = lambda row: _placed(row, "entropy", signed)
    if frame["jsd"].notna().any():
        columns["largest JSD (% of its maximum)"] = lambda row: _placed(row, "jsd", plain)
    columns["weight change (%)"] = lambda row: _known(row["weight_change"], percent)
    return _table("The tuned models side by side", "models", frame, columns)


def training_rows(comparison: Comparison) -> dict[str, Any]:
    """How each tuned model was trained, where its checkpoint tells it."""
    frame = training_table(comparison)
    columns: dict[str, Cell] = {
        "model": _text("model"),
        "method": _text("method"),
        "trained weights (%)": lambda row: _known(row["trained"], percent),
        "kept step": lambda row: _known(row["best_step"], "{:.0f}".format),
        "whole run (s)": lambda row: _known(row["seconds"], "{:,.0f}".format),
        "held-out loss": lambda row: _known(row["loss"], "{:.3f}".format),
        "held-out perplexity before training": lambda row: _known(row["base_perplexity"], "{:,.2f}".format),
    }
    for name, word in QUALITIES.items():
        style = "{:,.2f}" if name == "perplexity" else "{:.3f}"
        columns[f"held-out {word}"] = lambda row, name=name, style=style: _known(row[name], style.format)
    return _without_empty(_table("Training, as the checkpoints tell it", "training", frame, columns))


def cost_rows(comparison: Comparison) -> dict[str, Any] | None:
    """What each run cost; both denominators of a share named."""
    frame = cost_table(comparison)
    if frame.empty:
        return None
    columns: dict[str, Cell] = {"model": _text("model")}
    for name, what in {"mean": "mean", "peak": "peak", "cumulative": "changed"}.items():
        columns[f"{what} (%)"] = lambda row, name=name: _known_pair(row[f"{name}_of_total"], row[f"{name}_of_blocks"])
    columns |= {
        "TFLOP": lambda row: _known(row["flops"] / 1e12, "{:,.3g}".format),
        "training (s)": lambda row: _known(row["seconds"], "{:,.0f}".format),
        "ms a step": lambda row: _known(1000 * row["step_seconds"], "{:,.0f}".format),
        "peak memory (MiB)": lambda row: _known(row["peak_memory"], "{:,.0f}".format),
        "checkpoint (MiB)": lambda row: _known(row["checkpoint"], "{:,.1f}".format),
    }
    kinds = sorted(set(frame["memory_kind"]) - {""})
    memory = {"cuda": "of the GPU, as torch allocated it", "process": "of the whole process"}
    kind = f" Memory: {', '.join(memory.get(str(kind), str(kind)) for kind in kinds)}." if kinds else ""
    note = (
        "mean, peak: parameters that train at a time; changed: in the end; in percent of all parameters, embeddings "
        "and head among them / of those of the blocks. FLOPs: forward and backward passes by torch's counter, 2 a "
        f"multiply-add. training: with its evaluations, without what stands before and after. ms a step: median.{kind}"
    )
    return _without_empty(_table("What the training cost", "cost", frame, columns)) | {"note": note}


def forgetting_rows(comparison: Comparison) -> dict[str, Any] | None:
    """What was lost on a general text."""
    frame = forgetting_table(comparison)
    if frame.empty:
        return None
    columns: dict[str, Cell] = {
        "model": _text("model"),
        "text": _text("text"),
        "loss before (nats)": lambda row: _known(row["loss_before"], "{:.3f}".format),
        "loss after (nats)": lambda row: _known(row["loss_after"], "{:.3f}".format),
        "change": lambda row: _number(row["change"], signed),
        "KL (nats)": lambda row: _known(row["kl"], "{:.3f}".format),
        "hidden states moved (%)": lambda row: _known(100 * row["drift"], "{:.1f}".format),
        "tokens": lambda row: _known(row["tokens"], "{:,.0f}".format),
    }
    return _without_empty(_table("Forgetting: the same general text before and after", "forgetting", frame, columns))


def class_rows(comparison: Comparison) -> dict[str, Any] | None:
    """Held-out quality of each class, twins left out: they have none to show."""
    frame = classes_table(comparison)
    frame = frame[~frame["model"].isin(twins(comparison))] if len(frame) else frame
    if frame.empty:
        return None
    columns: dict[str, Cell] = {"class": _text("class")}
    columns |= {name: lambda row, name=name: _known(row[name], "{:.3f}".format) for name in ("precision", "recall")}
    columns |= {"F1": lambda row: _known(row["f1"], "{:.3f}".format)}
    columns |= {"held-out rows": lambda row: _known(row["n"], "{:,.0f}".format)}
    if frame["model"].nunique() > 1:
        columns = {"model": _text("model")} | columns
    return _without_empty(_table("Held-out quality of each class", "classes", frame, columns))


def _without_empty(table: dict[str, Any]) -> dict[str, Any]:
    """The table without the columns in which nothing is known."""
    kept = [index for index, _ in enumerate(table["columns"]) if any(row[index][0] for row in table["rows"])]
    return table | {
        "columns": [table["columns"][index] for index in kept],
        "rows": [[row[index] for index in kept] for row in table["rows"]],
    }


def layer_rows(comparison: Comparison) -> dict[str, Any]:
    """The report's table of layers: focus, entropy, maps, hidden states and weights, a row for each model and layer."""
    frame = layers_table(comparison).dropna(subset="layer")
    columns: dict[str, Cell] = {"layer": lambda row: (str(row["layer"]), row["layer"])}
    if len(comparison.models) > 2:
        columns = {"model": _text("model")} | columns
    shown = [("focus", f"focus_{name}_") for name in comparison.salience[:1]] + [("entropy", "entropy_content_")]
    for name, prefix in shown:
        columns |= {
            f"change of {name} (points)": lambda row, prefix=prefix: _number(row[f"{prefix}estimate"], signed),
            f"95 % interval of {name}": lambda row, prefix=prefix: _interval(row, prefix),
            f"adjusted p of {name}": lambda row, prefix=prefix: _p(row[f"{prefix}p_adjusted"]),
        }
    if frame["jsd_estimate"].notna().any():
        columns["JSD (% of its maximum)"] = lambda row: _number(row["jsd_estimate"], plain)
    note = ""
    if frame["hidden_change"].notna().any():
        columns["hidden states moved (%)"] = lambda row: _known(row["hidden_change"], percent)
        columns["CKA"] = lambda row: _known(row["cka"], "{:.3f}".format)
        note = (
            "Hidden states moved: ‖tuned − base‖ / ‖base‖ of a token's state after the layer, mean over "
            f"{frame['hidden_n'].max():.0f} documents. CKA: how alike both models' states are but for rotation and "
            f"scale (1 = the same), debiased, over {states_table(comparison)['tokens'].max():,} tokens."
        )
    if frame["sink_tuned"].notna().any():
        columns["heads with a sink (%), base / tuned"] = lambda row: _levels(row["sink_base"], row["sink_tuned"])
    if frame["relative"].notna().any():  # not of layers that share their weights
        columns["weight change (%)"] = lambda row: _known(row["relative"], percent)
    if frame["floor"].max() > 0:
        columns["rounding alone (%)"] = lambda row: _known(row["floor"], percent)
    return _table("Layers", "layers", frame, columns) | {"note": note}


def head_rows(comparison: Comparison) -> dict[str, Any]:
    """The report's table of heads: the most changed of each tuned model by the headline measure."""
    table = heads_table(comparison)
    measure = "focus" if comparison.salience else "entropy_content"
    chosen = (table["measure"] == measure) & table["shown"] & (table["estimate"].fillna(0) != 0)
    rows = table[chosen & (table["salience"] == (comparison.salience or [""])[0])]
    rows = rows.loc[rows["estimate"].abs().sort_values(ascending=False, kind="stable").index]
    tuned = len(comparison.models) - 1
    rows = rows.groupby("model", sort=False).head(max(10, SHOWN_HEADS // tuned))
    name = "focus" if comparison.salience else "content entropy"
    columns: dict[str, Cell] = {
        "layer": lambda row: (str(row["layer"]), row["layer"]),
        "head": lambda row: (str(row["head"]), row["head"]),
        f"{name}, base": lambda row: _number(row["base"], plain),
        f"{name}, tuned": lambda row: _number(row["tuned"], plain),
        "change (points)": lambda row: _number(row["estimate"], signed),
        "95 % interval": lambda row: _interval(row, ""),
        "adjusted p": lambda row: _p(row["p_adjusted"]),
        "attention on words (%)": lambda row: (f"{row['content_mass']:.0f}", row["content_mass"]),
    }
    if tuned > 1:
        columns = {"model": _text("model")} | columns
    return _table(f"The most changed heads by {name}", "heads", rows, columns)


def _table(title: str, file: str, frame: pd.DataFrame, columns: dict[str, Cell]) -> dict[str, Any]:
    rows = [[cell(row) for cell in columns.values()] for _, row in frame.iterrows()]
    return {
        "title": title,
        "file": f"tables/{file}.csv",
        "columns": list(columns),
        "texts": TEXTS,
        "rows": rows,
        "note": "",
    }


def _text(name: str) -> Cell:
    return lambda row: (row[name], row[name])


def _known(value: float, written: Callable[[float], str]) -> tuple[str, Any]:
    return ("", "") if pd.isna(value) else (written(value), value)


def _known_pair(first: float, second: float) -> tuple[str, Any]:
    """Two percentages with a stroke between them, sorted by the first."""
    written = [percent(value) for value in (first, second) if not pd.isna(value)]
    return " / ".join(written), "" if pd.isna(first) else first


def _levels(before: float, after: float) -> tuple[str, Any]:
    """Base and tuned with a stroke between them, sorted by the change."""
    return ("", "") if pd.isna(after) else (f"{before:.0f} / {after:.0f}", after - before)


def _placed(row: Any, name: str, written: Callable[[float, int], str]) -> tuple[str, Any]:
    """A value with the layer where it was found."""
    value = row[name]
    return ("", "") if pd.isna(value) else (f"{written(value, 1)} (layer {row[f'{name}_layer']:.0f})", value)


def _number(value: float, written: Callable[[float, int], str]) -> tuple[str, Any]:
    return ("", "") if pd.isna(value) else (written(value, 2), value)


def _interval(row: Any, prefix: str) -> tuple[str, Any]:
    if pd.isna(row[f"{prefix}low"]):
        return "", ""
    return f"{signed(row[f'{prefix}low'], 2)} … {signed(row[f'{prefix}high'], 2)}", row[f"{prefix}low"]


def _p(value: float) -> tuple[str, Any]:
    return p_value(value), "" if pd.isna(value) else value
