"""Plots: a table of numbers and an Axes in, the Axes out; no file, no global setting.

Every table is the one that is written beside the figure as CSV. Layers and heads count from 1.
"""

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from attnlens.analysis.evidence import signed

INK = "#1d2329"
QUIET = "#68717c"
FAINT = "#dfe3e8"
# Blue, orange, green, purple (after Okabe & Ito): told apart by any eye, and by their marker in grey.
HUES = ("#0b5fa5", "#d2570a", "#00795c", "#8e4a9e", "#6b5b00", "#4a4f57")
MARKERS = ("o", "s", "D", "^", "v", "P")
DIVERGING = colors.LinearSegmentedColormap.from_list(
    "blue_white_orange", ("#0a3d73", "#2f75b5", "#93bfe2", "#f6f6f4", "#f6b98a", "#d9691b", "#7f3205")
)
RISING = colors.LinearSegmentedColormap.from_list("white_blue", ("#f3f6fa", "#a9c8e6", "#3b7fbd", "#0a3d73"))
GREYED = "#c3c8ce"
SIGNIFICANT = 0.05
LOG_RATIO = 50.0  # a wider range of layer changes is drawn on a logarithmic axis


def clean(ax: Axes) -> Axes:
    """Take away what carries no number: the box, the heavy ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    ax.tick_params(color=QUIET, labelcolor=INK)
    return ax


def _signed_ticks(ax: Axes) -> None:
    def label(value: float, _: int) -> str:
        return ("\N{MINUS SIGN}" if value < 0 else "+" if value > 0 else "") + f"{abs(value):g}"

    ax.yaxis.set_major_formatter(FuncFormatter(label))


def plain(value: float, digits: int = 1) -> str:
    """`value` with a true minus and no plus: 1.2, −0.4, 0.0."""
    return signed(value, digits).removeprefix("+")


def percent(value: float) -> str:
    """A percentage in two or three characters: 0, 0.43, 3.2, 12."""
    return (
        "0" if value == 0 else f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
    )


def layer_profile(table: pd.DataFrame, ax: Axes, *, margin: float | None = None) -> Axes:
    """Change per layer with its simultaneous band, one line a model.

    table: columns model, layer (from 1), estimate, low, high (points). margin: the smallest change that matters,
    drawn as ± lines. A filled marker: the interval lies wholly beyond the margin (beyond zero without one).
    """
    names = list(table["model"].unique())
    ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
    if margin is not None:
        for level in (-margin, margin):
            ax.axhline(level, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    layers = int(table["layer"].max())
    step = 0.0 if len(names) == 1 else min(0.14, 0.5 / len(names))
    for index, name in enumerate(names):
        rows = table[table["model"] == name].sort_values("layer")
        hue, marker = HUES[index % len(HUES)], MARKERS[index % len(MARKERS)]
        x = rows["layer"] + step * (index - (len(names) - 1) / 2)
        ax.fill_between(x, rows["low"], rows["high"], color=hue, alpha=0.16, linewidth=0, zorder=2)
        ax.vlines(x, rows["low"], rows["high"], color=hue, linewidth=1.0 if layers <= 16 else 0.5, zorder=3)
        # The line carries its marker for a legend only; the markers drawn differ from point to point.
        ax.plot(x, rows["estimate"], marker=marker, markersize=4.5, markevery=[], color=hue, linewidth=1.3, label=name)
        beyond = (rows["low"] > (margin or 0)) | (rows["high"] < -(margin or 0))
        faces = [hue if flag else "white" for flag in beyond]
        size = 22 if layers <= 16 else 9
        ax.scatter(x, rows["estimate"], s=size, c=faces, edgecolors=hue, marker=marker, linewidths=1.2, zorder=5)
    ax.set_xlim(0.6, layers + 0.4)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 4, 5, 10]))
    ax.margins(y=0.08)
    low, high = ax.get_ylim()
    if high - low < 0.2:  # nothing moved: no magnifying glass on rounding
        ax.set_ylim(-1, 1)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    _signed_ticks(ax)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    return clean(ax)


def grid(table: pd.DataFrame, column: str) -> np.ndarray:
    """`column` of a table with layer and head (from 1) as an array (layer, head), NaN where there is no head."""
    shape = (int(table["layer"].max()), int(table["head"].max()))
    values = np.full(shape, np.nan)
    values[table["layer"].to_numpy(int) - 1, table["head"].to_numpy(int) - 1] = table[column].to_numpy(float)
    return values


def head_map(table: pd.DataFrame, ax: Axes, *, limit: float) -> Axes:
    """Layer × head map of a signed change: blue down, orange up, white no change; the last layer on top.

    table: columns layer, head (from 1), estimate (points), p_adjusted, shown (False: grey, crossed).
    limit: the colours' end. A dot marks a rise, a ring a fall with adjusted p < .05. The map is `ax.collections[0]`.
    """
    values, p_values = grid(table, "estimate"), grid(table, "p_adjusted")
    hidden = (grid(table, "shown") == 0) & ~np.isnan(values)
    n_layers, n_heads = values.shape
    edges = (np.arange(n_heads + 1) + 0.5, np.arange(n_layers + 1) + 0.5)
    width = 0.8 if max(values.shape) <= 24 else 0.0
    seen = np.ma.masked_array(values, mask=hidden | np.isnan(values))
    ax.pcolormesh(*edges, seen, cmap=DIVERGING, vmin=-limit, vmax=limit, edgecolors="white", linewidth=width)
    if hidden.any():
        veil = np.ma.masked_array(np.ones_like(values), mask=~hidden)
        ax.pcolormesh(*edges, veil, cmap=colors.ListedColormap([GREYED]), edgecolors="white", linewidth=width)
        place = np.argwhere(hidden) + 1
        ax.scatter(place[:, 1], place[:, 0], s=10, c=QUIET, marker="x", linewidths=0.7, label="too little")
    layer, head = np.nonzero((p_values < SIGNIFICANT) & ~hidden)
    found = values[layer, head]
    inks = np.where(np.abs(found) > 0.62 * limit, "white", INK)
    size = float(np.clip(160 / max(values.shape), 1.5, 13))
    rises = found > 0
    ax.scatter(head[rises] + 1, layer[rises] + 1, s=size, c=inks[rises], linewidths=0, label="rise")
    falls = ~rises
    rings = {"facecolors": "none", "edgecolors": list(inks[falls]), "linewidths": 0.8}
    ax.scatter(head[falls] + 1, layer[falls] + 1, s=size, label="fall", **rings)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 4, 5, 10]))
    ax.set_xlim(0.5, n_heads + 0.5)
    ax.set_ylim(0.5, n_layers + 0.5)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelcolor=INK)
    return ax


def weight_bars(table: pd.DataFrame, ax: Axes) -> Axes:
    """Relative weight change per layer, one bar a model; points on a log axis where the range is wide.

    table: columns model, layer (from 1; 0 = outside the layers), relative (percent).
    """
    names = list(table["model"].unique())
    places = sorted(table["layer"].unique())
    moved = table.loc[table["relative"] > 0, "relative"]
    log = len(moved) > 1 and moved.max() > LOG_RATIO * moved.min()
    width = 0.72 / len(names)
    for index, name in enumerate(names):
        rows = table[table["model"] == name].sort_values("layer")
        x = np.array([places.index(layer) for layer in rows["layer"]]) + width * (index - (len(names) - 1) / 2)
        hue, marker = HUES[index % len(HUES)], MARKERS[index % len(MARKERS)]
        if log:
            ax.plot(x, rows["relative"].where(rows["relative"] > 0), marker, color=hue, markersize=5, label=name)
        else:
            ax.bar(x, rows["relative"], width=0.9 * width, color=hue, label=name)
            if len(names) == 1 and len(places) <= 14:
                for place, value in zip(x, rows["relative"], strict=True):
                    ax.annotate(
                        percent(value), (place, value), (0, 2), textcoords="offset points", ha="center", color=INK
                    )
    if log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.14 * float(table["relative"].max()) or 1.0)
    every = 1 + (len(places) - 1) // 14
    ax.set_xticks(range(0, len(places), every), ["other" if place == 0 else str(place) for place in places[::every]])
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    return clean(ax)


def module_map(table: pd.DataFrame, ax: Axes, *, limit: float) -> Axes:
    """Module × layer map of the relative weight change, written into the cells where they are few.

    table: columns module, layer (from 1), relative (percent). limit: the colours' end. The map is `ax.collections[0]`.
    """
    modules, layers = list(table["module"].unique()), sorted(table["layer"].unique())
    values = np.full((len(modules), len(layers)), np.nan)
    for row in table.itertuples():
        values[modules.index(row.module), layers.index(row.layer)] = row.relative
    edges = (np.arange(len(layers) + 1) - 0.5, np.arange(len(modules) + 1) - 0.5)
    ax.pcolormesh(
        *edges, np.ma.masked_invalid(values), cmap=RISING, vmin=0, vmax=limit, edgecolors="white", linewidth=0.8
    )
    if len(layers) <= 12:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if value > 0.55 * limit else INK
                ax.text(column, row, percent(value), ha="center", va="center", color=ink, fontsize="small")
    every = 1 + (len(layers) - 1) // 14
    ax.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    ax.set_yticks(range(len(modules)), modules)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelcolor=INK)
    return ax


def top_heads(table: pd.DataFrame, ax: Axes) -> Axes:
    """Each head's value in base (ring) and tuned (dot), the most changed on top, with the change written out.

    table: columns layer, head (from 1), base, tuned, estimate, low, high (points), in the order to draw.
    """
    y = np.arange(len(table))
    rises = table["estimate"].to_numpy() > 0
    inks = np.where(rises, HUES[1], HUES[0])
    ax.hlines(y, table["base"], table["tuned"], color=inks, linewidth=1.6, zorder=2)
    ax.scatter(table["base"], y, s=24, facecolors="white", edgecolors=QUIET, linewidths=1.2, zorder=3, label="base")
    ax.scatter(table["tuned"], y, s=26, c=inks, zorder=4, label="tuned")
    ax.set_yticks(y, [f"layer {row.layer}, head {row.head}" for row in table.itertuples()])
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "color": INK}
    numbers = table[["estimate", "low", "high"]].to_numpy(float)
    for place, (estimate, low, high) in zip(y, numbers, strict=True):
        ax.annotate(f"{signed(estimate)}  ({signed(low)} … {signed(high)})", (1, place), (5, 0), **beside)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    clean(ax).spines["left"].set_visible(False)
    return ax
