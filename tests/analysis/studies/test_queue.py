"""The queue by itself: what is run in which order, with processes that are none."""

from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from attnlens.analysis.studies import queue
from attnlens.analysis.studies.cells import FAILED, ROW, TRAINED, Cell, Plan
from attnlens.analysis.studies.queue import State, run_cells
from attnlens.analysis.studies.work import Job
from attnlens.checkpoints.seal import read_facts, write_facts
from tests.analysis.studies.test_cells import GRID, plan

SCORES = dict(zip(GRID, (0.1, 0.3, 0.2), strict=True))


class Instant:
    """Done as soon as it was begun; its word of progress is heard after it has ended, and then its last."""

    done: list[tuple[Cell, bool]]

    def __init__(self, job: Job, place: int, events: "SimpleQueue[int]"):
        self.job, self.progress, self.ended = job, ("measuring", 1, 1), True
        self.process = SimpleNamespace(returncode=0)
        self.done.append((job.cell, job.measure))
        self.work()
        events.put(place)
        events.put(place)

    def work(self) -> None:
        key = {"key": self.job.plan.key(self.job.cell)}
        if self.job.measure:
            write_facts(self.job.folder / ROW, key)
        else:
            assert self.job.cell.rate is not None
            write_facts(self.job.folder / TRAINED, key | {"held_out": SCORES[self.job.cell.rate]})


class Killed(Instant):
    """As when memory runs out: nothing is left behind, not even a reason."""

    def work(self) -> None:
        self.process.returncode = -9


def ran(some: Plan, worker: type[Instant], monkeypatch: pytest.MonkeyPatch, *, processes: int = 1) -> State:
    monkeypatch.setattr(queue, "_Worker", worker)
    worker.done = []
    return run_cells(some, processes, lambda state: None)


@pytest.mark.parametrize("processes", [1, 2, 20])
def test_grids_come_first_then_all_cells_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int):
    some = plan(tmp_path)
    state = ran(some, Instant, monkeypatch, processes=processes)
    assert [cell for cell, measure in Instant.done if not measure] == some.grid()
    measured = [cell for cell, measure in Instant.done if measure]
    assert sorted(measured, key=str) == sorted(some.cells(), key=str) and len(measured) == some.size == state.total
    assert {cell.rate for cell in measured if cell.arm == "full"} == {3e-3}
    assert state.finished == some.cells() and state.failed == {} and state.running == {}
    assert Instant.done[: len(some.grid())] == [(cell, False) for cell in some.grid()]
    ran(some, Instant, monkeypatch)
    assert Instant.done == []


def test_a_process_that_vanished_is_told_with_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    some = plan(tmp_path)
    state = ran(some, Killed, monkeypatch, processes=2)
    assert state.finished == [] and len(state.failed) == len(some.grid()) + 2 * 3  # no rate was chosen
    assert all(
        "its process ended with signal 9; if memory ran out, use fewer" in told for told in state.failed.values()
    )
    assert len(Killed.done) == len(set(Killed.done)), "each is tried once in a run"


def test_a_grid_with_a_failure_is_tried_again_before_it_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    some = plan(tmp_path)
    first, second, third = some.grid()[:3]
    for cell, score in ((first, 0.1), (third, 0.2)):
        write_facts(some.folder / cell.path / TRAINED, {"key": some.key(cell), "held_out": score})
    write_facts(some.folder / second.path / FAILED, {"key": "", "error": "no memory"})
    assert some.chosen("tiny", "one", some.arm("full")) == third.rate
    ran(some, Instant, monkeypatch, processes=20)
    assert (second, False) in Instant.done and read_facts(some.folder / second.path / FAILED) is None
    assert {cell.rate for cell, _ in Instant.done if cell.arm == "full" and cell.data == "one"} == {second.rate}
