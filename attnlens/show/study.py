"""A study carried out and written down: page, figures, tables, and the results in sentences."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

from attnlens import __version__
from attnlens.analysis.studies.outcome import StudyOutcome, outcome
from attnlens.analysis.studies.run import StudyOptions, run
from attnlens.checkpoints.files import write
from attnlens.checkpoints.identity import home_free
from attnlens.show.document import document
from attnlens.show.drawing import WIDE
from attnlens.show.figures import write_figure
from attnlens.show.report import shown_figure
from attnlens.show.study_figures import study_drawings
from attnlens.show.study_tables import arm_cells, shown_tables, study_tables, study_tex
from attnlens.show.study_words import arm_lines, counted, edges, few_seeds, results
from attnlens.show.tables import csv

PAGE, RESULTS, SUMMARY = "study.html", "results.txt", "summary.json"


@dataclass(frozen=True, repr=False)
class StudyResult:
    """What a study found, its folder, and whether every cell had been finished before."""

    outcome: StudyOutcome
    directory: Path
    was_complete: bool

    @property
    def page(self) -> Path:
        """The page to open."""
        return self.directory / PAGE

    def __repr__(self) -> str:
        """The results in sentences, and where they lie."""
        return "\n".join([*told(self.outcome), f"Study: {home_free(self.page)}"])

    def _repr_html_(self) -> str:
        """The arms of each model and data set as a table, and the results, for a notebook."""
        lines = self.outcome.arms.groupby(["model", "data"], sort=False) if len(self.outcome.arms) else ()
        parts = []
        for (model, data), arms in lines:
            cells = {title: [text for text, _ in column] for title, column in arm_cells(self.outcome, arms).items()}
            parts.append(f"<h4>{escape(f'{model} on {data}')}</h4>{pd.DataFrame(cells).to_html(index=False, border=0)}")
        return "".join([*parts, *(f"<p>{escape(line)}</p>" for line in told(self.outcome))])


def study(path: str | Path, options: StudyOptions | None = None) -> StudyResult:
    """Run what is missing of the study in a TOML file, then write its folder.

    Every cell is a process of its own: trained, judged on the test data, compared with the base, and never run again.
    The folder gets study.html, figures/, tables/ (CSV, LaTeX), results.txt and summary.json; cells/ holds the cells.
    Failed cells are listed, and tried again by the next call. Raises AttnlensError with the line of a faulty file, and
    OutputExists for a folder of another study.
    """
    plan, state = run(path, options)
    found = outcome(plan, state.failed)
    write_study(found)
    return StudyResult(found, plan.folder, was_complete=not state.begun)


def write_study(found: StudyOutcome) -> Path:
    """Write the folder of a study, the page last; returns its path."""
    directory = found.plan.folder
    drawings = study_drawings(found)
    for drawing in drawings:
        write_figure(drawing, directory / "figures", WIDE)
    for name, table in study_tables(found).items():
        write(directory / "tables" / f"{name}.csv", csv(table))
    for name, text in study_tex(found).items():
        write(directory / "tables" / f"{name}.tex", text.encode())
    write(directory / RESULTS, ("\n\n".join(told(found)) + "\n").encode())
    content = json.dumps(summary(found), indent=2, ensure_ascii=False, allow_nan=False)
    write(directory / SUMMARY, f"{content}\n".encode())
    return write(directory / PAGE, page(found).encode())


def summary(found: StudyOutcome) -> dict[str, Any]:
    """The study as plain values for JSON; what is not known is null."""
    arms = json.loads(found.arms.to_json(orient="records")) if len(found.arms) else []
    answers = [
        {"model": model, "data": data, "arm": arm, "verdict": answer.verdict, "sentence": answer.sentence}
        | {"rungs": {rung.number: rung.status for rung in answer.rungs}}
        for (model, data), of_arms in found.answers.items()
        for arm, answer in of_arms.items()
    ]
    return {
        "attnlens": __version__,
        "title": found.plan.file.title,
        "cells": {"planned": found.planned, "finished": len(found.cells), "failed": len(found.failed)},
        "arms": arms,
        "answers": answers,
        "results": told(found),
        "failed": {cell.name: error for cell, error in found.failed.items()},
    }


def told(found: StudyOutcome) -> list[str]:
    """The results, a paragraph a topic."""
    return [f"{topic}. {words}" for topic, words in results(found)]


def page(found: StudyOutcome) -> str:
    """The study as one HTML text that asks the network for nothing."""
    file, directory = found.plan.file, found.plan.folder
    drawings = study_drawings(found)
    figures = {drawing.name: shown_figure(drawing, directory) for drawing in drawings}
    answers = [
        (f"{arm}, {model} on {data}" if len(found.answers) > 1 else arm, answer)
        for (model, data), of_arms in found.answers.items()
        for arm, answer in of_arms.items()
    ]
    warnings = [few_seeds(found), edges(found)]
    missing = found.planned - len(found.cells)
    warnings += [f"{missing} of {found.planned} cells are not finished."] if missing else []
    content = {
        "title": file.title,
        "results": results(found),
        "counted": counted(found) if len(found.arms) else "",
        "cells": (len(found.cells), found.planned, len(found.failed)),
        "arms": arm_lines(found),
        "figures": figures,
        "tables": shown_tables(found),
        "answers": answers,
        "warnings": [warning for warning in warnings if warning],
        "reference": file.held_against,
        "margin": file.margin,
        "sesoi": 100 * file.measure.sesoi,
        "source": (directory / "study.toml").read_text("utf-8"),
        "facts": _facts(found),
        "latex": list(study_tex(found)),
    }
    return document("study.html.j2", content)


def _facts(found: StudyOutcome) -> dict[str, str]:
    """Where the numbers come from."""
    cells, file = found.cells, found.plan.file
    devices = ", ".join(sorted(set(cells["device"]))) if len(cells) else ""
    facts = {
        "attnlens": f"{__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "each cell": f"one process, {file.threads} thread{'' if file.threads == 1 else 's'}, {devices}",
        "seeds": ", ".join(map(str, file.seeds)),
        **{f"model {name}": f"sha256 {found.plan.weights[path]}" for name, path in found.plan.models.items()},
    }
    for (model, data), files in found.plan.files.items():
        for part, each in zip(("train", "test"), files, strict=True):
            facts[f"{data} for {model}, {part}"] = f"sha256 {each.sha256}"
    return facts
