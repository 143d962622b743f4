"""The methods beside each other: quality against what the training took, from what the checkpoints tell."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison
from attnlens.show import evidence_plots, findings
from attnlens.show.drawing import Drawing, Layout, named, panels
from attnlens.show.training_records import QUALITIES
from attnlens.show.training_tables import cost_table, forgetting_table, training_table
from attnlens.show.twins import real_models

# What a method took: label of its axis.
AXES = {
    "changed": "weights trained (% of all)",
    "seconds": "training time (s)",
    "forgetting": "forgetting (nats a token)",
}


def drawings(comparison: Comparison) -> list[Drawing]:
    """The comparison of methods, where two tuned models tell how well they did and what it took."""
    table = methods_table(comparison)
    if len(table) < 2:
        return []
    known = table["value"].notna() & table[list(AXES)].notna().any(axis=1)
    return [methods(table)] if known.sum() > 1 else []


def methods_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each tuned model that tells of its training: held-out quality, and what it took to get there.

    value: of `quality`, the first that every one of them has; changed: parameters that training changed in the
    end, of an adapter those that it adds, in percent of all; seconds: of the training; forgetting: rise of the loss on
    a general text, nats a token.
    """
    table = training_table(comparison)
    if table.empty:
        return table
    table = table[table["model"].isin(real_models(comparison))].reset_index(drop=True)
    quality = next((name for name in QUALITIES if table[name].notna().all()), "")
    cost, lost = cost_table(comparison), forgetting_table(comparison)
    changed = _column(cost, "cumulative_of_total", table["model"]).fillna(table["trained"])
    seconds = _column(cost, "seconds", table["model"]).fillna(table["seconds"])
    found = table[["model", "method"]].assign(
        quality=QUALITIES.get(quality, ""), value=table[quality] if quality else np.nan, changed=changed
    )
    return found.assign(seconds=seconds, forgetting=_column(lost, "change", table["model"]))


def _column(table: pd.DataFrame, name: str, models: pd.Series) -> pd.Series:
    """A column for these models; NaN of those that the table has not."""
    known = {} if table.empty else dict(zip(table["model"], table[name], strict=True))
    return models.map(known).astype(float)


def methods(table: pd.DataFrame) -> Drawing:
    """Quality against weights trained, time and forgetting, a panel each."""
    quality = str(table["quality"].iloc[0])
    told = {
        "changed": "weights: parameters that training changed, of an adapter those that it adds, in percent of all",
        "seconds": "time: of the training, as measured",
        "forgetting": "forgetting: rise of the loss on a general text",
    }
    shown = [text for name, text in told.items() if table[name].notna().any()]
    caption = (
        f"Held-out {quality} of each tuned model against what it took; {'; '.join(shown)}. As the checkpoints tell it. "
        "One run a model: no interval, so that small differences say nothing of the methods."
    )
    return Drawing("methods", "training", findings.methods_finding(table), caption, table, methods_picture)


def methods_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `methods`."""
    shown = named(table)
    columns = [name for name in AXES if table[name].notna().any()]

    def panel(ax: Axes, index: int) -> None:
        evidence_plots.quality_against(shown, ax, columns[index])
        ax.set_xlabel(AXES[columns[index]])

    quality = str(table["quality"].iloc[0])
    better = " (lower is better)" if quality == "perplexity" else ""
    return panels(Layout(len(columns), 2.2, "", f"held-out {quality}{better}"), panel)


PICTURES = {"methods": methods_picture}
