"""What a study would take, before anything is trained: from a few real steps of every arm that are thrown away."""

from pathlib import Path

import pandas as pd
import torch

from attnlens.analysis.studies.cells import ROW, TRAINED, Cell, Plan
from attnlens.analysis.studies.run import StudyOptions, held
from attnlens.text.corpus import read_corpus
from attnlens.training.estimate import Estimate, estimate
from attnlens.training.options import TrainOptions

# A comparison reads each text about twice as dearly as a plain pass, and the base, too (tests/bench/bench_compare.py).
PASSES = 2.0


COLUMNS = ("model", "data", "arm", "cells", "seconds", "memory")


def forecast(path: str | Path, options: StudyOptions | None = None) -> pd.DataFrame:
    """What is left of a study, a row for every arm on every model and data set: no cell is trained or written.

    Columns: cells (that are left), seconds (of one, in one process alone on this machine with the threads that the
    study gives it; 0 for checkpoints that were given, which are measured only), memory (bytes at a cell's peak).
    Raises as `attnlens.study`.
    """
    before = torch.get_num_threads()
    with held(path, StudyOptions() if options is None else options) as plan:
        torch.set_num_threads(plan.file.threads)
        try:
            return pd.DataFrame(_lines(plan), columns=COLUMNS)
        finally:
            torch.set_num_threads(before)


def _lines(plan: Plan) -> list[tuple[str, str, str, int, float, int]]:
    lines = []
    for model, data, arm in plan.lines():
        left = len(_left(plan, model, data, arm.name))
        if not left:
            continue
        if arm.method is None:
            lines.append((model, data, arm.name, left, 0.0, 0))
            continue
        shared = plan.file.training.model_dump()
        options = TrainOptions(**shared, **arm.settings, learning_rate=arm.rates[0])
        files = plan.files[model, data]
        found = estimate(
            plan.models[model], files.train.path, method=arm.method, seed=plan.file.seeds[0], options=options
        )
        runs = 2 if arm.twin else 1
        measured = _measured(found, plan, runs, len(read_corpus(files.test.path)))
        seconds = runs * found.seconds["all"] + measured
        lines.append((model, data, arm.name, left, seconds, found.memory["peak"]))
    return lines


def _left(plan: Plan, model: str, data: str, arm: str) -> list[Cell]:
    """Cells to be run; while a grid is open, its runs count as cells, too."""
    part = plan.arm(arm)
    seeds = plan.given[arm] if arm in plan.given else plan.file.seeds
    rate = plan.chosen(model, data, part)
    cells = [Cell(model, data, arm, rate, seed) for seed in seeds]
    left = [cell for cell in cells if not (plan.folder / cell.path / ROW).is_file()]
    tried = [cell for cell in plan.grid() if (cell.model, cell.data, cell.arm) == (model, data, arm)]
    open_runs = [cell for cell in tried if not (plan.folder / cell.path / TRAINED).is_file()]
    return left + open_runs[1:]  # one of the grid's runs is the first seed's


def _measured(found: Estimate, plan: Plan, runs: int, texts: int) -> float:
    """Seconds of judging all test texts and comparing on some, from those of an evaluation of the held-out rows."""
    each = found.seconds["evaluation"] / max(1, found.evaluations) / max(1, found.heldout)
    compared = min(texts, plan.file.measure.limit or texts)
    return each * (compared * PASSES * (1 + runs) + runs * texts)
