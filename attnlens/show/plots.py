"""Plots: a table of numbers and an Axes in, the Axes out; no file, no global setting.

Every table is the one that is written beside the figure as CSV. Layers and heads count from 1. Where a table has a
column kind, a "null" is drawn grey and dashed and "noise" as a grey area: neither is an answer.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from attnlens.analysis.wording import signed

INK = "#1d2329"
QUIET = "#68717c"
FAINT = "#dfe3e8"
# Blue, orange, green, purple (after Okabe & Ito): told apart by any eye, and by their marker in grey.
HUES = ("#0b5fa5", "#d2570a", "#00795c", "#8e4a9e", "#6b5b00", "#4a4f57")
MARKERS = ("o", "s", "D", "^", "v", "P")
NULL_MARKERS, NULL_HUE = ("p", "d"), "#8d959f"  # lighter than any hue, in grey print too
DIVERGING = colors.LinearSegmentedColormap.from_list(
    "blue_white_orange", ("#0a3d73", "#2f75b5", "#93bfe2", "#f6f6f4", "#f6b98a", "#d9691b", "#7f3205")
)
RISING = colors.LinearSegmentedColormap.from_list("white_blue", ("#f3f6fa", "#a9c8e6", "#3b7fbd", "#0a3d73"))
GREYED = "#c3c8ce"
NOISE = "#e3e6ea"
SIGNIFICANT = 0.05
SMALLEST_PERCENT = 0.01  # what two decimals can tell from nothing
LOG_RATIO = 50.0  # a wider range of layer changes is drawn on a logarithmic axis
BROKEN = (0, (4, 3))  # lines to read others against
MOST_AREAS = 3  # more bands than these hide each other: their ends alone are drawn
NOISE_NAME = "random weights of the same size"


@dataclass(frozen=True)
class Look:
    """How one model is drawn: its colour, its marker, its line."""

    hue: str
    marker: str
    line: object = "-"


def looks(table: pd.DataFrame) -> dict[str, Look]:
    """The look of each model of a table, hues in order; the base is dark, nulls are grey and broken."""
    kinds = table["kind"] if "kind" in table else pd.Series("tuned", table.index)
    found: dict[str, Look] = {}
    tuned = nulls = 0
    for name in table.loc[kinds != "noise", "model"].unique():
        kind = kinds[table["model"] == name].iloc[0]
        # The second round of hues has other markers.
        marker = MARKERS[(tuned + tuned // len(HUES)) % len(MARKERS)]
        if kind == "null":
            found[str(name)] = Look(NULL_HUE, NULL_MARKERS[nulls % 2], ((0, (4, 2)), (0, (1, 1.5)))[nulls % 2])
        else:
            found[str(name)] = Look(INK, "<") if kind == "base" else Look(HUES[tuned % len(HUES)], marker)
        tuned, nulls = tuned + (kind == "tuned"), nulls + (kind == "null")
    return found


def clean(ax: Axes) -> Axes:
    """Take away what carries no number: the box, the heavy ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    ax.tick_params(color=QUIET, labelcolor=INK)
    return ax


def signed_label(value: float, _: int) -> str:
    """A tick around zero: +2, −0.5, 0."""
    return ("\N{MINUS SIGN}" if value < 0 else "+" if value > 0 else "") + f"{abs(value):g}"


def plain(value: float, digits: int = 1) -> str:
    """`value` with a true minus and no plus: 1.2, −0.4, 0.0."""
    return signed(value, digits).removeprefix("+")


def percent(value: float) -> str:
    """A percentage in a few characters: 0, <0.01, 0.43, 3.2, 12."""
    if 0 < value < SMALLEST_PERCENT / 2:
        return f"<{SMALLEST_PERCENT}"
    return (
        "0" if value == 0 else f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
    )


def detected(table: pd.DataFrame, margin: float = 0.0) -> pd.Series:
    """Rows whose whole band lies farther from zero than `margin` and whose adjusted p agrees, as the answer needs.

    table: low, high, p_adjusted; floor, where there is one: what rounding alone makes, to be exceeded too.
    """
    beyond = table["floor"].clip(lower=margin) if "floor" in table else margin
    return ((table["low"] > beyond) | (table["high"] < -beyond)) & (table["p_adjusted"] < SIGNIFICANT)


def layer_profile(table: pd.DataFrame, ax: Axes, *, margin: float | None = None) -> Axes:
    """Change per layer with its simultaneous band, one line a model.

    table: columns model, layer (from 1), estimate, low, high (points), p_adjusted; kind, where not all are tuned
    models: of "noise", low and high are drawn as an area. margin: the smallest change that matters, drawn as ± lines.
    A filled marker: `detected`, the interval lies wholly beyond the margin (beyond zero without one).
    """
    if "kind" in table:
        noise = table[table["kind"] == "noise"]
        table = table[table["kind"] != "noise"]
        height = noise["high"] - noise["low"]
        look = {"color": NOISE, "linewidth": 0, "zorder": 0.5}
        if len(noise):
            ax.bar(noise["layer"], height, width=1.0, bottom=noise["low"], label=NOISE_NAME, **look)
    for level in (-margin, margin) if margin is not None else ():
        ax.axhline(level, color=QUIET, linewidth=0.8, linestyle=BROKEN, zorder=1)
    return layer_change(table.assign(filled=detected(table, margin or 0.0)), ax)


def layer_change(table: pd.DataFrame, ax: Axes) -> Axes:
    """A signed change per layer around zero with its band, one line a model.

    table: columns model, layer (from 1), estimate, low, high, filled (the marker), kind where not all are tuned.
    """
    ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
    _bands(table, ax)
    ax.margins(y=0.08)
    low, high = ax.get_ylim()
    if high - low < 0.2:  # nothing moved: no magnifying glass on rounding
        ax.set_ylim(-1, 1)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(signed_label))
    return ax


def layer_level(table: pd.DataFrame, ax: Axes) -> Axes:
    """A quantity that is never negative, per layer with its simultaneous band, one line a model; the axis begins at 0.

    table: columns model, layer (from 1), estimate, low, high.
    """
    _bands(table.assign(filled=True), ax)
    top = float(np.fmax(table["estimate"].max(), table["high"].max()))
    ax.set_ylim(0, 1.1 * top if top > 0 else 1.0)  # few documents have no interval, and NaN is not above 0
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return ax


def layer_score(table: pd.DataFrame, ax: Axes, *, chance: float | None = None) -> Axes:
    """A score from 0 to 1 per layer, one line a model, the base among them; `chance` as a dashed line.

    table: columns model, kind, layer (from 1), estimate, filled. The axis spans at least a fifth of the scale.
    """
    if chance is not None:
        ax.axhline(chance, color=QUIET, linewidth=0.8, linestyle=BROKEN, zorder=1)
    _bands(table.assign(low=np.nan, high=np.nan), ax)
    ends = [*table["estimate"], *([] if chance is None else [chance])]
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = max(0.2 - (high - low), 0.1 * (high - low)) / 2
    ax.set_ylim(max(-0.02, low - room), min(1.02, high + room))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return ax


def _bands(table: pd.DataFrame, ax: Axes) -> None:
    """Estimates over layers with their bands, one line a model, side by side; column `filled` fills the marker."""
    found = looks(table)
    layers = int(table["layer"].max())
    step = 0.0 if len(found) == 1 else min(0.14, 0.5 / len(found))
    for index, (name, look) in enumerate(found.items()):
        rows = table[table["model"] == name].sort_values("layer")
        x = rows["layer"] + step * (index - (len(found) - 1) / 2)
        if look.line == "-" and len(found) <= MOST_AREAS:
            ax.fill_between(x, rows["low"], rows["high"], color=look.hue, alpha=0.16, linewidth=0, zorder=2)
        ax.vlines(x, rows["low"], rows["high"], color=look.hue, linewidth=1.0 if layers <= 16 else 0.5, zorder=3)
        # The line carries its marker for a legend only; the markers drawn differ from point to point.
        line = {"color": look.hue, "linestyle": look.line, "linewidth": 1.3, "label": name}
        ax.plot(x, rows["estimate"], marker=look.marker, markersize=4.5, markevery=[], **line)
        dots = {"s": 22 if layers <= 16 else 9, "marker": look.marker, "linewidths": 1.2, "zorder": 5}
        faces = [look.hue if flag else "white" for flag in rows["filled"]]
        ax.scatter(x, rows["estimate"], c=faces, edgecolors=look.hue, clip_on=False, **dots)
    _layer_axis(ax, layers)
    clean(ax)


def _layer_axis(ax: Axes, layers: int) -> None:
    ax.set_xlim(0.6, layers + 0.4)
    whole = MaxNLocator(nbins=12, integer=True, steps=[1, 2, 4, 5, 10])
    ax.xaxis.set_major_locator(whole if layers > 1 else FixedLocator([1]))
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)


def weight_bars(table: pd.DataFrame, ax: Axes, *, outside: str = "other") -> Axes:
    """Relative weight change per layer, one bar a model; points on a log axis where the range is wide.

    table: columns model, layer (from 1; 0 = `outside` the layers), relative, floor (percent) and, where there are
    nulls, kind. A dashed line over a bar's place: what rounding alone makes, where it makes anything.
    """
    found = looks(table)
    names = list(found)
    places = sorted(table["layer"].unique())
    moved = table.loc[table["relative"] > 0, "relative"]
    moved = pd.concat([moved, table.loc[table["floor"] > 0, "floor"]])
    log = len(moved) > 1 and moved.max() > LOG_RATIO * moved.min()
    width = 0.72 / len(names)
    for index, name in enumerate(names):
        rows = table[table["model"] == name].sort_values("layer")
        x = np.array([places.index(layer) for layer in rows["layer"]]) + width * (index - (len(names) - 1) / 2)
        look = found[name]
        if log:
            shown = rows["relative"].where(rows["relative"] > 0)
            ax.plot(x, shown, look.marker, color=look.hue, markersize=5, label=name)
        else:
            ax.bar(x, rows["relative"], width=0.9 * width, color=look.hue, label=name)
            if len(names) == 1 and len(places) <= 14:
                for place, value in zip(x, rows["relative"], strict=True):
                    ax.annotate(
                        percent(value), (place, value), (0, 2), textcoords="offset points", ha="center", color=INK
                    )
        floor = rows["floor"].to_numpy(float)
        if floor.any():
            half = np.where(floor > 0, 0.5 * width if len(names) > 1 else 0.45, np.nan)
            look = {"color": INK, "linewidth": 1.0, "linestyle": (0, (2, 1.2)), "zorder": 4}
            ax.hlines(floor, x - half, x + half, label="rounding alone", **look)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # powers would be formulas
    else:
        ax.set_ylim(0, 1.14 * float(table[["relative", "floor"]].to_numpy().max()) or 1.0)
    if len(places) == 1:  # one bar need not be as wide as the figure
        ax.set_xlim(-1.5, 1.5)
    every = 1 + (len(places) - 1) // 14
    ax.set_xticks(range(0, len(places), every), [outside if place == 0 else str(place) for place in places[::every]])
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    return clean(ax)


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


def received_pairs(table: pd.DataFrame, ax: Axes, *, limit: float) -> Axes:
    """Received attention per layer, base (hollow) → tuned (filled): marked words left, their controls right.

    table: columns layer (from 1), marked_base, marked_tuned, control_base, control_tuned (times uniform). limit: the
    axis' end.
    """
    layers = int(table["layer"].max())
    shift, size = (0.15, 24) if layers <= 16 else (0.2, 8)
    ax.axhline(1, color=QUIET, linewidth=0.8, linestyle=BROKEN, zorder=1)
    looks = {"marked": (HUES[1], "o", -shift), "control": (HUES[5], "s", shift)}
    words = {"marked": "marked words", "control": "matched words"}
    for name, (hue, marker, beside) in looks.items():
        x = table["layer"] + beside
        base, tuned = table[f"{name}_base"], table[f"{name}_tuned"]
        ax.vlines(x, base, tuned, color=hue, linewidth=1.3, zorder=2)
        look = {"s": size, "edgecolors": hue, "marker": marker, "linewidths": 1.1}
        ax.scatter(x, base, facecolors="white", zorder=3, label=f"{words[name]}: base", **look)
        ax.scatter(x, tuned, facecolors=hue, zorder=4, label=f"{words[name]}: tuned", **look)
    ax.set_ylim(0, limit)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    _layer_axis(ax, layers)
    return clean(ax)


def plane(table: pd.DataFrame, ax: Axes, *, limits: tuple[tuple[float, float], tuple[float, float]]) -> Axes:
    """Heads in the plane of sink release (right) and refocusing (up), darker in later layers.

    table: columns layer (from 1), refocusing, sink_release (points). limits: of x and of y. The dots are
    `ax.collections[0]`. Dashed: the two cancel.
    """
    layers = int(table["layer"].max())
    shades = colors.LinearSegmentedColormap.from_list("depth", RISING(np.linspace(0.25, 1, 64)))
    look = {"s": 18 if len(table) <= 150 else 9, "linewidths": 0.4, "edgecolors": "white", "zorder": 3}
    ax.scatter(
        table["sink_release"], table["refocusing"], c=table["layer"], cmap=shades, vmin=1, vmax=max(layers, 2), **look
    )
    ax.axline((0, 0), slope=-1, color=QUIET, linewidth=0.8, linestyle=BROKEN, zorder=1)
    ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
    ax.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(signed_label))
    return clean(ax)


def plane_limits(table: pd.DataFrame) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of the plane with zero in both; the smaller axis spans at least a fifth of the larger."""
    ends = [(min(0.0, float(table[c].min())), max(0.0, float(table[c].max()))) for c in ("sink_release", "refocusing")]
    spans = [high - low for low, high in ends]
    least = max(*spans, 0.1) / 5
    found = []
    for (low, high), span in zip(ends, spans, strict=True):
        missing = max(0.0, least - span) / 2 + 0.06 * max(span, least)
        found.append((low - missing, high + missing))
    return found[0], found[1]


def loss_curves(table: pd.DataFrame, ax: Axes) -> Axes:
    """Loss over steps: a line for the training batches, markers for held-out data, one hue a model.

    table: columns model, step, loss, heldout_loss (the last may be missing), NaN where not recorded, and, where there
    are nulls, kind.
    """
    for name, look in looks(table).items():
        rows, line = table[table["model"] == name], {"color": look.hue, "linewidth": 1.0, "linestyle": look.line}
        trained = rows.dropna(subset="loss") if "loss" in rows else rows.head(0).assign(loss=0.0)
        ax.plot(trained["step"], trained["loss"], marker=look.marker, markevery=[], label=name, **line)
        if "heldout_loss" in rows:
            held = rows.dropna(subset="heldout_loss")
            dots = {"s": 20, "c": look.hue, "marker": look.marker, "linewidths": 0, "zorder": 4}
            ax.scatter(held["step"], held["heldout_loss"], **dots)
    ax.plot([], [], color=QUIET, linewidth=1.0, label="training batches")
    if "heldout_loss" in table:
        ax.scatter([], [], s=20, c=QUIET, marker=MARKERS[0], linewidths=0, label="held-out data")
    ax.set_ylim(bottom=0)
    return step_axes(ax)


def quality_curves(table: pd.DataFrame, ax: Axes, name: str) -> Axes:
    """Column `name` of held-out quality over steps, one line a model; a perplexity begins at 1, a share ends at 1."""
    for model, look in looks(table).items():
        known = table[table["model"] == model].dropna(subset=name)
        line = {"color": look.hue, "linewidth": 1.0, "linestyle": look.line}
        ax.plot(known["step"], known[name], marker=look.marker, markersize=4.5, label=model, **line)
    if name == "perplexity":
        ax.set_ylim(bottom=1)
    else:
        ax.set_ylim(0, 1.03)
    return step_axes(ax)


def step_axes(ax: Axes) -> Axes:
    """Steps to the right in whole numbers from 0, a light grid behind."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.set_xlim(left=0)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    return clean(ax)
