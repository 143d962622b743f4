"""What a study found, against numbers computed by hand from its cells; the cells are worked on in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnlens.analysis.results import Comparison, open_comparison
from attnlens.analysis.studies.cells import BEGUN, ROW, TRAINED, Cell, Plan
from attnlens.analysis.studies.focus import Focus
from attnlens.analysis.studies.outcome import StudyOutcome, cell_row, outcome
from attnlens.analysis.studies.run import StudyOptions, planned
from attnlens.analysis.studies.work import COMPARISON, TEXTS, TWIN, Job, carry_out
from attnlens.checkpoints.seal import read_facts, write_facts
from tests.analysis.studies.small import FROZEN, GIVEN, GRID, small
from tests.conftest import Tuning

FULL = '[[arms]]\nname = "full"\nmethod = "full"\nlearning_rate = 1e-2\ntwin = true\n'
BARE = '[[arms]]\nname = "bare"\ncheckpoints = ["{tuning.base}"]\n'


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def found(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> StudyOutcome:
    """Two seeds of full, with twins, and of head; one checkpoint with a record, and one without."""
    folder = tmp_path_factory.mktemp("outcome")
    plan = planned(small(folder, tuning, FULL, FROZEN, GIVEN, BARE), StudyOptions(output=folder / "study"))
    for cell in plan.cells():
        carry_out(Job(plan, cell, measure=True), silent)
    return outcome(plan)


def comparison(found: StudyOutcome, arm: str, seed: int) -> Comparison:
    (cell,) = [cell for cell in found.plan.cells() if (cell.arm, cell.seed) == (arm, seed)]
    return open_comparison(found.plan.folder / cell.path / COMPARISON)


def by_hand(found: StudyOutcome, arm: str, seed: int, *, less: str | int = 0) -> dict[str, np.ndarray]:
    """(L,) of each document: its texts' mean change of focus, the mean over the heads that have data."""
    data = comparison(found, arm, seed).data["focus"].sel(salience="spans")
    other = data.isel(model=less) if isinstance(less, int) else data.sel(model=less)
    change = (data.sel(model=arm) - other).transpose("example", "layer", "head").values
    documents: dict[str, list[np.ndarray]] = {}
    for name, text in zip(data["document"].values, change, strict=True):
        layers = [row[~np.isnan(row)].mean() if (~np.isnan(row)).any() else np.nan for row in text]
        documents.setdefault(str(name), []).append(np.array(layers))
    means = {name: np.array(texts) for name, texts in documents.items()}
    known = {name: texts[~np.isnan(texts).any(1)] for name, texts in means.items()}
    return {name: texts.mean(0) for name, texts in known.items() if len(texts)}


def rows(found: StudyOutcome, arm: str, family: str) -> np.ndarray:
    table = found.profiles[(found.profiles["arm"] == arm) & (found.profiles["family"] == family)]
    assert table["layer"].tolist() == [0, 1]
    return table["estimate"].to_numpy()


def test_profiles_are_means_over_seeds_and_documents(found: StudyOutcome):
    seeds = [by_hand(found, "full", seed) for seed in (0, 1)]
    assert seeds[0].keys() == seeds[1].keys() and len(seeds[0]) > 20
    mean = np.mean([[of[name] for name in of] for of in seeds], axis=(0, 1))
    assert np.abs(mean).max() > 1e-4, "a test that could not fail"
    for family in ("seeds", "profile"):
        np.testing.assert_allclose(rows(found, "full", family), mean, rtol=1e-5)
    nulls = [by_hand(found, "full", seed, less=TWIN) for seed in (0, 1)]
    np.testing.assert_allclose(
        rows(found, "full", "beyond null"), np.mean([[of[name] for name in of] for of in nulls], axis=(0, 1)), rtol=1e-5
    )
    given = by_hand(found, "given", 0)
    np.testing.assert_allclose(rows(found, "given", "seeds"), np.mean([*given.values()], axis=0), rtol=1e-5)


def test_a_rival_is_met_seed_by_seed(found: StudyOutcome):
    """The base cancels not here: against full, an arm that moves nothing is moved back by what full moves."""
    np.testing.assert_allclose(rows(found, "head", "against rival"), -rows(found, "full", "seeds"), rtol=1e-5)
    one = by_hand(found, "full", 0)
    given = by_hand(found, "given", 0)
    expected = np.mean([given[name] - one[name] for name in one], axis=0)
    np.testing.assert_allclose(rows(found, "given", "against rival"), expected, rtol=1e-5)
    assert "against rival" not in set(found.profiles.loc[found.profiles["arm"] == "full", "family"])


def test_the_arms_show_the_layer_that_moved_most(found: StudyOutcome):
    arms = {row["arm"]: row for row in found.arms.to_dict("records")}
    for arm in ("full", "given"):
        estimates = rows(found, arm, "seeds")
        layer = int(np.abs(estimates).argmax())
        assert arms[arm]["focus_layer"] == layer + 1
        assert arms[arm]["focus"] == pytest.approx(100 * estimates[layer])
    assert arms["head"]["focus"] == 0


def test_quality_is_that_of_the_texts(found: StudyOutcome):
    """Every document of these clauses has as many texts, so its mean is that of all."""
    arms = {row["arm"]: row for row in found.arms.to_dict("records")}
    for arm, seeds in (("full", (0, 1)), ("head", (0, 1)), ("given", (0,))):
        values = []
        for cell in found.plan.cells():
            if cell.arm == arm:
                with np.load(found.plan.folder / cell.path / TEXTS) as arrays:
                    documents, texts = arrays["documents"], arrays["values"]
                values.append(np.mean([texts[documents == name].mean() for name in np.unique(documents)]))
                row = found.cells[(found.cells["arm"] == arm) & (found.cells["seed"] == cell.seed)].iloc[0]
                assert row["accuracy"] == pytest.approx(texts.mean()) and row["texts"] == len(texts)
        assert len(values) == arms[arm]["seeds"] == len(seeds)
        assert arms[arm]["quality"] == pytest.approx(np.mean(values))
    bare = arms["bare"]
    assert bare["seeds"] == 0 and np.isnan(bare["quality"]) and bare["verdict"] == ""


def test_costs_are_means_over_seeds(found: StudyOutcome):
    full = found.cells[found.cells["arm"] == "full"]
    arms = {row["arm"]: row for row in found.arms.to_dict("records")}
    assert arms["full"]["trained"] == 100 and arms["full"]["flops"] == pytest.approx(full["flops"].mean())
    assert 0 < arms["head"]["trained"] < 1 and arms["head"]["trained_of_blocks"] == 0


def test_pairs_take_the_seeds_of_both(found: StudyOutcome):
    pairs = {(row["measure"], row["arm"], row["other"]): row for row in found.pairs.to_dict("records")}
    assert pairs["quality", "full", "head"]["n_seeds"] == 2 and pairs["quality", "full", "given"]["n_seeds"] == 1
    total = rows(found, "full", "seeds").sum()  # head moves nothing
    assert pairs["focus", "full", "head"]["estimate"] == pytest.approx(total, rel=1e-4)
    assert ("quality", "full", "bare") not in pairs and ("focus", "full", "bare") in pairs


def rungs(found: StudyOutcome, arm: str) -> dict[int, Any]:
    return {rung.number: rung for rung in found.answers["tiny", "clauses"][arm].rungs}


def test_the_ladder_is_that_of_the_study(found: StudyOutcome):
    full = rungs(found, "full")
    assert full[3].status in ("yes", "no") and "over 2 paired seeds" in full[3].detail and full[3].command == ""
    assert full[4].status == "not tested"
    assert full[4].command == "seeds = [0, 1, 2, 3, 4, 5], or more, in the study file"
    assert full[5].command == "knockout = true in [measure] of the study file"
    given = rungs(found, "given")
    assert given[3].status == "not tested" and given[3].command == "twin = true in the [[arms]] of this arm"
    answers = found.answers["tiny", "clauses"]
    assert answers["full"].sentence.endswith(" Mean over 2 seeds.") and "Mean over" not in answers["given"].sentence
    assert any("Against the training of full, over 1 paired seeds" in remark for remark in answers["given"].remarks)


def test_a_frozen_backbone_is_identical(found: StudyOutcome):
    for arm in ("head", "bare"):
        answer = found.answers["tiny", "clauses"][arm]
        assert answer.verdict == "identical" and {rung.status for rung in answer.rungs} == {"not applicable"}
        np.testing.assert_array_equal(rows(found, arm, "seeds"), 0)
    verdicts = dict(zip(found.arms["arm"], found.arms["verdict_focus"], strict=True))
    assert verdicts["head"] == "identical" and verdicts["full"] in ("yes", "away", "no", "unclear")


def test_an_outcome_of_no_cell_is_empty(tuning: Tuning, tmp_path: Path):
    plan = planned(
        small(tmp_path, tuning, FULL, GRID.replace("full", "other", 1)), StudyOptions(output=tmp_path / "study")
    )
    failed = {plan.cells()[0]: "no memory"}
    found = outcome(plan, failed)
    assert found.cells.empty and found.arms.empty and found.answers == {} and found.planned == 4
    assert found.failed == failed and "0 of 4 cells, 1 failed" in repr(found)


def test_without_marked_words_quality_stands_alone(found: StudyOutcome, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attnlens.analysis.studies.outcome.focus_of", lambda plan, rows: Focus())
    bare = outcome(found.plan)
    assert bare.profiles.empty and bare.arms["focus"].isna().all() and set(bare.arms["verdict_focus"]) == {""}
    np.testing.assert_array_equal(bare.arms["quality"], found.arms["quality"])
    assert set(bare.pairs["measure"]) == {"quality"}


def test_a_row_of_the_table_by_hand(tuning: Tuning, tmp_path: Path):
    plan = planned(small(tmp_path, tuning, GRID), StudyOptions(output=tmp_path / "study"))
    record = {
        "method": "full",
        "learning_rate": 1e-2,
        "metrics": {"macro_f1": 0.4, "best_step": 7},
        "accounting": {"mean": {"of_total": 0.25, "of_blocks": 0.5}, "peak": {"of_total": 1.0}},
        "cost": {"seconds": 3.0},
        "forgetting": {"loss_before": 2.0, "loss_after": 2.5, "kl": 0.1, "drift": [0.0, 0.3]},
    }
    focus = {"verdict": "yes", "layer": 2, "estimate": 4.0, "low": None, "high": None}
    row: dict[str, Any] = {
        "record": record,
        "test": {"accuracy": 0.5, "macro_f1": 0.25, "texts": 8},
        "twin": {"accuracy": 0.125},
        "focus": {"spans": focus},
        "threads": 1,
        "device": "cpu",
    }
    cell = Cell("tiny", "clauses", "full", 1e-2, 0)
    folder = plan.folder / cell.path
    folder.mkdir(parents=True)
    values, documents = [1.0, 0.0, 1.0, 1.0], ["a", "a", "a", "b"]  # ⅔ and 1
    np.savez(folder / TEXTS, values=values, documents=documents)
    made = cell_row(plan, cell, row)
    expected = {
        "at_edge": True,
        "learning_rate": 1e-2,
        "quality": pytest.approx((2 / 3 + 1) / 2),
        "accuracy": 0.5,
        "held_out": 0.4,
        "best_step": 7,
        "trained": 25.0,
        "trained_of_blocks": 50.0,
        "peak_trained": 100.0,
        "changed": None,
        "forgetting": 0.5,
        "kl": 0.1,
        "drift": 0.3,
        "null_accuracy": 0.125,
        "focus_spans_verdict": "yes",
        "focus_spans_estimate": 4.0,
    }
    assert {name: made[name] for name in expected} == expected


# --- cells -------------------------------------------------------------------------------------------------------


def interrupted(plan: Plan, cell: Cell) -> None:
    """Stopped in the middle of its training."""

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(Job(plan, cell, measure=False), stop)


def test_what_another_study_began_is_begun_anew(tuning: Tuning, tmp_path: Path):
    path = small(tmp_path, tuning, FROZEN)
    path.write_text(path.read_text().replace("max_steps = 16", "max_steps = 8"))
    first = planned(path, StudyOptions(output=tmp_path / "study"))
    cell = first.cells()[0]
    interrupted(first, cell)
    left = first.folder / cell.path
    assert read_facts(left / BEGUN) == {"key": first.key(cell)} and not (left / TRAINED).exists()
    path.write_text(path.read_text().replace("max_steps = 8", "max_steps = 4"))
    second = planned(path, StudyOptions(output=tmp_path / "study"))
    (left / "mark").touch()
    carry_out(Job(second, cell, measure=False), silent)
    assert (read_facts(left / TRAINED) or {})["key"] == second.key(cell) and not (left / "mark").exists()


def test_a_trained_cell_without_its_weights_is_trained_again(tuning: Tuning, tmp_path: Path):
    """As when a learning rate that lost wins, for another was taken out of the grid."""
    plan = planned(small(tmp_path, tuning, FROZEN), StudyOptions(output=tmp_path / "study"))
    job = Job(plan, plan.cells()[0], measure=True)
    write_facts(job.folder / TRAINED, {"key": plan.key(job.cell), "held_out": 0.5})
    assert not job.is_trained
    job.checkpoint.mkdir()
    assert job.is_trained and read_facts(job.folder / ROW) is None
