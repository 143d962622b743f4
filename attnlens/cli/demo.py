"""`attnlens demo`: the main job on data that comes along, in a few minutes on a laptop."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoint and report.")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune a real pretrained encoder by ALF on the embedded contract clauses and report what that did.

    It is trained once more on shuffled labels: what that null shows as well does not come from the task.

    Example: attnlens demo -o demo
    """
    from attnlens.cli import terminal
    from attnlens.show.demo import CAVEAT, run_demo
    from attnlens.show.tables import summary

    terminal.quiet()
    terminal.announce(CAVEAT)
    with terminal.progress("Training", "Measuring", "Further passes") as (training, measuring, further):
        result = run_demo(output, training=training, measuring=measuring, further=further)
    if as_json:
        terminal.print_json({**summary(result.comparison), "report": str(result.page)})
        return
    terminal.print_answer(result.comparison)
    terminal.print_paths(result.page)
