"""The figures of a finished report, drawn again for a paper: `attnlens figures`."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from attnlens.analysis.results import NAMES, Comparison, open_comparison
from attnlens.analysis.studies.run import COPY
from attnlens.checkpoints.files import write
from attnlens.core.errors import AttnlensError, OutputExists, UnknownName
from attnlens.show import study_figures
from attnlens.show.drawing import Drawing
from attnlens.show.figures import FORMATS, PICTURES, figure_set, write_figure
from attnlens.show.venues import venue

RECORD = "figures.json"
WORDS = (  # columns of names, no numbers
    *(*NAMES, "part", "piece", "unit", "place", "definition", "words", "measure", "method", "quality"),
    *("verdict", "reference", "line"),
)


@dataclass(frozen=True)
class RedrawOptions:
    """How to draw again.

    venue: whose column width and fonts. formats: of pdf, svg and png. output: the folder; None makes
    DIR/figures-VENUE. only: figures or sections of the report (layers, words, heads, weights, training) by name;
    empty draws all. names: what to call the models, base first; empty keeps their names.
    """

    venue: str = "plain"
    formats: tuple[str, ...] = ("pdf",)
    output: str | Path | None = None
    only: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Redrawn:
    """The folder, and for each figure by name the files that were written."""

    directory: Path
    figures: dict[str, tuple[Path, ...]]


def redraw(directory: str | Path, options: RedrawOptions | None = None) -> Redrawn:
    """Draw the figures of the comparison in `directory`, each with its numbers and its caption beside it.

    directory: of a report, a saved comparison or a study; or the CSV of one figure, which is all that it takes to draw
    it. A folder that holds something else raises OutputExists; figures that were drawn there before are replaced.
    """
    options = RedrawOptions() if options is None else options
    place = venue(options.venue)
    for ending in options.formats:
        if ending not in FORMATS:
            raise UnknownName.among("format", ending, FORMATS)
    source = Path(directory)
    alone = source.suffix == ".csv"
    drawings = _chosen([_from_csv(source, options.names)] if alone else _of_folder(source, options.names), options.only)
    folder = Path(options.output or (source.parent if alone else source) / f"figures-{place.name}")
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder} is a file: needed the name of a folder, choose another -o DIR")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise OutputExists(f"{folder} holds other files: choose another -o DIR")
    record: dict[str, Any] = {"attnlens": "figures", "venue": place.name, "width_inches": round(place.width, 4)}
    write(folder / RECORD, f"{json.dumps(record)}\n".encode())  # first: a stopped run may be repeated
    settings = place.settings()
    written = {
        drawing.name: tuple(write_figure(drawing, folder, place.width, options.formats, settings))
        for drawing in drawings
    }
    return Redrawn(folder, written)


def _of_folder(source: Path, names: Sequence[str]) -> list[Drawing]:
    """The figures of a comparison, or of a study, which are drawn from their numbers as they lie."""
    if not (source / COPY).is_file():
        return figure_set(renamed(open_comparison(source), names))
    tables = [source / "figures" / f"{name}.csv" for name in study_figures.PICTURES]
    found = [_from_csv(path, names) for path in tables if path.is_file()]
    if not found:
        raise AttnlensError(f"{source} is a study without figures: run attnlens study first")
    return found


def _from_csv(path: Path, names: Sequence[str]) -> Drawing:
    """The figure whose numbers `path` holds; its title and caption as they stand beside it, where they do."""
    if path.stem not in PICTURES:
        raise UnknownName.among("figure", path.stem, PICTURES)
    if names:
        raise AttnlensError("models are renamed in a report: give its folder in place of the CSV of one figure")
    if not path.is_file():
        raise AttnlensError(f"{path} is not there")
    beside = path.with_suffix(".txt")
    title, _, rest = (beside.read_text("utf-8") if beside.is_file() else path.stem).strip().partition(". ")
    return Drawing(path.stem, "", title, rest, figure_table(path), PICTURES[path.stem])


def figure_table(path: Path) -> pd.DataFrame:
    """The drawn numbers of a figure from its CSV; names without the quote that keeps a spreadsheet from reading them.

    The texts of a passage may be anything, an empty cell among names is the empty name.
    """
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(WORDS, str))
    for name in (name for name in WORDS if name in table):
        table[name] = table[name].fillna("").str.replace(r"^'(?=[=+\-@\t\r])", "", regex=True)
    return table


def _chosen(drawings: list[Drawing], only: Sequence[str]) -> list[Drawing]:
    known = {name for drawing in drawings for name in (drawing.name, drawing.section)}
    for name in only:
        if name not in known:
            raise UnknownName.among("figure", name, known)
    return [drawing for drawing in drawings if not only or {drawing.name, drawing.section} & set(only)]


def renamed(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """The comparison with other names for its models, base first; no names leave it as it is."""
    if not names:
        return comparison
    if len(names) != len(comparison.models) or len(set(names)) != len(names):
        raise AttnlensError(
            f"needed {len(comparison.models)} different names, for {', '.join(comparison.models)}; "
            f"got {', '.join(names)}"
        )
    new = dict(zip(comparison.models, names, strict=True))
    nulls = {new[model]: new.get(null, null) for model, null in comparison.provenance.get("nulls", {}).items()}
    tables = {
        name: table.assign(model=table["model"].map(new)) if len(table) else table
        for name in ("weights", "heads", "tests")
        for table in [getattr(comparison, name)]
    }
    return dataclasses.replace(
        comparison,
        data=comparison.data.assign_coords(model=list(names)),
        provenance=comparison.provenance | {"nulls": nulls},
        answers={new[model]: answers for model, answers in comparison.answers.items()},
        **tables,
    )
