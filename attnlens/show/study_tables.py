"""The tables of a study: CSV whole, LaTeX for a paper, and what the page shows."""

from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.ladder import ALPHA
from attnlens.analysis.studies.outcome import StudyOutcome
from attnlens.analysis.wording import p_value, signed
from attnlens.show.latex import booktabs
from attnlens.show.plots import percent
from attnlens.show.study_figures import QUALITY
from attnlens.show.study_words import counted

RUNGS = {"yes": "✓", "no": "✕"}
TEXTS = ("arm", "other", "verdict", "answer", "place", "measure", "method", "error", "blocks", "ladder")  # flush left


def study_tables(outcome: StudyOutcome) -> dict[str, pd.DataFrame]:
    """Every table by file name without its ending; empty ones are left out."""
    names = ("cells", "arms", "pairs", "profiles", "ranks", "selections")
    found = {name: getattr(outcome, name) for name in names}
    failed = [{**vars(cell), "error": error} for cell, error in outcome.failed.items()]
    return {name: table for name, table in (found | {"failed": pd.DataFrame(failed)}).items() if len(table)}


def shown_tables(outcome: StudyOutcome) -> dict[str, dict[str, Any]]:
    """The tables of the page: title, columns, rows of (what is written, what is sorted by), file."""
    found = {
        "arms": _sheet("The arms", "arms", arm_cells(outcome, outcome.arms)),
        "pairs": _sheet("Every two arms, paired by seed", "pairs", _pairs(outcome)),
        "selections": _sheet("What was chosen: Jaccard of the last choice", "selections", _selections(outcome)),
        "cells": _sheet("Every cell", "cells", _cells(outcome)),
        "failed": _sheet("Cells that failed", "failed", _failed(outcome)),
    }
    return {name: table for name, table in found.items() if table["rows"]}


def study_tex(outcome: StudyOutcome) -> dict[str, str]:
    """LaTeX tables by name: arms, one for each model and data set; the best quality and those that tie it in bold."""
    found = {}
    places = outcome.arms.groupby(["model", "data"], sort=False) if len(outcome.arms) else ()
    for number, ((model, data), arms) in enumerate(places, start=1):
        columns = {title: [written for written, _ in cells] for title, cells in arm_cells(outcome, arms).items()}
        columns = {title: cells for title, cells in columns.items() if any(cells)}
        name, _ = QUALITY[arms["unit"].iloc[0]]
        reference = outcome.plan.file.held_against
        caption = (
            f"{outcome.plan.file.title}: {model} on {data}; {counted(outcome)}. {name.capitalize()}, and its "
            f"difference to {reference}, with ± half of the 95 % interval over seeds and documents (crossed t); "
            "weights trained in percent of all; change of focus in points in the layer of the largest; rungs 1 to 5 of "
            "the evidence ladder. Bold: the best, and what is not told apart from it."
        )
        columns.pop("place", None)
        ties = _ties(outcome, arms)
        bold = [(row, name) for row, arm in enumerate(arms["arm"]) if arm in ties]
        key = "arms" if number == 1 else f"arms_{number}"
        found[key] = booktabs(key, caption, columns, words=("arm", "verdict", "answer", "ladder"), bold=bold)
    return found


def arm_cells(outcome: StudyOutcome, arms: pd.DataFrame) -> dict[str, list[tuple[str, Any]]]:
    """The table of arms by column: of each cell what is written, and what it is sorted by."""
    if arms.empty:
        return {}
    several = outcome.arms[["model", "data"]].drop_duplicates().shape[0] > 1
    name, unit = QUALITY[arms["unit"].iloc[0]]
    digits = 1 if unit > 1 else 3
    columns: dict[str, list[tuple[str, Any]]] = {title: [] for title in (["place"] if several else [])}
    for _, row in arms.iterrows():
        answer = outcome.answers.get((row["model"], row["data"]), {}).get(row["arm"])
        place = f"{row['model']}, {row['data']}"
        cells: dict[str, tuple[str, Any]] = {"place": (place, place)} if several else {}
        cells |= {
            "arm": (row["arm"], row["arm"]),
            name: _mean(unit * row[["quality", "low", "high"]], digits),
            "macro-F1 (%)": _number(100 * row.get("macro_f1", np.nan), ".1f"),
            "difference": _mean(unit * row[["difference", "difference_low", "difference_high"]], digits, sign=True),
            "verdict": (row["verdict"], row["verdict"]),
            "weights (%)": ("", "") if pd.isna(row["changed"]) else (percent(row["changed"]), row["changed"]),
            "time (s)": _number(row["seconds"], ",.0f"),
            "forgetting (nats)": _number(row.get("forgetting", np.nan), "+.2f"),
            "states moved (%)": _number(100 * row.get("drift", np.nan), ".0f"),
            "focus (points)": _focus(row),
            "in layer": _number(row["focus_layer"], ".0f"),
            "answer": (answer.verdict, answer.verdict) if answer is not None else ("", ""),
            "ladder": _ladder(answer),
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    return {title: cells for title, cells in columns.items() if any(written for written, _ in cells)}


def _ties(outcome: StudyOutcome, arms: pd.DataFrame) -> set[str]:
    """The arm of best quality, and every one whose difference from it is not told apart, adjusted over all pairs."""
    known = arms[arms["quality"].notna()]
    if known.empty:
        return set()
    row = known.sort_values("quality", ascending=not known["higher"].iloc[0], kind="stable").iloc[0]
    best, pairs = row["arm"], outcome.pairs
    if pairs.empty:
        return {best}
    mine = pairs[(pairs["measure"] == "quality") & (pairs["model"] == row["model"]) & (pairs["data"] == row["data"])]
    level = mine[~(mine["p_adjusted"] < ALPHA) & ((mine["arm"] == best) | (mine["other"] == best))]
    return {best, *level["arm"], *level["other"]}


def _mean(numbers: pd.Series, digits: int, *, sign: bool = False) -> tuple[str, Any]:
    """A mean ± half its interval; numbers: the mean, low, high."""
    value, low, high = map(float, numbers)
    if pd.isna(value):
        return "", ""
    text = signed(value, digits) if sign else f"{value:.{digits}f}"
    half = "" if pd.isna(low) else f" ± {(high - low) / 2:.{digits}f}"
    return f"{text}{half}", value


def _focus(row: pd.Series) -> tuple[str, Any]:
    if pd.isna(row["focus"]):
        return "", ""
    half = "" if pd.isna(row["focus_low"]) else f" ± {(row['focus_high'] - row['focus_low']) / 2:.1f}"
    return f"{signed(row['focus'])}{half}", row["focus"]


def _ladder(answer: Any) -> tuple[str, Any]:
    if answer is None or not answer.rungs:
        return "", ""
    marks = "".join(RUNGS.get(rung.status, "–") for rung in answer.rungs)
    return marks, marks.count("✓")


def _number(value: Any, form: str) -> tuple[str, Any]:
    if value is None or pd.isna(value):
        return "", ""
    return f"{float(value):{form}}".replace("-", "\N{MINUS SIGN}"), float(value)


def _pairs(outcome: StudyOutcome) -> dict[str, list[tuple[str, Any]]]:
    columns: dict[str, list[tuple[str, Any]]] = {}
    for _, row in outcome.pairs.iterrows():
        unit = 1 if row["measure"] == "quality" and outcome.arms["unit"].iloc[0] == "loss" else 100
        digits = 3 if unit == 1 else 1
        cells = {
            "place": (f"{row['model']}, {row['data']}",) * 2,
            "measure": (row["measure"],) * 2,
            "arm": (row["arm"],) * 2,
            "other": (row["other"],) * 2,
            "difference": _mean(unit * row[["estimate", "low", "high"]], digits, sign=True),
            "p adjusted": (p_value(row["p_adjusted"]), "" if pd.isna(row["p_adjusted"]) else row["p_adjusted"]),
            "seeds": _number(row["n_seeds"], ".0f"),
            "documents": _number(row["n_documents"], ".0f"),
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    return columns


def _selections(outcome: StudyOutcome) -> dict[str, list[tuple[str, Any]]]:
    table = outcome.selections
    if table.empty:
        return {}
    columns: dict[str, list[tuple[str, Any]]] = {
        "arm": [(name, name) for name in table["arm"]],
        "seed": [_number(seed, ".0f") for seed in table["seed"]],
        "blocks": [(blocks, blocks) for blocks in table["blocks"]],
    }
    titles = {"last_k": "last blocks", "first_k": "first blocks", "rms": "least weight", "other_seeds": "other seeds"}
    for name, title in (titles | {"shuffled": "shuffled labels", "chance": "chance"}).items():
        columns[title] = [_number(value, ".2f") for value in table[name]]
    return columns


def _cells(outcome: StudyOutcome) -> dict[str, list[tuple[str, Any]]]:
    columns: dict[str, list[tuple[str, Any]]] = {}
    for _, row in outcome.cells.iterrows():
        cells = {
            "place": (f"{row['model']}, {row['data']}",) * 2,
            "arm": (row["arm"],) * 2,
            "seed": _number(row["seed"], ".0f"),
            "learning rate": _number(row["learning_rate"], "g"),
            "accuracy (%)": _number(100 * row.get("accuracy", np.nan), ".1f"),
            "macro-F1 (%)": _number(100 * row.get("macro_f1", np.nan), ".1f"),
            "loss (nats)": _number(row.get("loss", np.nan), ".3f"),
            "kept step": _number(row["best_step"], ".0f"),
            "time (s)": _number(row["seconds"], ",.0f"),
            "memory (MiB)": _number(None if pd.isna(row["peak_memory"]) else row["peak_memory"] / 2**20, ",.0f"),
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    return {title: cells for title, cells in columns.items() if any(written for written, _ in cells)}


def _failed(outcome: StudyOutcome) -> dict[str, list[tuple[str, Any]]]:
    rows = list(outcome.failed.items())
    return {"cell": [(cell.name, cell.name) for cell, _ in rows], "error": [(error, error) for _, error in rows]}


def _sheet(title: str, file: str, columns: dict[str, list[tuple[str, Any]]]) -> dict[str, Any]:
    rows = list(zip(*columns.values(), strict=True)) if columns else []
    return {"title": title, "file": f"tables/{file}.csv", "columns": list(columns), "texts": TEXTS, "rows": rows}
