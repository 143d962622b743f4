"""`attnlens study`: models × data × methods × seeds from a file, resumable, to the table and figures of a paper."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnlens.cli.finetune import TRUST

if TYPE_CHECKING:
    from pandas import DataFrame

    from attnlens.analysis.studies.queue import State
    from attnlens.show.study import StudyResult

# Columns of the table of arms that fit a terminal, and what they are called there.
SHOWN = {
    "arm": "arm",
    "difference": "difference",
    "verdict": "verdict",
    "weights (%)": "weights %",
    "focus (points)": "focus",
}


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="What is compared with what.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the study; default: the file's name, here.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="What {data_root} in the file stands for.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells, time and memory; train nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Run cells of another study file in the folder again.")
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train, judge and compare every cell of a study, then write its page, tables and figures.

    Cells that are finished are never run again, so that a stopped study goes on where it was. Failed cells are told,
    and tried again by the next run.

    Example: attnlens study study.toml --processes 2
    """
    from attnlens.analysis.studies.forecast import forecast
    from attnlens.analysis.studies.run import StudyOptions
    from attnlens.cli import terminal
    from attnlens.show.study import study as carried_out
    from attnlens.show.study import summary

    terminal.quiet()
    options = StudyOptions(
        output=output,
        data_root=data_root,
        processes=processes,
        force=force,
        trust_remote_code=trust_remote_code,
    )
    if dry_run:
        _print_forecast(forecast(file, options), processes, as_json=as_json)
        return
    with _watching() as watch:
        result = carried_out(file, replace(options, watch=watch))
    if as_json:
        terminal.print_json({**summary(result.outcome), "study": str(result.page)})
    else:
        _print(result)
    if result.outcome.failed:
        raise typer.Exit(1)


@contextmanager
def _watching() -> Iterator[Any]:
    """A live table where stderr is a screen, else a line for every cell that has ended."""
    from rich.live import Live

    from attnlens.cli import terminal

    told = set[str]()

    def line(state: "State") -> None:
        ended = [(cell.name, "finished") for cell in state.finished]
        ended += [(cell.name, f"failed: {error}") for cell, error in state.failed.items()]
        for name, what in ended:
            if name not in told:
                told.add(name)
                terminal.announce(f"{len(told)} of {state.total} · {name}: {what}")

    try:
        if not terminal.stderr.is_terminal:
            yield line
            return
        with Live(console=terminal.stderr, transient=True, auto_refresh=False) as live:
            yield lambda state: live.update(_table(state), refresh=True)
    except KeyboardInterrupt:
        terminal.announce("Interrupted: every finished cell is kept; the same command goes on from there.")
        raise


def _table(state: "State") -> Any:
    """A row an arm, with its counts, then what is running."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2), title=f"{len(state.finished)} of {state.total} cells", title_justify="left")
    for name in ("arm", "finished", "failed", "running"):
        table.add_column(name)
    cells = [*state.finished, *state.failed, *state.running]
    for arm in dict.fromkeys(cell.arm for cell in cells):
        running = [
            f"seed {cell.seed}{'' if cell.rate is None else f' at {cell.rate:g}'}: {stage} {done}/{total}"
            for cell, (stage, done, total) in state.running.items()
            if cell.arm == arm
        ]
        finished, failed = (sum(cell.arm == arm for cell in some) for some in (state.finished, state.failed))
        table.add_row(Text(arm), str(finished), str(failed or ""), Text(", ".join(running)))
    return table


def _print_forecast(lines: "DataFrame", processes: int, *, as_json: bool) -> None:
    """What a run would take."""
    from rich.table import Table
    from rich.text import Text

    from attnlens.cli import terminal
    from attnlens.training.estimate import duration

    cells, seconds = int(lines["cells"].sum()), float((lines["cells"] * lines["seconds"]).sum()) / processes
    if as_json:
        terminal.print_json({"cells": cells, "seconds": seconds, "lines": lines.to_dict("records")})
        return
    table = Table(box=None, padding=(0, 2))
    for name in ("arm", "on", "cells", "a cell", "memory"):
        table.add_column(name)
    for line in lines.to_dict("records"):
        told = "measuring only" if not line["seconds"] else duration(line["seconds"])
        place = Text(f"{line['model']}, {line['data']}")
        table.add_row(Text(line["arm"]), place, str(line["cells"]), told, f"{line['memory'] / 1e9:.2f} GB")
    terminal.stdout.print(table)
    at_a_time = f"{processes} process{'' if processes == 1 else 'es'}"
    terminal.say(f"{cells} cells to run: about {duration(seconds)} in {at_a_time}. Nothing was trained.")


def _print(result: "StudyResult") -> None:
    """The arms, the results in sentences, failures, and where all lies."""
    from rich.table import Table
    from rich.text import Text

    from attnlens.cli import terminal
    from attnlens.show.study import told
    from attnlens.show.study_tables import arm_cells
    from attnlens.show.study_words import edges, few_seeds

    found = result.outcome
    if result.was_complete:
        terminal.announce(f"{result.directory} is already complete: no cell was run again.")
    for _, arms in found.arms.groupby(["model", "data"], sort=False) if len(found.arms) else ():
        cells = arm_cells(found, arms)
        columns = {SHOWN.get(title, title): cells[title] for title in cells if title in SHOWN or "test " in title}
        table = Table(box=None, padding=(0, 1))
        for title in columns:
            table.add_column(title, justify="left" if title in ("arm", "verdict") else "right")
        for row in zip(*columns.values(), strict=True):
            table.add_row(*(Text(written) for written, _ in row))
        terminal.stdout.print(table)
    for paragraph in told(found):
        terminal.say(paragraph, wrap=True)
    for cell, error in found.failed.items():
        terminal.say(f"Failed: {cell.name}: {error}", "red", wrap=True)
    for warning in filter(None, (few_seeds(found), edges(found))):
        terminal.say(f"Note: {warning}", "yellow", wrap=True)
    terminal.say(f"Study: {result.page}")
