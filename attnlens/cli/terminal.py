"""What all commands share on the terminal: progress on stderr, the answer on stdout, quiet libraries."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from attnlens.training.processes import first

if TYPE_CHECKING:
    from attnlens.analysis.results import Comparison

# Of several processes that torchrun started, one speaks.
stdout = Console(soft_wrap=False, highlight=False, quiet=not first())
stderr = Console(stderr=True, highlight=False, quiet=not first())
# What could steer a terminal or turn its text around: control characters but tab and newline, overrides of direction.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MARKS = {"yes": "green", "no": "red", "not tested": "yellow", "not applicable": "dim"}


def one_line(error: BaseException) -> str:
    """An error message without line breaks and control characters; of the system's errors, the file and the reason."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return CONTROL.sub("", " ".join(text.split()))


def quiet() -> None:
    """Keep the progress bars, load reports and retries of transformers and the hub off the terminal."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    hub.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def progress(*stages: str) -> Iterator[list[Callable[..., None]]]:
    """One bar a stage on stderr, shown once its stage begins; yields for each a function of (done, total).

    Where stderr is no screen, a line with the time that is left takes the place of the bar. An interrupt says what is
    left of the work, and goes on to end the command.
    """
    try:
        with _bars(stages) as advance:
            yield advance
    except KeyboardInterrupt as stop:
        announce(f"Interrupted: {str(stop) or 'nothing unfinished was kept'}.")
        raise


@contextmanager
def _bars(stages: tuple[str, ...]) -> Iterator[list[Callable[..., None]]]:
    if not stderr.is_terminal:
        yield [_Forecast(stage) for stage in stages]
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True) as bar:
        tasks = [bar.add_task(stage, total=None, start=False, visible=False) for stage in stages]

        def advance(task: TaskID, done: int, total: int, *_: Any) -> None:
            if not bar.tasks[task].started:
                bar.start_task(task)
            bar.update(task, completed=done, total=total, visible=True)

        yield [partial(advance, task) for task in tasks]


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class _Forecast:
    """Says once, after five seconds of a stage, how long the rest of it will take."""

    def __init__(self, stage: str):
        self.stage = stage
        self.begun: tuple[float, int] | None = None
        self.told = False

    def __call__(self, done: int, total: int, *_: Any) -> None:
        now = time.monotonic()
        if self.begun is None:
            self.begun = now, done
        elapsed, finished = now - self.begun[0], done - self.begun[1]
        if not self.told and elapsed > 5 and 0 < finished and done < total:
            rate = finished / elapsed
            announce(f"{self.stage}: {done} of {total}, {rate:.1f} a second, about {(total - done) / rate:.0f} s left")
            self.told = True


def named(**columns: str | None) -> dict[str, str] | None:
    """The columns that were named, by what they hold; None where none was."""
    return {name: column for name, column in columns.items() if column is not None} or None


def announce(line: str) -> None:
    """A line about the work ahead, on stderr; never broken, so that paths in it can be copied."""
    stderr.print(Text(CONTROL.sub("", line)), soft_wrap=True)


def say(text: str, style: str = "", *, wrap: bool = False) -> None:
    """Text on stdout as it stands, without what could steer a terminal; `wrap`: broken between words."""
    stdout.print(Text(CONTROL.sub("", text), style=style), soft_wrap=not wrap)


def print_json(value: Any) -> None:
    """One JSON object on stdout; its control characters are all escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    if first():
        sys.stdout.write(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """A title, and a line for each name and value."""
    say(title, "bold")
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"  {name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")


def print_answer(comparison: "Comparison") -> None:
    """The first screen: for each tuned model the sentence and the ladder; what else changed; what is not known."""
    from attnlens.show.report import also_found, not_known

    for model in comparison.models[1:]:
        for salience, answer in comparison.answers[model].items():
            say(" · ".join(part for part in (model, f"words marked by {salience}" if salience else "") if part), "bold")
            say(answer.sentence, wrap=True)
            if answer.rungs:
                table = Table(box=None, show_header=False, padding=(0, 1))
                for rung in answer.rungs:
                    status = Text(rung.status, style=MARKS[rung.status])
                    table.add_row(Text(str(rung.number)), Text(rung.question), status)
                stdout.print(table)
            for remark in answer.remarks:
                say(f"  {remark}", wrap=True)
            say("")
    whose = f"Of {comparison.models[1]}: " if len(comparison.models) > 2 else ""
    say(f"{whose}{'. '.join(also_found(comparison))}.", wrap=True)
    if unknown := not_known(comparison):
        say(f"Not known: {', '.join(unknown)}.", wrap=True)
    for warning in comparison.provenance["warnings"]:
        say(f"Note: {warning}", "yellow", wrap=True)


def print_paths(page: Path) -> None:
    """Where the page lies, and what lies beside it."""
    drawn = len(list((page.parent / "figures").glob("*.pdf")))
    say(f"Beside the page: {drawn} figures (PDF, SVG, PNG; numbers, captions), tables (CSV, LaTeX)", wrap=True)
    say(f"Report: {page}")
