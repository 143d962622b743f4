"""The set of figures of a comparison, and their files: drawing, drawn numbers, caption."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison
from attnlens.checkpoints.files import write
from attnlens.show import (
    control_figures,
    head_figures,
    layer_figures,
    method_figures,
    study_figures,
    training_figures,
    weight_figures,
    word_figures,
    word_map_figures,
)
from attnlens.show.drawing import WIDE, Drawing, style
from attnlens.show.latex import caption
from attnlens.show.tables import csv

MODULES = (
    layer_figures,
    head_figures,
    word_map_figures,
    control_figures,
    word_figures,
    weight_figures,
    training_figures,
    method_figures,
)
PICTURES = {name: picture for module in (*MODULES, study_figures) for name, picture in module.PICTURES.items()}
SECTIONS = ("layers", "heads", "words", "weights", "training")
CANVASES = {"pdf": FigureCanvasPdf, "svg": FigureCanvasSVG, "png": FigureCanvasAgg}
FORMATS = tuple(CANVASES)


def figure_set(comparison: Comparison) -> list[Drawing]:
    """Every figure that `comparison` has numbers for, in the order of the report."""
    drawings = [drawing for module in MODULES for drawing in module.drawings(comparison)]
    return sorted(drawings, key=lambda drawing: SECTIONS.index(drawing.section))


def rendered(
    drawing: Drawing, width: float, formats: Iterable[str] = FORMATS, settings: dict[Any, Any] | None = None
) -> dict[str, bytes]:
    """The drawing as files of this width in inches: the bytes for each ending. Its title stays with the caption.

    settings: of a venue; None takes the house's.
    """
    with matplotlib.rc_context(style() if settings is None else settings):
        figure = drawing.draw(width)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once; every file has the same places
        return {ending: _saved(figure, ending) for ending in formats}


def write_figure(
    drawing: Drawing, folder: Path, width: float, formats: Iterable[str] = FORMATS, settings: dict | None = None
) -> list[Path]:
    """Write NAME.{formats}, the drawn numbers as NAME.csv, the caption as NAME.txt and, for LaTeX, as NAME.tex."""
    files = rendered(drawing, width, formats, settings)
    files["csv"] = csv(drawing.table)
    files["txt"] = f"{drawing.title}. {drawing.caption}\n".encode()
    files["tex"] = caption(drawing).encode()
    return [write(folder / f"{drawing.name}.{ending}", content) for ending, content in files.items()]


def save_figures(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write every figure to DIR/figures/ in all formats, two columns of a paper wide."""
    folder = Path(directory) / "figures"
    return [path for drawing in figure_set(comparison) for path in write_figure(drawing, folder, WIDE)]


def _saved(figure: Figure, ending: str) -> bytes:
    """One file, by the backend's own method: `savefig` would draw all once more before it, to no end."""
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": None}  # the same bytes every time
    figure.dpi = float(matplotlib.rcParams["savefig.dpi"])
    figure.set_facecolor("white" if ending == "png" else "none")
    buffer = io.BytesIO()
    getattr(CANVASES[ending](figure), f"print_{ending}")(buffer, metadata=dates[ending])
    return buffer.getvalue()
