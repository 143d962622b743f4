"""`attnlens figures`: the figures of a report, drawn again for a venue."""

from pathlib import Path
from typing import Annotated

import typer


def figures(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a report; or one figure's CSV.")],
    venue: Annotated[str, typer.Option(help="Whose column: neurips, iclr, icml, acl, aaai or plain.")] = "plain",
    formats: Annotated[str, typer.Option("--format", help="pdf, svg or png, or several: pdf,png.")] = "pdf",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the figures; default: DIR/figures-VENUE.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Figures or sections by name, comma-separated: heads,layer_profile,…")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="What to call a model; once for each, base first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Redraw a report's figures at a venue's column width, with its fonts; numbers and captions beside them.

    Example: attnlens figures report-base-vs-tuned --venue neurips --format pdf
    """
    from attnlens.cli import terminal
    from attnlens.show.redraw import RedrawOptions, redraw

    def listed(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))

    result = redraw(
        directory,
        RedrawOptions(
            venue=venue,
            formats=listed(formats),
            output=output,
            only=listed(only or ""),
            names=tuple(name or ()),
        ),
    )
    if as_json:
        drawn = {name: [str(path) for path in paths] for name, paths in result.figures.items()}
        terminal.print_json({"directory": str(result.directory), "venue": venue, "figures": drawn})
        return
    for name_drawn in result.figures:
        terminal.say(name_drawn)
    terminal.say(f"Figures, numbers and captions: {result.directory}")
