"""The figures of a comparison: each with its finding, caption, drawn numbers, and files for a paper."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from attnlens.analysis.results import Comparison
from attnlens.show import findings, plots
from attnlens.show.files import write
from attnlens.show.tables import csv, heads_table, in_order, tests_table, weight_layers

WIDE, NARROW = 6.75, 3.3  # inches: two columns of a paper, one column
SHOWN_HEADS = 10
FORMATS = ("pdf", "svg", "png")
FONTS = ("Arial", "Liberation Sans", "DejaVu Sans")  # the last comes with matplotlib
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.labelcolor": plots.INK,
    "text.color": plots.INK,
    "axes.titlelocation": "left",
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.handlelength": 1.8,
    "text.parse_math": False,  # texts come from data: a dollar sign is no formula
    "pdf.fonttype": 42,
    "svg.fonttype": "path",  # looks the same on every machine
    "svg.hashsalt": "attnlens",
    "savefig.dpi": 300,
}
Panel = Callable[[Axes, int], None]


@dataclass(frozen=True)
class Drawing:
    """One figure: file name, finding, caption with n and interval, the drawn numbers, and how to draw it.

    draw: width in inches → a new matplotlib Figure; to be called under `style()`.
    """

    name: str
    title: str
    caption: str
    table: pd.DataFrame
    draw: Callable[[float], Figure]


def style() -> dict[Any, Any]:
    """The settings every figure is drawn and saved under."""
    present = set(font_manager.get_font_names())
    return STYLE | {"font.family": [name for name in FONTS if name in present]}


@lru_cache(maxsize=1)
def _drawable_characters() -> frozenset[int]:
    paths = [font_manager.findfont(name) for name in style()["font.family"]]
    return frozenset().union(*(FT2Font(path).get_charmap() for path in paths))


def margin(comparison: Comparison) -> float:
    """The smallest change that matters, in points, as it was declared before measuring (METRICS 6.5)."""
    return 100 * float(comparison.provenance.get("options", {}).get("sesoi", 0.02))


def labels(names: Iterable[str], *, limit: int = 30) -> dict[str, str]:
    """A drawable label for each name: no control or unknown characters, the middle of long names left out."""
    found: dict[str, str] = {}
    for name in names:
        text = "".join(char if ord(char) in _drawable_characters() and char.isprintable() else "□" for char in name)
        if len(text) > limit:
            text = f"{text[: limit // 2]}…{text[-(limit // 2 - 1) :]}"
        found[name] = text if text not in found.values() else f"{text} ({len(found) + 1})"
    return found


def figure_set(comparison: Comparison) -> list[Drawing]:
    """Every figure that `comparison` has numbers for, in the order of the report."""
    drawings = [weight_change(comparison), weight_modules(comparison)]
    heads = heads_table(comparison)
    if not tests_table(comparison, "entropy layer").empty:
        drawings = [*drawings, entropy_profile(comparison)]
    for measure in ("focus", "entropy_content"):
        rows = heads[heads["measure"] == measure]
        if not rows.empty:
            drawings = [*drawings, head_shift(comparison, rows)]
        if (rows["estimate"].fillna(0) != 0).any():
            drawings = [*drawings, top_changed(comparison, rows)]
    if comparison.salience:
        drawings = [*drawings, layer_profile(comparison)]
    order = ["layer_profile", "entropy_profile", "focus_heads", "entropy_heads", "weight_change", "weight_modules"]
    order += ["focus_top_heads", "entropy_top_heads"]
    return sorted(drawings, key=lambda drawing: order.index(drawing.name))


def layer_profile(comparison: Comparison) -> Drawing:
    """The headline: change of focus per layer with its simultaneous band, a panel for each salience definition."""
    columns = ["model", "salience", "layer", "estimate", "low", "high", "p_adjusted", "n"]
    table = tests_table(comparison, "profile")[columns]
    shown = table.assign(model=table["model"].map(labels(comparison.models)))

    def panel(ax: Axes, index: int) -> None:
        name = comparison.salience[index]
        plots.layer_profile(shown[shown["salience"] == name], ax, margin=margin(comparison))
        if len(comparison.salience) > 1:
            ax.set_title(f"marked words: {name}")

    caption = (
        "Change of focus, tuned minus base, by layer (mean over heads). Focus = attention on the marked words minus "
        "attention on position-matched ordinary words, in points of 100 spent on words. Bands: 95 %, simultaneous over "
        f"layers, over {_n(comparison, table)}. Dashed lines: ±{margin(comparison):g} points, the smallest change "
        "declared to matter; filled markers lie beyond it with their whole interval."
    )
    draw = _drawing(len(comparison.salience), 2.35, panel, ("layer", "change of focus (points)"))
    return Drawing("layer_profile", findings.focus_finding(comparison), caption, table, draw)


def entropy_profile(comparison: Comparison) -> Drawing:
    """Change of the content entropy per layer, one line a model."""
    columns = ["model", "layer", "estimate", "low", "high", "p_adjusted", "n"]
    table = tests_table(comparison, "entropy layer")[columns]
    shown = table.assign(model=table["model"].map(labels(comparison.models)))
    caption = (
        "Change of content entropy, tuned minus base, by layer (mean over heads): entropy of the attention on words as "
        "a percentage of its maximum, 0 = all on one word piece, 100 = spread evenly. Below zero: more concentrated. "
        f"Bands: 95 %, simultaneous over layers, over {_n(comparison, table)}. Filled markers: the band leaves out "
        "zero."
    )
    draw = _drawing(
        1, 2.35, lambda ax, _: _ignore(plots.layer_profile(shown, ax)), ("layer", "change of entropy (points)")
    )
    title = _first_model(comparison, table, findings.entropy_finding)
    return Drawing("entropy_profile", title, caption, table, draw)


def head_shift(comparison: Comparison, heads: pd.DataFrame) -> Drawing:
    """Layer × head map of one measure's change under the headline salience, a panel for each tuned model."""
    focus = heads["measure"].iloc[0] == "focus"
    table = heads[heads["salience"] == heads["salience"].iloc[0]].drop(columns="measure")
    limit = float(table.loc[table["shown"], "estimate"].abs().max())
    limit = limit if limit > 0 else 1.0
    names = labels(comparison.models)
    models = list(table["model"].unique())

    def panel(ax: Axes, index: int) -> None:
        plots.head_map(table[table["model"] == models[index]], ax, limit=limit)
        if len(models) > 1:
            ax.set_title(names[models[index]])

    what = "focus on marked words" if focus else "concentration"
    change = (
        f"focus (attention on marked minus matched ordinary words; marked by {heads['salience'].iloc[0]})"
        if focus
        else "content entropy (percent of its maximum; below zero = more concentrated)"
    )
    caption = (
        f"Change of {change}, tuned minus base, for every head, in points. Dot: rise, ring: fall, with adjusted "
        f"p < .05 (false discovery rate over heads); over {_n(comparison, table)}. Grey cross: heads that give less "
        "than 5 % of their attention to words in either model."
    )
    unit = "change of focus (points)" if focus else "change of entropy (points)"
    draw = _drawing(len(models), _map_height(table), panel, ("head", "layer"), bar=unit)
    title = _first_model(comparison, table[table["shown"]], lambda rows: findings.heads_finding(rows, what))
    return Drawing("focus_heads" if focus else "entropy_heads", title, caption, table, draw)


def weight_change(comparison: Comparison) -> Drawing:
    """Relative weight change per layer, one bar a model."""
    table = weight_layers(comparison)
    # The place outside the layers is drawn only where something moved there.
    outside = table["layer"].isna()
    table = table[~outside | (table.loc[outside, "relative"].max() > 0)].reset_index(drop=True)
    shown = table.assign(model=table["model"].map(labels(comparison.models)), layer=table["layer"].fillna(0))
    caption = (
        "Weight change by layer: size of the difference between tuned and base, √ΣΔ², in percent of the size of the "
        "base, √ΣW², over all matrices of the layer. other: embeddings and what else stands outside the layers. Task "
        "heads are left out. No sampling is involved."
    )
    draw = _drawing(
        1, 2.2, lambda ax, _: _ignore(plots.weight_bars(shown, ax)), ("layer", "weight change (% of its size)")
    )
    title = _first_model(comparison, table, findings.weights_finding)
    return Drawing("weight_change", title, caption, table, draw)


def weight_modules(comparison: Comparison) -> Drawing:
    """Relative weight change per layer and kind of matrix, a panel for each tuned model."""
    rows = in_order(comparison, comparison.weights)
    rows = rows[(rows["kind"] == "backbone") & (rows["layer"] >= 0)]
    squares = rows.assign(delta=rows["delta_norm"] ** 2, base=rows["base_norm"] ** 2, layer=rows["layer"] + 1)
    sums = squares.groupby(["model", "module", "layer"], sort=False)[["delta", "base"]].sum().reset_index()
    relative = 100 * np.sqrt(sums["delta"] / sums["base"].where(sums["base"] > 0))
    table = sums.assign(relative=relative)[["model", "module", "layer", "relative"]]
    names = labels(comparison.models)
    shown = table.assign(module=table["module"].map(labels(table["module"].unique(), limit=22)))
    models = list(table["model"].unique())
    limit = float(table["relative"].max())
    limit = limit if limit > 0 else 1.0

    def panel(ax: Axes, index: int) -> None:
        plots.module_map(shown[shown["model"] == models[index]], ax, limit=limit)
        if len(models) > 1:
            ax.set_title(names[models[index]])

    moved = table.groupby("module")["relative"].max()
    if moved.max() > 0:
        title = f"Among the kinds of matrices, {moved.idxmax()} moved most (up to {plots.percent(moved.max())} %)"
    else:
        title = "No kind of matrix changed"
    caption = (
        "Weight change by kind of matrix and layer, √ΣΔ²/√ΣW² in percent. Query and key can be rotated together "
        "without any effect on attention: a change there need not be a change of attention."
    )
    height = 0.6 + 0.23 * table["module"].nunique()
    draw = _drawing(len(models), height, panel, ("layer", ""), bar="weight change (%)")
    return Drawing("weight_modules", title, caption, table, draw)


def top_changed(comparison: Comparison, heads: pd.DataFrame) -> Drawing:
    """The most changed heads of the first tuned model: base, tuned, change and its interval."""
    focus = heads["measure"].iloc[0] == "focus"
    chosen = (heads["model"] == comparison.models[1]) & (heads["salience"] == heads["salience"].iloc[0])
    rows = heads[chosen & heads["shown"]]
    table = rows.loc[rows["estimate"].abs().sort_values(ascending=False, kind="stable").index].head(SHOWN_HEADS)
    table = table.drop(columns=["measure", "shown"]).reset_index(drop=True)
    what, unit = ("focus", "focus (points)") if focus else ("content entropy", "content entropy (% of its maximum)")
    model = f" of {comparison.models[1]}" if len(comparison.models) > 2 else ""
    caption = (
        f"The {len(table)} most changed heads{model} by {what}: base (ring), tuned (dot; orange = rise, blue = fall), "
        f"the change and its 95 % interval for this head alone, over {_n(comparison, table)}. The heads were picked "
        "because they changed most, so these changes are on the high side."
    )
    height = 0.55 + 0.21 * len(table)
    draw = _drawing(1, height, lambda ax, _: _ignore(plots.top_heads(table, ax)), (unit, ""))
    name = "focus_top_heads" if focus else "entropy_top_heads"
    return Drawing(name, findings.top_heads_finding(table, what), caption, table, draw)


def rendered(drawing: Drawing, width: float, formats: Iterable[str] = FORMATS) -> dict[str, bytes]:
    """The drawing as files of this width in inches: the bytes for each ending. Its title stays with the caption."""
    with matplotlib.rc_context(style()):
        figure = drawing.draw(width)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once; every file has the same places
        return {ending: _saved(figure, ending) for ending in formats}


def save_figures(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write every figure as DIR/figures/NAME.{pdf,svg,png}, its numbers as .csv and its caption as .txt."""
    folder = Path(directory) / "figures"
    paths: list[Path] = []
    for drawing in figure_set(comparison):
        files = rendered(drawing, WIDE)
        files["csv"] = csv(drawing.table)
        files["txt"] = f"{drawing.title}. {drawing.caption}\n".encode()
        paths += [write(folder / f"{drawing.name}.{ending}", content) for ending, content in files.items()]
    return paths


def _saved(figure: Figure, ending: str) -> bytes:
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": None}  # the same bytes every time
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending, metadata=dates[ending], facecolor="white" if ending == "png" else "none")
    return buffer.getvalue()


def _drawing(
    count: int, height: float, panel: Panel, axis_labels: tuple[str, str], *, bar: str = ""
) -> Callable[[float], Figure]:
    """A function of the width that lays out `count` panels of `height` inches in as many columns as fit."""

    def draw(width: float) -> Figure:
        columns = min(count, max(1, int(width / 2.1)))
        rows = -(-count // columns)
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        figure = Figure(figsize=(width, rows * height + 0.15), layout=layout)
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=count > 1)
        for index, ax in enumerate(axes.flat):
            if index >= count:
                ax.set_visible(False)
                continue
            panel(ax, index)
            ax.set_xlabel(axis_labels[0])
            if index % columns == 0:
                ax.set_ylabel(axis_labels[1])
        if bar:
            beside = {"aspect": 22, "pad": 0.02, "shrink": 0.9} if width > 4 else {"location": "bottom", "aspect": 40}
            side = figure.colorbar(axes.flat[0].collections[0], ax=axes, **beside)
            side.outline.set_visible(False)
            side.ax.tick_params(length=0)
            side.set_label(bar)
        else:
            _legend(figure, axes.flat[0], width)
        return figure

    return draw


def _legend(figure: Figure, ax: Axes, width: float) -> None:
    """The key of several models above the panels, where it covers no number."""
    handles, names = ax.get_legend_handles_labels()
    if len(names) < 2:
        return
    columns = max(1, min(len(names), int(width / (0.45 + 0.065 * max(len(name) for name in names)))))
    figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False)


def _map_height(table: pd.DataFrame) -> float:
    return float(np.clip(0.55 + 0.26 * table["layer"].max(), 1.6, 4.8))


def _n(comparison: Comparison, table: pd.DataFrame) -> str:
    documents = sorted(set(table["n"].dropna().astype(int)))
    of = f"{documents[0]}" if len(documents) == 1 else f"{documents[0]}–{documents[-1]}"
    return f"n = {of} documents ({comparison.data.sizes['example']} texts)"


def _first_model(comparison: Comparison, table: pd.DataFrame, finding: Callable[[pd.DataFrame], str]) -> str:
    first = comparison.models[1]
    text = finding(table[table["model"] == first])
    return text if len(comparison.models) == 2 else f"{first}: {text[0].lower()}{text[1:]}"


def _ignore(_: Axes) -> None:
    """A panel returns nothing."""
