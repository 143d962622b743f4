"""Plots of training over its steps: a table of numbers and an Axes in, the Axes out. Blocks count from 1."""

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator, NullLocator

from attnlens.show.map_plots import bare, inches, lattice
from attnlens.show.plots import GREYED, HUES, INK, QUIET, RISING, step_axes

DEPTH = colors.LinearSegmentedColormap.from_list("depth", RISING(np.linspace(0.25, 1, 64)))
STATES = {"frozen": "#f3f6fa", "probe": GREYED, "trained": HUES[0]}
WORDS = {"frozen": "frozen", "probe": "all are being measured", "trained": "trained"}


def active_blocks(table: pd.DataFrame, ax: Axes) -> Axes:
    """Blocks (up) × steps (right): dark while a block trains, grey while all are measured; the last block on top.

    table: columns block (from 1), first, last (steps), kind: frozen, probe or trained. The map is `ax.collections[0]`.
    """
    order = list(STATES)
    starts = sorted(table["first"].unique())
    blocks, end = int(table["block"].max()), int(table["last"].max())
    values = np.full((blocks, len(starts)), np.nan)
    columns = np.searchsorted(starts, table["first"].to_numpy())
    values[table["block"].to_numpy(int) - 1, columns] = [order.index(kind) for kind in table["kind"]]
    # A step takes the place before its number: step 1 from 0 to 1.
    edges = (np.array([*(first - 1 for first in starts), end], float), np.arange(blocks + 1) + 0.5)
    look = {"cmap": colors.ListedColormap(list(STATES.values())), "vmin": -0.5, "vmax": 2.5}
    ax.pcolormesh(*edges, np.ma.masked_invalid(values), **look)
    ax.hlines(np.arange(1, blocks) + 0.5, 0, end, color="white", linewidth=0.8 if blocks <= 24 else 0.2)
    for kind in reversed(order):
        look = {"s": 40, "marker": "s", "c": STATES[kind], "edgecolors": QUIET, "linewidths": 0.5}
        ax.scatter([], [], label=WORDS[kind], **look)
    ax.set_xlim(0, end)
    ax.set_ylim(0.5, blocks + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    _whole_axis(ax, blocks)
    return bare(ax)


def choice_scores(table: pd.DataFrame, ax: Axes) -> Axes:
    """Scores of all blocks at each choice, a column a choice, in percent of its largest; a dot marks a chosen block.

    table: columns block (from 1), first (step before which blocks were chosen), kind, score (percent). The map is
    `ax.collections[0]`, the dots are `ax.collections[1]`.
    """
    starts = sorted(table["first"].unique())
    blocks = int(table["block"].max())
    values = np.full((blocks, len(starts)), np.nan)
    columns = np.searchsorted(starts, table["first"].to_numpy())
    values[table["block"].to_numpy(int) - 1, columns] = table["score"].to_numpy(float)
    edges = (np.arange(len(starts) + 1) - 0.5, np.arange(blocks + 1) + 0.5)
    # The differences are what was decided on, so that colours begin at the least of all scores.
    least = float(np.floor(np.nanmin(values) / 10) * 10)
    ax.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=RISING, vmin=min(least, 90.0), vmax=100, **lattice(blocks))
    width, height = inches(ax)
    written = width / len(starts) > 0.33 and height / blocks > 0.12
    dark = min(least, 90.0) + 0.66 * (100 - min(least, 90.0))
    chosen = table[table["kind"] == "trained"]
    x, y = np.searchsorted(starts, chosen["first"].to_numpy()), chosen["block"].to_numpy(int)
    inks = np.where(values[y - 1, x] > dark, "white", INK)
    size = float(np.clip(500 * (height / blocks) ** 2, 2, 14))
    ax.scatter(x - (0.3 if written else 0.0), y, s=size, c=inks, linewidths=0, label="chosen")
    for (row, column), value in np.ndenumerate(values):
        if written and np.isfinite(value):
            ink = "white" if value > dark else INK
            ax.text(column, row + 1, f"{value:.0f}", ha="center", va="center", color=ink, fontsize="small")
    every = 1 + (len(starts) - 1) // max(2, int(width / 0.35))
    ax.set_xticks(range(0, len(starts), every), [str(int(first) - 1) for first in starts[::every]])
    ax.set_ylim(0.5, blocks + 0.5)
    _whole_axis(ax, blocks)
    return bare(ax)


def depth_lines(table: pd.DataFrame, ax: Axes, column: str, *, deepest: int, limits: tuple[float, float]) -> Axes:
    """`column` over steps, a line a block, darker up to block `deepest`; a line is broken where nothing was measured.

    table: columns step, block (from 1), `column`. limits: ends of the axis, which is logarithmic where it does not
    begin at 0. The lines are `ax.collections[0]`, coloured by block.
    """
    log = limits[0] > 0
    pieces, depths, alone = [], [], []
    for block in sorted(set(table["block"])):
        points = table[table["block"] == block].sort_values("step")[["step", column]].to_numpy(float)
        points = np.where(points > 0, points, np.nan) if log else points
        gaps = np.flatnonzero(np.isnan(points).any(1))
        for piece in np.split(points, gaps):
            piece = piece[~np.isnan(piece).any(1)]
            if len(piece) > 1:
                pieces.append(piece)
                depths.append(float(block))
            elif len(piece):
                alone.append((*piece[0], float(block)))
    look = {"cmap": DEPTH, "norm": colors.Normalize(1, max(2, deepest))}
    ax.add_collection(LineCollection(pieces, array=np.array(depths), linewidths=1.3, **look))
    if alone:
        x, y, depth = np.array(alone).T
        ax.scatter(x, y, s=9, c=depth, linewidths=0, **look)
    if log:
        ax.set_yscale("log")
        ticks = _log_ticks(*limits)
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])  # powers would be formulas
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    ax.set_ylim(*limits)
    ax.autoscale_view(scaley=False)
    return step_axes(ax)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between two numbers above 0; whole decades where these are many."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    fine = [tick for power in decades for digit in (1, 2, 5) if low <= (tick := digit * 10.0**power) <= high]
    whole = [10.0**power for power in decades if low <= 10.0**power <= high]
    return fine if len(fine) <= 5 else whole[:: 1 + len(whole) // 6]


def _whole_axis(ax: Axes, blocks: int) -> None:
    ax.yaxis.set_major_locator(
        MaxNLocator(nbins=int(np.clip(inches(ax)[1] / 0.14, 3, 12)), integer=True, steps=[1, 2, 4, 5, 10])
    )
    if blocks <= 3:
        ax.set_yticks(range(1, blocks + 1))
