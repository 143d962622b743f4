"""Cells: their order, learning rates chosen on held-out rows, and keys of what their numbers depend on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnlens.analysis.studies.cells import BEGUN, FAILED, ROW, TRAINED, Cell, Plan, slug
from attnlens.analysis.studies.data import File, Files
from attnlens.analysis.studies.file import ArmPart, DataPart, MeasurePart, ModelPart, StudyFile, TrainingPart
from attnlens.checkpoints.seal import read_facts, write_facts
from attnlens.core.errors import AttnlensError, OutputExists

GRID = (1e-3, 3e-3, 1e-2)


def study(**changes: Any) -> StudyFile:
    fields: dict[str, Any] = {
        "title": "T",
        "seeds": (5, 1),
        "models": (ModelPart(name="tiny", checkpoint="base"),),
        "data": (DataPart(name="one", train="a", test="b"), DataPart(name="two", train="c", test="d")),
        "arms": (
            ArmPart(name="full", method="full", learning_rate=GRID),
            ArmPart(name="head", method="head"),
            ArmPart(name="given", checkpoints=("x",)),
        ),
    }
    return StudyFile(**(fields | changes))


def plan(folder: Path, file: StudyFile | None = None) -> Plan:
    files = {
        ("tiny", name): Files(File(Path("a"), f"{name}-train"), File(Path("b"), f"{name}-test"))
        for name in ("one", "two")
    }
    weights = {"base": "0" * 64, "x": "1" * 64}
    return Plan(file or study(), folder, {"tiny": "base"}, files, {"given": {1: "x"}}, weights)


def tried(some: Plan, *scores: float | None, data: str = "one") -> None:
    """Held-out scores of the grid's first rates; None for a run that failed."""
    for rate, score in zip(GRID, scores, strict=False):
        folder = some.folder / Cell("tiny", data, "full", rate, 5).path
        if score is None:
            write_facts(folder / FAILED, {"key": "", "error": "diverged"})
        else:
            write_facts(folder / TRAINED, {"key": some.key(Cell("tiny", data, "full", rate, 5)), "held_out": score})


def test_the_grid_is_tried_on_the_first_seed(tmp_path: Path):
    assert plan(tmp_path).grid() == [Cell("tiny", data, "full", rate, 5) for data in ("one", "two") for rate in GRID]


def test_cells_come_seed_by_seed_and_those_of_open_rates_wait(tmp_path: Path):
    some = plan(tmp_path)
    head = [Cell("tiny", "one", "head", None, 5), Cell("tiny", "two", "head", None, 5)]
    rest = [Cell("tiny", data, arm, None, 1) for data in ("one", "two") for arm in ("head", "given")]
    assert some.cells() == [*head, *rest]  # what was given has seed 1 alone
    tried(some, 0.1, 0.3, 0.2)
    found = some.cells()
    assert found[0] == Cell("tiny", "one", "full", 3e-3, 5) and found[1:3] == head
    assert found[3] == Cell("tiny", "one", "full", 3e-3, 1) and len(found) == 8
    assert some.size == 2 * 2 + 2 * 2 + 2
    assert set(found) <= set(some.possible()) and set(some.grid()) <= set(some.possible())
    assert len(some.possible()) == 2 * (3 * 2 + 2 + 1)


def test_the_rate_is_the_best_on_held_out_rows(tmp_path: Path):
    some = plan(tmp_path)
    full = some.arm("full").name
    assert some.chosen("tiny", "one", some.arm(full)) is None
    tried(some, 0.1, 0.4)
    assert some.chosen("tiny", "one", some.arm(full)) is None  # one is left to try
    tried(some, 0.1, 0.4, 0.2)
    assert some.chosen("tiny", "one", some.arm(full)) == 3e-3
    assert some.chosen("tiny", "two", some.arm(full)) is None  # each data set has its own
    tried(some, -2.0, -3.0, -1.0)  # negative losses
    assert some.chosen("tiny", "one", some.arm(full)) == 1e-2


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ((0.4, 0.4, 0.4), 1e-3),
        ((0.1, 0.4, 0.4), 3e-3),
        ((None, 0.2, 0.1), 3e-3),
        ((0.1, None, 0.1), 1e-3),
        ((None, None, None), None),
    ],
)
def test_of_equals_the_smaller_rate_and_none_that_failed(
    tmp_path: Path, scores: tuple[float | None, ...], rate: float | None
):
    some = plan(tmp_path)
    tried(some, *scores)
    assert some.chosen("tiny", "one", some.arm("full")) == rate


def test_the_order_of_the_grid_does_not_matter(tmp_path: Path):
    turned = study(arms=(ArmPart(name="full", method="full", learning_rate=GRID[::-1]),))
    some = plan(tmp_path, turned)
    tried(some, 0.4, 0.4, 0.1)
    assert some.chosen("tiny", "one", some.arm("full")) == 1e-3


def test_one_rate_needs_no_grid(tmp_path: Path):
    some = plan(tmp_path, study(arms=(ArmPart(name="full", method="full", learning_rate=(2e-3,)),)))
    assert some.grid() == [] and [cell.rate for cell in some.cells()] == [2e-3] * 4


HEAD = Cell("tiny", "one", "head", None, 5)
SAME = {
    "another seed": {"seeds": (5, 1, 7)},
    "other rates of another arm": {
        "arms": (ArmPart(name="full", method="full", learning_rate=(1.0,)), ArmPart(name="head", method="head"))
    },
    "another arm": {"arms": (ArmPart(name="head", method="head"), ArmPart(name="lora", method="lora"))},
    "title, margin, reference": {"title": "U", "margin": 0.5, "reference": "head"},
    "weights are not kept": {"keep_checkpoints": False},
}
OTHER = {
    "steps": {"training": TrainingPart(max_steps=3)},
    "texts that are measured": {"measure": MeasurePart(limit=7)},
    "twin": {"arms": (ArmPart(name="head", method="head", twin=True),)},
    "method": {"arms": (ArmPart(name="head", method="last_k"),)},
    "option": {"arms": (ArmPart(name="head", method="last_k", k=2),)},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_a_key_does_not_depend_on_other_cells(tmp_path: Path, changes: dict[str, Any]):
    assert plan(tmp_path, study(**changes)).key(HEAD) == plan(tmp_path / "elsewhere").key(HEAD)


def test_a_key_depends_on_all_that_its_numbers_depend_on(tmp_path: Path):
    some = plan(tmp_path)
    keys = [plan(tmp_path, study(**changes)).key(HEAD) for changes in OTHER.values()]
    keys += [some.key(replace(HEAD, **change)) for change in ({"seed": 1}, {"data": "two"}, {"rate": 1e-3})]
    keys += [replace(some, weights=some.weights | {"base": "2" * 64}).key(HEAD)]
    train, test = some.files["tiny", "one"]
    for files in (Files(File(train.path, "other"), test), Files(train, File(test.path, "other"))):
        keys.append(replace(some, files=some.files | {("tiny", "one"): files}).key(HEAD))
    assert len({*keys, some.key(HEAD)}) == len(keys) + 1
    moved = Files(File(Path("elsewhere"), train.sha256), test)  # where a file lies says nothing
    assert replace(some, files=some.files | {("tiny", "one"): moved}).key(HEAD) == some.key(HEAD)


def test_the_key_of_a_given_checkpoint_has_its_weights(tmp_path: Path):
    some, cell = plan(tmp_path), Cell("tiny", "one", "given", None, 1)
    other = replace(some, weights=some.weights | {"x": "2" * 64})
    assert other.key(cell) != some.key(cell) and other.key(HEAD) == some.key(HEAD)


@pytest.mark.parametrize("name", [TRAINED, ROW])
def test_cells_of_another_study_are_refused(tmp_path: Path, name: str):
    some = plan(tmp_path)
    write_facts(some.folder / HEAD.path / name, {"key": some.key(HEAD)})
    some.check(some.possible())
    other = plan(tmp_path, study(training=TrainingPart(max_steps=3)))
    assert other.strange(other.possible()) == [HEAD]
    with pytest.raises(OutputExists, match=r"cells of another study file.*\(tiny, one: head, seed 5 was trained or"):
        other.check(other.possible())


def test_what_was_not_finished_is_no_obstacle(tmp_path: Path):
    write_facts(tmp_path / HEAD.path / BEGUN, {"key": "other"})
    write_facts(tmp_path / HEAD.path / FAILED, {"key": "other", "error": "no memory"})
    plan(tmp_path).check(plan(tmp_path).possible())


def test_names_that_would_share_a_folder_are_refused(tmp_path: Path):
    assert slug("LISA, 2 blocks") == "LISA-2-blocks" and slug("…") == "unnamed" and slug("a.b_c-d") == "a.b_c-d"
    arms = (ArmPart(name="LISA, 2", method="lisa"), ArmPart(name="LISA 2", method="full"))
    with pytest.raises(AttnlensError, match="the name 'LISA, 2' among the arms differs from another by signs alone"):
        plan(tmp_path, study(arms=arms)).folders()
    models = (ModelPart(name="Tiny", checkpoint="a"), ModelPart(name="tiny", checkpoint="b"))
    with pytest.raises(AttnlensError, match="'Tiny' among the models"):
        plan(tmp_path, study(models=models)).folders()
    plan(tmp_path).folders()


def test_a_cell_has_a_name_and_a_place():
    cell = Cell("tiny", "one", "LISA, 2", 1e-3, 5)
    assert cell.name == "tiny, one: LISA, 2 at 0.001, seed 5"
    assert cell.path == Path("cells/tiny/one/LISA-2/rate-0.001/seed-5")
    assert replace(cell, rate=None).path.parent.name == "rate-default"


def test_facts_are_on_disk_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "folder" / "row.json"
    assert read_facts(path) is None
    write_facts(path, {"ä": [1, None]})
    assert read_facts(path) == {"ä": [1, None]}
    with pytest.raises(TypeError):
        write_facts(path, {"ä": object()})
    assert read_facts(path) == {"ä": [1, None]}
