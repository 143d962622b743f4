"""A study without training: arms whose numbers are drawn, so that tables, words, figures and page can be tested."""

from pathlib import Path

import numpy as np

from attnlens.analysis.results import STORE
from attnlens.analysis.studies.cells import ROW, Cell, Plan
from attnlens.analysis.studies.data import File, Files
from attnlens.analysis.studies.file import read_study
from attnlens.analysis.studies.outcome import StudyOutcome, outcome
from attnlens.analysis.studies.work import COMPARISON, TEXTS, TWIN
from attnlens.checkpoints.seal import write_facts
from tests.show.synthetic import make_comparison

HOSTILE = "<script>$x$ & co"
FILE = """
title = "A study"
seeds = [0, 1, 2, 3, 4, 5]
reference = "full"
margin = 0.02
[[models]]
name = "base"
checkpoint = "nowhere"
[[data]]
name = "contracts"
train = "train.jsonl"
test = "test.jsonl"
[[arms]]
name = "full"
method = "full"
learning_rate = [1e-4, 2e-4]
twin = true
[[arms]]
name = "ALF"
method = "alf"
[[arms]]
name = "<script>$x$ & co"
method = "lora"
"""
# Of each arm: accuracy, share of the weights, seconds.
ARMS = {"full": (0.80, 1.0, 100.0), "ALF": (0.81, 0.3, 80.0), HOSTILE: (0.55, 0.01, 70.0)}


def made(folder: Path, seeds: int = 6, *, failed: bool = False) -> StudyOutcome:
    """A finished study in a folder; of a smaller number of seeds the rest is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(FILE)
    here = File(folder / "study.toml", "0" * 64)
    plan = Plan(
        read_study(folder / "study.toml"),
        folder,
        {"base": "nowhere"},
        {("base", "contracts"): Files(here, here)},
        {},
        {"nowhere": "1" * 64},
    )
    for rate, score in ((1e-4, 0.5), (2e-4, 0.6)):
        cell = Cell("base", "contracts", "full", rate, 0)
        write_facts(folder / cell.path / "trained.json", {"key": plan.key(cell), "held_out": score})
    for cell in plan.cells():
        if cell.seed < seeds:
            _write(plan, cell)
    lost = {Cell("base", "contracts", "ALF", None, 9): "out of memory"} if failed else {}
    return outcome(plan, lost)


def _write(plan: Plan, cell: Cell) -> None:
    """One cell: what 40 documents of two texts got right, a comparison, a row."""
    accuracy, share, seconds = ARMS[cell.arm]
    rng = np.random.default_rng([cell.seed, list(ARMS).index(cell.arm)])
    right = (rng.random(80) < accuracy + 0.01 * cell.seed).astype(float)
    folder = plan.folder / cell.path
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / TEXTS, values=right, documents=np.repeat([f"d{n}" for n in range(40)], 2))
    twin = plan.arm(cell.arm).twin
    comparison = make_comparison(tuned=(cell.arm, TWIN) if twin else (cell.arm,), shape=(6, 5), seed=cell.seed)
    comparison.save(folder / COMPARISON)
    assert (folder / COMPARISON / STORE).exists()
    overlap = {"active": [4, 5], "jaccard": {"last_k": 1.0, "first_k": 0.0, "rms": 1 / 3}, "chance": 0.25}
    record = {
        "method": plan.arm(cell.arm).method,
        "learning_rate": 2e-4,
        "metrics": {"best_step": 7, "macro_f1": 0.5},
        "accounting": {part: {"of_total": share, "of_blocks": share} for part in ("mean", "peak", "cumulative")},
        "cost": {"seconds": seconds + cell.seed, "flops": 1e12, "peak_memory": 2**20, "checkpoint_bytes": 10},
        "forgetting": {"loss_before": 2.0, "loss_after": 2.5, "kl": 0.1, "drift": [0.0, 0.25]},
        "selection_overlap": overlap if cell.arm == "ALF" else None,
    }
    test = {"unit": "accuracy", "higher": True, "texts": 80, "accuracy": float(right.mean()), "macro_f1": 0.5}
    focus = {"keyness": {"verdict": "yes", "layer": 6, "estimate": 9.0, "low": 4.0, "high": 14.0, "rungs": {}}}
    row = {"key": plan.key(cell), "cell": vars(cell), "record": record, "test": test, "focus": focus}
    write_facts(folder / ROW, row | {"twin": {"accuracy": 0.1} if twin else None, "threads": 1, "device": "cpu"})
