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
from attnlens.analysis.studies.cells import BEGUN, ROW, TRAINED, Cell, Plan
from attnlens.analysis.studies.file import TWIN
from attnlens.analysis.studies.judge import Judgement, judge
from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.load import Checkpoint, load_all
from attnlens.checkpoints.seal import read_facts, write_facts
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune
from attnlens.training.twin import twin_path

CHECKPOINT, COMPARISON, TEXTS = "tuned.ckpt", "comparison", "texts.npz"
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
        return there and read_facts(self.folder / TRAINED) is not None

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
    if read_facts(job.folder / BEGUN) not in (None, key):
        shutil.rmtree(job.folder)
    write_facts(job.folder / BEGUN, key)
    if job.cell.arm not in job.plan.given and not job.is_trained:
        _train(job, progress)
    if job.measure and read_facts(job.folder / ROW) is None:
        _measure(job, progress)
        if not job.plan.file.keep_checkpoints and job.cell.arm not in job.plan.given:
            without_weights(job)


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
    write_facts(job.folder / TRAINED, {"key": plan.key(cell), "held_out": score})


def _measure(job: Job, progress: Progress) -> None:
    """Judge on the test texts, compare with the base, and write the row last."""
    plan, cell, measuring = job.plan, job.cell, job.plan.file.measure
    sources = [plan.models[cell.model], job.checkpoint, *([job.twin] if job.twin is not None else [])]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = load_all(sources, names=(cell.model, cell.arm, TWIN)[: len(sources)], device=device)
    train, test = (read_corpus(file.path) for file in plan.files[cell.model, cell.data])
    judged = [_judged(model, test, source, plan) for model, source in zip(models[1:], sources[1:], strict=True)]
    comparison = compare(
        models[0],
        models[1:],
        corpus=test,
        salience=measuring.salience,
        options=CompareOptions(
            **measuring.model_dump(exclude={"salience"}),
            background=train,
            passages=0,
            progress=lambda done, total: progress("measuring", done, total),
        ),
    )
    _keep_texts(job.folder / TEXTS, judged[0], test)
    comparison.save(job.folder / COMPARISON)
    row = {
        "key": plan.key(cell),
        "cell": vars(cell),
        "record": _kept(read_record(job.checkpoint) or {}),
        "test": _told(judged[0]),
        "twin": None
        if job.twin is None
        else _told(judged[1]) | {"selection_overlap": (read_record(job.twin) or {}).get("selection_overlap")},
        "focus": {name: _headline(comparison, cell.arm, name) for name in comparison.salience},
        "threads": torch.get_num_threads(),
        "device": device,
    }
    write_facts(job.folder / ROW, row)


def _judged(model: Checkpoint, test: Corpus, source: str | Path, plan: Plan) -> Judgement | None:
    """What every test text got; None for a checkpoint without a record of its training."""
    record = read_record(source)
    if record is None:
        return None
    length, batch_size = int(record["options"]["max_length"]), plan.file.training.batch_size
    return judge(model, test, record, max_length=length, batch_size=batch_size)


def _told(judgement: Judgement | None) -> dict[str, Any]:
    """The scores of the whole, for the row."""
    if judgement is None:
        return {}
    return {"unit": judgement.unit, "higher": judgement.higher, "texts": len(judgement.values), **judgement.scores}


def _keep_texts(path: Path, judgement: Judgement | None, test: Corpus) -> None:
    """What every text got, with its document; there before the row that makes the cell finished."""
    if judgement is not None:
        np.savez_compressed(path, values=judgement.values, documents=np.array([each.document for each in test]))


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
    """Remove the weights of a cell, which nobody needs any more."""
    for path in (job.checkpoint, twin_path(job.checkpoint)):
        shutil.rmtree(path, ignore_errors=True)
