"""The training record `attnlens.json`: what a checkpoint was trained from, on, with and to what end."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import attnlens
from attnlens.checkpoints.identity import RECORD, home_free, weights_sha256
from attnlens.checkpoints.remote_code import code_facts
from attnlens.core.errors import CorpusError
from attnlens.text.corpus import Corpus, corpus_checksum, read_corpus
from attnlens.text.readers import raw_rows
from attnlens.training.accounting import parameters_in_use, switching_history, trained_parameters
from attnlens.training.alf import LayerController
from attnlens.training.base import Base
from attnlens.training.job import Job
from attnlens.training.judging import evaluation
from attnlens.training.loop import Outcome
from attnlens.training.processes import processes
from attnlens.training.split import Split

HISTORY = 200  # points of the loss curve at most: a record stays readable after 100,000 steps


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Write the record into a directory that no reader sees yet."""
    text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
    (directory / RECORD).write_text(text + "\n", encoding="utf-8")


def recorded_corpus(record: dict[str, Any], part: str) -> Corpus | None:
    """The rows a run trained on (part "train") or held out ("heldout"), read again; None where they were never a file.

    A record may come from a stranger: its path is followed only to a file or data set with the record's checksum.
    """
    facts = (record.get("data") or {}).get(part) or {}
    if not facts.get("path"):
        return None
    shown, path = facts["path"], Path(facts["path"]).expanduser()
    if not path.exists():
        raise CorpusError(f"the data {shown} named in the training record is not there: add --data FILE.")
    if corpus_checksum(path) != facts.get("sha256"):
        raise CorpusError(f"{shown} has changed since training (its sha256 is not the record's): add --data FILE.")
    corpus = read_corpus(path, columns=(record.get("options") or {}).get("columns"))
    rows = facts.get("rows_used") if part == "train" else facts.get("rows")
    if rows is None:
        return corpus
    if not isinstance(rows, list) or not all(isinstance(row, int) and 0 <= row < len(corpus) for row in rows):
        raise CorpusError(f"the training record names rows that {shown} does not have: add --data FILE.")
    return corpus.select(rows)


def recorded_columns(record: dict[str, Any] | None, path: Path) -> dict[str, str] | None:
    """Of the columns that a run was told to read, those that another file has too; None where there are none."""
    named = ((record or {}).get("options") or {}).get("columns")
    if not isinstance(named, dict):
        return None
    present = {column for _, row in raw_rows(path, ()) for column in row}
    return {field: column for field, column in named.items() if column in present} or None


def describe_base(base: Base) -> dict[str, Any]:
    """Identity of the model that training started from; `new_parameters` were drawn at random by the seed."""
    return {
        "path": base.path,
        "name": base.name,
        "sha256": weights_sha256(base.directory),
        "remote_code": code_facts(base.directory),
        "new_parameters": list(base.new_parameters),
    }


def describe_data(data: Split, train: Path | None, heldout: Path | None) -> dict[str, Any]:
    """What was trained and tested on; the paths are None for a corpus that was built in memory.

    `rows` of the held-out data are row numbers of its file, None for the whole file.
    """
    return {
        "train": {
            "path": home_free(train) if train is not None else None,
            "name": data.corpus.name,
            "sha256": data.corpus.checksum,
            "rows": len(data.corpus),
            "documents": len({example.document for example in data.corpus}) if data.corpus.has_documents else None,
            "rows_used": data.train_rows,
        },
        "heldout": {
            "path": home_free(heldout) if heldout is not None else None,
            "name": data.heldout.name,
            "sha256": data.heldout.checksum,
            "rows": data.heldout_rows,
            "examples": len(data.heldout),
        },
    }


def describe_order(job: Job, base: dict[str, Any]) -> dict[str, Any]:
    """What makes a run this one and no other, in plain JSON values: base, rows, and all that it was told.

    A run is resumed by the same order alone. Where the files lie and whether a twin follows makes no difference.
    """
    data = job.data
    rows = [[example.id for example in part] for part in (data.train, data.heldout)]
    asked = {name: value for name, value in job.options.record().items() if name not in {"null_twin", "general"}}
    order = {
        "base": base["sha256"],
        "remote_code": base["remote_code"],
        "data": data.corpus.checksum,
        "validation data": data.heldout.checksum,
        "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "method": job.method.name,
        "seed": job.seed,
        "processes": processes(),
        "step of the twin": job.stop_at,
        **{name: value for name, value in asked.items() if name != "validation"},
    }
    return json.loads(json.dumps(order))


def describe_run(job: Job, outcome: Outcome) -> dict[str, Any]:
    """How the model was trained, how far it got, and the versions on which an equal repetition depends."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in parameters_in_use(job.model)]
    return {
        "attnlens": attnlens.__version__,
        "kind": "finetune",
        "method": job.method.name,
        "k": job.selection.settings.get("k"),
        "selection": job.selection.settings,
        "task": job.work.task,
        "seed": job.seed,
        "options": outcome.settings,
        "fault": outcome.fault,
        "parameters": {"trainable": sum(n for n, trains in counts if trains), "total": sum(n for n, _ in counts)},
        **job.work.counts,
        "metrics": outcome.metrics,
        **outcome.judgement,
        "history": history(outcome.logs),
        "seconds": round(outcome.seconds, 3),
        "device": outcome.device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }


def describe_training(job: Job, controller: LayerController | None, outcome: Outcome) -> dict[str, Any]:
    """How much was trained, and where blocks were chosen during training, which, when and why."""
    steps, kept = (int(outcome.metrics[name]) for name in ("steps", "best_step"))
    return {
        "accounting": trained_parameters(job.base.model, controller, steps, job.model, kept=kept),
        "switching": switching_history(job.base.model, controller) if controller is not None else None,
    }


def history(logs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The loss curve and the evaluations of a run, from the Trainer's log of every step.

    Steps are pooled into at most 200 bins of equal length: `loss` is the mean over the bin that ends at `step`,
    `learning_rate` the last one. Rows with `heldout_loss` are evaluations on the held-out data, at step 0 of the base.
    """
    steps = [entry for entry in logs if "loss" in entry and "learning_rate" in entry]
    width = -(-len(steps) // HISTORY)
    rows: list[dict[str, float]] = []
    for first in range(0, len(steps), max(width, 1)):
        pooled = steps[first : first + width]
        loss = sum(entry["loss"] for entry in pooled) / len(pooled)
        rows.append({"step": pooled[-1]["step"], "loss": loss, "learning_rate": pooled[-1]["learning_rate"]})
    for entry in logs:
        if "eval_loss" in entry:
            measured = evaluation(entry)
            rows.append({"step": entry["step"], "heldout_loss": measured.pop("loss"), **measured})
    return sorted(rows, key=lambda row: row["step"])
