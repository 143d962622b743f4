"""The default path of somebody with little data: tuned, and reported on the few texts that were held out."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.shell import Run
from tests.conftest import Tuning

SENTENCES = (
    "The tenant shall pay the rent on the first day of each month.",
    "The court of the capital governs every dispute of the parties.",
)


def few(path: Path, documents: int) -> Path:
    """A row of each label in every document."""
    rows = [
        {"text": f"{sentence} Clause {number}.", "label": label, "document": f"d{number}"}
        for number in range(documents)
        for sentence, label in zip(SENTENCES, ("pay", "law"), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("unpictured")
@pytest.mark.parametrize(("documents", "heldout"), [(3, 1), (10, 2), (15, 3)])
def test_a_report_on_few_held_out_documents(
    attnlens: Run, tuning: Tuning, tmp_path: Path, documents: int, heldout: int
):
    data = few(tmp_path / "few.jsonl", documents)
    done = attnlens("finetune", tuning.base, "--data", data, "--max-steps", "2", "-o", "few.ckpt")
    assert done.code == 0, done.err
    done = attnlens("report", "few.ckpt")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "report-base.ckpt-vs-few.ckpt" / "summary.json").read_text())
    assert summary["documents"] == heldout
    assert f"Only {heldout} document{'s' if heldout > 1 else ''}:" in done.out
    assert (tmp_path / "report-base.ckpt-vs-few.ckpt" / "report.html").is_file()


def test_a_report_needs_nothing_but_the_adapter_that_was_trained(
    attnlens: Run, tuning: Tuning, tmp_path: Path, undrawn: None
):
    """Base and held-out texts are found through it; both models are one, so that the base has its own weights."""
    data = few(tmp_path / "few.jsonl", 10)
    done = attnlens("finetune", tuning.base, "--data", data, "--method", "lora", "--max-steps", "2", "-o", "lora.ckpt")
    assert done.code == 0, done.err
    assert "fine-tuned by 'lora'" in done.out
    done = attnlens("report", "lora.ckpt", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["texts"] == 4


def test_one_text_is_enough_for_a_report(attnlens: Run, tuning: Tuning, tmp_path: Path):
    done = attnlens("report", tuning.tuned, "--limit", "1", "--json", "-o", "one")
    assert done.code == 0, done.err
    assert json.loads(done.out)["texts"] == 1 and (tmp_path / "one" / "report.html").is_file()


def test_an_interrupted_training_says_so(attnlens: Run, tuning: Tuning, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("attnlens.training.train.train_model", lambda *_: signal.raise_signal(signal.SIGINT))
    done = attnlens("finetune", tuning.base, "--data", few(tmp_path / "few.jsonl", 3), "-o", "few.ckpt")
    assert (done.code, done.out, done.err) == (130, "", "Interrupted: nothing unfinished was kept.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["few.jsonl"]
