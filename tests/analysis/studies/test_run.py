"""Whole small studies through real processes: killed, resumed, side by side, with failures, and never run twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attnlens.analysis.studies.cells import BEGUN, CELLS, FAILED, ROW, TRAINED, Cell, Plan
from attnlens.analysis.studies.outcome import StudyOutcome, outcome
from attnlens.analysis.studies.queue import State
from attnlens.analysis.studies.run import StudyOptions, held, planned, run
from attnlens.analysis.studies.work import TEXTS, Job, carry_out
from attnlens.checkpoints.seal import read_facts
from attnlens.core.errors import AttnlensError, CheckpointError, CorpusError, OutputExists
from tests.analysis.studies.small import BROKEN, FROZEN, GIVEN, GRID, small
from tests.conftest import Tuning

CLOCKED = ["seconds", "peak_memory"]  # what a machine that is busy changes
COMMAND = "from attnlens.analysis.studies.run import *; run({path!r}, StudyOptions(output={output!r}))"
Files = dict[Path, tuple[int, int]]


@dataclass(frozen=True)
class Ran:
    """A study that was run to its end, and all states that were seen on the way."""

    path: Path
    plan: Plan
    states: list[State]

    @property
    def seen(self) -> set[Cell]:
        """Cells that were worked on."""
        return {cell for state in self.states for cell in state.running}


def carried_out(path: Path, output: Path, *, processes: int = 1) -> Ran:
    states = list[State]()

    def watch(state: State) -> None:
        states.append(deepcopy(state))

    plan, last = run(path, StudyOptions(output=output, processes=processes, watch=watch))
    assert vars(last) == vars(states[-1]) and not last.running
    return Ran(path, plan, states)


def files(folder: Path) -> Files:
    """All files with size and time of their last change."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def until(condition: Callable[[], bool], *, seconds: float, told: str) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, told
        time.sleep(0.02)


def children(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def ended(process: int) -> bool:
    """Whether it works no more; a zombie waits for its parent alone."""
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# --- one study twice: undisturbed, two cells at a time; and killed, then finished one cell after the other ---------


@pytest.fixture(scope="module")
def undisturbed(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("undisturbed")
    return carried_out(small(folder, tuning, GRID, keep=False), folder / "study", processes=2)


@dataclass(frozen=True)
class Killed:
    """What was seen when a run was killed."""

    refused: str
    orphans: list[int]
    left: list[int]
    before: Files
    plan: Plan


@pytest.fixture(scope="module")
def killed(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Killed while the second learning rate trains, the first being tried; finished in this process, for speed."""
    folder = tmp_path_factory.mktemp("killed")
    path, output = small(folder, tuning, GRID), folder / "study"
    study = subprocess.Popen([sys.executable, "-c", COMMAND.format(path=str(path), output=str(output))])
    one, two = (output / Cell("tiny", "clauses", "full", rate, 0).path for rate in (1e-2, 3e-3))
    try:
        until(lambda: (two / BEGUN).is_file(), seconds=120, told="the second cell never began")
        with pytest.raises(OutputExists) as refused:
            run(path, StudyOptions(output=output))
        orphans, before = children(study.pid), files(one)
    finally:
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
    ends = time.monotonic() + 20  # they look once a second, where the machine lets them
    while not all(map(ended, orphans)) and time.monotonic() < ends:
        time.sleep(0.1)
    left = [process for process in orphans if not ended(process)]
    assert (one / TRAINED).is_file() and not (two / TRAINED).exists(), "killed too late to test anything"
    plan = planned(path, StudyOptions(output=output))
    for cells, measure in ((plan.grid, False), (plan.cells, True)):
        for cell in cells():
            carry_out(Job(plan, cell, measure), lambda stage, done, total: None)
    return Killed(str(refused.value), orphans, left, before, plan)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=CLOCKED, errors="ignore")


def same(one: StudyOutcome, other: StudyOutcome) -> None:
    for name in ("cells", "arms", "pairs", "profiles", "ranks", "selections"):
        pd.testing.assert_frame_equal(
            table(getattr(one, name)), table(getattr(other, name)), check_exact=True, obj=name
        )


def test_all_cells_have_rows_and_the_table_has_all_arms(undisturbed: Ran):
    plan, last = undisturbed.plan, undisturbed.states[-1]
    assert len(plan.cells()) == plan.size == last.total == 2 and last.finished == plan.cells() and last.failed == {}
    rates = {cell.rate for cell in plan.cells()}
    assert len(rates) == 1 and rates <= {1e-2, 3e-3}
    for cell in plan.cells():
        facts = read_facts(plan.folder / cell.path / ROW)
        assert facts is not None and facts["key"] == plan.key(cell)
        assert facts["threads"] == 1 and facts["device"] == "cpu"
    found = outcome(plan)
    assert found.arms["arm"].tolist() == ["full"] and found.arms["seeds"].tolist() == [2]
    assert "2 of 2 cells, 0 failed" in repr(found) and found.planned == 2


def test_the_chosen_rate_is_the_best_on_held_out_rows(undisturbed: Ran):
    plan = undisturbed.plan
    scores = {cell.rate: (read_facts(plan.folder / cell.path / TRAINED) or {})["held_out"] for cell in plan.grid()}
    assert plan.chosen("tiny", "clauses", plan.arm("full")) == max(sorted(scores), key=lambda rate: scores[rate])  # pyright: ignore


def test_progress_is_told_by_stage(undisturbed: Ran):
    stages = {progress[0] for state in undisturbed.states for progress in state.running.values()}
    assert {"starting", "training", "measuring"} <= stages
    assert max(len(state.running) for state in undisturbed.states) == 2


def test_weights_that_nobody_asked_for_are_gone(undisturbed: Ran, killed: Killed):
    assert not list(undisturbed.plan.folder.rglob("*.ckpt"))
    assert len(list(killed.plan.folder.rglob("tuned.ckpt"))) == 3  # two rates, and the second seed
    assert len(list(killed.plan.folder.rglob("tuned.null.ckpt"))) == 2


def test_a_second_run_runs_nothing(undisturbed: Ran):
    before = files(undisturbed.plan.folder / CELLS)
    again = carried_out(undisturbed.path, undisturbed.plan.folder)
    assert again.seen == set() and files(undisturbed.plan.folder / CELLS) == before
    assert again.states[-1].finished == undisturbed.plan.cells()


def test_a_second_run_at_once_is_refused(killed: Killed):
    assert "another run is at work in" in killed.refused and "choose another -o" in killed.refused


def test_processes_end_with_their_study(killed: Killed):
    assert killed.orphans and killed.left == []


def test_a_kill_loses_no_finished_cell(killed: Killed):
    """Of the cell that was trained, training was not repeated: its files are what they were."""
    after = files(killed.plan.folder)
    trained = {path: state for path, state in killed.before.items() if path.parent.name == "tuned.ckpt"}
    assert trained and all(after[path] == state for path, state in trained.items())


def test_a_kill_and_the_number_of_processes_change_no_number(undisturbed: Ran, killed: Killed):
    one, other = undisturbed.plan, killed.plan
    assert one.cells() == other.cells() and [one.key(c) for c in one.cells()] == [other.key(c) for c in other.cells()]
    same(outcome(one), outcome(other))
    for cell in one.cells():
        with np.load(one.folder / cell.path / TEXTS) as a, np.load(other.folder / cell.path / TEXTS) as b:
            np.testing.assert_array_equal(a["values"], b["values"])
    for cell in one.grid():
        assert read_facts(one.folder / cell.path / TRAINED) == read_facts(other.folder / cell.path / TRAINED)


# --- failures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("failing")
    return carried_out(small(folder, tuning, BROKEN, GIVEN, seeds="seeds = [0]"), folder / "study", processes=2)


def test_a_cell_that_fails_is_told_and_the_rest_goes_on(failing: Ran):
    last = failing.states[-1]
    broken, given = (Cell("tiny", "clauses", arm, None, 0) for arm in ("broken", "given"))
    assert last.finished == [given] and list(last.failed) == [broken] and last.total == 2
    assert "9" in last.failed[broken] and "block" in last.failed[broken]
    facts = read_facts(failing.plan.folder / broken.path / FAILED)
    assert (
        facts is not None and facts["error"] == last.failed[broken] and "TrainingError" in "".join(facts["traceback"])
    )
    found = outcome(failing.plan, last.failed)
    assert found.arms["arm"].tolist() == ["given"] and found.failed == last.failed and found.planned == 2


def test_what_failed_is_tried_again(failing: Ran):
    broken, given = (Cell("tiny", "clauses", arm, None, 0) for arm in ("broken", "given"))
    before = files(failing.plan.folder / CELLS)
    again = carried_out(failing.path, failing.plan.folder)
    assert again.seen == {broken} and list(again.states[-1].failed) == [broken] and not again.states[0].failed
    after = files(failing.plan.folder / CELLS)
    changed = {path.relative_to(failing.plan.folder) for path in after if before.get(path) != after[path]}
    assert broken.path / FAILED in changed and not any(path.is_relative_to(given.path) for path in changed)


# --- folders, before anything runs -------------------------------------------------------------------------------


@pytest.fixture
def finished(undisturbed: Ran, tmp_path: Path) -> Path:
    """A copy of the finished study."""
    return Path(shutil.copytree(undisturbed.plan.folder, tmp_path / "study"))


def test_cells_of_another_study_are_refused_and_force_clears_them(
    finished: Path, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = small(tmp_path / "other", tuning, GRID).read_text()
    path = tmp_path / "other" / "small.toml"
    path.write_text(text.replace("twin = true", "twin = false"), encoding="utf-8")
    before = files(finished / CELLS)
    with pytest.raises(OutputExists, match=r"holds cells of another study file.*full at .*--force to run such cells"):
        planned(path, StudyOptions(output=finished))
    assert files(finished / CELLS) == before
    forced = StudyOptions(output=finished, force=True)
    plan = planned(path, forced)
    assert files(finished / CELLS) == before  # a plan, of a dry run for one, removes nothing
    monkeypatch.setattr("attnlens.analysis.studies.run.run_cells", lambda plan, processes, watch: State())
    run(path, forced)
    assert files(finished / CELLS) == {} and plan.cells() == []  # the grid is open again


def test_a_second_run_is_refused_and_changes_nothing(
    finished: Path, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = small(tmp_path / "other", tuning, GRID)
    path.write_text(path.read_text().replace("twin = true", "twin = false"), encoding="utf-8")
    with held(small(tmp_path, tuning, GRID), StudyOptions(output=finished)):
        before = files(finished)
        for force in (False, True):
            with pytest.raises(OutputExists, match="another run is at work in"):
                run(path, StudyOptions(output=finished, force=force))
        assert files(finished) == before
    with held(small(tmp_path, tuning, GRID), StudyOptions(output=finished)):  # the first has let go
        pass


def test_other_weights_are_another_study(finished: Path, tuning: Tuning, tmp_path: Path):
    base = Path(shutil.copytree(tuning.base, tmp_path / "base.ckpt"))
    (base / "config.json").write_text((base / "config.json").read_text().replace("{", "{ ", 1))
    moved = Tuning(base, tuning.tuned, tuning.data)
    planned(small(tmp_path / "moved", moved, GRID), StudyOptions(output=finished))  # the same weights elsewhere
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(OutputExists, match="holds cells of another study file, or of other data"):
        planned(small(tmp_path / "moved", moved, GRID), StudyOptions(output=finished))


def test_a_seed_or_an_arm_more_goes_on_from_what_is_there(finished: Path, tuning: Tuning, tmp_path: Path):
    path = small(tmp_path / "more", tuning, GRID, GIVEN, FROZEN, seeds="seeds = [0, 1, 2]")
    plan = planned(path, StudyOptions(output=finished))
    missing = [cell for cell in plan.cells() if read_facts(finished / cell.path / ROW) is None]
    assert [(cell.arm, cell.seed) for cell in missing] == [
        *[("given", 0), ("head", 0), ("head", 1)],
        *[("full", 2), ("head", 2)],
    ]


def test_a_foreign_folder_is_never_written_into(tuning: Tuning, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    path = small(tmp_path / "file", tuning, GRID)
    for force in (False, True):
        with pytest.raises(OutputExists, match="is a folder but not a study's, so it is never written into"):
            planned(path, StudyOptions(output=tmp_path / "mine", force=force))
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["notes.txt"]


def test_a_fault_in_the_data_leaves_a_folder_that_the_next_run_takes(tuning: Tuning, tmp_path: Path):
    path = small(tmp_path, tuning, FROZEN)
    good = path.read_text()
    path.write_text(good + '\n[[data]]\nname = "more"\ntrain = "nowhere.jsonl"\ntest = "nowhere.jsonl"\n')
    with pytest.raises(CorpusError, match=r"nowhere.jsonl, which the study names, is not there"):
        planned(path, StudyOptions(output=tmp_path / "study"))
    path.write_text(good)
    assert planned(path, StudyOptions(output=tmp_path / "study")).size == 2


def test_given_checkpoints_belong_to_seeds(tuning: Tuning, tmp_path: Path):
    def plan(checkpoints: list[Path], seeds: str) -> Plan:
        named = ", ".join(f'"{path}"' for path in checkpoints)
        arm = f'[[arms]]\nname = "given"\ncheckpoints = [{named}]\n'
        return planned(small(tmp_path, tuning, arm, seeds=seeds), StudyOptions(output=tmp_path / "study"))

    assert plan([tuning.tuned], "seeds = [3, 0]").given == {"given": {0: str(tuning.tuned)}}  # its record tells
    assert plan([tuning.base], "seeds = [3, 0]").given == {"given": {3: str(tuning.base)}}  # it has none
    with pytest.raises(CheckpointError, match=r"tuned.ckpt was trained with seed 0, which is none of the study's"):
        plan([tuning.tuned], "seeds = [3]")
    with pytest.raises(CheckpointError, match=r"with seed 0, which another checkpoint of its arm has"):
        plan([tuning.tuned, tuning.tuned], "seeds = [0, 3]")
    with pytest.raises(CheckpointError, match="2 checkpoints were given for 1 seeds"):
        plan([tuning.tuned, tuning.base], "seeds = [0]")


@pytest.mark.parametrize("processes", [0, -1, True, 1.5])
def test_processes_are_counted(processes: int):
    with pytest.raises(AttnlensError, match="processes must be a whole number of at least 1; got"):
        StudyOptions(processes=processes)
