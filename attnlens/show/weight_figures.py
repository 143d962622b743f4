"""Figures of the weights: change by layer, by kind of matrix and by head, beside what rounding alone does."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison
from attnlens.show import findings, map_plots, plots
from attnlens.show.drawing import Drawing, Layout, by_model, labels, map_height, named, of_first_model, panels
from attnlens.show.tables import circuits_table, shares_layers, weight_layers, weight_modules_table
from attnlens.show.twins import kinds

SHARED = " The weights are shared by all layers: no part of the change belongs to one layer alone."
CIRCUITS = {"QK": "QK: where a head looks", "OV": "OV: what it passes on"}


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figures of the weights; the products of the heads where they were measured."""
    found = [weight_change(comparison), weight_modules(comparison)]
    heads = comparison.heads
    return [*found, circuit_change(comparison)] if "relative" in heads and heads["relative"].notna().any() else found


def weight_change(comparison: Comparison) -> Drawing:
    """Relative weight change per layer, one bar a model."""
    table = weight_layers(comparison)
    table = table.assign(kind=kinds(comparison, table["model"]))
    shared = shares_layers(comparison)
    # The place outside the layers is drawn only where something moved there, or there is no other.
    outside = table["layer"].isna()
    alone = bool(outside.all())
    if not alone and not table.loc[outside, "relative"].max() > 0:
        table = table[~outside].reset_index(drop=True)
    over = (
        "over all matrices of the model."
        if alone
        else "over all matrices of the layer. other: embeddings and what else stands outside the layers."
    )
    caption = (
        f"Weight change{'' if alone else ' by layer'}: size of the difference between tuned and base, √ΣΔ², in percent "
        f"of the size of the base, √ΣW², {over} Task heads are left out."
        f"{SHARED if shared else ''}{_floor(table, 'Dashed: ')} No sampling is involved."
    )
    title = of_first_model(comparison, table, lambda rows: findings.weights_finding(rows, shared=shared))
    return Drawing("weight_change", "weights", title, caption, table, weight_picture)


def weight_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `weight_change`."""
    alone = bool(table["layer"].isna().all())
    shown = named(table).assign(layer=table["layer"].fillna(0).astype(int))
    outside = "all weights" if alone else "other"
    layout = Layout(1, 2.2, "" if alone else "layer", "weight change (% of its size)")
    return panels(layout, lambda ax, _: plots.weight_bars(shown, ax, outside=outside))


def weight_modules(comparison: Comparison) -> Drawing:
    """Relative weight change per layer and kind of matrix, a panel for each tuned model."""
    table = weight_modules_table(comparison)
    most = table.groupby("module")["relative"].max().sort_values(ascending=False, kind="stable")
    # Every panel has the kinds in the same order, the most changed on top.
    table = table.sort_values("module", key=lambda names: names.map(list(most.index).index), kind="stable")
    table = table.reset_index(drop=True)
    alone = bool(table["layer"].isna().all())
    # What moved by rounding alone is no finding.
    moved = table[~table["rounding"]].groupby("module")["relative"].max()
    if len(moved) and moved.max() > 0:
        title = f"Among the kinds of matrices, {moved.idxmax()} moved most (up to {plots.percent(moved.max())} %)"
    else:
        title = "No kind of matrix changed" + (" beyond rounding" if table["relative"].max() > 0 else "")
    letter = " r: nothing but rounding." if table["rounding"].any() else ""
    caption = (
        f"Weight change by kind of matrix{'' if alone else ' and layer'}, √ΣΔ²/√ΣW² in percent."
        f"{SHARED if shares_layers(comparison) else ''} Query and key can be rotated together "
        f"without any effect on attention: a change there need not be a change of attention."
        f"{_floor(table, 'Last column, floor: ')}{letter}"
    )
    return Drawing("weight_modules", "weights", title, caption, table, modules_picture)


def modules_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `weight_modules`."""
    alone = bool(table["layer"].isna().all())
    shown = table.assign(module=table["module"].map(labels(table["module"].unique(), limit=22)))
    shown = shown.assign(layer="all" if alone else table["layer"].astype(int))
    rounded = bool(table["floor"].max() > 0)
    limit = float(table["relative"].max())
    limit = limit if limit > 0 else 1.0
    layout = Layout(
        table["model"].nunique(),
        0.6 + 0.23 * table["module"].nunique(),
        "" if alone else "layer",
        bar="weight change (%)",
    )
    return panels(layout, by_model(shown, lambda ax, rows: map_plots.module_map(rows, ax, limit=limit, floor=rounded)))


def circuit_change(comparison: Comparison) -> Drawing:
    """Layer × head maps of the change of the products W_Qᵀ·W_K and W_O·W_V, two panels for each tuned model."""
    table = circuits_table(comparison)
    shared = shares_layers(comparison)
    table = table.assign(place="block" if shared else "layer")
    rounded = (
        " Grey: the change is no larger than rounding to the narrower stored number format makes alone."
        if table["rounding"].any()
        else ""
    )
    caption = (
        "Change of what each head's weights compute: QK = W_Qᵀ·W_K, which decides where the head looks, OV = W_O·W_V, "
        "which decides what it passes on; size of the change in percent of the size in the base (Frobenius norm). "
        "Rotating query and key together, or value and output, changes neither product."
        f"{SHARED if shared else ''}{rounded} No sampling is involved."
    )
    title = of_first_model(comparison, table, lambda rows: findings.circuits_finding(rows, shared=shared))
    return Drawing("circuit_change", "weights", title, caption, table, circuit_picture)


def circuit_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `circuit_change`."""
    coloured = table if table["rounding"].all() else table[~table["rounding"]]
    limit = float(np.nanmax(coloured["relative"].to_numpy(float), initial=0.0)) or 1.0
    names = labels(table["model"].unique(), limit=18)  # two maps side by side even in a narrow column
    pairs = list(table[["model", "circuit"]].drop_duplicates().itertuples(index=False, name=None))

    def panel(ax: Axes, index: int) -> None:
        model, circuit = pairs[index]
        rows = table[(table["model"] == model) & (table["circuit"] == circuit)]
        map_plots.change_map(rows, ax, limit=limit)
        ax.set_title(f"{names[model]}\n{circuit}" if len(names) > 1 else CIRCUITS[circuit])

    height, rows = map_height(int(table["layer"].max())), str(table["place"].iloc[0])
    return panels(Layout(len(pairs), height, "head", rows, bar="change (% of the size)", across=2), panel)


def _floor(table: pd.DataFrame, where: str) -> str:
    rounded = table["floor"].max() > 0
    return f" {where}the change that rounding to the narrower stored number format makes alone." if rounded else ""


PICTURES = {"weight_change": weight_picture, "weight_modules": modules_picture, "circuit_change": circuit_picture}
