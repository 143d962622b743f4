"""Maps: a table of numbers and an Axes in, a coloured grid out; the grid is the first collection of the Axes.

Layers and heads count from 1; the last layer stands on top.
"""

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from attnlens.show.plots import DIVERGING, GREYED, INK, QUIET, RISING, SIGNIFICANT, percent


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
    seen = np.ma.masked_array(values, mask=hidden | np.isnan(values))
    ax.pcolormesh(*edges, seen, cmap=DIVERGING, vmin=-limit, vmax=limit, **lattice(max(values.shape)))
    if hidden.any():
        veil = np.ma.masked_array(np.ones_like(values), mask=~hidden)
        ax.pcolormesh(*edges, veil, cmap=colors.ListedColormap([GREYED]), **lattice(max(values.shape)))
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
    return _map_axes(ax, n_layers, n_heads)


def change_map(table: pd.DataFrame, ax: Axes, *, limit: float) -> Axes:
    """Layer × head map of a size: white nothing, dark blue `limit`, grey nothing but rounding.

    table: columns layer, head (from 1), relative, rounding.
    """
    values = np.ma.masked_invalid(grid(table, "relative"))
    n_layers, n_heads = values.shape
    edges = (np.arange(n_heads + 1) + 0.5, np.arange(n_layers + 1) + 0.5)
    ax.pcolormesh(*edges, values, cmap=RISING, vmin=0, vmax=limit, **lattice(max(values.shape)))
    rounded = grid(table, "rounding") == 1
    if rounded.any():
        veil = np.ma.masked_array(np.ones(values.shape), mask=~rounded)
        look = {"cmap": colors.ListedColormap([GREYED]), "label": "rounding alone"}
        ax.pcolormesh(*edges, veil, **look, **lattice(max(values.shape)))
    return _map_axes(ax, n_layers, n_heads)


def lattice(size: int) -> dict:
    """White lines between the cells, where there is room for them."""
    return {"edgecolors": "white", "linewidth": 0.8 if size <= 24 else 0.0}


def _map_axes(ax: Axes, n_layers: int, n_heads: int) -> Axes:
    width, height = inches(ax)
    for axis, room, count in ((ax.xaxis, width / 0.19, n_heads), (ax.yaxis, height / 0.14, n_layers)):
        axis.set_major_locator(MaxNLocator(nbins=int(np.clip(room, 3, 12)), integer=True, steps=[1, 2, 4, 5, 10]))
        if count == 1:
            axis.set_major_locator(FixedLocator([1]))
    ax.set_xlim(0.5, n_heads + 0.5)
    ax.set_ylim(0.5, n_layers + 0.5)
    return bare(ax)


def inches(ax: Axes) -> tuple[float, float]:
    """About how wide and high the panel will be: what the layout leaves of its share of the figure."""
    grid, figure = ax.get_gridspec(), ax.get_figure(root=True)
    assert grid is not None and figure is not None, "an Axes of a figure"
    return 0.7 * figure.get_figwidth() / grid.ncols, 0.55 * figure.get_figheight() / grid.nrows


def bare(ax: Axes) -> Axes:
    """Take away box and ticks, which a map has no use for."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelcolor=INK)
    return ax


def word_map(table: pd.DataFrame, ax: Axes, *, limit: float) -> Axes:
    """Word × word map on a square-root scale: who looks (down, with its number) at whom (right, by number).

    table: columns word, looks_at (numbers in a run), piece and marked (of the word that is looked at), attention
    (percent). limit: the colours' end. Marked words are bold. The map is `ax.collections[0]`.
    """
    words = table.drop_duplicates("looks_at").sort_values("looks_at")
    numbers = words["looks_at"].to_numpy(int)
    order = table.sort_values(["word", "looks_at"], kind="stable")
    values = order["attention"].to_numpy(float).reshape(len(numbers), len(numbers))
    edges = np.arange(len(numbers) + 1) + numbers[0] - 0.5
    norm = colors.PowerNorm(0.5, 0, limit)
    ax.pcolormesh(edges, edges, np.ma.masked_invalid(values), cmap=RISING, norm=norm, **lattice(len(numbers)))
    every = 1 + (len(numbers) - 1) // max(2, int(inches(ax)[0] / 0.22))
    ax.set_xticks(numbers[::every])
    ax.set_ylim(edges[-1], edges[0])
    ax.set_yticks(numbers, [f"{piece} {number}" for piece, number in zip(words["piece"], numbers, strict=True)])
    for label, marked in zip(ax.get_yticklabels(), words["marked"], strict=False):  # none inside a row
        label.set_fontweight("bold" if marked else "normal")
        label.set_fontsize("small")
    return bare(ax)


def module_map(table: pd.DataFrame, ax: Axes, *, limit: float, floor: bool = False) -> Axes:
    """Module × layer map of the relative weight change, written into the cells where they are few.

    table: columns module, layer (from 1), relative, floor (percent), rounding. limit: the colours' end. floor: a last
    column, set apart, holds what rounding makes alone. r in a cell: nothing but rounding.
    """
    modules, layers = list(table["module"].unique()), sorted(table["layer"].unique())
    values = np.full((len(modules), len(layers)), np.nan)
    rounded = np.zeros(values.shape, dtype=bool)
    for row in table.itertuples():
        place = modules.index(row.module), layers.index(row.layer)
        values[place], rounded[place] = row.relative, row.rounding
    _cells(ax, values, rounded, 0.0, limit)
    every = 1 + (len(layers) - 1) // max(2, min(14, int(inches(ax)[0] / 0.22)))
    ticks = {float(place): str(layers[place]) for place in range(0, len(layers), every)}
    if floor:
        values = table.groupby("module", sort=False)["floor"].max().loc[modules].to_numpy(float)
        left = len(layers) + 0.4 * every
        _cells(ax, values[:, None], np.zeros((len(modules), 1), dtype=bool), left, limit)
        ticks = {place: text for place, text in ticks.items() if left - place > 0.9 * every} | {left: "floor"}
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.set_yticks(range(len(modules)), modules)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    ax.set_ylim(len(modules) - 0.5, -0.5)
    return bare(ax)


def _cells(ax: Axes, values: np.ndarray, rounded: np.ndarray, left: float, limit: float) -> None:
    """A block of the module map whose first column is centred on `left`."""
    edges = (left + np.arange(values.shape[1] + 1) - 0.5, np.arange(values.shape[0] + 1) - 0.5)
    mesh = {"cmap": RISING, "vmin": 0, "vmax": limit, **lattice(max(values.shape))}
    ax.pcolormesh(*edges, np.ma.masked_invalid(values), **mesh)
    room = inches(ax)[0] / (left + values.shape[1])
    for (row, column), value in np.ndenumerate(values):
        text = "r" if rounded[row, column] else percent(value).replace("<0", "<") if np.isfinite(value) else ""
        if text == "r" or room > 0.21:
            ink = "white" if value > 0.55 * limit else INK
            ax.text(left + column, row, text, ha="center", va="center", color=ink, fontsize="small")
