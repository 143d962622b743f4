"""Plots of a study: its arms side by side. A table of numbers and an Axes in, the Axes out."""

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from attnlens.show import evidence_plots
from attnlens.show.map_plots import bare, lattice
from attnlens.show.plots import BROKEN, FAINT, HUES, INK, QUIET, RISING, clean, looks


def arm_levels(table: pd.DataFrame, ax: Axes, *, reference: str, margin: float) -> Axes:
    """Quality of each arm, a row each, the first on top: mean with interval, a small dot for each seed.

    table: columns model (the arm), part (mean or seed), value, low, high. A line through the reference's mean, a broken
    one at the margin beside it: negative on the side of less.
    """
    names = list(table["model"].unique())
    for place, name in enumerate(names):
        rows = table[table["model"] == name]
        mean, seeds = rows[rows["part"] == "mean"], rows[rows["part"] == "seed"]
        ax.hlines(place, mean["low"], mean["high"], color=HUES[0], linewidth=1.6, zorder=2)
        ax.scatter(seeds["value"], np.full(len(seeds), place + 0.24), s=7, c=QUIET, linewidths=0, zorder=3)
        ax.scatter(mean["value"], [place] * len(mean), s=28, c=HUES[0], linewidths=0, zorder=4)
    level = table.loc[(table["model"] == reference) & (table["part"] == "mean"), "value"]
    if len(level) and level.notna().all():
        ax.axvline(level.iloc[0], color=QUIET, linewidth=0.8, zorder=1)
        ax.axvline(level.iloc[0] + margin, color=QUIET, linewidth=0.8, linestyle=BROKEN, zorder=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.06)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    clean(ax).spines["left"].set_visible(False)
    return ax


def trade_off(table: pd.DataFrame, ax: Axes, column: str, *, higher: bool) -> Axes:
    """Quality with its interval (up) against what it took, a marker an arm; logarithmic where the range is wide.

    table: columns model, value, low, high, `column`. The broken line joins the arms that no other beats in both.
    """
    known = table[table["value"].notna() & table[column].notna()]
    front = known[on_front(known["value"], known[column], higher=higher)].sort_values(column)
    ax.plot(front[column], front["value"], color=QUIET, linewidth=0.9, linestyle=BROKEN, zorder=1)
    for name, look in looks(table).items():
        rows = known[known["model"] == name]
        ax.vlines(rows[column], rows["low"], rows["high"], color=look.hue, linewidth=0.9, alpha=0.6, zorder=2)
    return evidence_plots.quality_against(table, ax, column)


def on_front(quality: pd.Series, cost: pd.Series, *, higher: bool) -> np.ndarray:
    """Of each arm whether no other has at least its quality for at most its cost, and more or less of one: (N,) bool.

    Hand example: quality .8, .9, .7 for cost 1, 2, 2 → the first two.
    """
    up, down = (quality if higher else -quality).to_numpy(float), cost.to_numpy(float)
    as_good = (up[None, :] >= up[:, None]) & (down[None, :] <= down[:, None])
    better = (up[None, :] > up[:, None]) | (down[None, :] < down[:, None])
    return ~(as_good & better).any(1)


def chosen_blocks(table: pd.DataFrame, ax: Axes) -> Axes:
    """Blocks (up, from 1) × seeds (right): dark where the method's last choice holds the block.

    table: columns seed, block (from 1), chosen (0 or 1). The map is `ax.collections[0]`.
    """
    seeds, blocks = sorted(table["seed"].unique()), int(table["block"].max())
    values = table.pivot(index="block", columns="seed", values="chosen").reindex(range(1, blocks + 1)).to_numpy(float)
    edges = (np.arange(len(seeds) + 1) - 0.5, np.arange(blocks + 1) + 0.5)
    ramp = colors.ListedColormap([RISING(0.0), RISING(0.75)])
    ax.pcolormesh(*edges, values, cmap=ramp, vmin=0, vmax=1, **lattice(blocks))
    ax.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    ax.set_yticks(range(1, blocks + 1, 1 + (blocks - 1) // 12))
    ax.tick_params(labelcolor=INK)
    return bare(ax)
