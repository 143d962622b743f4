"""What all commands share on the terminal: progress on stderr, the answer on stdout, quiet libraries."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from attnlens.analysis.results import Comparison

stdout = Console(soft_wrap=False, highlight=False)
stderr = Console(stderr=True, highlight=False)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
MARKS = {"yes": "green", "no": "red", "not tested": "yellow", "not applicable": "dim"}


def one_line(error: BaseException) -> str:
    """An error message without line breaks and control characters."""
    return CONTROL.sub("", " ".join(str(error).split()))


def quiet() -> None:
    """Keep the progress bars and load reports of transformers off the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def progress(*stages: str) -> Iterator[list[Callable[..., None]]]:
    """One bar a stage on stderr, shown once its stage begins; yields for each a function of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True) as bar:
        tasks = [bar.add_task(stage, total=None, start=False, visible=False) for stage in stages]

        def advance(task: TaskID, done: int, total: int, *_: Any) -> None:
            if not bar.tasks[task].started:
                bar.start_task(task)
            bar.update(task, completed=done, total=total, visible=True)

        yield [partial(advance, task) for task in tasks]


def announce(line: str) -> None:
    """A line about the work ahead, on stderr."""
    stderr.print(Text(line))


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """A title and a two-column table of names and values."""
    stdout.print(Text(title, style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 1))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(f"{value:.4g}" if isinstance(value, float) else str(value)))
    stdout.print(table)


def print_answer(comparison: "Comparison") -> None:
    """The first screen: the sentence, the ladder, the warnings; one block for each tuned model."""
    for model in comparison.models[1:]:
        for salience, answer in comparison.answers[model].items():
            title = " · ".join(part for part in (model, f"words marked by {salience}" if salience else "") if part)
            stdout.print(Text(title, style="bold"))
            stdout.print(Text(answer.sentence))
            if answer.rungs:
                table = Table(box=None, show_header=False, padding=(0, 1))
                for rung in answer.rungs:
                    status = Text(rung.status, style=MARKS[rung.status])
                    table.add_row(Text(str(rung.number)), Text(rung.question), status)
                stdout.print(table)
            stdout.print()
    for warning in comparison.provenance["warnings"]:
        stdout.print(Text(f"Note: {warning}", style="yellow"))
