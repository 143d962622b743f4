"""Floor 5: one file a command: parse → call → print. Results on stdout, progress on stderr, errors in one line."""

import io
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from attnlens.cli import demo, diff, figures, finetune, info, report, study
from attnlens.core.errors import AttnlensError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="What fine-tuning did to a transformer's attention and layers, and whether the change is real.",
)
for command in (demo.demo, finetune.finetune, report.report, diff.diff, study.study, figures.figures, info.info):
    app.command()(command)


@app.callback()
def everywhere(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Before an error's line, show where it came from.")] = False,
) -> None:
    """Options of all commands; they stand before the command."""
    context.ensure_object(dict)["debug"] = debug


def main() -> NoReturn:
    """Entry point of the console script: a user's fault is one line on stderr and exit 1, never a traceback.

    But with --debug. Typer exits with 2 where the usage is at fault, and with 130 on an interrupt.
    """
    chosen = {"debug": False}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without − or … must not cost the answer
    try:
        app(prog_name="attnlens", obj=chosen)
    except (AttnlensError, OSError) as error:
        from attnlens.cli.terminal import one_line
        from attnlens.training.processes import speaks

        if chosen["debug"]:
            traceback.print_exc()
        if speaks():
            sys.stderr.write(f"attnlens: {one_line(error)}\n")
        sys.exit(1)
    sys.exit(0)
