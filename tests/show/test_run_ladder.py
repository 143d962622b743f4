"""All rungs through the whole job: a null, five more seeds and a knockout, given as folders without any record."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from attnlens.analysis.results import open_comparison
from attnlens.core.errors import OutputExists
from attnlens.show.folder import PAGE
from attnlens.show.run import ReportOptions, ReportResult, command, run_report
from tests.conftest import Tuning


@pytest.fixture(scope="module")
def folder(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven models that differ from the base by noise of one size, none with a record."""
    made = tmp_path_factory.mktemp("ladder")
    model = BertModel.from_pretrained(tuning.base)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("tuned", "null", "seed1", "seed2", "seed3", "seed4", "seed5"):
            moved = {n: t + 0.3 * t.std() * torch.randn_like(t) if t.ndim > 1 else t for n, t in weights.items()}
            model.load_state_dict(moved)
            model.save_pretrained(made / name)
    return made


@dataclass(frozen=True)
class Reported:
    """A finished report, what was asked, and what was told on the way."""

    asked: ReportOptions
    result: ReportResult
    said: list[str]
    further: list[tuple[int, int]]


@pytest.fixture(scope="module")
def reported(folder: Path, tuning: Tuning) -> Reported:
    said, further = list[str](), list[tuple[int, int]]()
    asked = ReportOptions(
        data=tuning.data,
        limit=32,
        max_length=64,
        output=folder / "report",
        salience=("spans", "content_words"),
        null=(folder / "null",),
        seeds=tuple(folder / f"seed{number}" for number in range(1, 6)),
        knockout=True,
        noise_band=2,
        announce=said.append,
        further=lambda done, total: further.append((done, total)),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("attnlens.show.run.report", lambda comparison, directory: (directory / PAGE).touch())
        result = run_report([tuning.base, folder / "tuned"], asked)
    return Reported(asked, result, said, further)


def test_a_null_seeds_and_a_knockout_test_every_rung(reported: Reported):
    comparison = reported.result.comparison
    assert comparison.models == ["base.ckpt", "tuned", "null"], "seeds bear on the answer of another"
    rungs = comparison.answer.rungs
    assert [rung.number for rung in rungs] == [1, 2, 3, 4, 5]
    assert {rung.status for rung in rungs} <= {"yes", "no"}, [rung.detail for rung in rungs]
    assert "more than null" in rungs[2].detail and "over 6 seeds" in rungs[3].detail
    assert "hidden state" in rungs[4].detail, "models without a head have no loss"
    second = comparison.answers["tuned"]["content_words"].rungs
    assert second[4].status == "not tested", "only the first definition's words are hidden"
    families = set(comparison.tests["family"])
    assert {"beyond null", "seeds", "causal focus", "reliance", "noise band"} <= families
    assert comparison.answers["null"]["spans"].rungs == ()


def test_progress(reported: Reported):
    assert len(reported.said) == 1
    stages = [total for done, total in reported.further if done == 0]
    assert len(stages) == 3 and {(total, total) for total in stages} <= set(reported.further), "knockout, seeds, noise"


def test_answers_survive_the_disk(reported: Reported):
    stored = open_comparison(reported.result.directory)
    assert stored.answers.keys() == reported.result.comparison.answers.keys()
    assert stored.answer == reported.result.comparison.answer and stored.answer.remarks and stored.answer.abstract
    assert stored.data["reliance"].attrs["units"] == "relative change"


def test_what_was_asked_is_part_of_the_question(folder: Path, tuning: Tuning, reported: Reported):
    both = [tuning.base, folder / "tuned"]
    assert run_report(both, reported.asked).was_complete
    words = command(both, reported.asked)
    assert words.count("--seeds") == 5 and words.count("--null ") == 1 and "--knockout --noise-band 2" in words
    with pytest.raises(OutputExists):
        run_report(both, replace(reported.asked, knockout=False))
