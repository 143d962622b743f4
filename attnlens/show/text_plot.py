"""A text set in lines, each word on the colour of a number; one block a model."""

from dataclasses import dataclass

import matplotlib
import pandas as pd
from matplotlib import cm, colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from attnlens.show.plots import INK, QUIET, RISING

LEADING, EDGE = 1.75, 3.0  # line height in font sizes; margin at the sides in points
LONGEST = 28  # characters of a word


@dataclass(frozen=True)
class _Placed:
    """A piece in its place: x and line, width in points."""

    text: str
    x: float
    line: int
    width: float
    row: int


def text_blocks(table: pd.DataFrame, width: float, unit: str) -> Figure:
    """The text once for each model, words coloured by what they receive, with the scale below.

    table: columns model, piece, is_word, marked, received (percent; NaN between words), in the order to draw. unit:
    what they receive.
    """
    size = float(matplotlib.rcParams["font.size"])
    models = list(table["model"].unique())
    top = float(table["received"].max())
    colour = cm.ScalarMappable(colors.PowerNorm(0.5, 0, top if top > 0 else 1.0), RISING)
    figure = Figure(figsize=(width, 1))
    canvas = FigureCanvasAgg(figure)
    points = 72 * width

    def measure(text: str) -> float:
        font = FontProperties(size=size)
        return canvas.get_renderer().get_text_width_height_descent(text, font, False)[0] * 72 / figure.dpi

    placed = _lines(table[table["model"] == models[0]], points - 2 * EDGE, measure)
    lines = 1 + max(piece.line for piece in placed)
    block = size * (1.9 + LEADING * lines)
    height = block * len(models) + 4.2 * size
    figure.set_size_inches(width, height / 72)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(-EDGE, points - EDGE)
    ax.set_ylim(height, 0)
    for number, model in enumerate(models):
        rows = table[table["model"] == model].reset_index(drop=True)
        y = number * block + 0.9 * size
        ax.text(0, y, model, va="center", color=QUIET, fontweight="bold", fontsize=0.94 * size)
        for piece in placed:
            _word(ax, piece, rows.loc[piece.row], y + size * (1.2 + LEADING * (piece.line + 0.25)), colour)
    _scale(figure, colour, (top if top > 0 else 1.0, unit), size)
    return figure


def _lines(rows: pd.DataFrame, room: float, measure) -> list[_Placed]:
    """Pieces set one after the other, broken at white space."""
    found, x, line, space = [], 0.0, 0, 1.4 * (measure("n n") - measure("nn"))
    group: list[tuple[str, int]] = []  # pieces that stay together: a word and the signs at it

    def end_group() -> None:
        nonlocal x, line
        widths = [measure(text) for text, _ in group]
        if x > 0 and x + sum(widths) > room:
            x, line = 0.0, line + 1
        for (text, row), width in zip(group, widths, strict=True):
            found.append(_Placed(text, x, line, width, row))
            x += width
        group.clear()

    for row, piece in enumerate(rows["piece"].astype(str)):
        for number, part in enumerate(piece.split(" ")):
            if number > 0:
                end_group()
                x += space if x > 0 else 0.0
            if part:
                group.append((part if len(part) <= LONGEST else f"{part[: LONGEST - 1]}…", row))
    end_group()
    return found


def _word(ax, piece: _Placed, row: pd.Series, y: float, colour: cm.ScalarMappable) -> None:
    size = float(matplotlib.rcParams["font.size"])
    ink = INK
    if row["is_word"] and pd.notna(row["received"]):
        face = colour.to_rgba(row["received"])
        ink = "white" if 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2] < 0.55 else INK
        box = (piece.x - 0.06 * size, y - 0.72 * size), piece.width + 0.12 * size, 1.42 * size
        ax.add_patch(Rectangle(*box, facecolor=face, linewidth=0))
    ax.text(piece.x, y + 0.32 * size, piece.text, va="baseline", color=ink)
    if row["marked"]:
        ax.plot(
            [piece.x, piece.x + piece.width], [y + 0.58 * size] * 2, color=ink, linewidth=1.1, solid_capstyle="butt"
        )


def _scale(figure: Figure, colour: cm.ScalarMappable, end: tuple[float, str], size: float) -> None:
    top, unit = end
    height = 72 * figure.get_figheight()
    points = 72 * figure.get_figwidth()
    place = (EDGE / points, 2.4 * size / height, min(0.36, 110 / points), 0.7 * size / height)
    side = figure.colorbar(colour, cax=figure.add_axes(place), orientation="horizontal")
    side.outline.set_visible(False)
    side.ax.tick_params(length=0, pad=2)
    side.set_ticks([0, top / 4, top], labels=["0", f"{top / 4:.2g}", f"{top:.2g}"])
    figure.text(
        place[0] + place[2] + 8 / points, place[1] + 0.35 * size / height, f"% of the {unit}",
        va="center", fontsize=0.94 * size,
    )  # fmt: skip
