"""The tables of training: how each tuned model was trained and what it reached, as its checkpoint tells it."""

from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison

# What a training history may hold, in the order of the table.
CURVES = ("step", "loss", "learning_rate", "heldout_loss", "accuracy", "macro_f1", "perplexity")


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


def training_table(comparison: Comparison) -> pd.DataFrame:
    """How each tuned model was trained, as its checkpoint tells it; empty where none does."""
    rows = []
    for model, record in training_records(comparison).items():
        counts, metrics = record.get("parameters") or {}, record.get("metrics") or {}
        trainable, total = (number(counts.get(name)) for name in ("trainable", "total"))
        row = {"model": model, "method": str(record.get("method") or ""), "task": str(record.get("task") or "")}
        row |= {"seed": number(record.get("seed")), "trained": 100 * trainable / total if total else np.nan}
        row |= {"seconds": number(record.get("seconds"))}
        names = ("best_step", "loss", "accuracy", "macro_f1", "base_perplexity", "perplexity")
        rows.append(row | {name: number(metrics.get(name)) for name in names})
    return pd.DataFrame(rows)


def number(value: object) -> float:
    """A number of a record that a stranger may have written."""
    return float(value) if isinstance(value, int | float) else np.nan
