"""What every figure shares: its record, its style, its layout of panels, and words for names and numbers of texts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
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
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from attnlens.analysis.results import Comparison
from attnlens.show import plots
from attnlens.show.tables import rounding_alone

WIDE, NARROW = 6.75, 3.3  # inches: two columns of a paper, one column
TITLE = 24  # characters over a panel
LOWEST = 2.2  # inches: a map this high can still be read
TALLEST = 8.4  # inches: a page keeps room for the caption
FONTS = ("Arial", "Liberation Sans", "DejaVu Sans")  # the last comes with matplotlib
STYLE: dict[str, Any] = {
    "text.hinting": "no_hinting",  # letters as wide in the file as where it is laid out, at another resolution
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
    "text.usetex": False,
    "text.parse_math": False,  # texts come from data: a dollar sign is no formula
    "pdf.fonttype": 42,
    "svg.fonttype": "path",  # looks the same on every machine
    "svg.hashsalt": "attnlens",
    "savefig.dpi": 300,
}
Panel = Callable[[Axes, int], object]
Picture = Callable[[pd.DataFrame], Callable[[float], Figure]]


@dataclass(frozen=True)
class Drawing:
    """One figure: file name, finding, caption with n and interval, the drawn numbers, and how to draw it.

    section: the part of the report it belongs to. picture: draws the table, and knows nothing beside it, so that the
    figure can be drawn again from its CSV alone.
    """

    name: str
    section: str
    title: str
    caption: str
    table: pd.DataFrame
    picture: Picture

    def draw(self, width: float) -> Figure:
        """A new Figure `width` inches wide; to be called under `style()` or the settings of a venue."""
        return self.picture(self.table)(width)


@dataclass(frozen=True)
class Layout:
    """Panels of one figure: how many, how high (inches), the names of their axes.

    bar: label of a colour bar for the first artist of the first panel; whole: it counts in whole numbers. across:
    columns at most (0: as many as fit). share: one y axis for all; without it a panel names its own.
    """

    count: int
    height: float
    x: str
    y: str = ""
    bar: str = ""
    whole: bool = False
    across: int = 0
    share: bool = True


def truetype(families: Iterable[str]) -> list[str]:
    """Those of `families` that are here as TrueType files, which PDF embeds whole."""
    present = {entry.name for entry in font_manager.fontManager.ttflist if entry.fname.lower().endswith(".ttf")}
    return [name for name in families if name in present]


def style() -> dict[Any, Any]:
    """The settings every figure is drawn and saved under."""
    return STYLE | {"font.family": truetype(FONTS)}


@lru_cache(maxsize=1)
def _drawable_characters() -> frozenset[int]:
    paths = [font_manager.findfont(name) for name in style()["font.family"]]
    return frozenset().union(*(FT2Font(path).get_charmap() for path in paths))


def drawable(text: str) -> str:
    """`text` with a box for each character that has no shape here, and for control characters."""
    return "".join(char if ord(char) in _drawable_characters() and char.isprintable() else "□" for char in text)


def labels(names: Iterable[str], *, limit: int = 30) -> dict[str, str]:
    """A drawable label for each name: no control or unknown characters, the middle of long names left out."""
    found: dict[str, str] = {}
    for name in names:
        text = drawable(name)
        if len(text) > limit:
            text = f"{text[: limit // 2]}…{text[-(limit // 2 - 1) :]}"
        found[name] = text if text not in found.values() else f"{text} ({len(found) + 1})"
    return found


def named(table: pd.DataFrame, *, limit: int = 30) -> pd.DataFrame:
    """`table` with the labels of its models in place of their names."""
    return table.assign(model=table["model"].map(labels(table["model"].unique(), limit=limit)))


def by_model(table: pd.DataFrame, panel: Callable[[Axes, pd.DataFrame], object]) -> Panel:
    """A panel for each model of `table`, with the model's name over it where there are several."""
    names = labels(table["model"].unique(), limit=TITLE)

    def draw(ax: Axes, index: int) -> None:
        model = list(names)[index]
        panel(ax, table[table["model"] == model])
        if len(names) > 1:
            ax.set_title(names[model])

    return draw


def panels(layout: Layout, panel: Panel) -> Callable[[float], Figure]:
    """A function of the width that draws `panel(ax, index)` into as many columns as fit, at most a page high."""

    def draw(width: float) -> Figure:
        columns = _columns(layout, width)
        rows = -(-layout.count // columns)
        figure = Figure(
            figsize=(width, min(rows * layout.height + 0.15, TALLEST)),
            layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=layout.share)
        for index, ax in enumerate(axes.flat):
            if index >= layout.count:
                ax.set_visible(False)
                continue
            ax.set_xlabel(layout.x)
            if layout.share and index % columns == 0:
                ax.set_ylabel(layout.y)
            panel(ax, index)
            _fit(ax, width / columns - 0.3)  # what the numbers of the axis leave of the column
        if layout.bar:
            beside = {"aspect": 22, "pad": 0.02, "shrink": 0.9} if width > 4 else {"location": "bottom", "aspect": 40}
            ticks = MaxNLocator(integer=True) if layout.whole else None
            side = figure.colorbar(axes.flat[0].collections[0], ax=axes, ticks=ticks, **beside)
            side.outline.set_visible(False)
            side.ax.tick_params(length=0)
            side.set_label(layout.bar)
        else:
            legend(figure, axes.flat[0], width)
        return figure

    return draw


def _fit(ax: Axes, room: float) -> None:
    """Make the title smaller where it is wider than `room` inches: fonts that stand in for Arial are wider."""
    title = ax.get_title(loc="left")
    for text in ax.findobj(lambda artist: isinstance(artist, Text) and bool(title) and artist.get_text() == title):
        assert isinstance(text, Text)
        needed = text.get_window_extent().width / ax.figure.dpi
        if needed > room:
            text.set_fontsize(float(text.get_fontsize()) * room / needed)


def _columns(layout: Layout, width: float) -> int:
    """Columns of at least 2.1 inches; of 1.4 where the figure would not fit on a page even with lower panels."""
    most = min(layout.count, layout.across or layout.count)
    columns = max(1, min(most, int(width / 2.1)))
    height = layout.height if layout.across else min(layout.height, LOWEST)
    while columns < min(most, int(width / 1.4)) and -(-layout.count // columns) * height > TALLEST:
        columns += 1
    return columns


def legend(figure: Figure, ax: Axes, width: float) -> None:
    """The key of several marks above the panels, where it covers no number."""
    keys = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # a key that comes twice is shown once
    handles, names = list(keys.values()), list(keys)
    if len(names) < 2:
        return
    letter = 0.0072 * float(matplotlib.rcParams["legend.fontsize"])
    columns = max(1, min(len(names), int(width / (0.42 + letter * max(len(name) for name in names)))))
    figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False)


def map_height(layers: int) -> float:
    """Inches that a layer × head map takes."""
    return float(np.clip(0.55 + 0.26 * layers, 1.6, 4.8))


def margin(comparison: Comparison) -> float:
    """The smallest change that matters, in points, as it was declared before measuring (METRICS 6.5)."""
    return 100 * float(comparison.provenance.get("options", {}).get("sesoi", 0.02))


def of_documents(comparison: Comparison, table: pd.DataFrame) -> str:
    """'n = 40 documents (60 texts)' of a table with a column n; rows without a document do not count."""
    documents = sorted(set(table["n"].dropna().astype(int)) - {0}) or [0]
    of = f"{documents[0]}" if len(documents) == 1 else f"{documents[0]}–{documents[-1]}"
    return f"n = {of} documents ({comparison.data.sizes['example']} texts)"


def of_attention(comparison: Comparison, table: pd.DataFrame, finding: Callable[[pd.DataFrame], str]) -> str:
    """A finding about the attention of the first tuned model; a model that is a rounded copy changed by that alone."""
    if not rounding_alone(comparison, comparison.models[1]):
        return of_first_model(comparison, table, finding)

    def rounded(rows: pd.DataFrame) -> str:
        text = finding(rows)
        return text if text.startswith("No") else f"By rounding alone: {text[0].lower()}{text[1:]}"

    return of_first_model(comparison, table, rounded)


def of_first_model(comparison: Comparison, table: pd.DataFrame, finding: Callable[[pd.DataFrame], str]) -> str:
    """A finding about the first tuned model, which is named where there are several."""
    first = comparison.models[1]
    text = finding(table[table["model"] == first])
    return text if len(comparison.models) == 2 else f"{first}: {text[0].lower()}{text[1:]}"
