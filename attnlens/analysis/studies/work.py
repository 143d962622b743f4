"""One cell of a study: train, judge on test texts, compare with the base, keep its row."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.results import Comparison
from attnlens.analysis.studies.cells import BEGUN, ROW, TRAINED, Cell, Plan, read, write
from attnlens.analysis.studies.judge import judge
from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.load import Checkpoint, load_all
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune
from attnlens.training.twin import twin_path

CHECKPOINT, COMPARISON, TEXTS = "tuned.ckpt", "comparison", "texts.npz"
TWIN = "shuffled twin"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """A cell to work on; measure: also judge and compare it, not only train it."""

    plan: Plan
    cell: Cell
    measure: bool

    @property
    def folder(self) -> Path:
        """Of the cell."""
        return self.plan.folder / self.cell.path

    @property
    def twin(self) -> Path | None:
        """Of the shuffled twin, where the arm has one; a rate that is only tried needs none."""
        wanted = self.measure and self.cell.arm not in self.plan.given and self.plan.arm(self.cell.arm).twin
        return twin_path(self.checkpoint) if wanted else None

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to train."""
        there = self.checkpoint.is_dir() and (self.twin is None or self.twin.is_dir())
        return there and read(self.folder / TRAINED) is not None

    @property
    def checkpoint(self) -> Path:
        """Of the tuned model."""
        given = self.plan.given.get(self.cell.arm)
        return Path(given[self.cell.seed]) if given else self.folder / CHECKPOINT


def carry_out(job: Job, progress: Progress) -> None:
    """Do what is missing of a cell: training, then measuring; each leaves its file when it is whole.

    What was begun for another study file, and not finished, is cleared away: training could not go on from it.
    """
    key = {"key": job.plan.key(job.cell)}
    if read(job.folder / BEGUN) not in (None, key):
        shutil.rmtree(job.folder)
    write(job.folder / BEGUN, key)
    if job.cell.arm not in job.plan.given and not job.is_trained:
        _train(job, progress)
    if job.measure and read(job.folder / ROW) is None:
        _measure(job, progress)
        if not job.plan.file.keep_checkpoints and job.cell.arm not in job.plan.given:
            for path in (job.checkpoint, twin_path(job.checkpoint)):
                shutil.rmtree(path, ignore_errors=True)


def _train(job: Job, progress: Progress) -> None:
    """Fine-tune, going on with what a kill left."""
    plan, cell = job.plan, job.cell
    arm, shared = plan.arm(cell.arm), plan.file.training.model_dump()
    assert arm.method is not None
    options = TrainOptions(
        **shared,
        **arm.settings,
        learning_rate=cell.rate,
        null_twin=job.twin is not None,
        resume=True,
        progress=lambda step, steps, _: progress("training", step, steps),
    )
    train = plan.files[cell.model, cell.data].train.path
    result = finetune(
        plan.models[cell.model], train, method=arm.method, output=job.checkpoint, seed=cell.seed, options=options
    )
    score = result.metrics["macro_f1"] if "macro_f1" in result.metrics else -result.metrics["loss"]
    write(job.folder / TRAINED, {"key": plan.key(cell), "held_out": score})


def _measure(job: Job, progress: Progress) -> None:
    """Judge on the test texts, compare with the base, and write the row last."""
    plan, cell, measuring = job.plan, job.cell, job.plan.file.measure
    sources = [plan.models[cell.model], job.checkpoint, *([job.twin] if job.twin is not None else [])]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = load_all(sources, names=(cell.model, cell.arm, TWIN)[: len(sources)], device=device)
    train, test = (read_corpus(file.path) for file in plan.files[cell.model, cell.data])
    facts = [_judged(model, test, source, job, index) for index, (model, source) in _tuned(models, sources)]
    comparison = compare(
        models[0],
        models[1:],
        corpus=test,
        salience=measuring.salience,
        options=CompareOptions(
            limit=measuring.limit,
            max_length=measuring.max_length,
            batch_size=measuring.batch_size,
            rows=measuring.rows,
            sesoi=measuring.sesoi,
            knockout=measuring.knockout,
            background=train,
            passages=0,
            progress=lambda done, total: progress("measuring", done, total),
        ),
    )
    comparison.save(job.folder / COMPARISON)
    row = {
        "key": plan.key(cell),
        "cell": vars(cell),
        "record": _kept(read_record(job.checkpoint) or {}),
        "test": facts[0],
        "twin": facts[1] if len(facts) > 1 else None,
        "focus": {name: _headline(comparison, cell.arm, name) for name in comparison.salience},
        "threads": torch.get_num_threads(),
        "device": device,
    }
    write(job.folder / ROW, row)


def _tuned(models: list[Checkpoint], sources: list[Any]) -> Any:
    return enumerate(zip(models[1:], sources[1:], strict=True))


def _judged(model: Checkpoint, test: Corpus, source: Path, job: Job, index: int) -> dict[str, Any] | None:
    """Scores on the test texts; of the real run what every text got, too. None for a checkpoint without a record."""
    record = read_record(source)
    if record is None:
        return None
    options = job.plan.file.training
    length = int(record["options"]["max_length"])
    found = judge(model, test, record, max_length=length, batch_size=options.batch_size)
    if index == 0:
        documents = np.array([example.document for example in test])
        building = job.folder / f".{TEXTS}"
        with building.open("wb") as file:
            np.savez_compressed(file, values=found.values, documents=documents)
        building.replace(job.folder / TEXTS)
    told = {"unit": found.unit, "higher": found.higher, "texts": len(test), **found.scores}
    return told | {"selection_overlap": record.get("selection_overlap")}


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    """Of a training record what a study tells: not the curves, which stay with the checkpoint."""
    names = ("method", "seed", "task", "labels", "parameters", "metrics", "gap", "seconds", "device", "versions")
    kept = {name: record.get(name) for name in (*names, "accounting", "cost", "forgetting", "selection_overlap")}
    options, base = record.get("options") or {}, record.get("base") or {}
    return kept | {"learning_rate": options.get("learning_rate"), "base_sha256": base.get("sha256")}


def _headline(comparison: Comparison, arm: str, salience: str) -> dict[str, Any]:
    answer = comparison.answers[arm][salience]
    numbers = {name: None if value != value else value for name, value in answer.headline.items()}  # NaN
    return {"verdict": answer.verdict, **numbers, "rungs": {rung.number: rung.status for rung in answer.rungs}}


def without_weights(job: Job) -> None:
    """Remove the weights of a cell whose learning rate did not win."""
    for path in (job.checkpoint, twin_path(job.checkpoint)):
        shutil.rmtree(path, ignore_errors=True)
