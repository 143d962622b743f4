"""Plots of what stands behind an answer: estimates with intervals in rows, and methods beside each other."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from attnlens.analysis.wording import signed
from attnlens.show.map_plots import inches
from attnlens.show.plots import BROKEN, FAINT, INK, LOG_RATIO, QUIET, clean, looks, signed_label


def forest(table: pd.DataFrame, ax: Axes, *, margin: float | None = None, digits: int = 1) -> Axes:
    """Estimates with their intervals, a row each, the first on top, the numbers written beside.

    table: columns label (of the row; said once where rows in a run share it), model, kind, estimate, low, high, filled
    (the marker). margin: ± lines. digits: decimals of the numbers.
    """
    found = looks(table)
    ax.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
    for level in (-margin, margin) if margin is not None else ():
        ax.axvline(level, color=QUIET, linewidth=0.8, linestyle=BROKEN, zorder=1)
    y = np.arange(len(table)) + 0.5 * (table["label"] != table["label"].shift()).cumsum().to_numpy()
    for name, look in found.items():
        mine = (table["model"] == name).to_numpy()
        rows = table[mine]
        ax.hlines(y[mine], rows["low"], rows["high"], color=look.hue, linewidth=1.4, linestyle=look.line, zorder=2)
        faces = [look.hue if flag else "white" for flag in rows["filled"]]
        dots = {"s": 24, "marker": look.marker, "linewidths": 1.2, "zorder": 3}
        ax.scatter(rows["estimate"], y[mine], c=faces, edgecolors=look.hue, **dots)
        line = {"color": look.hue, "linestyle": look.line, "marker": look.marker, "markersize": 4.5}
        ax.plot([], [], label=name, **line)
    numbers = table[["estimate", "low", "high"]].to_numpy(float)
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "color": INK}
    for place, (estimate, low, high) in zip(y, numbers, strict=True):
        span = "no interval" if np.isnan(low) else f"{signed(low, digits)} … {signed(high, digits)}"
        ax.annotate(f"{signed(estimate, digits)}  ({span})", (1, place), (5, 0), **beside)
    groups = pd.Series(y).groupby(table["label"].to_numpy(), sort=False).mean()
    ax.set_yticks(groups, list(groups.index))
    ax.set_ylim(y[-1] + 0.7, y[0] - 0.7)
    ax.margins(x=0.06)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8 if inches(ax)[0] > 3 else 3, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(signed_label))
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    clean(ax).spines["left"].set_visible(False)
    return ax


def forest_height(table: pd.DataFrame) -> float:
    """Inches that the rows of a forest take."""
    return 0.62 + 0.2 * len(table) + 0.1 * (table["label"] != table["label"].shift()).sum()


def quality_against(table: pd.DataFrame, ax: Axes, column: str) -> Axes:
    """Quality (up) against what it took, a marker a model; the axis is logarithmic where the range is wide.

    table: columns model, value, `column`; a model without either has no marker.
    """
    values = table.loc[table["value"].notna(), column].dropna()
    log = len(values) > 1 and values.min() > 0 and values.max() > LOG_RATIO * values.min()
    for name, look in looks(table).items():
        rows = table[table["model"] == name]
        dots = {"s": 34, "marker": look.marker, "linewidths": 0.8, "edgecolors": "white", "zorder": 3}
        ax.scatter(rows[column], rows["value"], c=look.hue, label=name, **dots)
    if log:
        ax.set_xscale("log")
        ax.set_xlim(values.min() / 2, values.max() * 2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # powers would be formulas
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        room = 0.08 * (high - low or 1.0)
        ax.set_xlim(low - room * (values.min() < room), high + room)  # a marker at the end is whole
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    ax.margins(y=0.15)
    ax.grid(color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    return clean(ax)
