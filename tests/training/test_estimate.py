"""What is told before a run: its parameters are those of the run's record, its memory is counted by hand."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attnlens.cli import app
from attnlens.core.errors import TrainingError, UnknownName
from attnlens.text.corpus import Corpus
from attnlens.training.alf import Plan
from attnlens.training.estimate import _kept, _probe_steps, estimate
from attnlens.training.train import finetune
from tests.training.test_observers import FEW, bare

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("method", ["full", "last_k", "lora", "alf", "lisa"])
def test_an_estimate_is_of_the_run(method: str, tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Counts and schedule as the record has them; ALF's peak is its probe, LISA's what it draws at a time."""
    options = replace(FEW, max_steps=12, batch_size=4, accumulation=2, patience=20)
    told = estimate(tiny("bert"), corpus, method=method, options=options)
    record = finetune(tiny("bert"), corpus, method=method, output=tmp_path / "out", options=options).record
    assert told.parameters["total"] == record["parameters"]["total"] == record["accounting"]["total"]
    assert told.parameters["steady"] == record["accounting"]["instantaneous"]
    assert told.parameters["peak"] == record["accounting"]["peak"]
    judged = [row for row in record["history"] if "heldout_loss" in row]
    assert (told.steps, told.batch_size) == (12, 8)
    # One that falls into a probe of ALF waits for its end, and may meet the next.
    assert told.evaluations == len(judged) or (method == "alf" and len(judged) in range(1, told.evaluations))
    trains = told.parameters["peak"]["parameters"]
    assert told.memory["gradients"] == 4 * trains and told.memory["optimizer"] == 8 * trains
    assert told.memory["weights"] >= 4 * told.parameters["total"]
    assert told.memory["peak"] == sum(size for name, size in told.memory.items() if name != "peak")
    seconds = told.seconds
    assert seconds["all"] == seconds["training"] + seconds["evaluation"]
    assert seconds["training"] == pytest.approx(12 * seconds["step"]) and seconds["step"] > 0
    assert f"{trains:,}" in str(told) and "nothing was trained or written" in str(told)


def test_activations_by_hand():
    """A linear layer keeps its input, tanh its output: 5 · 3 and 5 · 4 numbers, and not the weights."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    task = bare(model)
    task.options = FEW
    task.work.loss = lambda outputs, labels, num_items_in_batch: outputs.sum()
    batch = {"input": torch.ones(5, 3), "labels": torch.zeros(5)}
    assert _kept(task, batch) == 4 * (5 * 3 + 5 * 4)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (Plan(warmup=10, probe=8, run=32, until=None), 10 + 8 + 8),  # 1-10, 43-50, 83-90
        (Plan(warmup=10, probe=8, run=32, until=50), 10 + 8),
        (Plan(warmup=10, probe=8, run=32, commit=True), 10),
        (Plan(warmup=200, probe=8, run=32), 100),
    ],
)
def test_steps_of_probes(plan: Plan, expected: int):
    assert _probe_steps(plan, 100) == expected


def test_nothing_is_written(tiny: Tiny, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the shell, for people and for programs; random states stay where they were."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / "new" / "tuned"
    asked = [str(tiny("bert")), "--data", str(data_file), "-o", str(output), "--max-steps", "3", "--device", "cpu"]
    state = torch.random.get_rng_state()
    shown = CliRunner().invoke(app, ["finetune", *asked, "--estimate"])
    assert shown.exit_code == 0 and "memory: about" in shown.stdout and "3 steps of 16 rows" in shown.stdout
    printed = CliRunner().invoke(app, ["finetune", *asked, "--estimate", "--json"])
    facts = json.loads(printed.stdout)
    assert facts["method"] == "full" and facts["parameters"]["steady"]["of_total"] == 1.0
    assert math.isfinite(facts["seconds"]["all"]) and facts["memory"]["peak"] > 0
    assert sorted(tmp_path.rglob("*")) == before and torch.equal(state, torch.random.get_rng_state())


def test_faults_are_those_of_a_run(tiny: Tiny, corpus: Corpus):
    with pytest.raises(UnknownName, match="did you mean 'full'"):
        estimate(tiny("bert"), corpus, method="ful")
    with pytest.raises(TrainingError, match="seed must be a whole number"):
        estimate(tiny("bert"), corpus, seed=-1)
