"""`attnlens diff`: what tuning did to the weights, read from the files; no model runs."""

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from attnlens.analysis.difference import Difference


class Spectra(StrEnum):
    """What `--spectra` may be."""

    estimated = "estimated"
    exact = "exact"
    none = "none"


def diff(
    checkpoints: Annotated[
        list[str], typer.Argument(help="BASE TUNED: folders, files, hub ids; or one adapter that names its base.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the tables as CSV.")] = None,
    spectra: Annotated[
        Spectra,
        typer.Option(help="Ranks and norms of each change: large ones estimated, with their error; exact; or none."),
    ] = Spectra.estimated,
    force: Annotated[bool, typer.Option("--force", help="Replace tables of another run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how far the weights moved, by layer, by module and by head.

    Example: attnlens diff base.ckpt tuned.ckpt
    """
    from attnlens.analysis.difference import difference
    from attnlens.checkpoints.files import made
    from attnlens.cli import terminal

    if len(checkpoints) > 2:
        raise typer.BadParameter("needs BASE and TUNED, or one adapter")
    terminal.quiet()
    base = checkpoints[0] if len(checkpoints) == 2 else None
    targets = {} if output is None else _targets(output, force=force)
    with nullcontext() if output is None else made(output):  # a folder that takes no files is told before the work
        with terminal.progress("Comparing") as (advance,):
            result = difference(base, checkpoints[-1], spectra=spectra.value, progress=advance)
        _write(result, targets, force=force)
    if as_json:
        terminal.print_json(_plain(result))
        return
    _print(result)
    if output is not None:
        terminal.say(f"Tables: {output}")


def _targets(output: Path, *, force: bool) -> dict[str, Path]:
    """Where each table goes; OutputExists where all are there. A kill may have left some: see `_write`."""
    from attnlens.core.errors import OutputExists

    targets = {name: output / f"{name}.csv" for name in ("weights", "layers", "modules", "heads")}
    there = [str(path) for path in targets.values() if path.exists()]
    if len(there) == len(targets) and not force:
        raise OutputExists(f"{there[0]} exists: name another folder, or add --force to replace it")
    return targets


def _write(result: "Difference", targets: dict[str, Path], *, force: bool) -> None:
    """Each table whole or not at all; OutputExists where one is there that is not this run's own."""
    from attnlens.checkpoints.files import write
    from attnlens.core.errors import OutputExists
    from attnlens.show.tables import csv, from_one

    contents = {path: csv(from_one(result.tables[name])) for name, path in targets.items()}
    for path, content in contents.items():
        if path.exists() and not force and path.read_bytes() != content:
            raise OutputExists(f"{path} exists: name another folder, or add --force to replace it")
    for path, content in contents.items():
        for half in path.parent.glob(f".{path.name}.????????"):  # as `write` names them: a kill left it
            half.unlink()
        write(path, content)


def _print(result: "Difference") -> None:
    """The whole, two tables, the heads that changed most, and the notes."""
    from attnlens.cli import terminal

    total = result.total
    terminal.say(f"{result.base} → {result.tuned}", "bold")
    terminal.say(
        f"The weights moved by {_percent(total.relative)} of their norm; {total.identical:,} of {total.entries:,} "
        "numbers are the same.",
        wrap=True,
    )
    for title, frame in (("layer", result.layers), ("module", result.modules)):
        _table(title, frame)
    for circuit, what in (("QK", "which words a head looks at"), ("OV", "what it makes of them")):
        rows = result.heads[(result.heads["circuit"] == circuit) & (result.heads["delta_norm"] > 0)]
        for top in rows[~rows["rounding"]].nlargest(1, "relative").to_dict("records"):
            place = f"layer {top['layer'] + 1}, head {top['head'] + 1}"
            place = f"{top['stack']} {place}" if top["stack"] else place
            terminal.say(f"{what.capitalize()} ({circuit}) changed most in {place}: {_percent(top['relative'])}.")
    for note in result.notes:
        terminal.say(f"Note: {note}", "yellow", wrap=True)


def _table(title: str, frame: "pd.DataFrame") -> None:
    """One line a layer or module; a change that is rounding says so."""
    from rich.table import Table
    from rich.text import Text

    from attnlens.cli import terminal

    table = Table(box=None, padding=(0, 2))
    table.add_column(title)
    for name in ("change", "of all change", ""):
        table.add_column(name, justify="left" if not name else "right")
    for row in frame.to_dict("records"):
        place = str(row["module"]) if title == "module" else _place(row)
        rounding = Text("rounding" if row["rounding"] else "", style="yellow")
        table.add_row(Text(place), _percent(row["relative"]), _percent(row["share"]), rounding)
    terminal.stdout.print(table)


def _place(row: dict[Any, Any]) -> str:
    number = "outside" if row["layer"] < 0 else str(row["layer"] + 1)
    return f"{row['stack']} {number}".strip()


def _percent(value: float) -> str:
    """A share in percent to three figures; a dash where there is none."""
    if value != value:  # NaN
        return "–"
    return f"{100 * value:,.0f} %" if value >= 10 else f"{100 * value:.3g} %"


def _plain(result: "Difference") -> dict[str, Any]:
    """The result for JSON: layers and heads from 1, null where there is no number."""
    from attnlens.show.tables import from_one

    def rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
        counted = from_one(frame).astype(object)
        return [
            {str(name): value for name, value in row.items()}
            for row in counted.where(counted.notna(), None).to_dict("records")
        ]

    relative = result.total.relative
    return {
        "base": result.base,
        "tuned": result.tuned,
        "relative": None if relative != relative else relative,
        "entries": result.total.entries,
        "identical": result.total.identical,
        "notes": list(result.notes),
        **{name: rows(frame) for name, frame in result.tables.items()},
    }
