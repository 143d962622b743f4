"""Tables for a paper: LaTeX with booktabs, a few columns each; every number stands in the CSV of the same name too."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.analysis.wording import p_value, signed
from attnlens.show.drawing import of_documents
from attnlens.show.head_figures import most_changed
from attnlens.show.latex import booktabs
from attnlens.show.plots import percent, plain
from attnlens.show.tables import heads_table, layers_table, models_table, tests_table
from attnlens.show.twins import twins, verdict_of

Cell = Callable[[Any], str]


def tex_tables(comparison: Comparison) -> dict[str, str]:
    """LaTeX tables by file name without its ending: layers, heads, models, tests; those that have a row."""
    makers = {"layers": _layers, "heads": _heads, "models": _models, "tests": _tests}
    tables = {name: make(comparison) for name, make in makers.items()}
    return {name: table for name, table in tables.items() if table}


def _table(name: str, frame: pd.DataFrame, columns: dict[str, Cell], caption: str) -> str:
    """The LaTeX of a table; empty without rows. Columns whose cells are all empty are left out."""
    cells = {title: [cell(row) for _, row in frame.iterrows()] for title, cell in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    words = [title for title in cells if title in ("model", "answer", "definition")]
    return booktabs(name, caption, cells, words=words) if len(frame) else ""


def _layers(comparison: Comparison) -> str:
    frame = layers_table(comparison)
    frame = frame[frame["entropy_content_estimate"].notna()]
    columns = _model(comparison) | {"layer": lambda row: f"{row['layer']:.0f}"}
    first = [(f"focus_{name}", "focus") for name in comparison.salience[:1]]
    for prefix, title in [*first, ("entropy_content", "entropy")]:
        columns |= _estimate(title, f"{prefix}_")
    columns |= {
        "JSD": lambda row: _known(row["jsd_estimate"], plain),
        "weights": lambda row: "" if pd.isna(row["relative"]) else percent(row["relative"]),
    }
    marked = f" (marked by {comparison.salience[0]})" if comparison.salience else ""
    families = {"focus": "profile", "entropy": "entropy layer"} if comparison.salience else {"entropy": "entropy layer"}
    counts = [f"{what}: {of_documents(comparison, tests_table(comparison, name))}" for what, name in families.items()]
    caption = (
        f"Change by layer, tuned minus base: focus{marked} and content entropy in points with 95 % intervals "
        "simultaneous over layers and adjusted p; Jensen–Shannon divergence in percent of its maximum; size of the "
        f"weight change in percent; {'; '.join(counts)}."
    )
    return _table("layers", frame, columns, caption)


def _heads(comparison: Comparison) -> str:
    heads = heads_table(comparison)
    focus = bool(comparison.salience)
    rows = most_changed(comparison, heads[heads["measure"] == ("focus" if focus else "entropy_content")])
    columns: dict[str, Cell] = {name: lambda row, name=name: f"{row[name]:.0f}" for name in ("layer", "head")}
    columns |= {name: lambda row, name=name: _known(row[name], plain) for name in ("base", "tuned")}
    columns |= _estimate("change", "")
    what = f"focus, marked by {comparison.salience[0]}, in points" if focus else "content entropy in percent"
    caption = (
        f"The {len(rows)} most changed heads of {comparison.models[1]} by {what}, with 95 % intervals of each head "
        "alone and p adjusted over all heads (false discovery rate). They were picked because they changed most."
    )
    return _table("heads", rows, columns, caption)


def _models(comparison: Comparison) -> str:
    frame = models_table(comparison)
    null = twins(comparison)
    columns: dict[str, Cell] = {"model": lambda row: row["model"]}
    if comparison.salience:
        columns["answer"] = lambda row: verdict_of(row["model"], row["verdict"], null)
        columns["focus (layer)"] = lambda row: _placed(row, "focus", signed)
    columns |= {
        "entropy (layer)": lambda row: _placed(row, "entropy", signed),
        "JSD (layer)": lambda row: _placed(row, "jsd", plain),
        "weights": lambda row: "" if pd.isna(row["weight_change"]) else percent(row["weight_change"]),
    }
    caption = (
        "The tuned models side by side: largest change of focus and of content entropy in points and largest "
        "Jensen–Shannon divergence in percent of its maximum, each with its layer; size of the weight change in "
        "percent."
    )
    return _table("models", frame, columns, caption)


def _tests(comparison: Comparison) -> str:
    """Of every model and definition the most changed layer, with the sum over layers beside it."""
    profile, total = (tests_table(comparison, family) for family in ("profile", "total"))
    known = profile[profile["estimate"].notna()].reset_index(drop=True)
    sizes = known["estimate"].abs()
    rows = known.loc[sizes.groupby([known["model"], known["salience"]], sort=False).idxmax()] if len(known) else known
    whole = total.set_index(["model", "salience"])[["estimate", "low", "high"]].add_prefix("total_")
    frame = rows.join(whole, on=["model", "salience"]).assign(total_p_adjusted=float("nan"))
    columns: dict[str, Cell] = {"model": lambda row: row["model"], "definition": lambda row: row["salience"]}
    null = twins(comparison)
    columns |= {
        "answer": lambda row: verdict_of(row["model"], comparison.answers[row["model"]][row["salience"]].verdict, null),
        "layer": lambda row: f"{row['layer']:.0f}",
    }
    columns |= _estimate("change", "") | _estimate("sum over layers", "total_")
    columns["n"] = lambda row: f"{row['n']:.0f}"
    caption = (
        "Change of focus in points under every definition of the marked words: the most changed layer (95 % intervals "
        "and p simultaneous over layers) and the sum over layers (interval of its own); n documents."
    )
    return _table("tests", frame, columns, caption)


def _model(comparison: Comparison) -> dict[str, Cell]:
    return {"model": lambda row: row["model"]} if len(comparison.models) > 2 else {}


def _estimate(title: str, prefix: str) -> dict[str, Cell]:
    """Columns of an estimate with its interval, and of its adjusted p."""

    def value(row: Any) -> str:
        low, high = row[f"{prefix}low"], row[f"{prefix}high"]
        span = "" if pd.isna(low) else f" ({signed(low)} … {signed(high)})"
        return "" if pd.isna(row[f"{prefix}estimate"]) else f"{signed(row[f'{prefix}estimate'])}{span}"

    def chance(row: Any) -> str:
        return p_value(row[f"{prefix}p_adjusted"])

    return {title: value, f"p of {title}": chance}


def _known(value: float, written: Callable[[float, int], str]) -> str:
    return "" if pd.isna(value) else written(value, 1)


def _placed(row: Any, name: str, written: Callable[[float, int], str]) -> str:
    value = row[name]
    return "" if pd.isna(value) else f"{written(value, 1)} ({row[f'{name}_layer']:.0f})"
