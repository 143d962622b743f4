"""Floor 5: one file a command: parse → call → print. Results on stdout, progress on stderr, errors in one line."""

import sys
from typing import NoReturn

import typer

from attnlens.cli import demo, finetune, info, report
from attnlens.core.errors import AttnlensError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="What fine-tuning did to a transformer's attention and layers, and whether the change is real.",
)
for command in (demo.demo, finetune.finetune, report.report, info.info):
    app.command()(command)


def main() -> NoReturn:
    """Entry point of the console script: a user's fault is one line on stderr and exit 1, never a traceback."""
    try:
        app(standalone_mode=True)
    except AttnlensError as error:
        from attnlens.cli.terminal import one_line

        sys.stderr.write(f"attnlens: {one_line(error)}\n")
        sys.exit(1)
    sys.exit(0)
